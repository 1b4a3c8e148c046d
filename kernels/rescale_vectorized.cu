// rescale_vectorized
//   x_new[i] = x[i] * scale, or x[i] / scale where inverse;  sound_new = 1 where sound is not 0 and every
//   x[i] is finite, else 0
//
// Tiling   as relu_fprop_vectorized: a thread makes ELEMENTS elements in packs of 16 bytes, THREADS packs
//          apart. A first launch of one thread writes what the flag was; a block of the second that has seen
//          an element that is not finite clears it. Which block does so first does not matter: the flag has
//          the same bit in the end, so that the atomic costs no reproducibility.
// Traffic  reads x once, writes x_new once: 8 bytes for each element. Scale and flag are 8 bytes for all.
// Bound    DRAM bandwidth; some 6 instructions for each element (a division by the scale is a multiplication
//          by its inverse, which a thread makes once), against about 50 that fit into its time. Predicted:
//          90 % of the copy rate on gradients beyond the L2; those of a bias are two launches.
//
// /// kernel
// op     = "rescale"
// dtypes = ["float32"]
// tile   = { THREADS = 256, ELEMENTS = 8 }
// tune   = { THREADS = [128, 256, 512], ELEMENTS = [8, 16] }
// rank   = 10
// launch = [
//     { entry = "rescale_vectorized_flag", grid = ["1"], block = ["1"] },
//     { entry = "rescale_vectorized", grid = ["ceil_div(size, THREADS * ELEMENTS)"], block = ["THREADS"] },
// ]
// [options]
// inverse = "int"
// ///

#include "storage.cuh"

static_assert(ELEMENTS % PACK == 0, "a thread moves whole packs of 16 bytes");

extern "C" __global__ void rescale_vectorized_flag(GEOMETRY(Elementwise), const storage_t* x,
                                                   const float* scale, const int* sound, storage_t* x_new,
                                                   int* sound_new, int inverse) {
  *sound_new = *sound != 0;
}

// x_new may be x, and sound_new sound, hence no __restrict__: a thread loads all it needs before it stores.
extern "C" __launch_bounds__(THREADS) __global__
    void rescale_vectorized(GEOMETRY(Elementwise), const storage_t* x, const float* scale, const int* sound,
                            storage_t* x_new, int* sound_new, int inverse) {
  constexpr int CHUNKS = ELEMENTS / PACK;
  const float infinity = __int_as_float(0x7f800000);
  const bool vector = aligned(x) && aligned(x_new);
  Pack packs[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) packs[c] = load_pack(x, chunk_start(c, ELEMENTS), g.size, vector);
  const float factor = inverse ? 1.0f / *scale : *scale;
  bool bad = false;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
    for (int j = 0; j < PACK; ++j) {
      const float value = to_float(packs[c][j]);
      bad = bad || !(fabsf(value) < infinity);  // a NaN is not less
      packs[c][j] = from_float(value * factor);
    }
    store_pack(x_new, chunk_start(c, ELEMENTS), g.size, vector, packs[c]);
  }
  if (__syncthreads_or(bad) && threadIdx.x == 0) atomicAnd(sound_new, 0);
}
