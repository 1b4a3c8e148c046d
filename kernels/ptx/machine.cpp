// How blocks, warps and lanes take turns, and what Python calls.
//
// One block runs after the other, by one thread of the host. A warp runs until each of its lanes has exited,
// waits at a barrier, or waits for others of the warp. Lanes that part at a branch become two groups; the
// one that is behind goes first, and where two come to the same instruction they are one again. PTX promises
// no more than that each lane gets on, so with a seed warps run in a random order, and with an odd seed
// the lanes of a warp run in two random parts that do not join before they must: what needs a
// `bar.warp.sync` and has none goes wrong then.
//
// There is no clock in this. A warp that has executed more instructions than it is allowed is stopped; a
// block in which nobody can go on is a deadlock at once.
#include "machine.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace ptx {
namespace {

constexpr u32 kNone = ~0u;
constexpr u32 kTurn =
    1 << 14;  // jumps back after which others get a turn: a lane may wait for them in a loop

const Table& table() {
  static const Table* made = [] {
    auto* t = new Table;
    add_integer(*t);
    add_floating(*t);
    add_convert(*t);
    add_sixteen(*t);
    add_memory(*t);
    add_warp(*t);
    add_copies(*t);
    add_matrix(*t);
    t->add({"bra", "", Kind::kBranch});
    t->add({"brx", "u32", Kind::kIndexedBranch});
    t->add({"exit", "", Kind::kExit});
    // Number of the barrier, how many lanes (0: all of the block), what is counted, and the result.
    const auto barrier = [t](const char* name, const char* signature, Barrier kind, bool aligned) {
      Operation row{name, signature, Kind::kBarrier};
      row.barrier = kind;
      row.aligned = aligned;
      t->add(row);
    };
    barrier("bar.sync", "u32,u32", Barrier::kSync, true);
    barrier("bar.arrive", "u32,u32", Barrier::kArrive, true);
    barrier("bar.red.popc.u32", "u32,u32,pred,>u32", Barrier::kPopc, true);
    barrier("bar.red.and.pred", "u32,u32,pred,>pred", Barrier::kAnd, true);
    barrier("bar.red.or.pred", "u32,u32,pred,>pred", Barrier::kOr, true);
    barrier("barrier.sync", "u32,u32", Barrier::kSync, false);
    barrier("barrier.arrive", "u32,u32", Barrier::kArrive, false);
    return t;
  }();
  return *made;
}

u32 first_of(u32 lanes) { return static_cast<u32>(__builtin_ctz(lanes)); }
u32 count_of(u32 lanes) { return static_cast<u32>(__builtin_popcount(lanes)); }

void fill(u8* to, size_t bytes) {
  for (size_t k = 0; k + 1 < bytes; k += 2) memcpy(to + k, &kPoison, 2);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------
// Groups of lanes
// ---------------------------------------------------------------------------------------------------
u64 Machine::next_random() {  // xorshift64*
  random ^= random >> 12;
  random ^= random << 25;
  random ^= random >> 27;
  return random * 0x2545f4914f6cdd1dull;
}

void Machine::add_group(Warp& w, Group group) {
  if (!apart)
    for (Group& other : w.groups)
      if (other.state == State::kRuns && group.state == State::kRuns && other.pc == group.pc) {
        other.lanes |= group.lanes;
        return;
      }
  w.groups.push_back(group);
}

// The group that runs next; -1 where none can. One that was at it for long comes behind the others.
int Machine::choose(const Warp& w) {
  int best = -1;
  for (size_t k = 0; k < w.groups.size(); ++k) {
    const Group& g = w.groups[k];
    if (g.state != State::kRuns) continue;
    if (best < 0 || g.turns < w.groups[best].turns ||
        (g.turns == w.groups[best].turns && !apart && g.pc < w.groups[best].pc))
      best = static_cast<int>(k);
  }
  return best;
}

// Joins groups that may run and are at one instruction; with an odd seed, parts them anew.
void Machine::regroup(Warp& w) {
  if (w.groups.size() == 1 && !apart) return;
  std::vector<Group> found;
  for (const Group& g : w.groups) {
    auto same = std::find_if(found.begin(), found.end(), [&](const Group& f) {
      return g.state == State::kRuns && f.state == State::kRuns && f.pc == g.pc;
    });
    if (same == found.end())
      found.push_back(g);
    else
      same->lanes |= g.lanes;
  }
  w.groups.clear();
  for (Group& g : found) {
    const u32 part = apart && g.state == State::kRuns ? g.lanes & static_cast<u32>(next_random() >> 32) : 0;
    if (part && part != g.lanes) {
      Group other = g;
      other.lanes = part;
      g.lanes &= ~part;
      w.groups.push_back(other);
    }
    w.groups.push_back(g);
  }
}

void Machine::count_steps(Warp& w, const Instr& i, u32 lanes, u32 target) {
  w.steps += i.index - target + 1;
  if (w.steps > spec.steps) stop(w, i, first_of(lanes), "timeout", "it jumps back here");
}

// ---------------------------------------------------------------------------------------------------
// Where lanes meet
// ---------------------------------------------------------------------------------------------------
// Runs the instruction that a group waits at if everybody whom it names is there.
bool Machine::settle(Warp& w, size_t number) {
  const Group mine = w.groups[number];
  const Operation* op = code[mine.pc].op;
  Part parts[kLanes];
  size_t count = 0;
  u32 there = 0;
  for (const Group& g : w.groups) {
    if (g.state != State::kMeets || g.members != mine.members || code[g.pc].op != op) continue;
    parts[count++] = {&code[g.pc], g.lanes};
    there |= g.lanes;
  }
  if (mine.members & w.live & ~there) return false;
  op->meet(w, parts, count, mine.members);
  for (Group& g : w.groups) {
    if (g.state != State::kMeets || g.members != mine.members || code[g.pc].op != op) continue;
    g.state = State::kRuns;
    ++g.pc;
  }
  regroup(w);
  return true;
}

void Machine::settle_all(Warp& w) {
  for (bool again = true; again;) {
    again = false;
    for (size_t k = 0; k < w.groups.size() && !again; ++k)
      again = w.groups[k].state == State::kMeets && settle(w, k);
  }
}

void Machine::leave(Warp& w, u32 lanes) {
  w.live &= ~lanes;
  live -= count_of(lanes);
  for (u32 id = 0; id < 16; ++id)
    if (barriers[id].arrived && !barriers[id].count && barriers[id].arrived >= live) release(id);
  settle_all(w);
}

// Some lanes come to a barrier, and wait there unless they only arrive.
void Machine::arrive(Warp& w, size_t number, const Instr& i, u32 lanes) {
  const u32 first = first_of(lanes), id = row<u32>(w, i.o[0])[first], count = row<u32>(w, i.o[1])[first];
  if (id > 15) stop(w, i, first, "bad barrier", "there are barriers 0 to 15");
  if (count % kLanes) stop(w, i, first, "bad barrier", "it counts whole warps");
  Meeting& b = barriers[id];
  if (b.arrived && b.count != count) stop(w, i, first, "bad barrier", "others came with another count");
  if (i.op->aligned)
    for (const Group& g : w.groups)
      if (g.state == State::kWaits && g.barrier == id && g.pc != i.index) {
        fault.other = static_cast<s32>(g.pc);
        stop(w, i, first, "divergent barrier");
      }
  b.count = count;
  b.arrived += count_of(lanes);
  if (i.op->barrier >= Barrier::kPopc) {
    const u32 true_ones = *row<u32>(w, i.o[2]) & lanes;
    b.expected += count_of(true_ones);
    b.all = b.all && true_ones == lanes;
    b.any = b.any || true_ones;
  }
  if (i.op->barrier != Barrier::kArrive) {
    w.groups[number].state = State::kWaits;
    w.groups[number].barrier = id;
  }
  if (b.arrived >= (count ? count : live)) release(id);
}

void Machine::release(u32 id) {
  const Meeting b = barriers[id];
  barriers[id] = Meeting{};
  for (Warp& w : warps) {
    for (Group& g : w.groups) {
      if (g.state != State::kWaits || g.barrier != id) continue;
      const Instr& i = code[g.pc];
      if (i.op->barrier == Barrier::kPopc) {
        each(g.lanes, [&](u32 l) { row<u32>(w, i.o[3])[l] = b.expected; });
      } else if (i.op->barrier >= Barrier::kAnd) {
        u32& to = *row<u32>(w, i.o[3]);
        const bool value = i.op->barrier == Barrier::kAnd ? b.all : b.any;
        to = (to & ~g.lanes) | (value ? g.lanes : 0);
      }
      g.state = State::kRuns;
      g.turns = 0;
      ++g.pc;
    }
    regroup(w);
  }
}

// ---------------------------------------------------------------------------------------------------
// Execution
// ---------------------------------------------------------------------------------------------------
// Runs a group until it waits, exits, or another one is to run. False: it was at it for long.
bool Machine::run_group(Warp& w, size_t number) {
  u32 pc = w.groups[number].pc, lanes = w.groups[number].lanes, jumps = 0;
  const u32 turns = w.groups[number].turns;
  const auto put_back = [&] {
    w.groups[number].pc = pc;
    w.groups[number].lanes = lanes;
  };
  const auto nearest = [&] {
    u32 found = kNone;
    for (size_t k = 0; k < w.groups.size() && !apart; ++k) {
      const Group& g = w.groups[k];
      if (k != number && g.state == State::kRuns && g.turns <= turns) found = std::min(found, g.pc);
    }
    return found;
  };
  u32 limit = nearest();
  const auto part = [&](Group other) {  // some lanes go their own way
    if (!other.lanes) return;
    put_back();
    w.groups[number].state = State::kWaits;  // so that the others are not put to it
    add_group(w, other);
    w.groups[number].state = State::kRuns;
    limit = nearest();
  };
  for (;;) {
    if (pc >= limit) {
      put_back();
      if (pc == limit) regroup(w);
      return true;
    }
    const Instr& i = code[pc];
    u32 on = lanes;
    if (i.guarded) {
      const u32 predicate = *row<u32>(w, i.guard);
      on &= i.negated ? ~predicate : predicate;
      if (!on) {
        ++pc;
        continue;
      }
    }
    if (__builtin_expect(i.kind == Kind::kPlain, 1)) {
      i.run(w, i, on);
      ++pc;
      continue;
    }
    u32 target = i.target;
    switch (i.kind) {
      case Kind::kPlain:
        break;
      case Kind::kIndexedBranch: {  // the targets stand behind the index, as rows of constants
        const u32* index = row<u32>(w, i.o[0]);
        const u32 chosen = index[first_of(on)];
        if (chosen >= static_cast<u64>(i.offset))
          stop(w, i, first_of(on), "bad branch", "beyond its targets");
        u32 same = 0;
        each(on, [&](u32 l) { same |= u32(index[l] == chosen) << l; });
        const u32 rest = on & ~same;
        part({pc + 1, lanes & ~on, State::kRuns, 0, 0, turns});
        lanes = on = same;
        part({pc, rest, State::kRuns, 0, 0, turns});
        target = row<u32>(w, i.o[1 + chosen])[0];
        [[fallthrough]];
      }
      case Kind::kBranch:
        if (on != lanes) {
          const u32 rest = lanes & ~on;
          lanes = on;
          part({pc + 1, rest, State::kRuns, 0, 0, turns});
        }
        pc = target;
        if (target > i.index) break;
        count_steps(w, i, on, target);
        if (++jumps < kTurn) break;
        put_back();
        ++w.groups[number].turns;
        return false;
      case Kind::kExit:
        if (on == lanes)
          w.groups.erase(w.groups.begin() + static_cast<std::ptrdiff_t>(number));
        else
          ++pc, lanes &= ~on, put_back();
        leave(w, on);
        return true;
      case Kind::kBarrier: {
        const u32 rest = lanes & ~on;
        lanes = on;
        part({pc + 1, rest, State::kRuns, 0, 0, turns});
        if (i.op->barrier == Barrier::kArrive) ++pc;
        put_back();
        arrive(w, number, i, on);
        return true;
      }
      case Kind::kMeet: {
        size_t last = static_cast<size_t>(std::count(i.op->signature.begin(), i.op->signature.end(), ','));
        const u32* masks = row<u32>(w, i.o[last]);
        const u32 members = masks[first_of(on)];
        u32 same = 0;
        each(on, [&](u32 l) { same |= u32(masks[l] == members) << l; });
        if (same & ~members) stop(w, i, first_of(same & ~members), "bad mask", "a lane does not name itself");
        if (same == lanes && !(members & w.live & ~same) && !apart) {
          const Part whole{&i, same};
          i.op->meet(w, &whole, 1, members);
          ++pc;
          break;
        }
        const u32 skip = lanes & ~on, others = on & ~same;
        lanes = same;
        part({pc + 1, skip, State::kRuns, 0, 0, turns});
        part({pc, others, State::kRuns, 0, 0, turns});
        put_back();
        w.groups[number].state = State::kMeets;
        w.groups[number].members = members;
        settle(w, number);
        return true;
      }
    }
  }
}

// Runs a warp as far as it gets; returns whether it did anything.
bool Machine::run_warp(Warp& w) {
  bool ran = false;
  for (int number; (number = choose(w)) >= 0; ran = true)
    if (!run_group(w, static_cast<size_t>(number))) return true;
  return ran;
}

void Machine::begin_warp(Warp& w) {
  const u32 threads = spec.block[0] * spec.block[1] * spec.block[2], before = w.index * kLanes;
  const u32 here = std::min(kLanes, threads - before);
  w.live = here == kLanes ? kEveryLane : (1u << here) - 1;
  w.steps = 0;
  fill(w.file + spec.fixed_bytes, spec.file_bytes - spec.fixed_bytes);
  fill(w.local, local_stride * kLanes);
  for (u32 k = 0; k < spec.special_count; ++k) {
    u32* to = row<u32>(w, spec.special[k].at);
    for (u32 l = 0; l < kLanes; ++l) {
      const u32 thread = before + l;
      const u32 values[] = {
          // in the order of SPECIAL in convkit/cuda/ptx/registers.py
          thread % spec.block[0],
          thread / spec.block[0] % spec.block[1],
          thread / spec.block[0] / spec.block[1],
          spec.block[0],
          spec.block[1],
          spec.block[2],
          ctaid[0],
          ctaid[1],
          ctaid[2],
          spec.grid[0],
          spec.grid[1],
          spec.grid[2],
          l,
          w.index,
          static_cast<u32>(warps.size()),
          1u << l,
          (2u << l) - 1,
          (1u << l) - 1,
          ~((1u << l) - 1),
          ~((2u << l) - 1),
          spec.dynamic_bytes,
      };
      to[l] = values[spec.special[k].which];
    }
  }
  w.copies.clear();
  for (u32& groups : w.committed) groups = 0;
  w.groups.assign(1, Group{0, w.live});
  regroup(w);
}

void Machine::block(u64 number) {
  ctaid[0] = static_cast<u32>(number % spec.grid[0]);
  ctaid[1] = static_cast<u32>(number / spec.grid[0] % spec.grid[1]);
  ctaid[2] = static_cast<u32>(number / spec.grid[0] / spec.grid[1]);
  live = spec.block[0] * spec.block[1] * spec.block[2];
  fill(shared, spec.shared_bytes);
  for (Meeting& b : barriers) b = Meeting{};
  for (Warp& w : warps) begin_warp(w);
  std::vector<u32> order(warps.size());
  for (u32 k = 0; k < order.size(); ++k) order[k] = k;
  while (live) {
    if (spec.seeded)
      for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[next_random() % k]);
    bool ran = false;
    for (const u32 k : order) ran |= run_warp(warps[k]);
    if (!ran) deadlock();
  }
}

void Machine::load() {
  const Table& t = table();
  code.resize(spec.code_count);
  for (u32 k = 0; k < spec.code_count; ++k) {
    const Code& c = spec.code[k];
    const Operation& op = t.rows[c.row];
    code[k] = {&op,      op.run,  spec.operands + c.operands, c.offset,          c.guard, k,
               c.target, op.kind, (c.flags & 1) != 0,         (c.flags & 2) != 0};
  }
}

void Machine::run() {
  load();
  const u32 threads = spec.block[0] * spec.block[1] * spec.block[2], count = (threads + kLanes - 1) / kLanes;
  const auto room = [](size_t bytes) {
    return std::unique_ptr<u8, decltype(&free)>(
        static_cast<u8*>(aligned_alloc(1024, (bytes + 1024) / 1024 * 1024)), free);
  };
  local_stride = (u64(spec.local_bytes) + 15) / 16 * 16;
  const size_t file = (size_t(spec.file_bytes) + 63) / 64 * 64, local = local_stride * kLanes;
  const auto files = room(file * count), locals = room(local * count), block_shared = room(spec.shared_bytes);
  if (!files || !locals || !block_shared) {
    snprintf(fault.kind, sizeof(fault.kind), "out of memory");
    throw Stop{};
  }
  shared = block_shared.get();
  random = spec.seed * 0x9e3779b97f4a7c15ull + 0xbf58476d1ce4e5b9ull;
  apart = spec.seeded && spec.seed % 2;
  for (u32 k = 0; k < count; ++k)
    warps.push_back({this, k, files.get() + file * k, locals.get() + local * k, 0, 0, {}, {}, {}});
  const u64 bases[] = {0, reinterpret_cast<u64>(spec.parameters), reinterpret_cast<u64>(spec.module)};
  for (const Warp& w : warps)
    for (u32 k = 0; k < spec.fixed_count; ++k) {
      const Fixed& f = spec.fixed[k];
      const u64 value = f.value + bases[f.base];
      for (u32 l = 0; l < kLanes; ++l) {
        memcpy(w.file + f.at + l * f.bytes, &value, f.bytes);
        if (f.single) break;
      }
    }
  const u64 blocks = u64(spec.grid[0]) * spec.grid[1] * spec.grid[2];
  std::vector<u64> order;
  if (spec.seeded && blocks <= (u64(1) << 22)) {
    order.resize(blocks);
    for (u64 k = 0; k < blocks; ++k) order[k] = k;
    for (u64 k = blocks; k > 1; --k) std::swap(order[k - 1], order[next_random() % k]);
  }
  const auto begin = std::chrono::steady_clock::now();
  for (u64 k = 0; k < blocks; ++k) {
    block(order.empty() ? k : order[k]);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (taken.count() > spec.seconds) {
      snprintf(fault.kind, sizeof(fault.kind), "timeout");
      snprintf(fault.text, sizeof(fault.text), "%llu of %llu blocks had ended",
               static_cast<unsigned long long>(k + 1), static_cast<unsigned long long>(blocks));
      throw Stop{};
    }
  }
}

}  // namespace ptx

extern "C" {
// The row of an operation, and its signature; -1 where there is none of that name.
__attribute__((visibility("default"))) int32_t ckptx_find(const char* name, char* signature, uint32_t size) {
  const auto& t = ptx::table();
  const auto found = t.by_name.find(name);
  if (found == t.by_name.end()) return -1;
  snprintf(signature, size, "%s", t.rows[found->second].signature.c_str());
  return static_cast<int32_t>(found->second);
}

// The name of a row; null behind the last one.
__attribute__((visibility("default"))) const char* ckptx_name(uint32_t row) {
  const auto& t = ptx::table();
  return row < t.rows.size() ? t.rows[row].name.c_str() : nullptr;
}

// Runs a launch: 0, or 1 where it went wrong, and then the fault says how.
__attribute__((visibility("default"))) int32_t ckptx_run(const ptx::Spec* spec, ptx::Fault* fault) {
  fault->at = fault->other = -1;
  fault->owner = ptx::kNobody;
  try {
    ptx::Machine(*spec, *fault).run();
  } catch (const ptx::Stop&) {
    return 1;
  } catch (const std::bad_alloc&) {
    snprintf(fault->kind, sizeof(fault->kind), "out of memory");
    return 1;
  }
  return 0;
}
}
