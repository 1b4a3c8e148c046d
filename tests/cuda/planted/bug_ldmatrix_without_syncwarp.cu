// Each lane writes a row and gives its address: but what it gets are other lanes' rows.
// fast: missed
#include "convkit.cuh"
extern "C" __global__ void bug_ldmatrix_without_syncwarp(const float* __restrict__ x, float* __restrict__ y,
                                                         const int n) {
  __shared__ __align__(16) float4 rows[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  rows[t] = make_float4(x[t], x[t], x[t], x[t]);  // WITH
  unsigned part[4];
  ldmatrix(part, &rows[t]);  // BUG: race
  if (i < n) y[i] = __uint_as_float(part[0]);
}
