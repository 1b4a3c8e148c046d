// linear_fprop_gemm
//   y[n,k] = b[k] + sum_c x[n,c] * w[k,c]  (+ ReLU): a GEMM of gemm_m = N, gemm_n = K, gemm_k = C.
//
// Tiling   a block makes TILE_M x TILE_N elements, and a thread 8 x 16 of them. With a batch of 128 there are
//          32 tiles at most: grid z splits gemm_k into slices of DEPTH or more until FILL blocks are busy,
//          and a second launch adds them up in their order, then the bias and ReLU. A batch of 1 uses one row
//          of a tile in 128.
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
//          To fetch a step's 8 c's x 128 rows of x, and of w, 2 lanes walk along c, 4 floats each, and the
//          block takes 64 rows at a time.
// Traffic  at a batch of up to TILE_M, each matrix is read once from DRAM; the slices are written and read
//          once, in L2. Loads are 128 bits wide where both matrices' rows are aligned, and 32 where not: the
//          same sums, bit by bit.
// Bound    FP32 FMA at a batch of 128, DRAM below some 30. On sm_90a .909 of the main loop's instructions are
//          FFMA where loads are 128 bits wide; 221 registers, no spills. The compiler moves the loads down:
//          to the use of the nearest are 311 instructions of some 1120. Predicted at batch 128, in % of the
//          FP32 peak: fc6 and fc7 75, fc8 65 (short sums). At batch 1 below 1: the tile is mostly empty,
//          while w, read once, sets the floor.
//
// /// kernel
// op      = "linear_fprop"
// dtypes  = ["float32"]
// options = { relu = "int" }
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
// SIZE    = "N*K"
// TILES_M = "ceil_div(N, TILE_M)"
// BLOCKS  = "TILES_M * ceil_div(K, TILE_N)"
// SLICES  = "max(1, min(C//DEPTH, FILL//BLOCKS))"
// [dividers]
// by_tiles_m = "TILES_M"
// by_slices  = "SLICES"
// by_K       = "K"
// [[launch]]
// entry   = "linear_fprop_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_fprop_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "gemm_matrix.cuh"

static_assert(sizeof(GemmShared) + 64 <= 48 * 1024, "TILE_K: static shared memory ends at 48 KB");

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  KRange range;
  long long first_m, first_n;
  int rows, columns;  // of the output from there on
};

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_fprop_gemm(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ w,
                           const float* __restrict__ b, float* __restrict__ y, float* __restrict__ workspace,
                           const int relu) {
  __shared__ GemmShared shared;
  __shared__ Block block;

  // The tile of this block: the tiles that share columns are neighbours.
  if (threadIdx.x == 0) {
    block.first_m = static_cast<long long>(blockIdx.x % g.by_tiles_m) * TILE_M;
    block.first_n = static_cast<long long>(blockIdx.x / g.by_tiles_m) * TILE_N;
    block.rows = static_cast<int>(g.N - block.first_m);
    block.columns = static_cast<int>(g.K - block.first_n);
    block.range = k_range(g.C, g.by_slices);
  }
  __syncthreads();

  float sum[THREAD_M][THREAD_N] = {};
  const int count = static_cast<int>(block.range.count);
  const float* const left = x + block.first_m * g.C + block.range.first;
  const float* const right = w + block.first_n * g.C + block.range.first;
  if (rows_aligned(x, g.C) && rows_aligned(w, g.C))
    multiply(AlongK<TILE_M, STRIDE_A, 4>(left, g.C, block.rows, count),
             AlongK<TILE_N, STRIDE_B, 4>(right, g.C, block.columns, count), block.range.steps, shared, sum);
  else
    multiply(AlongK<TILE_M, STRIDE_A, 1>(left, g.C, block.rows, count),
             AlongK<TILE_N, STRIDE_B, 1>(right, g.C, block.columns, count), block.range.steps, shared, sum);

  const auto place = [&](int n, long long (&offset)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) offset[e] = n + e < block.columns ? n + e : -1;
  };
  const bool whole = gridDim.z == 1;
  const auto epilogue = [&](int, int n, float v) {
    if (!whole) return v;
    if (b && n < block.columns) v += b[block.first_n + n];
    return relu ? relu_of(v) : v;
  };
  float* const out = slice_or_output(y, workspace, static_cast<long long>(g.N) * g.K);
  write_sums(out + block.first_m * g.K + block.first_n, g.K, block.rows, place, epilogue, sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_fprop_gemm_reduce(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ w,
                                  const float* __restrict__ b, float* __restrict__ y,
                                  float* __restrict__ workspace, const int relu) {
  add_slices(workspace, y, static_cast<long long>(g.N) * g.K, g.by_slices.divisor, [&](long long i, float v) {
    if (b) v += b[i % g.by_K];
    return relu ? relu_of(v) : v;
  });
}
