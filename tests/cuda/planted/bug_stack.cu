// Local arrays of a size that no thread has registers for.
// fast: stack overflow
extern "C" __global__ void bug_stack(const float* __restrict__ x, float* __restrict__ y,
                                     const int n) {  // BUG: stack overflow
  volatile float local[100000];
  for (int i = 0; i < 100000; ++i) local[99999 - i] = x[i % n];
  y[threadIdx.x] = local[threadIdx.x];
}
