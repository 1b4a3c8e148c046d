// Where a kernel's array arguments live while it runs.
//
// One range of addresses is reserved (which costs no memory) and cut into equal slots, an argument in the
// middle of each, everything around it inaccessible; slots are far enough apart that no 32-bit index,
// positive or negative, leads from one array into another.
//
// A copy begins where the caller's array does, modulo 16 in fast mode and modulo 256 in check mode: a view at
// an odd element reaches the kernel as one. In fast mode the array also ends where its pages end, so that the
// first byte past it faults, or past the next multiple of 16; these bytes, and those before the array in its
// first page, are poisoned, and whoever writes there is found after the launch. In check mode bounds are
// exact.
//
// Arguments at one address are one array: an output in an input's place. Inputs are read-only pages; outputs
// are copied back by a launch that went well, so that a failed one leaves no trace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime.hpp"

namespace emu {

struct Arena {
  unsigned char* low = nullptr;
  size_t stride = 0;  // bytes from slot to slot
  int slots = 0;

  bool holds(uintptr_t a) const {
    return a - reinterpret_cast<uintptr_t>(low) < stride * static_cast<size_t>(slots);
  }
  int index(uintptr_t a) const { return static_cast<int>((a - reinterpret_cast<uintptr_t>(low)) / stride); }
};
extern Arena arena;

// Makes room for an argument and copies it in; false where there is no memory.
bool place_argument(int index, const void* data, size_t bytes, bool flush, Slot& slot);
void protect_argument(const Slot& slot);
// Whether the poison around an argument in fast mode has been written to, and how far from its first byte.
bool touched_outside(const Slot& slot, int64_t& offset);
// Gives back the pages of large arguments, keeps those of small ones for the next launch.
void release_argument(int index);
// The argument that an address belongs to or is nearest to, or -1.
int nearest_argument(const Launch& launch, uintptr_t address);

}  // namespace emu
