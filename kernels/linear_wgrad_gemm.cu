// linear_wgrad_gemm
//   dw[k,c] = sum_n dy[n,k] * x[n,c]: a GEMM of gemm_m = K, gemm_n = C, gemm_k = N.
//
// Tiling   a block makes TILE_M x TILE_N elements, and a thread 8 x 16 of them. The sum runs over the batch
//          and is short; there are tiles enough (2,304 in fc6), and slices only where both matrices are
//          small.
// Threads  4 warps make 32 x 128 sums each. L0 to L31 are the lanes of a warp, each with 4 x 4 sums in a
//          patch of 16 x 32:
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
//          To fetch a step's 8 n's x 128 columns of dy, and of x, a warp takes a row at a time, 4 columns to
//          a lane.
// Traffic  at a batch of up to TILE_M, each matrix is read once from DRAM; the slices are written and read
//          once, in L2. Loads are 128 bits wide where both matrices' rows are aligned, and 32 where not: the
//          same sums, bit by bit.
// Bound    FP32 FMA at a batch of 128, DRAM below some 30. On sm_90a .918 of the main loop's instructions are
//          FFMA where loads are 128 bits wide; 222 registers, no spills. The compiler moves the loads down:
//          to the use of the nearest are 187 instructions of some 1120. Predicted at batch 128, in % of the
//          FP32 peak: fc6 and fc7 65, fc8 60: 16 steps of TILE_K to a tile leave little to hide its first
//          loads and its stores behind.
//
// /// kernel
// op      = "linear_wgrad"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 128 }
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M   = [64, 128]
// TILE_K   = [8, 16]
// THREAD_N = [8, 16]
// PER_SM   = [1, 2, 3]
// DEPTH    = [64, 128, 256]
// # Places for blocks on an H200.
// [let]
// FILL    = "132*PER_SM"
// SIZE    = "K*C"
// TILES_M = "ceil_div(K, TILE_M)"
// BLOCKS  = "TILES_M * ceil_div(C, TILE_N)"
// SLICES  = "max(1, min(N//DEPTH, FILL//BLOCKS))"
// [dividers]
// by_tiles_m = "TILES_M"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "linear_wgrad_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_wgrad_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_grads.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_wgrad_gemm(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ dy,
                           float* __restrict__ dw, float* __restrict__ workspace) {
  __shared__ GemmShared shared;
  __shared__ Block block;

  if (threadIdx.x == 0) block.set(g.by_tiles_m, g.K, g.C, g.N, g.by_slices);
  __syncthreads();

  float sum[THREAD_M][THREAD_N] = {};
  wgrad_sums(block, g.C, g.K, x, dy, shared, sum);
  const auto place = [&](int n, long long (&offset)[4]) { block.place(n, offset); };
  float* const out = slice_or_output(dw, workspace, static_cast<long long>(g.K) * g.C);
  write_sums(out + block.first_m * g.C + block.first_n, g.C, block.rows, place, NoEpilogue(), sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_wgrad_gemm_reduce(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ dy,
                                  float* __restrict__ dw, float* __restrict__ workspace) {
  add_slices(workspace, dw, static_cast<long long>(g.K) * g.C, g.by_slices.divisor,
             [](long long, float v) { return v; });
}
