// sgemm: c[m,n] = sum_k a[m,k] b[k,n], a tile of 64 x 64 per block through shared memory, 4 x 4 per thread.
// A correct kernel for the emulator's own tests; every extent is a multiple of its tile.
extern "C" __global__ void sgemm(const float* __restrict__ a, const float* __restrict__ b,
                                 float* __restrict__ c, const int m, const int n, const int k) {
  constexpr int TILE = 64, STEP = 16;
  __shared__ __align__(16) float as[STEP][TILE];
  __shared__ __align__(16) float bs[STEP][TILE];
  const int t = static_cast<int>(threadIdx.x), tx = t % 16, ty = t / 16;
  const int row = static_cast<int>(blockIdx.y) * TILE, col = static_cast<int>(blockIdx.x) * TILE;
  float sum[4][4] = {};
  for (int k0 = 0; k0 < k; k0 += STEP) {
    {
      const int r = t / 4, s = t % 4 * 4;
      const float4 v = *reinterpret_cast<const float4*>(a + static_cast<long long>(row + r) * k + k0 + s);
      as[s][r] = v.x;
      as[s + 1][r] = v.y;
      as[s + 2][r] = v.z;
      as[s + 3][r] = v.w;
    }
    {
      const int r = t / 16, s = t % 16 * 4;
      *reinterpret_cast<float4*>(&bs[r][s]) =
          *reinterpret_cast<const float4*>(b + static_cast<long long>(k0 + r) * n + col + s);
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < STEP; ++kk) {
      const float4 u = *reinterpret_cast<const float4*>(&as[kk][ty * 4]);
      const float4 v = *reinterpret_cast<const float4*>(&bs[kk][tx * 4]);
      const float x[4] = {u.x, u.y, u.z, u.w}, y[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float4* to = reinterpret_cast<float4*>(c + static_cast<long long>(row + ty * 4 + i) * n + col + tx * 4);
    *to = make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
  }
  (void)m;
}
