// conv2d_wgrad_bgrad_tap_rows_tf32
//   dw as conv2d_wgrad_tap_rows_tf32 makes it, and db[k] = sum_{n,p,q} dy[n,p,q,k], from one pass over dy. In
//   db too dy is rounded to tf32.
//
// Tiling   as conv2d_wgrad_tap_rows_tf32, whose code this is (conv2d_wgrad_tap_rows_mma.cuh has it). Behind
//          the columns of the taps stands one of ones, whose sums are db: in conv1 it is one that the second
//          tile had left.
// Traffic  that of conv2d_wgrad_tap_rows_tf32; by itself the gradient of the bias would read dy once more.
// Bound    that of conv2d_wgrad_tap_rows_tf32; 226 registers for sm_90a, no spills.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
//
// /// kernel
// op      = "conv2d_wgrad_bgrad"
// dtypes  = ["float32"]
// layout  = "NHWC"
// tile    = { TILE_M = 96, TILE_N = 192, TILE_K = 16, WARP_M = 96, WARP_N = 48, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 64, TILE_N = 128, WARP_M = 64, WARP_N = 64, PER_SM = 3 },
// ]
// when    = "groups == 1 and C < 8 and C != 4 and (dilation_w == 1 or S == 1)"
// rank    = 21
// math    = "tf32"
// error   = 4e-4
// truncates = true
// workspace = "4*K*PITCH*SLICES"
// [tune]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// PITCH     = "ceil_div(R*S*C + 1, 4)*4"
// TILES_M   = "ceil_div(K, TILE_M)"
// BLOCKS    = "TILES_M * ceil_div(PITCH, TILE_N) if C > 0 else 0"
// ALL_STEPS = "ceil_div(N*P*Q, TILE_K)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_m = "TILES_M"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_C       = "max(1, C)"
// by_words   = "max(1, S*C)"
// by_quads   = "max(1, PITCH//4)"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "conv2d_wgrad_bgrad_tap_rows_tf32"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_wgrad_bgrad_tap_rows_tf32_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056)"]
// block   = ["256"]
// ///

#include "conv2d_wgrad_tap_rows_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_bgrad_tap_rows_tf32(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                          const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                          param_t* __restrict__ db, float* __restrict__ workspace) {
  conv2d_wgrad<true>(g, x, dy, workspace);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_bgrad_tap_rows_tf32_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                                 const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                                 param_t* __restrict__ db, float* __restrict__ workspace) {
  conv2d_wgrad_reduce<true>(g, dw, db, workspace);
}
