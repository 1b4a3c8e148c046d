// Half a warp shuffles with a mask that names the other half, which waits at the barrier.
// fast: bad mask
extern "C" __global__ void bug_mask_of_others(const float* __restrict__ x, float* __restrict__ y,
                                              const int n) {
  const int t = static_cast<int>(threadIdx.x);
  float v = x[t % n];
  if (t % 32 < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);  // BUG: bad mask
  __syncthreads();                                           // WITH
  y[t] = v;
}
