// A matrix is loaded from global memory.
// fast: wild access
#include "convkit.cuh"
extern "C" __global__ void bug_ldmatrix_global(const float* __restrict__ x, float* __restrict__ y,
                                               const int n) {
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  unsigned part[4];
  ldmatrix(part, x + t % 32 * 4);  // BUG: wild access
  if (i < n) y[i] = __uint_as_float(part[0]);
}
