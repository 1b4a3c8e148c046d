// reorder_cast
//   y[i] = x[i], rounded from float32 to 16 bits: the layout stays as it is
//   The working copies of parameters in mixed precision: weights of fully connected layers, and biases.
//
// Tiling   a block makes THREADS * ELEMENTS elements, a thread ELEMENTS of them in packs of 8, which are 32
//          bytes of x and 16 of y, THREADS packs apart. All loads of a thread are issued before its first
//          store: 64 bytes in flight times 2048 threads is 128 KB for each SM, more than bandwidth times
//          latency needs. The two halves of a pack's x lie in one sector, which the second load finds in L1.
// Traffic  reads x once, writes y once: 6 bytes for each element.
// Bound    DRAM bandwidth; some 3 instructions for each element, against about 35 that fit into its time.
//          Predicted: 90 % of the copy rate on weights beyond the L2.
//
// /// kernel
// op     = "reorder"
// dtypes = ["bfloat16/float32", "float16/float32"]
// tile   = { THREADS = 256, ELEMENTS = 16 }
// tune   = { THREADS = [128, 256, 512], ELEMENTS = [8, 16] }
// grid   = ["ceil_div(N*C*H*W, THREADS * ELEMENTS)"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "storage.cuh"

static_assert(ELEMENTS % PACK == 0, "a thread moves whole packs of 16 bytes");

extern "C" __launch_bounds__(THREADS) __global__
    void reorder_cast(GEOMETRY(Reorder), const param_t* __restrict__ x, storage_t* __restrict__ y) {
  constexpr int CHUNKS = ELEMENTS / PACK;
  const long long size = static_cast<long long>(g.N) * g.C * g.H * g.W;
  const bool vector = aligned(x) && aligned(y);
  float values[CHUNKS][PACK];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const long long i = chunk_start(c, ELEMENTS);
    if (vector && i + PACK <= size) {
#pragma unroll
      for (int j = 0; j < PACK; j += 4) {
        const float4 four = *reinterpret_cast<const float4*>(x + i + j);
        values[c][j] = four.x;
        values[c][j + 1] = four.y;
        values[c][j + 2] = four.z;
        values[c][j + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < PACK; ++j) values[c][j] = i + j < size ? x[i + j] : 0.0f;
    }
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    Pack pack;
#pragma unroll
    for (int j = 0; j < PACK; ++j) pack[j] = from_float(values[c][j]);
    store_pack(y, chunk_start(c, ELEMENTS), size, vector, pack);
  }
}
