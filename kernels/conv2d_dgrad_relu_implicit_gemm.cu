// conv2d_dgrad_relu_implicit_gemm
//   dx = 0 where x <= 0, else the gradient of the convolution, as conv2d_dgrad_implicit_gemm makes it: x is the
//   output of a ReLU, whose gradient is taken too. Where x is NaN, the gradient passes.
//
// Tiling   as conv2d_dgrad_implicit_gemm, whose code this is (conv2d_dgrad.cuh has it, and its header the thread
//          map). A sum meets x as it is written: in the first launch, or where slices are added up.
// Traffic  that of conv2d_dgrad_implicit_gemm, and x once, 128 bits at a time where its rows' alignment
//          permits. A launch of relu_dgrad would read dx and x and write dx: 12 bytes for each pixel where these
//          are 4.
// Bound    FP32 FMA, with the main loop of conv2d_dgrad_implicit_gemm: 1024 of 1261 instructions are FFMA on
//          sm_90a, 253 registers, no spills. To read x, a thread makes 32 loads of 128 bits at the end of 216
//          (conv4) to 432 (conv3) steps. Predicted at batch 128: 1 % slower than conv2d_dgrad_implicit_gemm, in
//          place of a launch that is bound by memory.
//
// /// kernel
// op      = "conv2d_dgrad_relu"
// dtypes  = ["float32"]
// tile    = { TILE_M = 64, TILE_N = 256, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 256 }
// tiles   = [
//     { TILE_M = 48, THREAD_M = 12, THREAD_N = 8, PER_SM = 3 },
//     { TILE_N = 128, THREAD_N = 8, PER_SM = 3 },
// ]
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M   = [64, 96, 128]
// TILE_N   = [128, 256]
// TILE_K   = [8, 16]
// THREAD_M = [8, 12]
// THREAD_N = [8, 16]
// PER_SM   = [1, 2, 3]
// # Places for blocks on an H200.
// [let]
// FILL      = "132*PER_SM"
// SIZE      = "N*C*H*W"
// TILES_M   = "ceil_div(C//groups, TILE_M)"
// CLASSES_H = "min(stride_h, H)"
// CLASSES_W = "min(stride_w, W)"
// CLASS     = "N * ceil_div(H, stride_h) * ceil_div(W, stride_w)"
// BLOCKS    = "ceil_div(CLASS, TILE_N) * TILES_M * groups * CLASSES_H * CLASSES_W"
// SLICES    = "max(1, min((K//groups*R*S)//DEPTH, FILL//BLOCKS))"
// STEPS     = "ceil_div(K//groups*ceil_div(R, stride_h)*ceil_div(S, stride_w), TILE_K*SLICES)"
// # A class has as many rows of pixels as the first one, or one less; and columns likewise.
// [dividers]
// by_tiles_m   = "TILES_M"
// by_groups    = "groups"
// by_classes_h = "CLASSES_H"
// by_classes_w = "CLASSES_W"
// by_slices    = "SLICES"
// by_stride_h  = "stride_h"
// by_stride_w  = "stride_w"
// by_most_rows    = "ceil_div(H, stride_h)"
// by_fewer_rows   = "max(1, ceil_div(H, stride_h) - 1)"
// by_most_columns  = "ceil_div(W, stride_w)"
// by_fewer_columns = "max(1, ceil_div(W, stride_w) - 1)"
// [[launch]]
// entry   = "conv2d_dgrad_relu_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_dgrad_relu_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_dgrad.cuh"

struct Masked {
  const float* __restrict__ x;
  __device__ __forceinline__ float operator()(long long i, float v) const { return x[i] <= 0.0f ? 0.0f : v; }
  __device__ __forceinline__ void quad(long long row, const long long (&offset)[4], float (&v)[4]) const {
    float of_x[4];
    load_quad(x + row, offset, of_x);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = of_x[e] <= 0.0f ? 0.0f : v[e];
  }
};

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_dgrad_relu_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ dy,
                                         const float* __restrict__ w, const float* __restrict__ x,
                                         float* __restrict__ dx, float* __restrict__ workspace) {
  conv2d_dgrad(g, dy, w, dx, workspace, Masked{x});
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_dgrad_relu_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ dy,
                                                const float* __restrict__ w, const float* __restrict__ x,
                                                float* __restrict__ dx, float* __restrict__ workspace) {
  conv2d_dgrad_reduce(g, dx, workspace, Masked{x});
}
