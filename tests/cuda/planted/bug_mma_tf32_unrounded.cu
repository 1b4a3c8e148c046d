// An operand of a tf32 product that was not rounded to tf32.
// fast: unrounded operand
#include "convkit.cuh"
extern "C" __global__ void bug_mma_tf32_unrounded(const float* __restrict__ x, float* __restrict__ y,
                                                  const int n) {
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  float sum[4] = {};
  const unsigned a[4] = {to_tf32(x[t]), 0, 0, 0};
  mma_m16n8k8_tf32(sum, a, __float_as_uint(x[t] + 0.1f), 0);  // BUG: unrounded operand
  if (i < n) y[i] = sum[0];
}
