// A tile is filled again while other threads may still read it.
// fast: schedules
extern "C" __global__ void bug_missing_refill_barrier(const float* __restrict__ x, float* __restrict__ y,
                                                      const int n) {
  __shared__ float tile[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  float sum = 0.0f;
  for (int step = 0; step < 4; ++step) {
    tile[t] = x[(i + step) % n];  // BUG: race
    __syncthreads();
    sum += tile[63 - t];  // WITH
  }
  y[i % n] = sum;
}
