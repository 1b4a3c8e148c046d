// conv2d_fprop_implicit_gemm_tf32
//   y[n,p,q,k] = b[k] + sum_{r,s,c} x[n,h,w,c] * w[k,r,s,c]  (+ ReLU) on tensor cores, in NHWC, of float32 arrays:
//   of each factor tf32 takes 10 bits of mantissa, rounded; sums are fp32.
//
// Tiling   as conv2d_fprop_implicit_gemm_mma, whose code this is (conv2d_fprop_mma.cuh has it), with half as many
//          channels to a step of as many bytes. ldmatrix moves pieces of 16 bytes, whatever is in them: four channels
//          here, of which each lane gets one, and that is what mma.m16n8k8 wants.
// Traffic  twice that of the 16-bit kernel.
// Bound    tensor cores: half the rate of 16 bits. Each fragment is rounded as it is loaded, 32 conversions to a
//          warp for 32 products.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["float32"]
// layout  = "NHWC, KRSC"
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 16, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2, DEPTH = 8 }
// tiles   = [
//     { TILE_M = 192, TILE_N = 96, WARP_M = 96, WARP_N = 48 },
// ]
// rank    = 20
// math    = "tf32"
// error   = 4e-4
// truncates = true
// workspace = "4*N*P*Q*PITCH*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [16, 32]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// FILL     = "132*PER_SM"
// PIECES_C = "ceil_div(C//groups, 4)"
// ALL_STEPS = "ceil_div(R*S*PIECES_C, TILE_K//4)"
// TILES_N  = "ceil_div(K//groups, TILE_N)"
// PITCH    = "groups*ceil_div(K//groups, 4)*4"
// BLOCKS   = "TILES_N * groups * ceil_div(N*P*Q, TILE_M)"
// SLICES   = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS    = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_n = "TILES_N"
// by_groups  = "groups"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_S       = "S"
// by_pieces_c = "max(1, PIECES_C)"
// by_quads   = "PITCH//4"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm_tf32"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm_tf32_reduce"
// grid    = ["min(ceil_div(N*P*Q*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_fprop_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_fprop_implicit_gemm_tf32(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                         const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                         storage_t* __restrict__ y, float* __restrict__ workspace,
                                         const int with_relu) {
  conv2d_fprop(g, x, w, b, y, workspace, with_relu);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_fprop_implicit_gemm_tf32_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                                const storage_t* __restrict__ w,
                                                const storage_t* __restrict__ b, storage_t* __restrict__ y,
                                                float* __restrict__ workspace, const int with_relu) {
  conv2d_fprop_reduce(g, b, y, workspace, with_relu);
}
