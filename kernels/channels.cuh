// channels.cuh: tensors in NHWC, where the channels of a pixel lie together: what a lane holds of them.
//
// A row is the channels of one group at one pixel, which lie side by side. It is cut into runs of CHANNELS of
// them, the last of which may be shorter; a lane has one run: 16 bytes of 16-bit elements, 32 of float32.
//   Run               a run as it is stored: words of 32 bits, and elements by index, as floats
//   load_run          the run at `from`; of it the first `count` elements exist, and the others come as zeros
//   store_run         rounds to storage, and writes the first `count`
//   vectored(row, p)  whether runs of p may be moved 128 bits at a time: rows of whole packs, and p aligned. It
//                     never changes a result.
//   positions         8 bits of each of CHANNELS channels, as argmax has them, in two words
#pragma once

#include "divider.cuh"
#include "storage.cuh"

static_assert(CHANNELS == 8, "two packs of float32, one of 16-bit elements");
constexpr int PACKS = CHANNELS / PACK;

struct Run {
  Pack packs[PACKS];
  static constexpr int WORDS = 4 * PACKS;
  // Indices must be constants after unrolling, so that the run stays in registers.
  __device__ __forceinline__ unsigned& word(int i) {
    return reinterpret_cast<unsigned*>(&packs[i / 4].words)[i % 4];
  }
  // Element i as a float. Of bfloat16 it is half of a word, which one instruction makes a float; by way of a
  // 16-bit number the upper half would take two.
  __device__ __forceinline__ float value(int i) {
#if defined(CONVKIT_STORAGE_bfloat16)
    return __uint_as_float(i % 2 ? word(i / 2) & 0xffff0000u : word(i / 2) << 16);
#else
    return to_float(packs[i / PACK][i % PACK]);
#endif
  }
};

template <class T>
__device__ __forceinline__ bool vectored(int row, const T* p) {
  return row % PACK == 0 && aligned(p);
}

__device__ __forceinline__ Run load_run(const storage_t* from, int count, bool vector) {
  Run run;
#pragma unroll
  for (int j = 0; j < PACKS; ++j) run.packs[j] = load_pack(from, j * PACK, count, vector);
  return run;
}

// Two elements in a word, the first in the lower half: one instruction of a GPU, where two roundings and a
// byte permutation are three.
#if defined(CONVKIT_STORAGE_float16)
__device__ __forceinline__ unsigned rounded_pair(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const unsigned*>(&pair);
}
#elif defined(CONVKIT_STORAGE_bfloat16)
__device__ __forceinline__ unsigned rounded_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const unsigned*>(&pair);
}
#endif

__device__ __forceinline__ Run rounded(const float (&values)[CHANNELS]) {
  Run run;
#pragma unroll
  for (int i = 0; i < Run::WORDS; ++i)
#if defined(CONVKIT_STORAGE_float32)
    run.word(i) = __float_as_uint(values[i]);
#else
    run.word(i) = rounded_pair(values[2 * i], values[2 * i + 1]);
#endif
  return run;
}

__device__ __forceinline__ void store_run(storage_t* to, int count, bool vector,
                                          const float (&values)[CHANNELS]) {
  Run run = rounded(values);
#pragma unroll
  for (int j = 0; j < PACKS; ++j) store_pack(to, j * PACK, count, vector, run.packs[j]);
}

struct Positions {
  unsigned words[CHANNELS / 4];
  __device__ __forceinline__ unsigned operator[](int i) const { return words[i / 4] >> i % 4 * 8 & 0xff; }
};

__device__ __forceinline__ bool vectored_bytes(int row, const void* p) {
  return row % CHANNELS == 0 && reinterpret_cast<unsigned long long>(p) % CHANNELS == 0;
}

__device__ __forceinline__ Positions load_positions(const unsigned char* from, int count, bool vector) {
  if (vector) {
    const uint2 both = *reinterpret_cast<const uint2*>(from);
    return {{both.x, both.y}};
  }
  Positions found = {};
#pragma unroll
  for (int j = 0; j < CHANNELS; ++j) found.words[j / 4] |= (j < count ? from[j] : 0u) << j % 4 * 8;
  return found;
}

__device__ __forceinline__ void store_positions(unsigned char* to, int count, bool vector,
                                                const unsigned (&positions)[CHANNELS]) {
  if (vector) {
    unsigned words[CHANNELS / 4] = {};
#pragma unroll
    for (int j = 0; j < CHANNELS; ++j) words[j / 4] |= positions[j] << j % 4 * 8;
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    return;
  }
#pragma unroll
  for (int j = 0; j < CHANNELS; ++j)
    if (j < count) to[j] = static_cast<unsigned char>(positions[j]);
}
