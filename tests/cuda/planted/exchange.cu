// exchange: y[i] = the sum over a warp of its values, by exchanging halves through shared memory, five times.
// Each lane reads what another lane of its warp wrote. A correct kernel for the emulator's own tests.
extern "C" __global__ void exchange(const float* __restrict__ x, float* __restrict__ y, const int n) {
  __shared__ float slot[64];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  float sum = i < n ? x[i] : 0.0f;
  for (int step = 16; step > 0; step /= 2) {
    slot[t] = sum;
    __syncwarp();
    sum += slot[t ^ step];
    __syncwarp();
  }
  if (i < n) y[i] = sum;
}
