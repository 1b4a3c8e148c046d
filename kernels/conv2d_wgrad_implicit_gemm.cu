// conv2d_wgrad_implicit_gemm
//   dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]: a GEMM of gemm_m = K/groups filters, gemm_n =
//   C/groups*R*S taps, gemm_k = N*P*Q pixels, split among blocks.
//
// Tiling   a block makes TILE_M filters x TILE_N taps over a range of pixels, and a thread THREAD_M x THREAD_N
//          of them. Of three tiles heuristics.py chooses one for each problem. There are few tiles (3 in conv1,
//          54 in conv3) and up to 400,000 pixels: grid z cuts the pixels into slices until FILL blocks are
//          busy, none shorter than DEPTH, and a second launch adds up the slices in their order. So there are
//          no atomics, the bits are the same every time, and the rounding error grows with the slice and not
//          with the batch.
// Threads  of the first tile: 4 warps make 32 x 128 sums each. L0 to L31 are the lanes of a warp, each with
//          4 x 4 sums in a patch of 16 x 32:
//
//             n     0-3   4-7   ...  28-31  |  32-63, 64-95, 96-127
//          m  0- 3  L0    L1    ...  L7     |
//             4- 7  L8    L9    ...  L15    |  the same lanes again
//             8-11  L16   L17   ...  L23    |
//            12-15  L24   L25   ...  L31    |
//            16-31  the same lanes again: all this is warp 0
//            32-63  warp 1
//            64-95  warp 2
//           96-127  warp 3
//
//          To fetch a step's 8 pixels x 128 filters of dy, and its 8 pixels x 128 taps of x, 8 lanes walk
//          along the pixels and the block takes 16 filters or taps at a time.
// Traffic  dy is read ceil(C/groups*R*S / TILE_N) times, x ceil(K/groups / TILE_M) * R*S /
//          (stride_h*stride_w) times, both in runs of 8 pixels (a sector), the repeats from L1 and L2; dw is
//          written and read once per slice, in L2.
// Bound    FP32 FMA. On sm_90a 1024 of the main loop's 1212 instructions are FFMA (.845); 215 registers, no
//          spills. From a load of global memory to its use are 1045 instructions or more, so that a step hides
//          its latency. The other tiles have thinner loops (.80), and fewer useless rows: 96 are all used by
//          conv1, and three times 64 by conv4, where 128 use three quarters. docs/kernels.md has what is
//          predicted for each layer, 64 to 72 % of the FP32 peak at a batch of 128, and the model, which does
//          not count the slices' memory.
//
// /// kernel
// op      = "conv2d_wgrad"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 256 }
// tiles   = [
//     { TILE_M = 96, THREAD_M = 12, THREAD_N = 8 },
//     { TILE_M = 64, TILE_N = 256 },
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
// FILL    = "132*PER_SM"
// SIZE    = "K*(C//groups)*R*S"
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
// entry   = "conv2d_wgrad_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_wgrad.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ x,
                                    const float* __restrict__ dy, float* __restrict__ dw,
                                    float* __restrict__ workspace) {
  conv2d_wgrad<false>(g, x, dy, dw, nullptr, workspace);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ x,
                                           const float* __restrict__ dy, float* __restrict__ dw,
                                           float* __restrict__ workspace) {
  add_slices(workspace, dw, sums_of<false>(g), g.by_slices.divisor, [](long long, float v) { return v; });
}
