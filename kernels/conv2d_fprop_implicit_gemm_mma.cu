// conv2d_fprop_implicit_gemm_mma
//   y[n,p,q,k] = b[k] + sum_{r,s,c} x[n,h,w,c] * w[k,r,s,c]  (+ ReLU) on tensor cores, in NHWC: a GEMM of gemm_m =
//   N*P*Q pixels, gemm_n = K/groups filters, gemm_k = R*S*C/groups, whose left factor is never stored. 16-bit
//   elements, fp32 sums, rounded once.
//
// Tiling   a block makes TILE_M pixels x TILE_N filters of one group, a warp WARP_M x WARP_N of them, in steps of
//          TILE_K channels of one tap (r, s). Channels lie together in x and in w, so that both factors' rows
//          come in pieces of 16 bytes, and are what ldmatrix takes, without transposition. Blocks with the same
//          pixels are neighbours and share them in L2.
// Ring     of STAGES slots in shared memory: while one step is multiplied, the copies of the STAGES - 1 behind it
//          are on their way (cp.async). A step has one wait and one barrier: what it overwrites was read a step
//          ago. Taps outside the image and channels beyond the last one arrive as zeros.
// Swizzle  a slot has rows of CHUNKS pieces of 16 bytes: TILE_M pixels, then TILE_N filters. Eight rows' pieces
//          c, which a wavefront of ldmatrix takes, have to lie in different banks; and so have the pieces of
//          neighbouring rows that eight lanes copy. Piece c of a row stands at c ^ (row / 2) % 4, for CHUNKS = 4:
//
//             banks    0-3  4-7  8-11 ...                      28-31
//             row 0,1   0    1    2    3  |  0    1    2    3
//             row 2,3   1    0    3    2  |  1    0    3    2          an even row, then an odd one
//             row 4,5   2    3    0    1  |  2    3    0    1
//             row 6,7   3    2    1    0  |  3    2    1    0
//
// Warps    2 x 2 of them, 64 pixels x 64 filters each: 4 x 8 products of 16 x 8. Lane l has, of each of them, with
//          g = l / 4 and t = 2 (l % 4), the sums of pixels g and g + 8 and of filters t and t + 1:
//
//                        filter  0    1  |  2    3  |  4    5  |  6    7
//               pixel 0          L0      |  L1      |  L2      |  L3           sum[0], sum[1]
//                     1          L4      |  L5      |  L6      |  L7
//                    ...
//                     7          L28     |  L29     |  L30     |  L31
//                     8          L0      |  L1      |  L2      |  L3           sum[2], sum[3]
//                    ...
//
//          For 16 channels 4 ldmatrix.x4 bring 64 pixels (a[0..3]: pixels g and g + 8, channels t and t + 8), and 4
//          bring 64 filters (2 x 8 filters each, b0 and b1 of both): 8 loads for 32 products.
// Traffic  x is read ceil(K/groups / TILE_N) * R*S / (stride_h*stride_w) times, mostly from L2, w ceil(N*P*Q /
//          TILE_M) times from L2. y is written once, by way of the ring, 16 bytes to a lane.
// Bound    tensor cores. A step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp, as counted for sm_80: 242 registers,
//          no spills; so that two blocks of 4 warps fit on an SM that has 128 KB for their rings. Nothing is
//          predicted here yet.
// Lacking  C/groups that is no multiple of 8, and arrays that are not aligned to 16 bytes, are fetched element by
//          element, which is slow; C = 3 wastes most of a step. A batch of 1 leaves SMs idle: no split-K.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["bfloat16", "float16"]
// layout  = "NHWC, KRSC"
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2, DEPTH = 8 }
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
