// conv2d_wgrad_tap_rows_mma
//   dw[k,c,r,s] = sum_{n,p,q} dy[n,p,q,k] * x[n,h,w,c] on tensor cores, from NHWC to KCRS, where C is small:
//   a GEMM of gemm_m = K filters, gemm_n = R rows of S*C elements, gemm_k = N*P*Q pixels, split among blocks.
//   16-bit elements, fp32 sums.
//
// Idea     that of conv2d_fprop_tap_rows_mma: the S*C elements that a row of taps meets lie together in x. In
//          conv1 gemm_n is 11 rows of 33 elements, filled up to 374; two tiles of 192 are 94 % full.
// Copies   x comes in pairs of 4 bytes (cp.async), 24 copies of a thread to a step. A thread keeps its pairs'
//          taps; each copy finds its pixel in a table in shared memory, made CHUNK pixels at a time.
// Tiling   a block makes TILE_M filters x TILE_N columns over a slice of the pixels. gemm_mma.cuh has the
//          ring of copies and the lanes' map; ldmatrix.trans turns both factors. Of two tiles heuristics.py
//          chooses one, for 96 filters or 64.
// Slices   as in conv2d_wgrad_implicit_gemm_mma: 132 of them in conv1 at a batch of 128, added up by a second
//          launch in their order.
// Traffic  dy is read ceil(R*S*C / TILE_N) times, x ceil(K / TILE_M) * R*S / (stride_h*stride_w) times,
//          mostly from L1 and L2. A slice is written and read once, 4 bytes to a sum, in L2.
// Bound    tensor cores, as far as the copies' instructions hide behind them: 72 HMMA, 18 LDSM, and 27 copies
//          of a thread to a step, 24 of them of 4 bytes; 230 registers for sm_90a, no spills. docs/kernels.md
//          has what is predicted, by a model that counts neither those instructions nor the slices' memory.
// Lacking  as conv2d_fprop_tap_rows_mma.
//
// /// kernel
// op      = "conv2d_wgrad"
// dtypes  = ["bfloat16", "float16", "bfloat16/float32", "float16/float32"]
// layout  = "NHWC"
// tile    = { TILE_M = 96, TILE_N = 192, TILE_K = 32, WARP_M = 96, WARP_N = 48, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 64, TILE_N = 128, WARP_M = 64, WARP_N = 64, PER_SM = 3 },
// ]
// when    = "groups == 1 and C < 8 and (dilation_w == 1 or S == 1)"
// rank    = 21
// truncates = true
// workspace = "4*K*PITCH*SLICES"
// [tune]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// WORDS     = "ceil_div(S*C, 2)"
// PITCH     = "ceil_div(2*R*WORDS, 8)*8"
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
// by_words   = "max(1, WORDS)"
// by_quads   = "max(1, PITCH//4)"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "conv2d_wgrad_tap_rows_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_wgrad_tap_rows_mma_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056)"]
// block   = ["256"]
// ///

#include "conv2d_wgrad_tap_rows_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_tap_rows_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                   const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                   float* __restrict__ workspace) {
  conv2d_wgrad<false>(g, x, dy, workspace);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_tap_rows_mma_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                          const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                          float* __restrict__ workspace) {
  conv2d_wgrad_reduce<false>(g, dw, nullptr, workspace);
}
