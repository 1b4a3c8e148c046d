// Writes to an input.
// fast: write to an input
extern "C" __global__ void bug_input_write(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i % n] = x[i % n];
  const_cast<float*>(x)[i % n] = 0.0f;  // BUG: write to an input
}
