// linear_grads.cuh: the gradients of a fully connected layer as GEMMs: of its input (linear_dgrad_gemm.cu has the
// argument) and of its weights (linear_wgrad_gemm.cu). What becomes of the sums, the kernels say.
#pragma once

#include "gemm_matrix.cuh"
#include "sgd.cuh"

static_assert(sizeof(GemmShared) + 64 <= 48 * 1024, "TILE_K: static shared memory ends at 48 KB");

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  KRange range;
  long long first_m, first_n;
  int rows, columns;  // of the output from there on

  // Of an output of `rows` x `columns`: the tiles that share columns are neighbours.
  __device__ __forceinline__ void set(const Divider& by_tiles_m, int all_rows, int all_columns, long long k,
                                      const Divider& by_slices) {
    first_m = static_cast<long long>(blockIdx.x % by_tiles_m) * TILE_M;
    first_n = static_cast<long long>(blockIdx.x / by_tiles_m) * TILE_N;
    rows = static_cast<int>(all_rows - first_m);
    columns = static_cast<int>(all_columns - first_n);
    range = k_range(k, by_slices);
  }

  // Where columns n to n + 3 of the tile are in a row of it.
  __device__ __forceinline__ void place(int n, long long (&offset)[4]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) offset[e] = n + e < columns ? n + e : -1;
  }
};

// dx[n][c] = sum over k of dy[n][k] * w[k][c]: this block's slice of its tile. C and K are inputs and outputs.
__device__ __forceinline__ void dgrad_sums(const Block& block, long long C, long long K, const float* dy,
                                           const float* w, GemmShared& shared,
                                           float (&sum)[THREAD_M][THREAD_N]) {
  const int count = static_cast<int>(block.range.count);
  const float* const left = dy + block.first_m * K + block.range.first;
  const float* const right = w + block.range.first * C + block.first_n;
  if (rows_aligned(dy, K) && rows_aligned(w, C))
    multiply(AlongK<TILE_M, STRIDE_A, 4>(left, K, block.rows, count),
             AcrossK<TILE_N, STRIDE_B, 4>(right, C, block.columns, count), block.range.steps, shared, sum);
  else
    multiply(AlongK<TILE_M, STRIDE_A, 1>(left, K, block.rows, count),
             AcrossK<TILE_N, STRIDE_B, 1>(right, C, block.columns, count), block.range.steps, shared, sum);
}

// dw[k][c] = sum over n of dy[n][k] * x[n][c], likewise.
__device__ __forceinline__ void wgrad_sums(const Block& block, long long C, long long K, const float* x,
                                           const float* dy, GemmShared& shared,
                                           float (&sum)[THREAD_M][THREAD_N]) {
  const int count = static_cast<int>(block.range.count);
  const float* const left = dy + block.range.first * K + block.first_m;
  const float* const right = x + block.range.first * C + block.first_n;
  if (rows_aligned(dy, K) && rows_aligned(x, C))
    multiply(AcrossK<TILE_M, STRIDE_A, 4>(left, K, block.rows, count),
             AcrossK<TILE_N, STRIDE_B, 4>(right, C, block.columns, count), block.range.steps, shared, sum);
  else
    multiply(AcrossK<TILE_M, STRIDE_A, 1>(left, K, block.rows, count),
             AcrossK<TILE_N, STRIDE_B, 1>(right, C, block.columns, count), block.range.steps, shared, sum);
}

// -----------------------------------------------------------------------------------------------------------
// The update of the weights: a sum is the gradient of a weight, which no one else updates. w_new and v_new may
// be w and v, hence no __restrict__.
// -----------------------------------------------------------------------------------------------------------
struct Weights {
  const float *w, *v;
  float *w_new, *v_new;
};

// What the block makes of its sums: new weights, or its slice of the gradient.
__device__ __forceinline__ void update_tile(const Block& block, long long C, long long K,
                                            const float (&sum)[THREAD_M][THREAD_N], const Weights& of,
                                            float* workspace, const SgdUpdate& update) {
  const auto place = [&](int n, long long (&offset)[4]) { block.place(n, offset); };
  const long long first = block.first_m * C + block.first_n;
  if (gridDim.z > 1) {
    write_sums(workspace + K * C * blockIdx.z + first, C, block.rows, place, NoEpilogue(), sum);
    return;
  }
  float w[THREAD_M][4], v[THREAD_M][4];
  const auto fetch = [&](int i, int m, const long long (&offset)[4]) {
    load_quad(of.w + first + m * C, offset, w[i]);
    load_quad(of.v + first + m * C, offset, v[i]);
  };
  each_quad(block.rows, place, sum, fetch,
            [&](int i, int m, int, const long long (&offset)[4], float (&gradient)[4]) {
#pragma unroll
              for (int e = 0; e < 4; ++e) update(gradient[e], w[i][e], v[i][e]);
              store_quad(of.w_new + first + m * C, offset, w[i]);
              store_quad(of.v_new + first + m * C, offset, v[i]);
            });
}

// The launch behind it: adds up `slices` slices of the gradients of `size` weights, and updates these.
__device__ __forceinline__ void update_slices(const float* workspace, long long size, long long slices,
                                              const Weights& of, const SgdUpdate& update) {
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (long long i = first; i < size; i += static_cast<long long>(gridDim.x) * blockDim.x) {
    float w = of.w[i], v = of.v[i], gradient = workspace[i];
#pragma unroll 4
    for (long long slice = 1; slice < slices; ++slice) gradient += workspace[size * slice + i];
    update(gradient, w, v);
    of.w_new[i] = w;
    of.v_new[i] = v;
  }
}
