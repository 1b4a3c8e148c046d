// Only half of a warp comes to a matrix product.
// fast: divergent matrix operation
#include "convkit.cuh"
extern "C" __global__ void bug_mma_divergent(const float* __restrict__ x, float* __restrict__ y,
                                             const int n) {
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  float sum[4] = {x[t], 0, 0, 0};
  const unsigned a[4] = {};
  if (t % 32 < 16) mma_m16n8k16_f16(sum, a, 0, 0);  // BUG: divergent matrix operation
  __syncthreads();
  if (i < n) y[i] = sum[0];
}
