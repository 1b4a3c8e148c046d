// A row of a matrix begins at a multiple of 8 bytes.
// fast: misaligned access
#include "convkit.cuh"
extern "C" __global__ void bug_ldmatrix_misaligned(const float* __restrict__ x, float* __restrict__ y,
                                                   const int n) {
  __shared__ __align__(16) float rows[64 * 6];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  for (int j = 0; j < 6; ++j) rows[t * 6 + j] = x[t];
  __syncthreads();
  unsigned part[4];
  ldmatrix(part, &rows[t * 6]);  // BUG: misaligned access
  if (i < n) y[i] = __uint_as_float(part[0]);
}
