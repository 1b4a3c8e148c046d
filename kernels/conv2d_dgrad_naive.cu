// conv2d_dgrad_naive
//   dx[n,c,h,w] = sum_{k,r,s} dy[n,k,p,q] * w[k,c,r,s] over the taps with p*stride_h + r*dilation_h - pad_top
//   = h and q*stride_w + s*dilation_w - pad_left = w: the definition, for every geometry, to read and to
//   compare others with.
//
// Tiling   none: a thread makes one element of dx, and tests for each tap whether it hits. It gathers: what a
//          window has read from an element comes back to it, with no two threads writing the same place.
// Traffic  every multiply-add loads its two operands, 8 bytes. dy comes from L1 and L2 for all but the first
//          of the C/groups * R * S / (stride_h * stride_w) times that it is read.
// Bound    load issue, and two divisions to each tap. Predicted: 2 to 4 % of the FP32 peak on AlexNet's conv2
//          to conv5, whatever the batch. It is there for tests and comparisons.
//
// /// kernel
// op     = "conv2d_dgrad"
// dtypes = ["float32"]
// tile   = { THREADS = 256 }
// grid   = ["ceil_div(N*C*H*W, THREADS)"]
// block  = ["THREADS"]
// rank   = -50
// ///

extern "C" __global__ void conv2d_dgrad_naive(GEOMETRY(Conv2d), const float* __restrict__ dy,
                                              const float* __restrict__ w, float* __restrict__ dx) {
  // Offsets in 64 bits: a batch of large images has more than 2^31 elements.
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long area = static_cast<long long>(g.H) * g.W;
  if (i >= area * g.C * g.N) return;

  const int col = static_cast<int>(i % g.W);
  const int row = static_cast<int>(i / g.W % g.H);
  const int c = static_cast<int>(i / area % g.C);
  const long long n = i / (area * g.C);

  const int channels = g.C / g.groups, filters = g.K / g.groups;
  const int first_k = c / channels * filters;  // of its group

  float sum = 0.0f;
  for (int k = first_k; k < first_k + filters; ++k) {
    const float* map = dy + (n * g.K + k) * static_cast<long long>(g.P) * g.Q;
    const float* window = w + (static_cast<long long>(k) * channels + c % channels) * g.R * g.S;
    for (int r = 0; r < g.R; ++r) {
      const int top = row + g.pad_top - r * g.dilation_h;  // of the window that this tap belongs to, padded
      if (top < 0 || top % g.stride_h != 0 || top / g.stride_h >= g.P) continue;
      for (int s = 0; s < g.S; ++s) {
        const int left = col + g.pad_left - s * g.dilation_w;
        if (left < 0 || left % g.stride_w != 0 || left / g.stride_w >= g.Q) continue;
        sum += map[static_cast<long long>(top / g.stride_h) * g.Q + left / g.stride_w] * window[r * g.S + s];
      }
    }
  }
  dx[i] = sum;
}
