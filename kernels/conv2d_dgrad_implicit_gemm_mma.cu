// conv2d_dgrad_implicit_gemm_mma
//   dx[n,h,w,c] = sum_{k,r,s} dy[n,k,p,q] * w[k,r,s,c], with p*stride_h = h + pad_top - r*dilation_h and q
//   likewise, on tensor cores, in NHWC: a GEMM for each residue class of the strides, of gemm_m = the class's
//   pixels of dx, gemm_n = C/groups channels, gemm_k = K/groups filters for each tap that hits the class.
//   16-bit elements, fp32 sums, rounded once.
//
// Classes  pixels h of the same (h + pad_top) % stride_h meet the same taps, at a distance in dy that is the
//          same for all of them. With stride 1 there is one class; with stride 2 and a window of 3 x 3 there
//          are four, with 4, 2, 2 and 1 taps. No product with a zero between the strides is made, and no
//          pixel is written twice.
// Tiling   a block makes TILE_M pixels x TILE_N channels of one group and one class, a warp WARP_M x WARP_N
//          of them, in steps of TILE_K filters of one tap. gemm_mma.cuh has the ring of copies and the lanes'
//          map. dy has its filters (gemm_k) lying together, as ldmatrix takes them. w is KRSC, as in fprop:
//          its channels (gemm_n) lie together, and ldmatrix.trans turns them. So dgrad needs no second copy
//          of w.
// Traffic  dy is read ceil(C/groups / TILE_N) * R*S / (stride_h*stride_w) times, mostly from L2, w
//          ceil(N*H*W / TILE_M) times from L2. dx is written once, 16 bytes to a lane.
// Slices   where blocks do not fill the GPU, grid z cuts gemm_k, and a second launch adds up the slices in
//          order.
// Bound    tensor cores. In the machine code for sm_90a a step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp;
//          203 registers, no spills. The tile of 48 channels is for conv2, whose groups have as many.
//          docs/kernels.md has what is predicted for each layer, and the model.
// Lacking  K/groups or C/groups that is no multiple of 8, and arrays that are not aligned to 16 bytes, are
//          fetched element by element. Steps are of one tap: K/groups that is no multiple of TILE_K leaves
//          some of it empty.
//
// /// kernel
// op      = "conv2d_dgrad"
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
// entry   = "conv2d_dgrad_implicit_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_dgrad_implicit_gemm_mma_reduce"
// grid    = ["min(ceil_div(N*H*W*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_dgrad_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_dgrad_implicit_gemm_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ dy,
                                        const storage_t* __restrict__ w, storage_t* __restrict__ dx,
                                        float* __restrict__ workspace) {
  conv2d_dgrad(g, dy, w, nullptr, dx, workspace);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_dgrad_implicit_gemm_mma_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ dy,
                                               const storage_t* __restrict__ w, storage_t* __restrict__ dx,
                                               float* __restrict__ workspace) {
  conv2d_dgrad_reduce(g, nullptr, dx, workspace);
}
