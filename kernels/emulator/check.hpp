// The shadow memory of check.cpp, and the one way into it.
#pragma once

#include "runtime.hpp"

namespace emu {

struct Access {
  uint32_t epoch = 0, clock = 0;  // epoch 0: never
  uint32_t pc = 0;                // offset in the kernel's library, or a site: see kSite
  uint16_t thread = 0, flags = 0;
};
constexpr uint16_t kInFlight = 1, kAtomic = 2;

struct Cell {
  Access write, read, read_same, read_other;
};
struct Cells {
  Cell* cells = nullptr;
  size_t count = 0;
};
struct Site {
  const char* file;
  int line;
};
struct Start {  // a block, and the first epoch in which it ran
  uint32_t epoch;
  uint64_t block;
};

// Marks a `pc` that is an index of Shadow::sites; and of these, where a copy arrives, which the counters keep
// apart from where it comes from.
constexpr uint32_t kSite = 0x80000000u, kArrival = 0x40000000u;
inline size_t site_index(uint32_t pc) { return pc & ~(kSite | kArrival); }

struct Shadow {
  Cells fixed, dynamic;
  std::vector<Cells> arguments;
  uint32_t epoch = 0, first = 0;  // now; the running block's first
  std::vector<Start> starts;
  std::vector<Site> sites;
};

// Report::argument where shared memory is concerned.
constexpr int kFixedShared = -2, kDynamicShared = -3;

enum class How { Read, Write, Atomic, Issue };
struct Event {
  How how;
  uint32_t bytes, pc;
  bool counted = false;  // by the counters, apart from this
};
// Checks an access by the current thread; does not return if it is a bad one.
void access(Worker& w, uintptr_t address, const Event& event);

}  // namespace emu
