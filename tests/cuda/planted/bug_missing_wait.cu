// A barrier, but no wait for the asynchronous copy.
// fast: NaN
#include "convkit.cuh"
extern "C" __global__ void bug_missing_wait(const float* __restrict__ x, float* __restrict__ y, const int n) {
  __shared__ __align__(16) float tile[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  if (t < 16) cp_async_16(&tile[t * 4], x + (static_cast<int>(blockIdx.x) * 64 + t * 4) % n);  // WITH
  cp_async_commit();
  __syncthreads();
  y[i % n] = tile[63 - t];  // BUG: write in flight
}
