// conv2d_dgrad_implicit_gemm
//   dx[n,c,h,w] = sum_{k,r,s} dy[n,k,p,q] * w[k,c,r,s] over the taps with p*stride_h + r*dilation_h = h +
//   pad_top and q*stride_w + s*dilation_w = w + pad_left: a GEMM of gemm_m = C/groups channels, gemm_n =
//   pixels of dx, gemm_k = the taps (k, r, s) that can hit them.
//
// Tiling   a block makes TILE_M channels x TILE_N pixels of one group and one residue class, and a thread
//          THREAD_M x THREAD_N of them. Of three tiles heuristics.py chooses one for each problem. A residue
//          class is the pixels whose padded rows and columns are equal modulo the strides. They are hit by the
//          same taps, r * dilation_h = row (mod stride_h), and by no others. So each class is a dense
//          convolution with stride 1 over dy, and no multiply-add meets a tap that cannot hit; a class that
//          none can hit is written as zeros. A stride of 1 has one class. Few tiles are split over the taps as
//          in fprop.
// Threads  of the first tile: 2 x 2 warps make 32 x 128 sums each. L0 to L31 are the lanes of a warp, each with
//          4 x 4 sums in a patch of 16 x 32:
//
//             n     0-3   4-7   ...  28-31  |  32-63, 64-95, 96-127   |  128-255
//          m  0- 3  L0    L1    ...  L7     |                         |
//             4- 7  L8    L9    ...  L15    |  the same lanes again   |
//             8-11  L16   L17   ...  L23    |                         |  warp 2
//            12-15  L24   L25   ...  L31    |                         |
//            16-31  the same lanes again: all this is warp 0          |
//            32-63  warp 1                                            |  warp 3
//
//          To fetch a step's 8 taps x 64 channels of w, 8 lanes walk along the taps and the block takes 16
//          channels at a time; for its 8 taps x 256 pixels, each thread takes two pixels and all 8 taps.
// Traffic  dy is read ceil(C/groups / TILE_M) * R*S / (stride_h*stride_w) times, mostly from L1 and L2, w
//          ceil(N*H*W / TILE_N) times from L2, dx is written once; with a stride above 1 in pieces of 4
//          bytes, which the classes' blocks, neighbours in time, complete in L2.
// Bound    FP32 FMA. On sm_90a 1024 of the main loop's 1261 instructions are FFMA (.812: a thread of this tile
//          fetches 20 elements a step, one of fprop's 16); 253 registers, no spills. The compiler moves the
//          loads of global memory down: to the use of the nearest are 55 instructions, of half of them some
//          370, which hides an access to L2 only in part. The other tiles have thinner loops (.76 and .77): 48
//          rows are all used by conv2, and tiles of half the size leave less of the last wave empty (conv3).
//          docs/kernels.md has what is predicted for each layer, 62 to 71 % of the FP32 peak at a batch of 128,
//          and the model.
//
// /// kernel
// op      = "conv2d_dgrad"
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
// entry   = "conv2d_dgrad_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_dgrad_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_dgrad.cuh"

struct Sum {
  __device__ __forceinline__ float operator()(long long, float v) const { return v; }
  __device__ __forceinline__ void quad(long long, const long long (&)[4], float (&)[4]) const {}
};

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_dgrad_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ dy,
                                    const float* __restrict__ w, float* __restrict__ dx,
                                    float* __restrict__ workspace) {
  conv2d_dgrad(g, dy, w, dx, workspace, Sum());
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_dgrad_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ dy,
                                           const float* __restrict__ w, float* __restrict__ dx,
                                           float* __restrict__ workspace) {
  conv2d_dgrad_reduce(g, dx, workspace, Sum());
}
