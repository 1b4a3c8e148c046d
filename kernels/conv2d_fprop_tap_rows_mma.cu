// conv2d_fprop_tap_rows_mma
//   y[n,p,q,k] = b[k] + sum_{r,s,c} x[n,h,w,c] * w[k,r,s,c]  (+ ReLU) on tensor cores, in NHWC, where C is
//   small: a GEMM of gemm_m = N*P*Q pixels, gemm_n = K filters, gemm_k = R rows of S*C elements. 16-bit
//   elements, fp32 sums, rounded once.
//
// Idea     conv2d_fprop_implicit_gemm_mma takes channels in pieces of eight: of three, five eighths of its
//          work would be zeros. But the S*C elements that a row of taps meets lie together in x, and in w. So
//          gemm_k runs along rows of taps, each filled up to a pair: in conv1 11 rows of 33 elements become
//          374, and 12 steps of 32 are 94 % full. Folding 4 x 4 pixels into 48 channels (space to depth)
//          would leave 84 %, and would move x.
// Copies   a pixel's row begins anywhere, so that x is copied in pairs of 4 bytes (cp.async): 24 copies of a
//          thread to a step, not 6. Each finds its pixel in a table in shared memory. In quads of 8 bytes a
//          step would be issued in half as many, and 13 steps 87 % full; and a padding of 2 (OWT's conv1)
//          would forbid them.
// Weights  a row of w begins anywhere too, and each block reads all of it. The first launch writes w to the
//          workspace with rows filled up (2 * K * PITCH bytes, 74 KB in conv1), from where it comes in pieces
//          of 16 bytes.
// Tiling   a block makes TILE_M pixels x TILE_N filters. conv2d_fprop_tap_rows_mma.cuh has the code,
//          gemm_mma.cuh the ring of copies and the lanes' map. Of two tiles heuristics.py chooses one for
//          each problem: of 96 filters, or of 64.
// Traffic  x is read ceil(K / TILE_N) * R*S / (stride_h*stride_w) times, 7.6 in conv1, mostly from L1 and L2.
//          y is written once, 16 bytes to a lane.
// Bound    tensor cores, as far as the copies' instructions hide behind them. In the machine code for sm_90a
//          a step is 72 HMMA, 18 LDSM, and 27 LDGSTS to a warp, 24 of them of 4 bytes; 208 registers, no
//          spills. docs/kernels.md has what is predicted, by a model that does not count those instructions.
// Lacking  where a pixel's row may begin at an odd element (Caffe's conv1: rows of 227*3) the copies are
//          element by element, and not asynchronous. dilation_w and groups are left to
//          conv2d_fprop_implicit_gemm_mma.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["bfloat16", "float16"]
// layout  = "NHWC, KRSC"
// options = { relu = "int" }
// tile    = { TILE_M = 192, TILE_N = 96, TILE_K = 32, WARP_M = 96, WARP_N = 48, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 256, TILE_N = 64, WARP_M = 64, WARP_N = 64 },
// ]
// when    = "groups == 1 and C < 8 and (dilation_w == 1 or S == 1)"
// rank    = 21
// truncates = true
// workspace = "2*K*PITCH"
// [tune]
// TILE_M = [128, 192, 256]
// TILE_N = [64, 96, 128]
// STAGES = [3, 4]
// [let]
// WORDS   = "ceil_div(S*C, 2)"
// SLICES  = "1"
// STEPS   = "ceil_div(2*R*WORDS, TILE_K)"
// PITCH   = "STEPS*TILE_K"
// TILES_N = "ceil_div(K, TILE_N)"
// BLOCKS  = "TILES_N * ceil_div(N*P*Q, TILE_M)"
// [dividers]
// by_tiles_n = "TILES_N"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_words   = "max(1, WORDS)"
// by_pitch   = "max(1, PITCH)"
// [[launch]]
// entry   = "conv2d_fprop_tap_rows_mma_weights"
// grid    = ["ceil_div(K*PITCH//2, 256) if BLOCKS > 0 else 0"]
// block   = ["256"]
// [[launch]]
// entry   = "conv2d_fprop_tap_rows_mma"
// grid    = ["BLOCKS"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// ///

#include "conv2d_fprop_tap_rows_mma.cuh"

extern "C" __launch_bounds__(256) __global__
    void conv2d_fprop_tap_rows_mma_weights(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                           const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                           storage_t* __restrict__ y, storage_t* __restrict__ filled,
                                           const int with_relu) {
  fill_up_weights(g, w, filled);
}

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_fprop_tap_rows_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                   const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                   storage_t* __restrict__ y, const storage_t* __restrict__ filled,
                                   const int with_relu) {
  conv2d_fprop(g, x, filled, b, y, with_relu);
}
