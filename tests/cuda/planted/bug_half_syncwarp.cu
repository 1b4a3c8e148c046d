// Each half of a warp meets by itself, and then reads what the other half writes.
// fast: schedules
extern "C" __global__ void bug_half_syncwarp(const float* __restrict__ x, float* __restrict__ y,
                                             const int n) {
  __shared__ float tile[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  tile[t] = x[i % n];  // WITH
  __syncwarp(t % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  y[i % n] = tile[t ^ 1];
  if (t % 32 >= 16) y[i % n] = tile[t ^ 16];  // BUG: race
}
