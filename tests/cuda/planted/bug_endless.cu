// A loop that does not end.
// fast: timeout
extern "C" __global__ void bug_endless(const float* __restrict__ x, float* __restrict__ y, const int n) {
  volatile int turns = 0;
  while (turns >= 0) turns = turns % 1000 + 1;  // BUG: timeout
  y[0] = x[0] + static_cast<float>(n);
}
