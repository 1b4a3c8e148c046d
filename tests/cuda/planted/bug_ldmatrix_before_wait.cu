// A matrix is loaded while its rows are still on their way.
// fast: NaN
#include "convkit.cuh"
extern "C" __global__ void bug_ldmatrix_before_wait(const float* __restrict__ x, float* __restrict__ y,
                                                    const int n) {
  __shared__ __align__(16) float rows[8][4];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  if (t < 8) cp_async_16(rows[t], x + t * 4);  // WITH
  cp_async_commit();
  __syncthreads();
  unsigned part[1];
  ldmatrix(part, rows[t % 8]);  // BUG: write in flight
  if (i < n) y[i] = __uint_as_float(part[0]);
}
