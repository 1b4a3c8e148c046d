// relu_dgrad_vectorized
//   dx[i] = y[i] <= 0 ? 0 : dy[i], so dy[i] where y is NaN
//
// Status   compiled, and emulated; no GPU has run it yet.
// Tiling   as relu_fprop_vectorized: a thread makes ELEMENTS elements in packs of 16 bytes, THREADS packs apart, and
//          issues all its loads, here of two arrays, before its first store.
// Traffic  reads dy and y once, writes dx once: 12 bytes for each element in fp32, 6 in the 16-bit types.
// Bound    DRAM bandwidth; some 5 instructions for each element. Predicted: 95 % of the copy rate on tensors beyond
//          the L2; two reads for a write suit DRAM a little better than a copy.
//
// /// kernel
// op     = "relu_dgrad"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ELEMENTS = 8 }
// tune   = { THREADS = [128, 256, 512], ELEMENTS = [8, 16] }
// grid   = ["ceil_div(size, THREADS * ELEMENTS)"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "storage.cuh"

static_assert(ELEMENTS % PACK == 0, "a thread moves whole packs of 16 bytes");

// dx may be dy or y, hence no __restrict__: each thread loads all it needs before it stores.
extern "C" __launch_bounds__(THREADS) __global__
    void relu_dgrad_vectorized(GEOMETRY(Elementwise), const storage_t* dy, const storage_t* y, storage_t* dx) {
  constexpr int CHUNKS = ELEMENTS / PACK;
  const bool vector = aligned(dy) && aligned(y) && aligned(dx);
  Pack gradients[CHUNKS], outputs[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    gradients[c] = load_pack(dy, chunk_start(c, ELEMENTS), g.size, vector);
    outputs[c] = load_pack(y, chunk_start(c, ELEMENTS), g.size, vector);
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
    for (int j = 0; j < PACK; ++j)
      if (to_float(outputs[c][j]) <= 0.0f) gradients[c][j] = from_float(0.0f);
    store_pack(dx, chunk_start(c, ELEMENTS), g.size, vector, gradients[c]);
  }
}
