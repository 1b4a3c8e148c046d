// Threads exchange values through global memory without a barrier.
// fast: schedules
extern "C" __global__ void bug_global_race(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = x[i % n];               // WITH
  if (i % 64) y[i] += y[i - 1];  // BUG: race
}
