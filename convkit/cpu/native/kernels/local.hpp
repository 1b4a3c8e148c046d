// Small things that the kernels bound by memory share: scratch of a thread, and how work is cut.
#pragma once

#include <cstdlib>
#include <new>

#include "simd.hpp"
#include "thread_pool.hpp"

namespace convkit {

// Scratch memory of the calling thread, kept from call to call: it grows to what was asked for at most, 8 MB
// or so. What is in it lasts until another kernel asks, on this thread.
inline float* local_floats(int64_t count) {
  struct Memory {
    float* floats = nullptr;
    int64_t size = 0;
    ~Memory() { std::free(floats); }
  };
  static thread_local Memory memory;
  if (count > memory.size) {
    std::free(memory.floats);
    memory.size = 0;
    memory.floats = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(round_up(4 * count, 64))));
    if (!memory.floats) throw std::bad_alloc();
    memory.size = count;
  }
  return memory.floats;
}

// Below this many bytes read and written, waking another thread costs more than it saves.
constexpr int64_t WORTH_WAKING = 64 * 1024;
inline int workers(int threads, int64_t bytes) { return bytes < WORTH_WAKING ? 1 : threads; }

// Bands of rows that each of N images is cut into: some 16 tasks in all, of at least `least_rows` rows each.
inline int64_t bands(int64_t N, int64_t rows, int64_t least_rows) {
  return most(1, least(ceil_div(16, most(1, N)), rows / least_rows));
}

// The lanes of register `part` of a block that hold one of the `channels` channels, which are left there.
CK_INLINE VI lanes_below(int64_t channels, int part) {
  VI lane;
  CK_UNROLL
  for (int l = 0; l < LANES; ++l) lane[l] = part * LANES + l;
  return lane < VI{} + static_cast<int>(least(channels, BLOCK));
}
CK_INLINE V masked(VI mask, V v) { return mask ? v : V{}; }

// Whether any lane is set.
CK_INLINE bool any(VI mask) {
  std::int32_t lanes[LANES], all = 0;
  std::memcpy(lanes, &mask, sizeof lanes);
  for (int l = 0; l < LANES; ++l) all |= lanes[l];
  return all != 0;
}

}  // namespace convkit
