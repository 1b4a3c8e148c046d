// linear_fprop_gemm_mma
//   y[n,k] = b[k] + sum_c x[n,c] * w[k,c]  (+ ReLU) on tensor cores: a GEMM of gemm_m = N, gemm_n = K, gemm_k
//   = C. 16-bit elements, fp32 sums, rounded once.
//
// Tiling   a block makes TILE_M x TILE_N elements, a warp WARP_M x WARP_N of them, in steps of TILE_K.
//          gemm_mma.cuh has the ring of copies and the lanes' map. Rows of both matrices lie along gemm_k, as
//          ldmatrix takes them.
// Slices   a batch of 128 has 32 tiles at most: grid z cuts gemm_k until FILL blocks are busy, none into less
//          than DEPTH steps. Sums go to the workspace; a second launch adds them up in the slices' order,
//          then the bias and ReLU.
// Traffic  at a batch of up to TILE_M, each matrix is read once from DRAM, 16 bytes to a lane where rows are
//          aligned. Slices are written and read once, 4 bytes to a sum, in L2.
// Bound    DRAM at a batch of 128 and below, by w: in fc6 75 MB of it, with 256 operations to an element. In
//          the machine code for sm_90a a step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp; no spills. At a
//          batch of 1 one row of a tile in 128 counts: the tensor cores then take about as long as w does.
// Lacking  C that is no multiple of 8, and arrays that are not aligned to 16 bytes, are fetched element by
//          element.
//
// /// kernel
// op      = "linear_fprop"
// dtypes  = ["bfloat16", "float16"]
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// rank    = 20
// truncates = true
// workspace = "4*N*PITCH*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// TILES_M   = "ceil_div(N, TILE_M)"
// PITCH     = "ceil_div(K, 8)*8"
// BLOCKS    = "TILES_M * ceil_div(K, TILE_N)"
// ALL_STEPS = "ceil_div(C, TILE_K)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_m = "max(1, TILES_M)"
// by_quads   = "max(1, PITCH//4)"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "linear_fprop_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "linear_fprop_gemm_mma_reduce"
// grid    = ["min(ceil_div(N*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_mma.cuh"

using A = AlongK<TILE_M>;  // rows of x
using B = AlongK<TILE_N>;  // rows of w

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_fprop_gemm_mma(GEOMETRY(Linear), const storage_t* __restrict__ x,
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
    void linear_fprop_gemm_mma_reduce(GEOMETRY(Linear), const storage_t* __restrict__ x,
                                      const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                      storage_t* __restrict__ y, float* __restrict__ workspace,
                                      const int with_relu) {
  add_slices_of_layer(workspace, b, with_relu, y, g.N, g.K, g.by_quads, g.by_slices);
}
