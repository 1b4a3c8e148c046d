// Adds to an output that nobody has written.
// fast: NaN
extern "C" __global__ void bug_output_uninitialised(const float* __restrict__ x, float* __restrict__ y,
                                                    const int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[i % n] += x[i % n];  // BUG: uninitialised output
}
