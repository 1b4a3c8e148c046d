// One block on one OS thread: its CUDA threads as fibers, and the barriers where they meet.
//
// A thread runs until it must wait. Until the first one does, all run one after the other on a single
// stack, so a kernel without barriers is a plain loop. Which thread goes on is a matter of rank: the ready
// thread of lowest rank. Without a seed ranks are thread indices. With one, each block draws random ranks
// by warp and by lane, and draws anew after a few barriers: a thread of high rank then runs as far ahead of
// another as barriers allow, which is what brings a missing barrier to light (a uniformly random choice at
// each step keeps all threads abreast).
//
// When no thread can go on and some have not finished, the block is stuck; `stuck` says why.
#include <sched.h>

#include <cstdio>
#include <cstring>

#include "runtime.hpp"

#define CONVKIT_TLS __thread __attribute__((tls_model("initial-exec"), visibility("default")))
extern "C" {
CONVKIT_TLS uint3 threadIdx;
CONVKIT_TLS uint3 blockIdx;
CONVKIT_TLS uint3 blockDim;
CONVKIT_TLS uint3 gridDim;
CONVKIT_TLS void* ckemu_dynamic;
}

#if !defined(CONVKIT_UCONTEXT)
asm(R"(
.text
.p2align 4
.globl ckemu_switch
.hidden ckemu_switch
.type ckemu_switch, @function
ckemu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ckemu_switch, . - ckemu_switch
)");
#endif

