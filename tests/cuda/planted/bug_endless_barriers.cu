// A loop of barriers that does not end.
// fast: timeout
extern "C" __global__ void bug_endless_barriers(const float* __restrict__ x, float* __restrict__ y,
                                                const int n) {
  for (int turns = 0; turns >= 0; turns = (turns + 1) % 1000) __syncthreads();  // BUG: timeout
  y[0] = x[0] + static_cast<float>(n);
}
