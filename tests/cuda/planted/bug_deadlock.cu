// One lane waits for the block, the others of its warp wait for that lane.
// fast: deadlock
extern "C" __global__ void bug_deadlock(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) __syncthreads();  // WITH
  __syncwarp();                 // BUG: deadlock
  y[t] = x[t % n];
}
