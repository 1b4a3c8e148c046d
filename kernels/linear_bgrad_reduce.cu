// linear_bgrad_reduce
//   db[k] = sum over n of dy[n,k]
//
// Tiling   a block makes 32 columns: each of its WARPS warps adds up every WARPS-th row, UNROLL loads at a
//          time, and a fixed tree through shared memory adds up the warps. So a sum passes some
//          N/(WARPS*UNROLL) + 8 roundings.
// Traffic  dy once, in runs of 32 elements (128 bytes in fp32, 64 in the 16-bit types); db written once.
// Bound    latency for AlexNet's 128 rows (2 MB for fc6, which the L2 holds): predicted about 4 us. DRAM
//          bandwidth for thousands of rows: predicted 70 % of the read rate, if K / 32 blocks fill the GPU;
//          fewer blocks, less.
//
// /// kernel
// op     = "linear_bgrad"
// dtypes = ["float32", "float16", "bfloat16", "bfloat16/float32", "float16/float32"]
// tile   = { WARPS = 8, UNROLL = 4 }
// tune   = { WARPS = [4, 8, 16, 32], UNROLL = [2, 4, 8] }
// grid   = ["ceil_div(K, 32)"]
// block  = ["32 * WARPS"]
// rank   = 10
// ///

#include "storage.cuh"

static_assert((WARPS & (WARPS - 1)) == 0, "the tree halves the warps");

extern "C" __launch_bounds__(32 * WARPS) __global__
    void linear_bgrad_reduce(GEOMETRY(ChannelSum), const storage_t* __restrict__ dy,
                             param_t* __restrict__ db) {
  __shared__ float partial[WARPS][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long k = static_cast<long long>(blockIdx.x) * 32 + lane;

  float sums[UNROLL] = {};
  if (k < g.K) {
    for (long long n = warp; n < g.N; n += WARPS * UNROLL) {
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const long long row = n + u * WARPS;
        sums[u] += row < g.N ? to_float(dy[row * g.K + k]) : 0.0f;
      }
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) sum += sums[u];
  partial[warp][lane] = sum;
  // A barrier before each step and none after the last: what a thread of warp 0 reads then, it wrote itself.
#pragma unroll
  for (int warps = WARPS / 2; warps > 0; warps /= 2) {
    __syncthreads();
    if (warp < warps) partial[warp][lane] += partial[warp + warps][lane];
  }
  if (warp == 0 && k < g.K) db[k] = to_param(partial[0][lane]);
}
