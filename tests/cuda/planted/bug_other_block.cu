// A block reads what another one writes.
// fast: missed
extern "C" __global__ void bug_other_block(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int t = static_cast<int>(threadIdx.x), b = static_cast<int>(blockIdx.x);
  y[b * 64 + t] = x[t % n];           // WITH
  if (b == 1) y[b * 64 + t] += y[t];  // BUG: two blocks, one address
}
