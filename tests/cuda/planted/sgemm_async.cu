// sgemm_async: c = a b in tiles of 32 x 32, double-buffered: while a step is computed, cp.async brings the
// next one. Rows and columns past the edges are filled with zeros by the copies. A correct kernel for the
// emulator's tests.
#include "convkit.cuh"

extern "C" __global__ void sgemm_async(const float* __restrict__ a, const float* __restrict__ b,
                                       float* __restrict__ c, const int m, const int n, const int k) {
  constexpr int TILE = 32, STEP = 8;
  DYN_SMEM(float, smem);  // two stages of a[TILE][STEP] and b[STEP][TILE]
  const int t = static_cast<int>(threadIdx.x), tx = t % 16, ty = t / 16;
  const int row = static_cast<int>(blockIdx.y) * TILE, col = static_cast<int>(blockIdx.x) * TILE;

  auto load = [&](int stage, int k0) {
    float* as = smem + stage * 2 * TILE * STEP;
    float* bs = as + TILE * STEP;
    {
      const int r = t / 8, s = t % 8;
      const bool in = row + r < m && k0 + s < k;
      cp_async_4(as + r * STEP + s, in ? a + static_cast<long long>(row + r) * k + k0 + s : a, in ? 4 : 0);
    }
    {
      const int r = t / 32, s = t % 32;
      const bool in = k0 + r < k && col + s < n;
      cp_async_4(bs + r * TILE + s, in ? b + static_cast<long long>(k0 + r) * n + col + s : b, in ? 4 : 0);
    }
    cp_async_commit();
  };

  float sum[2][2] = {};
  const int steps = ceil_div(k, STEP);
  load(0, 0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps)
      load((step + 1) % 2, (step + 1) * STEP);
    else
      cp_async_commit();  // an empty group, so that the wait below always means: all but the youngest
    cp_async_wait<1>();
    __syncthreads();
    const float* as = smem + step % 2 * 2 * TILE * STEP;
    const float* bs = as + TILE * STEP;
    for (int kk = 0; kk < STEP; ++kk)
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) sum[i][j] += as[(ty * 2 + i) * STEP + kk] * bs[kk * TILE + tx * 2 + j];
    __syncthreads();
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      const int y = row + ty * 2 + i, x = col + tx * 2 + j;
      if (y < m && x < n) c[static_cast<long long>(y) * n + x] = sum[i][j];
    }
}
