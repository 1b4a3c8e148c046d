// One element more than the launch asked for.
// fast: array overrun
#include "convkit.cuh"
extern "C" __global__ void bug_dynamic_overrun(const float* __restrict__ x, float* __restrict__ y,
                                               const int n) {
  DYN_SMEM(float, tile);
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  const int at = t == 63 ? 129 : t;
  tile[at] = x[i % n];  // BUG: array overrun
  y[i % n] = 1.0f;
}
