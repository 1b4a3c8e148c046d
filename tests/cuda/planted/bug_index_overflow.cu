// An offset that does not fit 32 bits, and wraps round to one that does no visible harm.
// fast: missed
extern "C" __global__ void bug_index_overflow(const float* __restrict__ x, float* __restrict__ y,
                                              const int n) {
  const int t = static_cast<int>(threadIdx.x);
  const int offset = (t + 16) * 134217728;  // BUG: integer overflow
  y[(offset & 0x7fffffff) % n] = x[t % n];
}
