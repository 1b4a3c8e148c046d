// Check mode: every load and store of a kernel, seen through the calls that the compiler's ThreadSanitizer
// pass puts in front of them (hooks.cpp), against shadow memory that knows who last wrote and read each
// cell.
//
// What is ordered. Two accesses of one block are ordered by a block barrier between them: each starts a new
// epoch. Within an epoch only threads of one warp can be ordered, by __syncwarp: each lane keeps a clock
// for every lane of its warp, joined when they meet (a vector clock, 32 wide). Shuffles and votes order
// nothing, as CUDA's manual has it. Blocks are never ordered. Two unordered accesses of different threads
// to one cell, at least one of them a write and not both atomic, are a race, whether or not it did harm
// this time.
//
// A cell remembers its last write and three reads: the last one, the last one by another thread of that
// warp, and the last one by another warp. So a write that races with any of many reads finds a witness.
//
// Cells are of 4 bytes, until a kernel makes a smaller access: then the launch starts over with cells of
// one byte (nothing has been written back yet). Inputs need no cells: nobody may write to them. Everything
// here runs on one OS thread, so that the same launch always yields the same report.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>

#include "check.hpp"
#include "memory.hpp"

namespace emu {

namespace {

uint32_t site_of(Shadow& s, const char* file, int line) {
  for (size_t i = 0; i < s.sites.size(); ++i)
    if (s.sites[i].line == line && s.sites[i].file == file) return kSite | static_cast<uint32_t>(i);
  s.sites.push_back({file, line});
  return kSite | static_cast<uint32_t>(s.sites.size() - 1);
}

// The block that was running in an epoch.
uint64_t block_of(const Shadow& s, uint32_t epoch) {
  size_t low = 0, high = s.starts.size();
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    if (s.starts[middle].epoch <= epoch)
      low = middle;
    else
      high = middle;
  }
  return s.starts[low].block;
}

void place(Worker& w, Place& p, uint64_t block, uint32_t thread, uint32_t pc) {
  const Shadow& s = *w.shadow;
  if (pc & kSite) {
    const Site& site = s.sites[site_index(pc)];
    fill_place(p, *w.launch, block, thread, site.file, site.line, 0);
  } else {
    fill_place(p, *w.launch, block, thread, nullptr, 0, w.launch->module_low + pc);
  }
}

// What an access concerns, for the report.
struct Target {
  int argument;  // index, or kFixedShared, kDynamicShared
  int64_t offset;
};

Report& accuse(Worker& w, const char* kind, const Target& target, const Event& e) {
  Report& r = report(w, kind);
  place(w, r.at, w.block_index, w.current->index, e.pc);
  r.argument = target.argument;
  r.offset = target.offset;
  r.bytes = static_cast<int32_t>(e.bytes);
  r.is_write = e.how != How::Read;
  return r;
}

[[noreturn]] void conflict(Worker& w, const Target& target, const Event& e, const Access& previous,
                           bool wrote) {
  const Shadow& s = *w.shadow;
  const bool blocks = previous.epoch < s.first;
  Report& r = accuse(w, blocks ? "two blocks, one address" : "race", target, e);
  r.has_other = 1;
  place(w, r.other, block_of(s, previous.epoch), previous.thread, previous.pc);
  snprintf(r.text, sizeof(r.text), "%s what another %s %s, with nothing that orders the two",
           e.how == How::Read ? "reads" : "writes", blocks ? "block" : "thread", wrote ? "writes" : "reads");
  leave(w);
}

inline bool unordered(const Worker& w, const Access& a, bool shared) {
  const Shadow& s = *w.shadow;
  if (a.epoch != s.epoch) return a.epoch && a.epoch < s.first && !shared;
  const Thread& me = *w.current;
  if (a.thread == me.index) return false;
  return (a.thread ^ me.index) >> 5 || me.clock[a.thread & 31] < a.clock;
}

// An access to a cell that the short way below does not settle: something to report, or a write.
__attribute__((noinline)) void touch(Worker& w, Cell& c, const Target& target, const Event& e,
                                     const Access& now, bool shared, bool readable) {
  const Shadow& s = *w.shadow;
  const bool atomic = e.how == How::Atomic, fresh = c.write.epoch < (shared ? s.first : 1);
  if (!fresh) {
    if (c.write.flags & kInFlight && (!shared || c.write.epoch >= s.first)) {
      Report& r = accuse(w, "write in flight", target, e);
      r.has_other = 1;
      place(w, r.other, block_of(s, c.write.epoch), c.write.thread, c.write.pc);
      snprintf(r.text, sizeof(r.text),
               "%s where an asynchronous copy is to arrive that has not been waited for",
               e.how == How::Read ? "reads" : "writes");
      leave(w);
    }
    if (!(atomic && c.write.flags & kAtomic) && unordered(w, c.write, shared))
      conflict(w, target, e, c.write, true);
  } else if ((e.how == How::Read || atomic) && !readable) {
    accuse(w, shared ? "uninitialised shared memory" : "uninitialised output", target, e);
    leave(w);
  }
  if (e.how == How::Read) return;
  for (const Access* a : {&c.read, &c.read_same, &c.read_other})
    if (unordered(w, *a, shared)) conflict(w, target, e, *a, false);
  c.write = now;
  c.read = c.read_same = c.read_other = Access{};
}

inline void touch_all(Worker& w, Cell* cells, uint32_t unit, size_t offset, const Target& target,
                      const Event& e, bool shared, bool readable) {
  if (unit == 4 && ((offset | e.bytes) & 3)) {
    report(w, "restart in bytes");
    leave(w);
  }
  const Shadow& s = *w.shadow;
  const Thread& me = *w.current;
  const Access now{s.epoch, me.clock[me.index & 31], e.pc, static_cast<uint16_t>(me.index),
                   static_cast<uint16_t>(e.how == How::Issue    ? kInFlight
                                         : e.how == How::Atomic ? kAtomic
                                                                : 0)};
  Cell* const end = cells + (offset + e.bytes + unit - 1) / unit;
  for (Cell* c = cells + offset / unit; c != end; ++c) {
    // The short way: a read of what this block wrote before its last barrier.
    const bool settled =
        e.how == How::Read && c->write.epoch - s.first < s.epoch - s.first && !c->write.flags;
    if (!settled) touch(w, *c, target, e, now, shared, readable);
    if (e.how != How::Read) continue;
    if (c->read.thread != now.thread || c->read.epoch < s.first) {
      if (c->read.epoch < s.first || (c->read.thread ^ now.thread) >> 5)
        c->read_other = c->read;
      else
        c->read_same = c->read;
    }
    c->read = now;
  }
}

inline bool counts(const Worker& w, const Event& e) {
  return w.launch->counters && e.how != How::Atomic && !e.counted;
}

void access_argument(Worker& w, uintptr_t a, const Event& e) {
  const Launch& launch = *w.launch;
  const int index = arena.index(a);
  const bool known =
      index < static_cast<int>(launch.slots.size()) && !launch.slots[static_cast<size_t>(index)].null;
  const int nearest = known ? index : nearest_argument(launch, a);
  if (nearest < 0) {
    Report& r = accuse(w, "wild access", {-1, 0}, e);
    snprintf(r.text, sizeof(r.text), "address 0x%llx", static_cast<unsigned long long>(a));
    leave(w);
  }
  const Slot& slot = launch.slots[static_cast<size_t>(nearest)];
  const Target target{nearest, static_cast<int64_t>(a - slot.data)};
  if (a - slot.data >= slot.bytes || slot.bytes - (a - slot.data) < e.bytes) {
    accuse(w, "out of bounds", target, e);
    leave(w);
  }
  if (counts(w, e)) count(w, false, e.how != How::Read, a - slot.data, e.bytes, e.pc);
  if (slot.writable) {
    touch_all(w, w.shadow->arguments[static_cast<size_t>(nearest)].cells, slot.unit, a - slot.data, target, e,
              false, slot.readable);
  } else if (e.how != How::Read) {
    accuse(w, "write to an input", target, e);
    leave(w);
  }
}

void access_elsewhere(Worker& w, uintptr_t a, const Event& e) {
  if (w.stacks[static_cast<size_t>(w.current->stack)].holds(a)) return;  // its own local variables
  if (a >= w.launch->module_low && a < w.launch->module_high)
    return;  // __device__ and __constant__ variables
  const auto fixed = reinterpret_cast<uintptr_t>(w.fixed_shared),
             dynamic = reinterpret_cast<uintptr_t>(w.dynamic_shared);
  constexpr uintptr_t near = 256 * 1024;
  const bool by_fixed = a - (fixed - near) < 2 * near + w.fixed_bytes;
  const bool by_dynamic = a - (dynamic - near) < 2 * near + w.launch->shared;
  if (by_fixed || by_dynamic) {
    accuse(w, "array overrun",
           by_dynamic ? Target{kDynamicShared, static_cast<int64_t>(a - dynamic)}
                      : Target{kFixedShared, static_cast<int64_t>(a - fixed)},
           e);
    leave(w);
  }
  Report& r = accuse(w, a < 65536 ? "null pointer" : "wild access", {-1, 0}, e);
  snprintf(r.text, sizeof(r.text), "address 0x%llx", static_cast<unsigned long long>(a));
  leave(w);
}

Cells map_cells(size_t count) {
  Cells c;
  c.count = count;
  if (!count) return c;
  void* p = mmap(nullptr, count * sizeof(Cell), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  c.cells = p == MAP_FAILED ? nullptr : static_cast<Cell*>(p);
  return c;
}
void unmap_cells(Cells& c) {
  if (c.cells) munmap(c.cells, c.count * sizeof(Cell));
  c = Cells{};
}

}  // namespace

void access(Worker& w, uintptr_t a, const Event& e) {
  const size_t fixed = a - reinterpret_cast<uintptr_t>(w.fixed_shared);
  if (fixed < w.fixed_bytes && w.fixed_bytes - fixed >= e.bytes) {
    if (counts(w, e)) count(w, true, e.how != How::Read, fixed, e.bytes, e.pc);
    touch_all(w, w.shadow->fixed.cells, w.launch->unit, fixed, {kFixedShared, static_cast<int64_t>(fixed)}, e,
              true, false);
    return;
  }
  const size_t dynamic = a - reinterpret_cast<uintptr_t>(w.dynamic_shared);
  if (dynamic < w.launch->shared && w.launch->shared - dynamic >= e.bytes) {
    if (counts(w, e)) count(w, true, e.how != How::Read, dynamic, e.bytes, e.pc);
    touch_all(w, w.shadow->dynamic.cells, w.launch->unit, dynamic,
              {kDynamicShared, static_cast<int64_t>(dynamic)}, e, true, false);
    return;
  }
  if (arena.holds(a))
    access_argument(w, a, e);
  else
    access_elsewhere(w, a, e);
}

// ---------------------------------------------------------------------------------------------------
// What the scheduler tells
// ---------------------------------------------------------------------------------------------------
void check_begin(Worker& w) {
  const Launch& launch = *w.launch;
  w.shadow = new Shadow;
  w.shadow->fixed = map_cells(w.fixed_bytes / launch.unit + 1);
  w.shadow->dynamic = map_cells(launch.shared / launch.unit + 1);
  for (const Slot& slot : launch.slots)
    w.shadow->arguments.push_back(map_cells(slot.writable && !slot.null ? slot.bytes / slot.unit + 1 : 0));
  if (launch.counters) counters_begin(w);
}

void check_end(Worker& w) {
  Shadow& s = *w.shadow;
  if (w.launch->counters) counters_end(w);
  unmap_cells(s.fixed);
  unmap_cells(s.dynamic);
  for (Cells& c : s.arguments) unmap_cells(c);
  delete w.shadow;
  w.shadow = nullptr;
}

void check_block(Worker& w) {
  Shadow& s = *w.shadow;
  s.first = ++s.epoch;
  s.starts.push_back({s.first, w.block_index});
  if (!w.launch->guards.empty()) {  // as if written before a barrier
    for (const size_t at : w.launch->guards) {
      for (size_t i = 0; i < 8; i += w.launch->unit) {
        if (at + i < w.fixed_bytes)
          s.fixed.cells[(at + i) / w.launch->unit].write = Access{s.first, 0, 0, 0, 0};
      }
    }
    ++s.epoch;
  }
  for (uint32_t i = 0; i < w.launch->threads; ++i) {
    memset(w.threads[i].clock, 0, sizeof(w.threads[i].clock));
    w.threads[i].clock[i & 31] = 1;
  }
}

void check_barrier(Worker& w) {
  ++w.shadow->epoch;
  if (w.launch->counters) counters_flush(w);
}

void check_syncwarp(Worker& w, uint32_t warp, uint32_t mask) {
  Thread* lanes = &w.threads[warp * 32];
  uint32_t joined[32] = {};
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint32_t* clock = lanes[__builtin_ctz(rest)].clock;
    for (int i = 0; i < 32; ++i)
      if (clock[i] > joined[i]) joined[i] = clock[i];
  }
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    memcpy(lanes[lane].clock, joined, sizeof(joined));
    ++lanes[lane].clock[lane];
  }
}

