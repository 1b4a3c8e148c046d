// Waits for all groups but one, where the last one is needed.
// fast: NaN
#include "convkit.cuh"
extern "C" __global__ void bug_wait_off_by_one(const float* __restrict__ x, float* __restrict__ y,
                                               const int n) {
  DYN_SMEM(float, tile);
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  cp_async_4(&tile[t], x + i % n);
  cp_async_commit();
  cp_async_4(&tile[64 + t], x + i % n);  // WITH
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  y[i % n] = tile[63 - t] + tile[127 - t];  // BUG: write in flight
}