namespace emu {

__thread __attribute__((tls_model("initial-exec"))) Worker* worker = nullptr;

static uint32_t next_random(uint64_t& state) {  // SplitMix64
  uint64_t z = state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((z ^ z >> 31) >> 32);
}

// ---------------------------------------------------------------------------------------------------
// Reports
// ---------------------------------------------------------------------------------------------------
void leave(Worker& w) {
  w.launch->stop = true;
  siglongjmp(w.escape, 1);
}

void fill_place(Place& place, const Launch& launch, uint64_t block, uint32_t thread, const char* file,
                int line, uint64_t pc) {
  memset(&place, 0, sizeof(place));
  if (file) snprintf(place.file, sizeof(place.file), "%s", file);
  place.line = line;
  place.pc = pc;
  place.block[0] = static_cast<uint32_t>(block % launch.grid.x);
  place.block[1] = static_cast<uint32_t>(block / launch.grid.x % launch.grid.y);
  place.block[2] = static_cast<uint32_t>(block / launch.grid.x / launch.grid.y);
  place.thread[0] = thread % launch.block.x;
  place.thread[1] = thread / launch.block.x % launch.block.y;
  place.thread[2] = thread / launch.block.x / launch.block.y;
}

Report& report(Worker& w, const char* kind, const char* file, int line, uint64_t pc) {
  Launch& launch = *w.launch;
  if (launch.failed.exchange(true)) leave(w);
  Report& r = launch.report;
  memset(&r, 0, sizeof(r));
  r.argument = -1;
  snprintf(r.kind, sizeof(r.kind), "%s", kind);
  fill_place(r.at, launch, w.block_index, w.current ? w.current->index : 0, file, line, pc);
  return r;
}

void name_other(Worker& w, Report& r, const Thread& t) {
  r.has_other = 1;
  fill_place(r.other, *w.launch, w.block_index, t.index, t.file, t.line, 0);
}

// ---------------------------------------------------------------------------------------------------
// Which thread goes on
// ---------------------------------------------------------------------------------------------------
void draw_ranks(Worker& w) {
  const uint32_t threads = w.launch->threads, warps = w.launch->warps;
  if (!w.launch->seeded) {
    for (uint32_t i = 0; i < threads; ++i) w.by_rank[i] = w.threads[i].rank = i;
    return;
  }
  uint32_t order[32], rank = 0;
  for (uint32_t i = 0; i < warps; ++i) {
    const uint32_t j = next_random(w.random) % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (uint32_t i = 0; i < warps; ++i) {
    const uint32_t first = order[i] * 32, lanes = threads - first < 32 ? threads - first : 32;
    for (uint32_t lane = 0; lane < lanes; ++lane) {
      const uint32_t j = next_random(w.random) % (lane + 1);
      w.by_rank[rank + lane] = w.by_rank[rank + j];
      w.by_rank[rank + j] = first + lane;
    }
    rank += lanes;
  }
  for (uint32_t i = 0; i < threads; ++i) w.threads[w.by_rank[i]].rank = i;
  w.reshuffle_at = w.barriers + 1 + next_random(w.random) % 8;
}

void all_ready(Worker& w) {
  const uint32_t threads = w.launch->threads;
  for (uint32_t i = 0; i < 16; ++i) {
    const uint32_t first = i * 64;
    w.ready[i] = first >= threads ? 0 : threads - first >= 64 ? ~0ull : (1ull << (threads - first)) - 1;
  }
}

[[noreturn]] static void timed_out(Worker& w) {
  const Thread& t = *w.current;
  report(w, "timeout", t.file, t.line);
  leave(w);
}

void stop_here(Worker& w) {
  if (__builtin_expect(!w.launch->stop.load(std::memory_order_relaxed), 1)) return;
  if (w.launch->timeout) timed_out(w);
  leave(w);
}

static Thread* pick(Worker& w) {
  stop_here(w);
  for (uint32_t i = 0; i < 16; ++i) {
    if (!w.ready[i]) continue;
    const uint32_t bit = static_cast<uint32_t>(__builtin_ctzll(w.ready[i]));
    w.ready[i] &= w.ready[i] - 1;
    return &w.threads[w.by_rank[i * 64 + bit]];
  }
  return nullptr;
}

static void enter(Worker& w, Thread& t) {
  w.current = &t;
  threadIdx = t.at;
}

[[noreturn]] static void stuck(Worker& w);

static void finish(Worker& w, Thread& t) {
  t.state = State::Done;
  --w.left;
  lane_left(w, t);
}

// The body of every fiber: CUDA threads one after the other for as long as fresh ones are next in rank.
static void fiber_body() {
  Worker& w = *worker;
  for (;;) {
    Thread& t = *w.current;
    w.launch->entry(w.launch->arguments);
    finish(w, t);
    Thread* next = pick(w);
    if (!next) {
      if (w.left) stuck(w);
      switch_to(w.scrap, w.main);
    }
    enter(w, *next);
    if (next->state == State::Fresh) {
      next->state = State::Ready;
      next->stack = t.stack;
    } else {
      w.free_stacks.push_back(t.stack);  // this one: nobody can take it before the switch
      switch_to(w.scrap, next->fiber);
    }
  }
}

static void start(Worker& w, Thread& t) {
  if (!w.free_stacks.empty()) {
    t.stack = w.free_stacks.back();
    w.free_stacks.pop_back();
  } else {
    if (w.used_stacks == w.stacks.size()) w.stacks.push_back(Stack::make(w.stacks.size()));
    t.stack = static_cast<int>(w.used_stacks++);
  }
  if (!w.stacks[t.stack].low) {
    Report& r = report(w, "out of memory");
    snprintf(r.text, sizeof(r.text), "no memory for the stack of a thread");
    leave(w);
  }
  t.state = State::Ready;
  prepare(t.fiber, w.stacks[t.stack], fiber_body);
}

void wait(Worker& w, Thread& t) {
  Thread* next = pick(w);
  if (!next) stuck(w);
  if (next == &t) return;
  if (next->state == State::Fresh) start(w, *next);
  enter(w, *next);
  switch_to(t.fiber, next->fiber);
}

// ---------------------------------------------------------------------------------------------------
// Why nothing goes on
// ---------------------------------------------------------------------------------------------------
static void stuck(Worker& w) {
  const Thread *at_barrier = nullptr, *at_warp = nullptr, *done = nullptr;
  for (uint32_t i = w.launch->threads; i-- > 0;) {
    const Thread& t = w.threads[i];
    if (t.state == State::AtBarrier) at_barrier = &t;
    if (t.state == State::AtWarp) at_warp = &t;
    if (t.state == State::Done) done = &t;
  }
  if (at_warp) {
    w.current = const_cast<Thread*>(at_warp);
    const Warp& warp = w.warps[at_warp->index >> 5];
    const uint32_t missing = at_warp->mask & warp.alive & ~warp.waiting;
    const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(missing ? missing : at_warp->mask));
    const Thread& other = w.threads[(at_warp->index & ~31u) + lane];
    if (of_whole_warp(at_warp->op)) {
      Report& r = divergent_matrix(w, *at_warp);
      snprintf(r.text, sizeof(r.text), "lane %u never gets here: it waits elsewhere", lane);
      name_other(w, r, other);
      leave(w);
    }
    const bool mask_is_wrong = missing && at_warp->op != CKEMU_SYNCWARP;
    Report& r = report(w, mask_is_wrong ? "bad mask" : "deadlock", at_warp->file, at_warp->line);
    snprintf(r.text, sizeof(r.text),
             "its mask 0x%08x names lane %u, which never gets here: it waits elsewhere", at_warp->mask, lane);
    name_other(w, r, other);
  } else if (at_barrier && done) {
    w.current = const_cast<Thread*>(at_barrier);
    Report& r = report(w, "exit before a barrier", at_barrier->file, at_barrier->line);
    snprintf(r.text, sizeof(r.text), "%u of %u threads wait at this barrier, the others have left the kernel",
             w.arrived, w.launch->threads);
    r.has_other = 1;
    fill_place(r.other, *w.launch, w.block_index, done->index, nullptr, 0, 0);
  } else {
    Report& r = report(w, "deadlock");
    snprintf(r.text, sizeof(r.text), "no thread of the block can go on");
  }
  leave(w);
}

// ---------------------------------------------------------------------------------------------------
// Blocks
// ---------------------------------------------------------------------------------------------------
static void run_block(Worker& w, uint64_t index) {
  Launch& launch = *w.launch;
  w.block_index = index;
  w.current = nullptr;
  blockIdx = {static_cast<uint32_t>(index % launch.grid.x),
              static_cast<uint32_t>(index / launch.grid.x % launch.grid.y),
              static_cast<uint32_t>(index / launch.grid.x / launch.grid.y)};
  memset(w.fixed_shared, 0xff, w.fixed_bytes);
  memset(w.dynamic_shared, 0xff, launch.shared);
  w.free_stacks.clear();
  w.used_stacks = 0;
  w.arrived = 0;
  w.left = launch.threads;
  w.barriers = 0;
  w.clock = 0;
  w.random = launch.seed * 0x9e3779b97f4a7c15ull + index;
  for (uint32_t i = 0; i < launch.threads; ++i) {
    Thread& t = w.threads[i];
    t.state = State::Fresh;
    t.file = nullptr;
    t.line = 0;
    t.copies.clear();
    t.group = 0;
  }
  for (uint32_t i = 0; i < launch.warps; ++i) {
    const uint32_t lanes = launch.threads - i * 32;
    w.warps[i] = {lanes >= 32 ? ~0u : (1u << lanes) - 1, 0};
  }
  draw_ranks(w);
  all_ready(w);
  if (launch.check) check_block(w);
  Thread& first = *pick(w);
  start(w, first);
  enter(w, first);
  switch_to(w.main, first.fiber);
  if (launch.counters) counters_flush(w);
}

void run_blocks(Worker& w) {
  Launch& launch = *w.launch;
  ckemu_dynamic = w.dynamic_shared;
  blockDim = launch.block;
  gridDim = launch.grid;
  if (w.threads.size() < launch.threads) w.threads.resize(launch.threads);
  w.warps.resize(launch.warps);
  for (uint32_t i = 0; i < launch.threads; ++i) {
    Thread& t = w.threads[i];
    t.index = i;
    t.at = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
  }
  // A seed also permutes the blocks: i -> (a i + c) mod n with a coprime to n.
  uint64_t a = 1, c = 0, state = launch.seed;
  if (launch.seeded && launch.blocks > 1) {
    c = next_random(state) % launch.blocks;
    auto gcd = [](uint64_t x, uint64_t y) {
      while (y) {
        const uint64_t r = x % y;
        x = y;
        y = r;
      }
      return x;
    };
    do a = 1 + next_random(state) % launch.blocks;
    while (gcd(a, launch.blocks) != 1);
  }
  if (launch.check) check_begin(w);
  if (sigsetjmp(w.escape, 1) == 0) {
    w.running = true;
    if (w.fixed_bytes > kFixedMost || w.fixed_bytes + launch.shared > kSharedMost) {
      Report& r = report(w, "too much shared memory");
      snprintf(r.text, sizeof(r.text),
               "%zu bytes of __shared__ variables (of at most 48 KB), %zu dynamic ones", w.fixed_bytes,
               launch.shared);
      leave(w);
    }
    while (!launch.stop.load(std::memory_order_relaxed)) {
      const uint64_t i = launch.next.fetch_add(1);
      if (i >= launch.blocks) break;
      run_block(w, static_cast<uint64_t>((static_cast<unsigned __int128>(a) * i + c) % launch.blocks));
    }
  }
  w.running = false;
  if (launch.check) check_end(w);
}

}  // namespace emu
