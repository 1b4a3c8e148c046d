// The runtime's data. A `Launch` is what the caller asked for; a `Worker` is an OS thread that takes blocks
// from it one at a time; a `Thread` is a CUDA thread of the block that a worker runs.
//
// A kernel owns nothing that would have to be given back (no heap, no locks, no destructors that matter),
// so a launch that goes wrong is left at once, from wherever it stands, by siglongjmp to the worker's loop:
// from a failed check, from the handler of SIGSEGV and its like, or from the signal that the watchdog
// sends. That is why launches need no helper process: the only memory that a stray pointer in fast mode
// could harm is what the guard regions around the arguments (memory.hpp) do not cover.
#pragma once

#include <setjmp.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "api.hpp"
#include "fiber.hpp"

namespace emu {

struct Place {  // of an event: `file` and `line` where the source told them, else `pc`
  char file[512];
  int32_t line;
  uint32_t block[3], thread[3];
  uint64_t pc;
};

struct Report {  // read by ctypes: keep convkit/cuda/emulator.py in step
  char kind[48];
  char text[768];
  Place at, other;
  int32_t has_other;
  int32_t argument;  // index of the argument concerned, or -1
  int64_t offset;    // of the access in bytes from the argument's first byte
  int32_t bytes;     // of the access
  int32_t is_write;
};

struct Slot {  // an argument in memory: see memory.hpp
  uintptr_t data = 0;
  size_t bytes = 0;
  bool writable = false, readable = true, null = true;
  uint32_t unit = 4;            // bytes per cell of its shadow
  unsigned char filler = 0xff;  // what stands around it
};

struct Launch {
  void (*entry)(void**);
  void** arguments;
  uint3 grid, block;
  uint32_t threads, warps;
  uint64_t blocks;
  size_t shared;
  void* (*anchor)();
  uint64_t module_low, module_high;
  bool seeded, check, counters;
  uint64_t seed;
  uint32_t unit;  // bytes per cell of the shadow of shared memory
  std::vector<Slot> slots;
  // Offsets of the bytes by which C++ remembers that an array of objects in __shared__ has been made: none
  // needs making, since CUDA allows no constructor there that does anything.
  std::vector<size_t> guards;
  // What printf has written, with the block that did; the first megabyte, as much as a GPU keeps.
  std::mutex print;
  std::vector<std::pair<uint64_t, std::string>> printed;
  size_t printed_bytes = 0, dropped_bytes = 0;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false}, timeout{false}, failed{false};
  Report report;
};

enum class State : uint8_t { Fresh, Ready, AtBarrier, AtWarp, Done };

struct Copy {  // an asynchronous copy that has been issued and not delivered
  void* to;
  const void* from;
  uint32_t bytes, valid, group;
  const char* file;
  int line;
};

struct Thread {
  Fiber fiber;
  int stack;  // index in the worker's pool
  uint32_t index, rank;
  uint3 at;
  State state;
  // where it waits, and with what
  const char* file;
  int line;
  int op, operand, width;
  uint32_t mask, bytes;
  alignas(16) unsigned char value[16];
  alignas(16) unsigned char result[16];
  // asynchronous copies
  std::vector<Copy> copies;
  uint32_t group;
  // check mode: how far this lane knows each lane of its warp to have come (see check.cpp)
  uint32_t clock[32];
};

struct Warp {
  uint32_t alive, waiting;
};

struct Shadow;  // check.hpp

struct Worker {
  Launch* launch = nullptr;
  sigjmp_buf escape;
  std::atomic<bool> running{false};
  Fiber main, scrap;
  std::vector<Stack> stacks;
  std::vector<int> free_stacks;
  size_t used_stacks = 0;

  Thread* current = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  uint64_t ready[16];
  uint32_t by_rank[1024];
  uint32_t arrived, left;
  const Thread* barrier_first;
  int barrier_kind, barrier_sum, barrier_result;
  uint64_t block_index, barriers, reshuffle_at, random, clock;

  // Shared memory: this OS thread's instance of the module's thread-locals, and the dynamic part.
  unsigned char* fixed_shared = nullptr;
  size_t fixed_bytes = 0;
  unsigned char* arena = nullptr;
  unsigned char* dynamic_shared = nullptr;

  // While the runtime touches memory on a kernel's behalf: the place in the source to blame.
  const char* blame_file = nullptr;
  int blame_line = 0;

  Shadow* shadow = nullptr;
};

extern __thread __attribute__((tls_model("initial-exec"))) Worker* worker;

// Bytes that a block can have on any GPU so far. The slack is for the module's own byte, and alignment.
constexpr size_t kFixedMost = 48 * 1024 + 64, kSharedMost = 227 * 1024 + 64;

// block.cpp
void run_blocks(Worker& w);
[[noreturn]] void leave(Worker& w);
// Starts a report, unless another worker has (then this one just leaves).
Report& report(Worker& w, const char* kind, const char* file = nullptr, int line = 0, uint64_t pc = 0);
void fill_place(Place& place, const Launch& launch, uint64_t block, uint32_t thread, const char* file,
                int line, uint64_t pc);
void name_other(Worker& w, Report& r, const Thread& t);
inline void set_ready(Worker& w, const Thread& t) { w.ready[t.rank >> 6] |= 1ull << (t.rank & 63); }
void all_ready(Worker& w);
void draw_ranks(Worker& w);
// Leaves if the launch is to stop: for functions of the runtime that a kernel may call for ever.
void stop_here(Worker& w);
// Lets other threads run until `t` is ready and the first in rank.
void wait(Worker& w, Thread& t);

// warp.cpp
void lane_left(Worker& w, const Thread& t);

// matrix.cpp
inline bool of_whole_warp(int op) { return op >= CKEMU_MMA_F16; }
void matrix_operation(Worker& w, uint32_t warp, uint32_t group);
// Starts the report of lanes that do not all come to one matrix operation.
Report& divergent_matrix(Worker& w, const Thread& t);

// check.cpp
void check_begin(Worker& w);
void check_end(Worker& w);
void check_block(Worker& w);
void check_barrier(Worker& w);
void check_syncwarp(Worker& w, uint32_t warp, uint32_t mask);
void check_issue(Worker& w, const Copy& copy);
void check_deliver(Worker& w, const Copy& copy);
void check_row(Worker& w, const void* row, const char* file, int line);
void check_element(Worker& w, const void* at, const char* file, int line);
void check_atomic(Worker& w, const void* at, uint32_t bytes, const char* file, int line);

// counters.cpp
void count(Worker& w, bool shared, bool write, uint64_t address, uint32_t bytes, uint32_t pc);
void counters_begin(Worker& w);
void counters_flush(Worker& w);
void counters_end(Worker& w);

}  // namespace emu
