// conv2d_fprop_implicit_gemm_mma
//   y[n,p,q,k] = b[k] + sum_{r,s,c} x[n,h,w,c] * w[k,r,s,c]  (+ ReLU) on tensor cores, in NHWC: a GEMM of
//   gemm_m = N*P*Q pixels, gemm_n = K/groups filters, gemm_k = R*S*C/groups, whose left factor is never
//   stored. 16-bit elements, fp32 sums, rounded once.
//
// Tiling   a block makes TILE_M pixels x TILE_N filters of one group, a warp WARP_M x WARP_N of them, in
//          steps of TILE_K. conv2d_fprop_mma.cuh has the code, gemm_mma.cuh the ring of copies, the swizzle
//          and the lanes' map. Of two tiles heuristics.py chooses one for each problem: 96 columns for groups
//          of 96 or 192 filters. Blocks with the same pixels are neighbours and share them in L2.
// Pieces   channels lie together in x and in w, so that both factors come in pieces of 16 bytes, eight
//          channels of one tap (r, s), and are what ldmatrix takes, without transposition. Each thread keeps
//          its own tap: a step may end one tap and begin the next. So the 48 channels of conv2 fill their
//          steps (99 %; in whole steps to a tap 75 %). Where a pixel's window begins stands in a table in
//          shared memory. Taps outside the image and channels beyond the last one arrive as zeros.
// Slices   where blocks do not fill the GPU (a batch of 1), grid z cuts gemm_k, none into less than DEPTH
//          steps; a second launch adds up the slices in their order, then the bias and ReLU.
// Traffic  x is read ceil(K/groups / TILE_N) * R*S / (stride_h*stride_w) times, mostly from L2, w ceil(N*P*Q
//          / TILE_M) times from L2. y is written once, by way of the ring, 16 bytes to a lane.
// Bound    tensor cores. In the machine code for sm_90a a step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp;
//          207 registers, no spills, so that two blocks of 4 warps fit on an SM that has 128 KB for their
//          rings. docs/kernels.md has what is predicted for each layer, and the model.
// Lacking  C/groups that is no multiple of 8, and arrays that are not aligned to 16 bytes, are fetched
//          element by element, which is slow; conv2d_fprop_tap_rows_mma takes C < 8.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["bfloat16", "float16"]
// layout  = "NHWC, KRSC"
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 192, TILE_N = 96, WARP_M = 96, WARP_N = 48 },
// ]
// rank    = 20
// truncates = true
// workspace = "4*N*P*Q*PITCH*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH    = "8"
// FILL     = "132*PER_SM"
// PIECES_C = "ceil_div(C//groups, 8)"
// ALL_STEPS = "ceil_div(R*S*PIECES_C, TILE_K//8)"
// TILES_N  = "ceil_div(K//groups, TILE_N)"
// PITCH    = "groups*ceil_div(K//groups, 8)*8"
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
// entry   = "conv2d_fprop_implicit_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm_mma_reduce"
// grid    = ["min(ceil_div(N*P*Q*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_fprop_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_fprop_implicit_gemm_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                        const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                        storage_t* __restrict__ y, float* __restrict__ workspace,
                                        const int with_relu) {
  conv2d_fprop(g, x, w, b, y, workspace, with_relu);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_fprop_implicit_gemm_mma_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                               const storage_t* __restrict__ w,
                                               const storage_t* __restrict__ b, storage_t* __restrict__ y,
                                               float* __restrict__ workspace, const int with_relu) {
  conv2d_fprop_reduce(g, b, y, workspace, with_relu);
}
