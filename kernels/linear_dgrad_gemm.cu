// linear_dgrad_gemm
//   dx[n,c] = sum_k dy[n,k] * w[k,c]: a GEMM of gemm_m = N, gemm_n = C, gemm_k = K.
//
// Tiling   a block makes TILE_M x TILE_N elements, and a thread 8 x 16 of them. With a batch of 128 there are
//          72 tiles at most (fc6): grid z splits gemm_k into slices of DEPTH or more until FILL blocks are
//          busy, and a second launch adds them up in their order.
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
//          To fetch a step's 8 k's x 128 rows of dy, 2 lanes walk along k, 4 floats each, and the block takes
//          64 rows at a time; for its 8 k's x 128 columns of w, a warp takes a row of w at a time, 4 columns
//          to a lane.
// Traffic  at a batch of up to TILE_M, each matrix is read once from DRAM; the slices are written and read
//          once, in L2. Loads are 128 bits wide where both matrices' rows are aligned, and 32 where not: the
//          same sums, bit by bit.
// Bound    FP32 FMA at a batch of 128, DRAM below some 30. On sm_90a .913 of the main loop's instructions are
//          FFMA where loads are 128 bits wide; 222 registers, no spills. The compiler moves the loads down:
//          to the use of the nearest are 194 instructions of some 1120. Predicted at batch 128, in % of the
//          FP32 peak: fc6 65 (3 slices, 216 of 264 places), fc7 75, fc8 70.
//
// /// kernel
// op      = "linear_dgrad"
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
// SIZE    = "N*C"
// TILES_M = "ceil_div(N, TILE_M)"
// BLOCKS  = "TILES_M * ceil_div(C, TILE_N)"
// SLICES  = "max(1, min(K//DEPTH, FILL//BLOCKS))"
// [dividers]
// by_tiles_m = "TILES_M"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "linear_dgrad_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_dgrad_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_grads.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_dgrad_gemm(GEOMETRY(Linear), const float* __restrict__ dy, const float* __restrict__ w,
                           float* __restrict__ dx, float* __restrict__ workspace) {
  __shared__ GemmShared shared;
  __shared__ Block block;

  if (threadIdx.x == 0) block.set(g.by_tiles_m, g.N, g.C, g.K, g.by_slices);
  __syncthreads();

  float sum[THREAD_M][THREAD_N] = {};
  dgrad_sums(block, g.C, g.K, dy, w, shared, sum);
  const auto place = [&](int n, long long (&offset)[4]) { block.place(n, offset); };
  float* const out = slice_or_output(dx, workspace, static_cast<long long>(g.N) * g.C);
  write_sums(out + block.first_m * g.C + block.first_n, g.C, block.rows, place, NoEpilogue(), sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_dgrad_gemm_reduce(GEOMETRY(Linear), const float* __restrict__ dy, const float* __restrict__ w,
                                  float* __restrict__ dx, float* __restrict__ workspace) {
  add_slices(workspace, dx, static_cast<long long>(g.N) * g.C, g.by_slices.divisor,
             [](long long, float v) { return v; });
}
