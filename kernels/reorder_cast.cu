// reorder_cast
//   y = x, rounded to nearest: from float32 to 16 bits, in the order in which it lies
//
// Tiling   a thread makes ELEMENTS elements, CHUNKS times 8 of them: two accesses of 16 bytes for x, one for y. All
//          are read before any is written.
// Traffic  6 bytes for each element
// Bound    DRAM bandwidth; predicted 90 % of the copy rate
//
// /// kernel
// op     = "reorder"
// dtypes = ["float16/float32", "bfloat16/float32"]
// tile   = { THREADS = 256, ELEMENTS = 16 }
// tune   = { THREADS = [128, 256, 512], ELEMENTS = [8, 16, 32] }
// grid   = ["blocks"]
// block  = ["THREADS"]
// when   = "blocks < 2147483648"
// rank   = 10
// [let]
// blocks = "ceil_div(N*C*H*W, THREADS * ELEMENTS)"
// ///

#include "storage.cuh"

constexpr int CHUNKS = ELEMENTS / PACK;
static_assert(ELEMENTS % PACK == 0 && sizeof(storage_t) == 2, "whole packs of 16 bits");

struct Floats {
  float4 parts[2];
  __device__ __forceinline__ float& operator[](int i) { return reinterpret_cast<float*>(parts)[i]; }
};

extern "C" __launch_bounds__(THREADS) __global__
    void reorder_cast(GEOMETRY(Reorder), const param_t* __restrict__ x, storage_t* __restrict__ y) {
  const long long size = static_cast<long long>(g.N) * g.C * g.H * g.W;
  const bool vector_x = aligned(x), vector_y = aligned(y);
  Floats read[CHUNKS];
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const long long i = chunk_start(chunk, ELEMENTS);
    if (vector_x && i + PACK <= size) {
      read[chunk].parts[0] = *reinterpret_cast<const float4*>(x + i);
      read[chunk].parts[1] = *reinterpret_cast<const float4*>(x + i + 4);
    } else {
#pragma unroll
      for (int j = 0; j < PACK; ++j) read[chunk][j] = i + j < size ? x[i + j] : 0.0f;
    }
  }
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    Pack pack;
#pragma unroll
    for (int j = 0; j < PACK; ++j) pack[j] = from_float(read[chunk][j]);
    store_pack(y, chunk_start(chunk, ELEMENTS), size, vector_y, pack);
  }
}
