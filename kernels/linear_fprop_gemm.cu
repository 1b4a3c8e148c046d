// linear_fprop_gemm
//   y[n,k] = b[k] + sum_c x[n,c] * w[k,c]  (+ ReLU): a GEMM of gemm_m = N, gemm_n = K, gemm_k = C.
//
// Status   compiled, and emulated; no GPU has run it yet. What is called predicted is a model.
// Tiling   a block makes BLOCK_M x BLOCK_N elements, a thread 8 x 16 of them (gemm_tile.cuh). With a batch of 128 there are 32
//          tiles at most: grid z splits gemm_k into slices of DEPTH or more until FILL blocks are busy, and a second
//          launch adds them up in their order, then the bias and ReLU. A batch of 1 uses one row of a tile in 128.
// Traffic  at a batch of up to BLOCK_M, each matrix is read once from DRAM; the slices are written and read once, in L2.
//          Loads are 128 bits wide where both matrices' rows are aligned, and 32 where not: the same sums, bit by bit.
// Bound    FP32 FMA at a batch of 128, DRAM below some 30. On sm_90a .853 of the main loop's instructions are FFMA; 219
//          registers, no spills. Predicted at batch 128, in % of the FP32 peak: fc6 and fc7 75, fc8 65 (short
//          sums). At batch 1 below 1: the tile is mostly empty, while w, read once, sets the floor.
//
// /// kernel
// op      = "linear_fprop"
// dtypes  = ["float32"]
// options = { relu = "int" }
// tile    = { BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 8, THREAD_M = 8, THREAD_N = 16, FILL = 264, DEPTH = 128 }
// tune    = { BLOCK_M = [64, 128], BLOCK_K = [8, 16], THREAD_N = [8, 16], FILL = [132, 264], DEPTH = [64, 128, 256] }
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [let]
// SIZE    = "N*K"
// BLOCKS  = "ceil_div(N, BLOCK_M) * ceil_div(K, BLOCK_N)"
// SLICES  = "max(1, min((C)//DEPTH, FILL//BLOCKS))"
// [[launch]]
// entry   = "linear_fprop_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["BLOCK_M*BLOCK_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_fprop_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056)//SLICES + 1 if SLICES > 1 else 0", "1", "SLICES"]
// block   = ["256"]
// ///

#include "gemm_tile.cuh"

using Tile = GemmTile<BLOCK_M, BLOCK_N, BLOCK_K, THREAD_M, THREAD_N>;

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  GemmRange range;
  int first_m, first_n;
};

template <int VECTOR>
__device__ __forceinline__ void multiply(GemmShared<Tile>& shared, const float* x, const float* w,
                                         long long length, int rows, int columns, const GemmRange& range,
                                         float (&sum)[THREAD_M][THREAD_N]) {
  const int count = static_cast<int>(range.count);
  GemmMatrixAlongK<Tile, BLOCK_M, Tile::STRIDE_A, VECTOR> a(x + range.first, length, rows, count);
  GemmMatrixAlongK<Tile, BLOCK_N, Tile::STRIDE_B, VECTOR> b(w + range.first, length, columns, count);
  gemm_sum<Tile>(shared, a, b, GemmNoTable(), range.steps, sum);
}

extern "C" __launch_bounds__(Tile::THREADS, Tile::MIN_BLOCKS) __global__
    void linear_fprop_gemm(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ w,
                           const float* __restrict__ b, float* __restrict__ y, float* __restrict__ workspace,
                           const int relu) {
  __shared__ GemmShared<Tile> shared;
  __shared__ Block block;

  if (threadIdx.x == 0) {
    // The tiles that share columns are neighbours.
    const int tiles_m = (g.N + BLOCK_M - 1) / BLOCK_M;
    block.first_m = static_cast<int>(blockIdx.x % tiles_m) * BLOCK_M;
    block.first_n = static_cast<int>(blockIdx.x / tiles_m) * BLOCK_N;
    block.range = gemm_range<Tile>(g.C);
  }
  __syncthreads();

  float sum[THREAD_M][THREAD_N];
  const float* const left = x + static_cast<long long>(block.first_m) * g.C;
  const float* const right = w + static_cast<long long>(block.first_n) * g.C;
  if (gemm_aligned(x, g.C) && gemm_aligned(w, g.C))
    multiply<4>(shared, left, right, g.C, g.N - block.first_m, g.K - block.first_n, block.range, sum);
  else
    multiply<1>(shared, left, right, g.C, g.N - block.first_m, g.K - block.first_n, block.range, sum);

  const int rows = g.N - block.first_m, columns = g.K - block.first_n;
  const auto place = [&](int n) -> long long { return n < columns ? n : -1; };
  const bool whole = gridDim.z == 1;
  const auto epilogue = [&](int, int n, float v) {
    if (!whole) return v;
    if (b && n < columns) v += b[block.first_n + n];
    return relu ? gemm_relu(v) : v;
  };
  float* const out = gemm_target(y, workspace, static_cast<long long>(g.N) * g.K);
  gemm_write<Tile>(out + static_cast<long long>(block.first_m) * g.K + block.first_n, g.K, rows, place,
                   epilogue, sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_fprop_gemm_reduce(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ w,
                                  const float* __restrict__ b, float* __restrict__ y,
                                  float* __restrict__ workspace, const int relu) {
  gemm_reduce(workspace, y, static_cast<long long>(g.N) * g.K, [&](long long i, float v) {
    if (b) v += b[i % g.K];
    return relu ? gemm_relu(v) : v;
  });
}
