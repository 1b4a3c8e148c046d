// A 128-bit load that begins in the middle of one.
// fast: misaligned access
extern "C" __global__ void bug_misaligned(const float* __restrict__ x, float* __restrict__ y, const int n) {
  const int t = static_cast<int>(threadIdx.x);
  const float4* from = reinterpret_cast<const float4*>(x + 1);
  if (t < n / 4 - 1) reinterpret_cast<float4*>(y)[t] = from[t];  // BUG: misaligned access
}
