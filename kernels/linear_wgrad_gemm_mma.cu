// linear_wgrad_gemm_mma
//   dw[k,c] = sum_n dy[n,k] * x[n,c] on tensor cores: a GEMM of gemm_m = K, gemm_n = C, gemm_k = N. 16-bit
//   elements, fp32 sums, rounded once.
//
// Tiling   a block makes TILE_M x TILE_N elements, a warp WARP_M x WARP_N of them, in steps of TILE_K rows.
//          gemm_mma.cuh has the ring of copies and the lanes' map. A row of either matrix is one n (gemm_k),
//          and ldmatrix.trans turns both. The sum runs over the batch and is short: a batch of 128 has 4
//          steps.
// Slices   only where both matrices are small and the batch is large.
// Traffic  at a batch of up to TILE_K * STAGES, the matrices are read from L2 once for each tile of the
//          other, and dw is written once, 16 bytes to a lane where rows are aligned. As float32, for a pair,
//          dw is written from where the sums are, 32 bytes to four lanes.
// Bound    DRAM at a batch of 128 and below, by the writing of dw. A step is 64 HMMA, 16 LDSM and 8 LDGSTS to
//          a warp; no spills.
// Lacking  as linear_dgrad_gemm_mma.
//
// /// kernel
// op      = "linear_wgrad"
// dtypes  = ["bfloat16", "float16", "bfloat16/float32", "float16/float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// rank    = 20
// truncates = true
// workspace = "4*K*PITCH*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// TILES_M   = "ceil_div(K, TILE_M)"
// PITCH     = "ceil_div(C, 8)*8"
// BLOCKS    = "TILES_M * ceil_div(C, TILE_N)"
// ALL_STEPS = "ceil_div(N, TILE_K)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_m = "max(1, TILES_M)"
// by_quads   = "max(1, PITCH//4)"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "linear_wgrad_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "linear_wgrad_gemm_mma_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_mma.cuh"

using A = AcrossK<TILE_M>;  // columns of dy
using B = AcrossK<TILE_N>;  // columns of x

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_wgrad_gemm_mma(GEOMETRY(Linear), const storage_t* __restrict__ x,
                               const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                               float* __restrict__ workspace) {
  DYN_SMEM(storage_t, ring);
  const Tile tile(g.by_tiles_m, g.K, g.C);
  Sums sum = {};
  multiply<A, B>(ring, tile, {dy, g.N, g.K}, {x, g.N, g.C}, ceil_div(g.N, TILE_K), g.by_slices, sum);
  if (gridDim.z > 1)
    write_slice(sum, tile, workspace, g.by_quads);
  else
    write_tile(ring, sum, tile, dw);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_wgrad_gemm_mma_reduce(GEOMETRY(Linear), const storage_t* __restrict__ x,
                                      const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                      float* __restrict__ workspace) {
  add_slices(workspace, dw, g.K, g.C, g.by_quads, g.by_slices);
}
