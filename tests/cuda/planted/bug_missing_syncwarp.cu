// Lanes of a warp exchange values through shared memory as if they ran in step.
// fast: schedules
extern "C" __global__ void bug_missing_syncwarp(const float* __restrict__ x, float* __restrict__ y,
                                                const int n) {
  __shared__ float tile[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  tile[t] = 0.0f;
  __syncwarp();
  tile[t] = x[i % n];      // WITH
  y[i % n] = tile[t ^ 1];  // BUG: race
}
