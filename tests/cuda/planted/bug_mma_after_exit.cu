// Lanes without work have left the kernel before a matrix product of their warp.
// fast: divergent matrix operation
#include "convkit.cuh"
extern "C" __global__ void bug_mma_after_exit(const float* __restrict__ x, float* __restrict__ y,
                                              const int n) {
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  if (t >= 48) return;
  float sum[4] = {x[t], 0, 0, 0};
  const unsigned a[4] = {};
  mma_m16n8k16_f16(sum, a, 0, 0);  // BUG: divergent matrix operation
  if (i < n) y[i] = sum[0];
}
