// The last matrix lies behind the array.
// fast: array overrun
#include "convkit.cuh"
extern "C" __global__ void bug_ldmatrix_overrun(const float* __restrict__ x, float* __restrict__ y,
                                                const int n) {
  extern __shared__ __align__(16) float rows[];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  rows[t] = x[t];
  rows[t + 64] = x[t];
  __syncthreads();
  unsigned part[4];
  ldmatrix(part, rows + t % 32 * 4 + 4);  // BUG: array overrun
  if (i < n) y[i] = __uint_as_float(part[0]);
}
