// Guards the wrong way: the thread behind the last one writes, too.
// fast: out of bounds
extern "C" __global__ void bug_global_write(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) + 1;
  if (i <= n) y[i] = x[i - 1];  // BUG: out of bounds
}
