// No barrier between a tile's writes and its reads.
// fast: schedules
extern "C" __global__ void bug_missing_syncthreads(const float* __restrict__ x, float* __restrict__ y,
                                                   const int n) {
  __shared__ float tile[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  tile[t] = 0.0f;
  __syncthreads();
  tile[t] = x[i % n];              // WITH
  y[i % n] = tile[(t + 63) % 64];  // BUG: race
}
