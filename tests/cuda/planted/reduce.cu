// reduce: y[row] = sum of x[row, 0..cols), a block per row: shuffles within a warp, then one value per warp
// through shared memory. A correct kernel for the emulator's own tests.
extern "C" __global__ void reduce(const float* __restrict__ x, float* __restrict__ y, const int cols) {
  __shared__ float part[32];
  const float* row = x + static_cast<long long>(blockIdx.x) * cols;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < cols; i += static_cast<int>(blockDim.x)) sum += row[i];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (lane == 0) part[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    sum = lane < static_cast<int>(blockDim.x) / 32 ? part[lane] : 0.0f;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) y[blockIdx.x] = sum;
  }
}
