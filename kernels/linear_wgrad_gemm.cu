// linear_wgrad_gemm
//   dw[k,c] = sum_n dy[n,k] * x[n,c]: a GEMM of gemm_m = K, gemm_n = C, gemm_k = N.
//
// Status   compiled, and emulated; no GPU has run it yet. What is called predicted is a model.
// Tiling   a block makes BLOCK_M x BLOCK_N elements, a thread 8 x 16 of them (gemm_tile.cuh). The sum runs over the batch and
//          is short; there are tiles enough (2,304 in fc6), and slices only where both matrices are small.
// Traffic  at a batch of up to BLOCK_M, each matrix is read once from DRAM; the slices are written and read once, in L2.
//          Loads are 128 bits wide where both matrices' rows are aligned, and 32 where not: the same sums, bit by bit.
// Bound    FP32 FMA at a batch of 128, DRAM below some 30. On sm_90a .864 of the main loop's instructions are FFMA; 221
//          registers, no spills. Predicted at batch 128, in % of the FP32 peak: fc6 and fc7 65, fc8 60: 16 steps
//          of BLOCK_K to a tile leave little to hide its first loads and its stores behind.
//
// /// kernel
// op      = "linear_wgrad"
// dtypes  = ["float32"]
// tile    = { BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 8, THREAD_M = 8, THREAD_N = 16, FILL = 264, DEPTH = 128 }
// tune    = { BLOCK_M = [64, 128], BLOCK_K = [8, 16], THREAD_N = [8, 16], FILL = [132, 264], DEPTH = [64, 128, 256] }
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [let]
// SIZE    = "K*C"
// BLOCKS  = "ceil_div(K, BLOCK_M) * ceil_div(C, BLOCK_N)"
// SLICES  = "max(1, min((N)//DEPTH, FILL//BLOCKS))"
// [[launch]]
// entry   = "linear_wgrad_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["BLOCK_M*BLOCK_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_wgrad_gemm_reduce"
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
__device__ __forceinline__ void multiply(GemmShared<Tile>& shared, const float* dy, const float* x,
                                         int length_a, int length_b, int rows, int columns,
                                         const GemmRange& range, float (&sum)[THREAD_M][THREAD_N]) {
  const int count = static_cast<int>(range.count);
  GemmMatrixAcrossK<Tile, BLOCK_M, Tile::STRIDE_A, VECTOR> a(dy + range.first * length_a, length_a, rows,
                                                             count);
  GemmMatrixAcrossK<Tile, BLOCK_N, Tile::STRIDE_B, VECTOR> b(x + range.first * length_b, length_b, columns,
                                                             count);
  gemm_sum<Tile>(shared, a, b, GemmNoTable(), range.steps, sum);
}

extern "C" __launch_bounds__(Tile::THREADS, Tile::MIN_BLOCKS) __global__
    void linear_wgrad_gemm(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ dy,
                           float* __restrict__ dw, float* __restrict__ workspace) {
  __shared__ GemmShared<Tile> shared;
  __shared__ Block block;

  if (threadIdx.x == 0) {
    // The tiles that share columns are neighbours.
    const int tiles_m = (g.K + BLOCK_M - 1) / BLOCK_M;
    block.first_m = static_cast<int>(blockIdx.x % tiles_m) * BLOCK_M;
    block.first_n = static_cast<int>(blockIdx.x / tiles_m) * BLOCK_N;
    block.range = gemm_range<Tile>(g.N);
  }
  __syncthreads();

  float sum[THREAD_M][THREAD_N];
  if (gemm_aligned(dy, g.K) && gemm_aligned(x, g.C))
    multiply<4>(shared, dy + block.first_m, x + block.first_n, g.K, g.C, g.K - block.first_m,
                g.C - block.first_n, block.range, sum);
  else
    multiply<1>(shared, dy + block.first_m, x + block.first_n, g.K, g.C, g.K - block.first_m,
                g.C - block.first_n, block.range, sum);

  const int rows = g.K - block.first_m, columns = g.C - block.first_n;
  const auto place = [&](int n) -> long long { return n < columns ? n : -1; };
  float* const out = gemm_target(dw, workspace, static_cast<long long>(g.K) * g.C);
  gemm_write<Tile>(out + static_cast<long long>(block.first_m) * g.C + block.first_n, g.C, rows, place,
                   GemmNoEpilogue(), sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_wgrad_gemm_reduce(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ dy,
                                  float* __restrict__ dw, float* __restrict__ workspace) {
  gemm_reduce(workspace, dw, static_cast<long long>(g.K) * g.C, [](long long, float v) { return v; });
}
