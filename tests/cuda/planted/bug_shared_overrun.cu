// A column too many: the element belongs to the next row.
// fast: missed
extern "C" __global__ void bug_shared_overrun(const float* __restrict__ x, float* __restrict__ y,
                                              const int n) {
  __shared__ float tile[8][8];
  const int t = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x) * 64 + t;
  tile[t / 8][t % 8] = x[i % n];
  __syncthreads();
  const int column = t % 8 + 1;
  y[i % n] = t / 8 < 7 ? tile[t / 8][column] : 0.0f;  // BUG: array overrun
}
