// See memory.hpp.
#include "memory.hpp"

#include <sys/mman.h>

#include <cstring>

namespace emu {

Arena arena;

static constexpr int kSlots = 32;
static constexpr size_t kPage = 4096, kKeep = size_t(32) << 20;
// What CUDA's widest access asks for, and what cudaMalloc gives.
static constexpr size_t kFastAlignment = 16, kCheckAlignment = 256;
static size_t committed[kSlots];  // bytes below a slot's end that have pages, as of its last launch

static size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
static unsigned char* end_of(int index) {
  return arena.low + arena.stride * static_cast<size_t>(index) + arena.stride / 2;
}

static bool reserve() {
  if (arena.low) return true;
  // 64 GB apart, or nearer where the system limits address space.
  for (size_t stride = size_t(64) << 30; stride >= size_t(64) << 20; stride /= 4) {
    void* p = mmap(nullptr, stride * kSlots, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) continue;
    arena.low = static_cast<unsigned char*>(p);
    arena.stride = stride;
    arena.slots = kSlots;
    return true;
  }
  return false;
}

bool place_argument(int index, const void* data, size_t bytes, bool flush, Slot& slot) {
  if (index >= kSlots || !reserve()) return false;
  unsigned char* end = end_of(index);
  // Bytes from the first one to the end of the pages, of which the distance to a multiple of `kept` decides.
  const size_t kept = flush ? kFastAlignment : kCheckAlignment;
  const size_t room = bytes + (0 - reinterpret_cast<uintptr_t>(data) - bytes) % kept;
  const size_t need = pages(room);
  if (need > arena.stride / 2) return false;
  if (committed[index] > need) mprotect(end - committed[index], committed[index] - need, PROT_NONE);
  if (need && mprotect(end - need, need, PROT_READ | PROT_WRITE)) return false;
  if (need > committed[index]) committed[index] = need;
  unsigned char* start = end - room;
  memset(end - need, slot.filler, need - room);
  if (bytes) memcpy(start, data, bytes);
  memset(start + bytes, slot.filler, room - bytes);
  slot.data = reinterpret_cast<uintptr_t>(start);
  slot.bytes = bytes;
  slot.null = false;
  return true;
}

bool touched_outside(const Slot& slot, int64_t& offset) {
  const auto changed = [&](uintptr_t a) {
    if (*reinterpret_cast<const unsigned char*>(a) == slot.filler) return false;
    const int64_t unit = slot.unit;  // of the element, of which the first bytes may be as they were
    offset = static_cast<int64_t>(a - slot.data) & -unit;
    return true;
  };
  for (uintptr_t a = slot.data + slot.bytes; a % kPage; ++a)
    if (changed(a)) return true;
  for (uintptr_t a = slot.data; a-- % kPage;)
    if (changed(a)) return true;
  return false;
}

void protect_argument(const Slot& slot) {
  const uintptr_t low = slot.data / kPage * kPage;
  if (slot.bytes) mprotect(reinterpret_cast<void*>(low), pages(slot.data + slot.bytes - low), PROT_READ);
}

void release_argument(int index) {
  if (committed[index] <= kKeep) return;
  madvise(end_of(index) - committed[index], committed[index], MADV_DONTNEED);
  mprotect(end_of(index) - committed[index], committed[index], PROT_NONE);
  committed[index] = 0;
}

int nearest_argument(const Launch& launch, uintptr_t address) {
  if (!arena.holds(address)) return -1;
  int best = -1;
  uintptr_t least = ~uintptr_t(0);
  for (int i = 0; i < static_cast<int>(launch.slots.size()); ++i) {
    const Slot& slot = launch.slots[i];
    if (slot.null) continue;
    const uintptr_t end = slot.data + slot.bytes;
    const uintptr_t distance = address < slot.data ? slot.data - address : address >= end ? address - end : 0;
    if (distance < least) least = distance, best = i;
  }
  return best;
}

}  // namespace emu
