// conv2d_wgrad_implicit_gemm_mma
//   dw[k,c,r,s] = sum_{n,p,q} dy[n,p,q,k] * x[n,h,w,c] on tensor cores, from NHWC to KCRS: a GEMM of gemm_m =
//   K/groups filters, gemm_n = R*S*C/groups, gemm_k = N*P*Q pixels, split among blocks. 16-bit elements, fp32
//   sums.
//
// Tiling   a block makes TILE_M filters x TILE_N columns of one group over a slice of the pixels, a warp
//          WARP_M x WARP_N of them, in steps of TILE_K pixels. gemm_mma.cuh has the ring of copies and the
//          lanes' map. A column is a channel of a tap: eight of them are a piece of 16 bytes, a tap's are
//          filled up to whole pieces. Of dy and x it is filters and channels that lie together, not pixels
//          (gemm_k): ldmatrix.trans turns both.
// Places   a thread copies the same columns in every step, so that its tap and channels are worked out once.
//          Where a step's pixels are in x stands in a table in shared memory, made CHUNK pixels at a time:
//          two divisions for each pixel of a block, not for each of its pieces.
// Slices   there are few tiles (38 in conv2, 54 in conv3 at 128 x 128) and up to 400,000 pixels: grid z cuts
//          the pixels until FILL blocks are busy, none into less than DEPTH steps. Sums go to the workspace,
//          and a second launch adds them up in the slices' order and writes dw: the bits are the same every
//          time.
// Traffic  dy is read ceil(R*S*C/groups / TILE_N) times, x ceil(K/groups / TILE_M) * R*S /
//          (stride_h*stride_w) times, mostly from L2. A slice is written and read once, 4 bytes to a sum, in
//          L2.
// Bound    tensor cores. In the machine code for sm_90a a step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp;
//          216 registers, no spills. docs/kernels.md has what is predicted for each layer, and the model,
//          which does not count the slices' memory.
// Lacking  C/groups or K/groups that is no multiple of 8, and arrays that are not aligned to 16 bytes, are
//          fetched element by element; conv2d_wgrad_tap_rows_mma takes C < 8.
//
// /// kernel
// op      = "conv2d_wgrad"
// dtypes  = ["bfloat16", "float16", "bfloat16/float32", "float16/float32"]
// layout  = "NHWC"
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 64, TILE_N = 256 },
// ]
// rank    = 20
// truncates = true
// workspace = "4*K*PITCH*SLICES"
// [tune]
// TILE_M = [64, 128]
// TILE_N = [64, 128, 256]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH     = "8"
// FILL      = "132*PER_SM"
// PIECES_C  = "ceil_div(C//groups, 8)"
// PITCH     = "R*S*PIECES_C*8"
// TILES_M   = "ceil_div(K//groups, TILE_M)"
// TILES_N   = "ceil_div(PITCH, TILE_N)"
// BLOCKS    = "TILES_N * TILES_M * groups"
// ALL_STEPS = "ceil_div(N*P*Q, TILE_K)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_m  = "TILES_M"
// by_tiles_n  = "max(1, TILES_N)"
// by_groups   = "groups"
// by_pieces_c = "max(1, PIECES_C)"
// by_pixels   = "P*Q"
// by_Q        = "Q"
// by_S        = "S"
// by_quads    = "max(1, PITCH//4)"
// by_slices   = "SLICES"
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm_mma_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056)"]
// block   = ["256"]
// ///

#include "conv2d_wgrad_mma.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_implicit_gemm_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                        const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                        float* __restrict__ workspace) {
  conv2d_wgrad<false>(g, x, dy, workspace);
}

extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_implicit_gemm_mma_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                               const storage_t* __restrict__ dy, param_t* __restrict__ dw,
                                               float* __restrict__ workspace) {
  conv2d_wgrad_reduce<false>(g, dw, nullptr, workspace);
}
