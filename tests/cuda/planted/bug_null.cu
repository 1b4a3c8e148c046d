// Reads a pointer that the launch left out.
// fast: null pointer
extern "C" __global__ void bug_null(const float* __restrict__ x, float* __restrict__ y, const int n,
                                    const float* __restrict__ bias) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i % n] = x[i % n] + bias[i % n];  // BUG: null pointer
}
