// conv2d_wgrad_implicit_gemm_tf32
//   dw as conv2d_wgrad_implicit_gemm_mma makes it, of float32 arrays: of each factor tf32 takes 10 bits of mantissa,
//   rounded; sums are fp32.
//
// Tiling   as conv2d_wgrad_implicit_gemm_mma, whose code this is (conv2d_wgrad_mma.cuh has it), with half as many
//          pixels to a step of as many bytes. ldmatrix cannot turn words of 32 bits, so that dy and x, whose filters
//          and channels lie together, are read word by word: 32 loads to a warp for 32 products of 8 pixels. A product
//          takes a scheduler of an SM 8 cycles, and four warps' loads take turns: they are busy half of its time.
// Traffic  twice that of the 16-bit kernel.
// Bound    tensor cores: half the rate of 16 bits. Each fragment is rounded as it is loaded, 32 conversions to a
//          warp for 32 products.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
//
// /// kernel
// op      = "conv2d_wgrad"
// dtypes  = ["float32"]
// layout  = "NHWC"
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 16, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2, DEPTH = 8 }
// tiles   = [
//     { TILE_M = 64, TILE_N = 256 },
// ]
// rank    = 20
// math    = "tf32"
// error   = 4e-4
// truncates = true
// workspace = "4*K*PITCH*SLICES"
// [tune]
// TILE_M = [64, 128]
// TILE_N = [64, 128, 256]
// TILE_K = [16, 32]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// FILL      = "132*PER_SM"
// PIECES_C  = "ceil_div(C//groups, 4)"
// PITCH     = "R*S*PIECES_C*4"
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
// entry   = "conv2d_wgrad_implicit_gemm_tf32"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm_tf32_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056)"]
// block   = ["256"]
// ///

#include "conv2d_wgrad_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_implicit_gemm_tf32(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                         const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                         float* __restrict__ workspace) {
  conv2d_wgrad<false>(g, x, dy, workspace);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_implicit_gemm_tf32_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                                const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                                float* __restrict__ workspace) {
  conv2d_wgrad_reduce<false>(g, dw, nullptr, workspace);
}
