// conv2d_wgrad_bgrad_implicit_gemm
//   dw as conv2d_wgrad_implicit_gemm makes it, and db[k] = sum_{n,p,q} dy[n,k,p,q], from one pass over dy.
//
// Tiling   as conv2d_wgrad_implicit_gemm, whose code this is (conv2d_wgrad.cuh has it, and its header the thread
//          map). A thread has a step's elements of dy in registers before it stores them for the others: one
//          pixel of FILTER_PASSES filters, 8 in the first tile. In the blocks of the first taps it adds them up,
//          a sum for each of its filters; at the end 8 lanes, which had the 8 pixels of each step, add theirs in
//          a fixed tree. A slice has K sums of db behind those of dw, and the second launch adds up both.
//          dw has the bits of conv2d_wgrad_implicit_gemm. db has not those of conv2d_bgrad_reduce, which adds in
//          another order.
// Traffic  that of conv2d_wgrad_implicit_gemm, and 4*K bytes for each slice. conv2d_bgrad_reduce reads dy for
//          itself: 333 MB in AlexNet's five convolutions at a batch of 128, in ten launches.
// Bound    FP32 FMA. There are two main loops, since predicated additions would cost every block their issue
//          slots. On sm_90a 1024 of 1222 instructions are FFMA in the one that adds, and of 1215 in the other,
//          which is that of conv2d_wgrad_implicit_gemm (1212); 224 registers, no spills, and 233 and 245 with
//          the other tiles. One block in 3 (conv1) to 18 (conv3) adds. Predicted at batch 128: within 1 % of
//          conv2d_wgrad_implicit_gemm, in place of two launches that are bound by memory.
//
// /// kernel
// op      = "conv2d_wgrad_bgrad"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 256 }
// tiles   = [
//     { TILE_M = 96, THREAD_M = 12, THREAD_N = 8 },
//     { TILE_M = 64, TILE_N = 256 },
// ]
// rank    = 20
// workspace = "4*SUMS*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M   = [64, 96, 128]
// TILE_N   = [128, 256]
// TILE_K   = [8, 16]
// THREAD_M = [8, 12]
// THREAD_N = [8, 16]
// PER_SM   = [1, 2, 3]
// # Places for blocks on an H200.
// [let]
// FILL    = "132*PER_SM"
// SUMS    = "K*(C//groups)*R*S + K"
// TILES_M = "ceil_div(K//groups, TILE_M)"
// TILES_N = "ceil_div(C//groups*R*S, TILE_N)"
// BLOCKS  = "TILES_N * TILES_M * groups"
// SLICES  = "max(1, min((N*P*Q)//DEPTH, FILL//BLOCKS))"
// STEPS   = "ceil_div(N*P*Q, TILE_K*SLICES)"
// [dividers]
// by_tiles_m = "TILES_M"
// by_tiles_n = "TILES_N"
// by_groups  = "groups"
// by_slices  = "SLICES"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_R       = "R"
// by_S       = "S"
// [[launch]]
// entry   = "conv2d_wgrad_bgrad_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_wgrad_bgrad_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SUMS, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_wgrad.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_bgrad_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ x,
                                          const float* __restrict__ dy, float* __restrict__ dw,
                                          float* __restrict__ db, float* __restrict__ workspace) {
  conv2d_wgrad<true>(g, x, dy, dw, db, workspace);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_bgrad_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ x,
                                                 const float* __restrict__ dy, float* __restrict__ dw,
                                                 float* __restrict__ db, float* __restrict__ workspace) {
  const long long size = sums_of<false>(g);
  each_sum(workspace, sums_of<true>(g), g.by_slices.divisor,
           [&](long long i, float sum) { (i < size ? dw[i] : db[i - size]) = sum; });
}
