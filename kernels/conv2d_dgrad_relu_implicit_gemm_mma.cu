// conv2d_dgrad_relu_implicit_gemm_mma
//   dx as conv2d_dgrad_implicit_gemm_mma makes it, zero where x is not positive: x, the convolution's input,
//   is a ReLU's output.
//
// Tiling   as conv2d_dgrad_implicit_gemm_mma, whose code this is (conv2d_dgrad_mma.cuh has it).
// Traffic  that of conv2d_dgrad_implicit_gemm_mma, and x read once, 16 bytes to a lane, where dx is written;
//          by itself a ReLU's gradient would read dx and x, and write dx.
// Bound    tensor cores. The main loop is that of conv2d_dgrad_implicit_gemm_mma; 203 registers for sm_90a,
//          no spills.
//
// /// kernel
// op      = "conv2d_dgrad_relu"
// dtypes  = ["bfloat16", "float16"]
// layout  = "NHWC, KRSC"
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 192, TILE_N = 96, WARP_M = 96, WARP_N = 48 },
//     { TILE_M = 192, TILE_N = 48, WARP_M = 96, WARP_N = 48, PER_SM = 3 },
// ]
// rank    = 20
// truncates = true
// workspace = "4*N*H*W*PITCH*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// TILES_N   = "ceil_div(C//groups, TILE_N)"
// PITCH     = "groups*ceil_div(C//groups, 8)*8"
// PIECES_K  = "ceil_div(K//groups, TILE_K)"
// CLASSES_H = "min(stride_h, H)"
// CLASSES_W = "min(stride_w, W)"
// CLASS     = "N * ceil_div(H, stride_h) * ceil_div(W, stride_w)"
// BLOCKS    = "ceil_div(CLASS, TILE_M) * TILES_N * groups * CLASSES_H * CLASSES_W"
// ALL_STEPS = "PIECES_K * ceil_div(R, stride_h) * ceil_div(S, stride_w)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// # A class has as many rows of pixels as the first one, or one less; and columns likewise.
// [dividers]
// by_tiles_n   = "TILES_N"
// by_groups    = "groups"
// by_classes_h = "CLASSES_H"
// by_classes_w = "CLASSES_W"
// by_pieces_k  = "PIECES_K"
// by_quads     = "PITCH//4"
// by_slices    = "SLICES"
// by_stride_h  = "stride_h"
// by_stride_w  = "stride_w"
// by_most_rows    = "ceil_div(H, stride_h)"
// by_fewer_rows   = "max(1, ceil_div(H, stride_h) - 1)"
// by_most_columns  = "ceil_div(W, stride_w)"
// by_fewer_columns = "max(1, ceil_div(W, stride_w) - 1)"
// [[launch]]
// entry   = "conv2d_dgrad_relu_implicit_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_dgrad_relu_implicit_gemm_mma_reduce"
// grid    = ["min(ceil_div(N*H*W*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_dgrad_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_dgrad_relu_implicit_gemm_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ dy,
                                             const storage_t* __restrict__ w, const storage_t* __restrict__ x,
                                             storage_t* __restrict__ dx, float* __restrict__ workspace) {
  conv2d_dgrad(g, dy, w, x, dx, workspace);
}

extern "C" __launch_bounds__(256) __global__ void conv2d_dgrad_relu_implicit_gemm_mma_reduce(
    GEOMETRY(Conv2d), const storage_t* __restrict__ dy, const storage_t* __restrict__ w,
    const storage_t* __restrict__ x, storage_t* __restrict__ dx, float* __restrict__ workspace) {
  conv2d_dgrad_reduce(g, x, dx, workspace);
}
