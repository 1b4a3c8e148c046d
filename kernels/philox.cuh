// philox.cuh: Philox4x32-10, the counter-based generator of convkit/cpu/philox.py, bit for bit; and dropout
// by it. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "storage.cuh"

// The four words of a counter (its upper 64 bits are zero) under a key.
__device__ __forceinline__ uint4 philox(unsigned long long counter, unsigned long long key) {
  uint4 c = make_uint4(static_cast<unsigned>(counter), static_cast<unsigned>(counter >> 32), 0u, 0u);
  unsigned k0 = static_cast<unsigned>(key), k1 = static_cast<unsigned>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned long long product0 = 0xD2511F53ull * c.x;
    const unsigned long long product1 = 0xCD9E8D57ull * c.z;
    c = make_uint4(static_cast<unsigned>(product1 >> 32) ^ c.y ^ k0, static_cast<unsigned>(product1),
                   static_cast<unsigned>(product0 >> 32) ^ c.w ^ k1, static_cast<unsigned>(product0));
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// y[i] = word i % 4 of counter offset + i / 4 is below p * 2^32 ? 0 : x[i] * scale, for this thread's
// elements. The product p * 2^32 is exact, and rounded to nearest, ties to even, as Python rounds; for p = 1
// it has 33 bits.
template <int PER_THREAD>
__device__ __forceinline__ void philox_dropout(long long size, const storage_t* x, storage_t* y, double p,
                                               unsigned long long seed, unsigned long long offset,
                                               float scale) {
  static_assert(PER_THREAD % PACK == 0 && PACK % 4 == 0, "a thread moves whole packs, of whole counters");
  constexpr int CHUNKS = PER_THREAD / PACK;
  const unsigned long long threshold = static_cast<unsigned long long>(llrint(p * 4294967296.0));
  const bool vector = aligned(x) && aligned(y);
  Pack packs[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) packs[c] = load_pack(x, chunk_start(c, PER_THREAD), size, vector);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const long long i = chunk_start(c, PER_THREAD);
#pragma unroll
    for (int j = 0; j < PACK; j += 4) {
      const uint4 words = philox(offset + static_cast<unsigned long long>(i + j) / 4, seed);
      const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float kept = to_float(packs[c][j + e]) * scale;
        packs[c][j + e] = from_float(word[e] < threshold ? 0.0f : kept);
      }
    }
    store_pack(y, i, size, vector, packs[c]);
  }
}