void check_issue(Worker& w, const Copy& copy) {
  const uint32_t site = site_of(*w.shadow, copy.file, copy.line);
  if (copy.valid) access(w, reinterpret_cast<uintptr_t>(copy.from), {How::Read, copy.valid, site});
  access(w, reinterpret_cast<uintptr_t>(copy.to), {How::Issue, copy.bytes, site | kArrival});
}

void check_deliver(Worker& w, const Copy& copy) {
  Shadow& s = *w.shadow;
  const auto a = reinterpret_cast<uintptr_t>(copy.to);
  const size_t fixed = a - reinterpret_cast<uintptr_t>(w.fixed_shared);
  const bool is_fixed = fixed < w.fixed_bytes;
  const size_t offset = is_fixed ? fixed : a - reinterpret_cast<uintptr_t>(w.dynamic_shared);
  Cell* cells = is_fixed ? s.fixed.cells : s.dynamic.cells;
  for (size_t i = offset / w.launch->unit; i <= (offset + copy.bytes - 1) / w.launch->unit; ++i) {
    Access& write = cells[i].write;
    write.epoch = s.epoch;
    write.clock = w.current->clock[w.current->index & 31];
    write.flags = 0;
  }
}

// A row of a matrix that ldmatrix takes, told for the lane that has its address: its bounds, and the counters,
// for which the 8 rows of a matrix are what 8 lanes read at once.
void check_row(Worker& w, const void* row, const char* file, int line) {
  constexpr uint32_t bytes = 16;
  const uint32_t site = site_of(*w.shadow, file, line);
  access(w, reinterpret_cast<uintptr_t>(row), {How::Read, bytes, site});
}

// Four bytes of it, told for a lane that gets elements of them: what wrote them is to be ordered before it.
void check_element(Worker& w, const void* at, const char* file, int line) {
  access(w, reinterpret_cast<uintptr_t>(at), {How::Read, 4, site_of(*w.shadow, file, line), true});
}

void check_atomic(Worker& w, const void* at, uint32_t bytes, const char* file, int line) {
  access(w, reinterpret_cast<uintptr_t>(at), {How::Atomic, bytes, site_of(*w.shadow, file, line)});
}

}  // namespace emu
