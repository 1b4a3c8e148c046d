// Lanes 20 and up have left when the others sum over the whole warp.
// fast: bad mask
extern "C" __global__ void bug_shuffle_from_absent(const float* __restrict__ x, float* __restrict__ y,
                                                   const int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t % 32 >= 20) return;
  float v = x[t % n];
  v += __shfl_down_sync(0xffffffffu, v, 16);  // BUG: bad mask
  y[t] = v;
}
