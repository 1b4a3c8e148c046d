// conv2d_fprop_naive
//   y[n,k,p,q] = b[k] + sum_{c,r,s} x[n, g*C/groups + c, p*stride_h + r*dilation_h - pad_top,
//                                          q*stride_w + s*dilation_w - pad_left] * w[k,c,r,s]
//   with g = k / (K/groups): the definition, for every geometry, to read and to compare others with.
//
// Tiling   none: a thread makes one output element; neighbouring threads make neighbouring q, so that
//          reads of x and writes of y coalesce where stride_w is 1, and reads of w are broadcasts.
// Traffic  every multiply-add loads its two operands, 8 bytes. x comes from L1 and L2 for all but the
//          first of the K/groups * R * S / (stride_h * stride_w) times that it is read.
// Bound    load issue: two loads and some ten integer instructions for each FMA. Predicted: 3 to 5 % of
//          the FP32 peak on AlexNet's conv2 to conv5, whatever the batch. It is there for tests and
//          comparisons.
//
// /// kernel
// op     = "conv2d_fprop"
// dtypes = ["float32"]
// options = { relu = "int" }
// tile   = { THREADS = 256 }
// grid   = ["ceil_div(N*K*P*Q, THREADS)"]
// block  = ["THREADS"]
// rank   = -50
// ///
//
// GEOMETRY(Conv2d) declares g, the struct of convkit/geometry.py; docs/kernels.md has all that is declared in
// front of a kernel file.

extern "C" __global__ void conv2d_fprop_naive(GEOMETRY(Conv2d), const float* __restrict__ x,
                                              const float* __restrict__ w, const float* __restrict__ b,
                                              float* __restrict__ y, const int relu) {
  // Offsets in 64 bits: a batch of large images has more than 2^31 elements.
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long pixels = static_cast<long long>(g.P) * g.Q;
  if (i >= pixels * g.K * g.N) return;

  const int q = static_cast<int>(i % g.Q);
  const int p = static_cast<int>(i / g.Q % g.P);
  const int k = static_cast<int>(i / pixels % g.K);
  const long long n = i / (pixels * g.K);

  const int channels = g.C / g.groups;                  // that one filter sees
  const int first_c = k / (g.K / g.groups) * channels;  // of its group
  const float* filter = w + static_cast<long long>(k) * channels * g.R * g.S;
  const int top = p * g.stride_h - g.pad_top;
  const int left = q * g.stride_w - g.pad_left;

  float sum = b ? b[k] : 0.0f;
  for (int c = 0; c < channels; ++c) {
    const float* map = x + (n * g.C + first_c + c) * static_cast<long long>(g.H) * g.W;
    for (int r = 0; r < g.R; ++r) {
      const int h = top + r * g.dilation_h;
      if (h < 0 || h >= g.H) continue;  // a row of padding
      for (int s = 0; s < g.S; ++s) {
        const int col = left + s * g.dilation_w;
        if (col < 0 || col >= g.W) continue;
        sum += map[static_cast<long long>(h) * g.W + col] * filter[(c * g.R + r) * g.S + s];
      }
    }
  }
  // Written so that a NaN passes: fmaxf would return the zero.
  y[i] = relu && sum < 0.0f ? 0.0f : sum;
}
