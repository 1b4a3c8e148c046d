// An assertion of the kernel's own that does not hold.
// fast: assertion
extern "C" __global__ void bug_assertion(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int t = static_cast<int>(threadIdx.x);
  assert(t < 40);  // BUG: assertion
  y[t] = x[t % n];
}
