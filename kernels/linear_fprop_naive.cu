// linear_fprop_naive
//   y[n,k] = b[k] + sum_c x[n,c] * w[k,c]  (+ ReLU)
//   The definition, to read and to compare others with.
//
// Tiling   none: a thread makes one element of y, and neighbouring threads neighbouring elements.
// Traffic  every multiply-add loads its two operands, 8 bytes: x as a broadcast, w in
//          columns, of each 32-byte sector of which the lines wait in L1 for the next seven c.
// Bound    load issue. Predicted: 3 to 5 % of the FP32 peak at a batch of 128, less at small ones. Its place
//          is the test bench.
//
// /// kernel
// op     = "linear_fprop"
// dtypes = ["float32"]
// options = { relu = "int" }
// tile   = { THREADS = 256 }
// grid   = ["ceil_div(N*K, THREADS)"]
// block  = ["THREADS"]
// rank   = -50
// ///

extern "C" __global__ void linear_fprop_naive(GEOMETRY(Linear), const float* __restrict__ x,
                                              const float* __restrict__ w, const float* __restrict__ b,
                                              float* __restrict__ y, const int relu) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<long long>(g.N) * g.K) return;
  const int k = static_cast<int>(i % g.K);
  const float* left = x + i / g.K * g.C;
  const float* right = w + static_cast<long long>(k) * g.C;

  float sum = b ? b[k] : 0.0f;
  for (int c = 0; c < g.C; ++c) sum += left[c] * right[c];
  // Written so that a NaN passes: fmaxf would return the zero.
  y[i] = relu && sum < 0.0f ? 0.0f : sum;
}
