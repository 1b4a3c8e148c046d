// The two halves of a block wait at different barriers.
// fast: divergent barrier
extern "C" __global__ void bug_divergent_barrier(const float* __restrict__ x, float* __restrict__ y,
                                                 const int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < 32) {
    __syncthreads();  // WITH
  } else {
    __syncthreads();  // BUG: divergent barrier
  }
  y[t] = x[t % n];
}
