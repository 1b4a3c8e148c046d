// Reads one element past the end of x.
// fast: out of bounds
extern "C" __global__ void bug_global_read(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = x[i + 1];  // BUG: out of bounds
}
