// Every lane shuffles with a mask that names only half of them.
// fast: bad mask
extern "C" __global__ void bug_mask_without_itself(const float* __restrict__ x, float* __restrict__ y,
                                                   const int n) {
  const int t = static_cast<int>(threadIdx.x);
  y[t] = __shfl_xor_sync(0x0000ffffu, x[t % n], 1);  // BUG: bad mask
}
