// Half of the tile is never written.
// fast: NaN
extern "C" __global__ void bug_shared_uninitialised(const float* __restrict__ x, float* __restrict__ y,
                                                    const int n) {
  __shared__ float tile[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  if (t < 32) tile[t] = x[i % n];
  __syncthreads();
  y[i % n] = tile[63 - t];  // BUG: uninitialised shared memory
}
