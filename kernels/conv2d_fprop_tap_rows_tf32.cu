// conv2d_fprop_tap_rows_tf32
//   y[n,p,q,k] = b[k] + sum_{r,s,c} x[n,h,w,c] * w[k,r,s,c]  (+ ReLU) on tensor cores, in NHWC, where C is
//   small, of float32 arrays: of each factor tf32 takes 10 bits of mantissa, rounded; sums are fp32.
//
// Idea     that of conv2d_fprop_tap_rows_mma, whose code this is (conv2d_fprop_tap_rows_mma.cuh has it).
//          Channels in pieces of four would leave a quarter of conv1's work to zeros, and three of them are
//          not aligned. A word of 4 bytes is one element here: a row of taps needs no filling up, and may
//          begin anywhere. conv1's 363 elements are 23 steps of 16, 99 % full.
// Tiling   as there, with half as many elements to a step of as many bytes: 24 words of a thread.
// Weights  come filled up to whole steps, from the workspace, where the first launch writes them.
// Traffic  twice that of the 16-bit kernel.
// Bound    tensor cores: half the rate of 16 bits. Each fragment is rounded as it is loaded. A step is 72
//          HMMA, 18 LDSM and 27 LDGSTS to a warp; 200 registers for sm_90a, no spills.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
// Lacking  four channels are whole pieces, which conv2d_fprop_implicit_gemm_tf32 copies in fewer
//          instructions; to it dilation_w and groups are left too.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["float32"]
// layout  = "NHWC, KRSC"
// options = { relu = "int" }
// tile    = { TILE_M = 192, TILE_N = 96, TILE_K = 16, WARP_M = 96, WARP_N = 48, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 256, TILE_N = 64, WARP_M = 64, WARP_N = 64 },
// ]
// when    = "groups == 1 and C < 8 and C != 4 and (dilation_w == 1 or S == 1)"
// rank    = 21
// math    = "tf32"
// error   = 4e-4
// truncates = true
// workspace = "4*K*PITCH"
// [tune]
// TILE_M = [128, 192, 256]
// TILE_N = [64, 96, 128]
// STAGES = [3, 4]
// [let]
// SLICES  = "1"
// STEPS   = "ceil_div(R*S*C, TILE_K)"
// PITCH   = "STEPS*TILE_K"
// TILES_N = "ceil_div(K, TILE_N)"
// BLOCKS  = "TILES_N * ceil_div(N*P*Q, TILE_M)"
// [dividers]
// by_tiles_n = "TILES_N"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_words   = "max(1, S*C)"
// by_pitch   = "max(1, PITCH)"
// [[launch]]
// entry   = "conv2d_fprop_tap_rows_tf32_weights"
// grid    = ["ceil_div(K*PITCH, 256) if BLOCKS > 0 else 0"]
// block   = ["256"]
// [[launch]]
// entry   = "conv2d_fprop_tap_rows_tf32"
// grid    = ["BLOCKS"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// ///

#include "conv2d_fprop_tap_rows_mma.cuh"

extern "C" __launch_bounds__(256) __global__
    void conv2d_fprop_tap_rows_tf32_weights(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                            const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                            storage_t* __restrict__ y, storage_t* __restrict__ filled,
                                            const int with_relu) {
  fill_up_weights(g, w, filled);
}

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_fprop_tap_rows_tf32(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                    const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                    storage_t* __restrict__ y, const storage_t* __restrict__ filled,
                                    const int with_relu) {
  conv2d_fprop(g, x, filled, b, y, with_relu);
}
