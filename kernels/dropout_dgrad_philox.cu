// dropout_dgrad_philox
//   dx[i] = word(i) < p * 2^32 ? 0 : dy[i] * scale, with the words of the forward pass
//   word(i) = word i % 4 of Philox4x32-10 with counter offset + i / 4 and key seed (philox.cuh)
//
// Tiling   as relu_fprop_vectorized: a thread makes ELEMENTS elements in packs of 16 bytes, THREADS packs
//          apart. A call of Philox makes the words of 4 elements, and a pack is one or two whole calls. The
//          mask is never stored.
// Traffic  reads dy once, writes dx once: 8 bytes for each element in fp32, 4 in the 16-bit types; no mask.
// Bound    DRAM bandwidth in fp32: ten rounds are 20 wide multiplications for 4 elements, which take about a
//          third of the time that the bytes take. In the 16-bit types about two thirds, and overlap decides.
//          Predicted: 90 % of the copy rate in fp32, 75 % in the 16-bit types.
//
// /// kernel
// op      = "dropout_dgrad"
// dtypes  = ["float32", "float16", "bfloat16"]
// options = { p = "double", seed = "unsigned long long", offset = "unsigned long long", scale = "float" }
// tile    = { THREADS = 256, ELEMENTS = 8 }
// tune    = { THREADS = [128, 256, 512], ELEMENTS = [8, 16] }
// grid    = ["ceil_div(size, THREADS * ELEMENTS)"]
// block   = ["THREADS"]
// rank    = 10
// live    = ["seed", "offset"]
// ///

#include "philox.cuh"

// dy and dx may be one array, hence no __restrict__.
extern "C" __launch_bounds__(THREADS) __global__
    void dropout_dgrad_philox(GEOMETRY(Elementwise), const storage_t* dy, storage_t* dx, double p,
                              unsigned long long seed, unsigned long long offset, float scale,
                              const unsigned long long* live_seed, const unsigned long long* live_offset) {
  if (live_seed != nullptr) seed = *live_seed;
  if (live_offset != nullptr) offset = *live_offset;
  philox_dropout<ELEMENTS>(g.size, dy, dx, p, seed, offset, scale);
}
