// conv2d_bgrad_columns
//   db[k] = sum over n,p,q of dy[n,p,q,k], in NHWC: the sums of the columns of a matrix of N*P*Q x K
//
// Tiling   two levels, each in a fixed order. The first launch cuts the rows into up to SPLITS runs, one
//          block each. A lane has CHANNELS neighbouring columns; as many lanes as there are runs of them read
//          a row, and the block's other lanes the next rows: a warp's access is one piece of memory. A lane
//          adds up its columns, UNROLL rows at a time; then the lanes of a column are added up in order, by
//          way of shared memory. The second launch adds up the parts of each column: 32 columns to a block, a
//          warp takes every WARPS-th part.
// Shared   sum j of the lanes' CHANNELS sums is in plane j. Planes are THREADS + width apart, where `width`
//          lanes read a row, and lane t of row r reads plane r for column t: so that neighbouring lanes
//          always have neighbouring banks.
// Traffic  dy once, 16 bytes to a lane and access; 4 bytes of parts for each run and column, written and
//          read.
// Bound    DRAM bandwidth: 3 instructions for each element in 16 bits, 2 in fp32, of 13 and 27 that fit into
//          its time. Predicted: 85 % of the read rate where dy is large; at N = 1 the second launch counts.
//
// /// kernel
// op        = "conv2d_bgrad"
// dtypes    = ["float32", "float16", "bfloat16", "float16/float32", "bfloat16/float32"]
// layout    = "NHWC"
// tile      = { THREADS = 256, SPLITS = 528, UNROLL = 4, CHANNELS = 8 }
// tune      = { THREADS = [128, 256, 512], SPLITS = [132, 264, 528, 1056], UNROLL = [2, 4, 8] }
// workspace = "4 * K * splits"
// when      = "tiles * splits < 2147483648"
// rank      = 10
//
// [let]
// runs   = "ceil_div(K, CHANNELS)"
// width  = "min(runs, THREADS)"
// tiles  = "ceil_div(runs, width)"
// deep   = "THREADS // width"
// splits = "max(1, min(SPLITS, ceil_div(N*P*Q, deep * UNROLL)))"
// [dividers]
// by_width  = "width"
// by_splits = "splits"
//
// [[launch]]
// entry  = "conv2d_bgrad_columns_parts"
// grid   = ["tiles * splits"]
// block  = ["THREADS"]
// shared = "4 * CHANNELS * (THREADS + width)"
//
// [[launch]]
// entry  = "conv2d_bgrad_columns"
// grid   = ["ceil_div(K, 32)"]
// block  = ["THREADS"]
// ///

#include "channels.cuh"
#include "convkit.cuh"

constexpr int WARPS = THREADS / 32,
              PARTS = 8;  // PARTS: loads of the second launch that are under way at once
// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 64.
constexpr int RESIDENT = 1024;
static_assert(THREADS % 32 == 0, "whole warps");

// workspace[split*K + k]: the sum of a run of rows of column k.
extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void conv2d_bgrad_columns_parts(GEOMETRY(ChannelSum), const storage_t* __restrict__ dy,
                                    param_t* __restrict__ db, float* __restrict__ workspace) {
  DYN_SMEM(float, partial);
  const int width = static_cast<int>(g.by_width.divisor), deep = THREADS / g.by_width;
  const int lane = static_cast<int>(threadIdx.x) % g.by_width,
            depth = static_cast<int>(threadIdx.x) / g.by_width;
  const int split = static_cast<int>(blockIdx.x % g.by_splits);
  const int k = (static_cast<int>(blockIdx.x / g.by_splits) * width + lane) * CHANNELS;
  const long long rows = static_cast<long long>(g.N) * g.P * g.Q;
  const long long share = ceil_div(rows, g.by_splits.divisor), end = min((split + 1) * share, rows);
  const bool vector = vectored(g.K, dy), any = depth < deep && k < g.K;

  float sums[CHANNELS] = {};
  for (long long row = split * share + depth; row < end && any; row += UNROLL * deep) {
    Run runs[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      runs[u] = load_run(dy + (row + u * deep) * g.K + k, row + u * deep < end ? g.K - k : 0, vector);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) sums[c] += runs[u].value(c);
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) partial[c * (THREADS + width) + threadIdx.x] = sums[c];
  __syncthreads();
  if (!any) return;
  for (int c = depth; c < CHANNELS && k + c < g.K; c += deep) {
    float sum = 0.0f;
    for (int d = 0; d < deep; ++d) sum += partial[c * (THREADS + width) + d * width + lane];
    workspace[static_cast<long long>(split) * g.K + k + c] = sum;
  }
}

extern "C" __launch_bounds__(THREADS) __global__
    void conv2d_bgrad_columns(GEOMETRY(ChannelSum), const storage_t* __restrict__ dy,
                              param_t* __restrict__ db, float* __restrict__ workspace) {
  __shared__ float partial[WARPS][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, splits = static_cast<int>(g.by_splits.divisor);
  const int k = static_cast<int>(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  if (k < g.K) {
    for (int split = warp; split < splits; split += WARPS * PARTS) {
      float parts[PARTS];
#pragma unroll
      for (int i = 0; i < PARTS; ++i) {
        const int one = split + i * WARPS;
        parts[i] = one < splits ? workspace[static_cast<long long>(one) * g.K + k] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < PARTS; ++i) sum += parts[i];
    }
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || k >= g.K) return;
  sum = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) sum += partial[w][lane];
  db[k] = to_param(sum);
}
