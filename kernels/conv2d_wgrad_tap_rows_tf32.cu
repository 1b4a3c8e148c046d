// conv2d_wgrad_tap_rows_tf32
//   dw as conv2d_wgrad_tap_rows_mma makes it, of float32 arrays: of each factor tf32 takes 10 bits of
//   mantissa, rounded; sums are fp32.
//
// Idea     that of conv2d_wgrad_tap_rows_mma, whose code this is (conv2d_wgrad_tap_rows_mma.cuh has it). A
//          word of 4 bytes is one element: the 363 of conv1 are 95 % of two tiles of 192.
// Copies   as many and as large as those of 16 bits: 24 words of a thread to a step, of half as many pixels.
// Tiling   ldmatrix cannot turn words of 32 bits, so that both factors are read word by word, as in
//          conv2d_wgrad_implicit_gemm_tf32: 36 loads to a warp for 36 products of 8 pixels.
// Traffic  twice that of the 16-bit kernel.
// Bound    tensor cores: half the rate of 16 bits. Each fragment is rounded as it is loaded; 226 registers
//          for sm_90a, no spills.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
// Lacking  as conv2d_fprop_tap_rows_tf32.
//
// /// kernel
// op      = "conv2d_wgrad"
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
// PITCH     = "ceil_div(R*S*C, 4)*4"
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
// entry   = "conv2d_wgrad_tap_rows_tf32"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_wgrad_tap_rows_tf32_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056)"]
// block   = ["256"]
// ///

#include "conv2d_wgrad_tap_rows_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_tap_rows_tf32(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                    const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                    float* __restrict__ workspace) {
  conv2d_wgrad<false>(g, x, dy, workspace);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_tap_rows_tf32_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                           const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                           float* __restrict__ workspace) {
  conv2d_wgrad_reduce<false>(g, dw, nullptr, workspace);
}
