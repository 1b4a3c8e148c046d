// A 128-bit load that begins in the middle of one, whose parts go different ways: a compiler for a CPU may load
// them one by one, and then nothing traps.
// fast: misaligned access
extern "C" __global__ void bug_misaligned_parts(const float* __restrict__ x, float* __restrict__ y,
                                                const int n) {
  const int t = static_cast<int>(threadIdx.x);
  const float4* from = reinterpret_cast<const float4*>(x + 1);
  if (t >= n / 4 - 1) return;
  const float4 v = from[t];  // BUG: misaligned access
  y[4 * t] = v.x + v.y;
  y[4 * t + 1] = v.z > 0.0f ? v.w : 0.0f;
}
