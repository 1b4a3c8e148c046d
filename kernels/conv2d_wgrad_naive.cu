// conv2d_wgrad_naive
//   dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n, g*C/groups + c, p*stride_h + r*dilation_h - pad_top,
//                                                                q*stride_w + s*dilation_w - pad_left]
//   with g = k / (K/groups): the definition, for every geometry, to read and to compare others with.
//
// Tiling   none: a thread makes one element of dw. It sums each row of an output map by itself before it adds
//          it to the total: a plain sum over a batch of 400,000 pixels would lose digits that a split one
//          keeps.
// Traffic  every multiply-add loads its two operands, 8 bytes; dy is a broadcast within a filter.
// Bound    load latency: K*C/groups*R*S threads, each with a sum of N*P*Q terms. Predicted: below 3 % of the
//          FP32 peak on AlexNet's layers, and least on conv1, which has 34,848 threads. Its place is the test
//          bench.
//
// /// kernel
// op     = "conv2d_wgrad"
// dtypes = ["float32"]
// tile   = { THREADS = 256 }
// grid   = ["ceil_div(K*(C//groups)*R*S, THREADS)"]
// block  = ["THREADS"]
// rank   = -50
// ///

extern "C" __global__ void conv2d_wgrad_naive(GEOMETRY(Conv2d), const float* __restrict__ x,
                                              const float* __restrict__ dy, float* __restrict__ dw) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int channels = g.C / g.groups;  // that one filter sees
  if (i >= static_cast<long long>(g.K) * channels * g.R * g.S) return;

  const int s = static_cast<int>(i % g.S);
  const int r = static_cast<int>(i / g.S % g.R);
  const int c = static_cast<int>(i / (g.S * g.R) % channels);
  const int k = static_cast<int>(i / (static_cast<long long>(g.S) * g.R * channels));
  const int first_c = k / (g.K / g.groups) * channels;  // of its group

  float sum = 0.0f;
  for (int n = 0; n < g.N; ++n) {
    const float* from = x + (static_cast<long long>(n) * g.C + first_c + c) * g.H * g.W;
    const float* map = dy + (static_cast<long long>(n) * g.K + k) * g.P * g.Q;
    for (int p = 0; p < g.P; ++p) {
      const int row = p * g.stride_h + r * g.dilation_h - g.pad_top;
      if (row < 0 || row >= g.H) continue;  // a row of padding
      float of_row = 0.0f;
      for (int q = 0; q < g.Q; ++q) {
        const int col = q * g.stride_w + s * g.dilation_w - g.pad_left;
        if (col < 0 || col >= g.W) continue;
        of_row += map[static_cast<long long>(p) * g.Q + q] * from[static_cast<long long>(row) * g.W + col];
      }
      sum += of_row;
    }
  }
  dw[i] = sum;
}
