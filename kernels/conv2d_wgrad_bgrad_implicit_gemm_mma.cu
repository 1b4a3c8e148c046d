// conv2d_wgrad_bgrad_implicit_gemm_mma
//   dw as conv2d_wgrad_implicit_gemm_mma makes it, and db[k] = sum_{n,p,q} dy[n,p,q,k], from one pass over
//   dy.
//
// Tiling   as conv2d_wgrad_implicit_gemm_mma, whose code this is (conv2d_wgrad_mma.cuh has it). Behind the
//          columns of the taps stands one of ones, whose sums are db: a piece of eight columns, which adds a
//          tile where the taps fill theirs (conv3), and elsewhere nothing (conv2, conv4, conv5). So the main
//          loop is the same.
// Traffic  that of conv2d_wgrad_implicit_gemm_mma; by itself the gradient of the bias would read dy once
//          more.
// Bound    tensor cores. The main loop is that of conv2d_wgrad_implicit_gemm_mma; 216 registers for sm_90a,
//          no spills.
//
// /// kernel
// op      = "conv2d_wgrad_bgrad"
// dtypes  = ["bfloat16", "float16", "bfloat16/float32", "float16/float32"]
// layout  = "NHWC"
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 64, TILE_N = 256 },
// ]
// rank    = 20
// truncates = true
// workspace = "4*K*PITCH*SLICES"
// [tune]
// TILE_M = [64, 128]
// TILE_N = [64, 128, 256]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// PIECES_C  = "ceil_div(C//groups, 8)"
// PITCH     = "(R*S*PIECES_C + 1)*8"
// TILES_M   = "ceil_div(K//groups, TILE_M)"
// TILES_N   = "ceil_div(PITCH, TILE_N)"
// BLOCKS    = "TILES_N * TILES_M * groups"
// ALL_STEPS = "ceil_div(N*P*Q, TILE_K)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_m  = "TILES_M"
// by_tiles_n  = "max(1, TILES_N)"
// by_groups   = "groups"
// by_pieces_c = "max(1, PIECES_C)"
// by_pixels   = "P*Q"
// by_Q        = "Q"
// by_S        = "S"
// by_quads    = "max(1, PITCH//4)"
// by_slices   = "SLICES"
// [[launch]]
// entry   = "conv2d_wgrad_bgrad_implicit_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_wgrad_bgrad_implicit_gemm_mma_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056)"]
// block   = ["256"]
// ///

#include "conv2d_wgrad_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_bgrad_implicit_gemm_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                              const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                              param_t* __restrict__ db, float* __restrict__ workspace) {
  conv2d_wgrad<true>(g, x, dy, workspace);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_bgrad_implicit_gemm_mma_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                                     const storage_t* __restrict__ dy,
                                                     param_t* __restrict__ dw, param_t* __restrict__ db,
                                                     float* __restrict__ workspace) {
  conv2d_wgrad_reduce<true>(g, dw, db, workspace);
}
