// linear_fprop_gemm_tf32
//   y[n,k] = b[k] + sum_c x[n,c] * w[k,c]  (+ ReLU) on tensor cores, of float32 arrays: of each factor tf32
//   takes 10 bits of mantissa, rounded; sums are fp32.
//
// Tiling   as linear_fprop_gemm_mma (linear_mma.cuh has the main loop), with half as many elements to a step
//          of as many bytes. ldmatrix moves pieces of 16 bytes, whatever is in them: rows of both matrices
//          lie along gemm_k.
// Slices   as there.
// Traffic  twice that of the 16-bit kernel.
// Bound    DRAM and tensor cores about alike at a batch of 128: in fc6 the 151 MB of w take as long as the
//          products, by the rates in docs/kernels.md. Below that DRAM, by w. In the machine code for sm_90a a
//          step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp; no spills.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
// Lacking  C that is no multiple of 4, and arrays that are not aligned to 16 bytes, are fetched element by
//          element.
//
// /// kernel
// op      = "linear_fprop"
// dtypes  = ["float32"]
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 16, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// rank    = 21
// math    = "tf32"
// error   = 4e-4
// truncates = true
// workspace = "4*N*PITCH*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [16, 32]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// TILES_M   = "ceil_div(N, TILE_M)"
// PITCH     = "ceil_div(K, 4)*4"
// BLOCKS    = "TILES_M * ceil_div(K, TILE_N)"
// ALL_STEPS = "ceil_div(C, TILE_K)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_m = "max(1, TILES_M)"
// by_quads   = "max(1, PITCH//4)"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "linear_fprop_gemm_tf32"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "linear_fprop_gemm_tf32_reduce"
// grid    = ["min(ceil_div(N*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_mma.cuh"

using A = AlongK<TILE_M>;  // rows of x
using B = AlongK<TILE_N>;  // rows of w

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_fprop_gemm_tf32(GEOMETRY(Linear), const storage_t* __restrict__ x,
                                const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                storage_t* __restrict__ y, float* __restrict__ workspace,
                                const int with_relu) {
  DYN_SMEM(storage_t, ring);
  const Tile tile(g.by_tiles_m, g.N, g.K);
  Sums sum = {};
  multiply<A, B>(ring, tile, {x, g.N, g.C}, {w, g.K, g.C}, ceil_div(g.C, TILE_K), g.by_slices, sum);
  if (gridDim.z > 1)
    write_slice(sum, tile, workspace, g.by_quads);
  else
    write_layer(ring, sum, tile, b, with_relu, y);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_fprop_gemm_tf32_reduce(GEOMETRY(Linear), const storage_t* __restrict__ x,
                                       const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                       storage_t* __restrict__ y, float* __restrict__ workspace,
                                       const int with_relu) {
  add_slices_of_layer(workspace, b, with_relu, y, g.N, g.K, g.by_quads, g.by_slices);
}
