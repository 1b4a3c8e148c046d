// Both blocks write the same elements.
// fast: missed
extern "C" __global__ void bug_two_blocks(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int t = static_cast<int>(threadIdx.x);
  y[t] = x[t % n];  // BUG: two blocks, one address
}
