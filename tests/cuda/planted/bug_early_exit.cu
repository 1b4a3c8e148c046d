// The threads past the end leave, the others wait for them.
// fast: exit before a barrier
extern "C" __global__ void bug_early_exit(const float* __restrict__ x, float* __restrict__ y, const int n) {
  __shared__ float tile[64];
  const int t = static_cast<int>(threadIdx.x);
  if (t >= 50) return;
  tile[t] = x[t % n];
  __syncthreads();  // BUG: exit before a barrier
  y[t] = tile[49 - t];
}
