// relu_fprop_vectorized
//   y[i] = max(x[i], 0), NaN where x is NaN
//
// Status   compiled, and emulated; no GPU has run it yet.
// Tiling   a block makes THREADS * ELEMENTS elements, a thread ELEMENTS of them in packs of 16 bytes that lie THREADS
//          packs apart. No loop over the grid: the scheduler balances blocks better than a fixed partition, and
//          nothing is worth keeping from one pass to the next. All loads of a thread are issued before its first
//          store: 32 bytes in flight (fp32) times 2048 threads is 64 KB for each SM, more than twice what
//          bandwidth times latency asks for.
// Traffic  reads x once, writes y once: 8 bytes for each element in fp32, 4 in the 16-bit types.
// Bound    DRAM bandwidth; some 3 instructions for each element, against about 50 that fit into its time.
//          Predicted: 95 % of the copy rate on tensors beyond the L2, as the access pattern is that of a copy.
//
// /// kernel
// op     = "relu_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ELEMENTS = 8 }
// tune   = { THREADS = [128, 256, 512], ELEMENTS = [8, 16] }
// grid   = ["ceil_div(size, THREADS * ELEMENTS)"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "storage.cuh"

static_assert(ELEMENTS % PACK == 0, "a thread moves whole packs of 16 bytes");

// x and y may be one array, hence no __restrict__: each thread loads all it needs before it stores.
extern "C" __launch_bounds__(THREADS) __global__
    void relu_fprop_vectorized(GEOMETRY(Elementwise), const storage_t* x, storage_t* y) {
  constexpr int CHUNKS = ELEMENTS / PACK;
  const bool vector = aligned(x) && aligned(y);
  Pack packs[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) packs[c] = load_pack(x, chunk_start(c, ELEMENTS), g.size, vector);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    // A selection, not fmaxf, which would turn a NaN into zero.
#pragma unroll
    for (int j = 0; j < PACK; ++j)
      if (to_float(packs[c][j]) < 0.0f) packs[c][j] = from_float(0.0f);
    store_pack(y, chunk_start(c, ELEMENTS), g.size, vector, packs[c]);
  }
}
