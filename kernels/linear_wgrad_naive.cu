// linear_wgrad_naive
//   dw[k,c] = sum_n dy[n,k] * x[n,c]
//   The definition, to read and to compare others with.
//
// Tiling   none: a thread makes one element of dw, and neighbouring threads neighbouring elements.
// Traffic  every multiply-add loads its two operands, 8 bytes: dy as a broadcast, x
//          coalesced.
// Bound    load issue. Predicted: 3 to 5 % of the FP32 peak at a batch of 128, less at small ones. Its place
//          is the test bench.
//
// /// kernel
// op     = "linear_wgrad"
// dtypes = ["float32"]
// tile   = { THREADS = 256 }
// grid   = ["ceil_div(K*C, THREADS)"]
// block  = ["THREADS"]
// rank   = -50
// ///

extern "C" __global__ void linear_wgrad_naive(GEOMETRY(Linear), const float* __restrict__ x,
                                              const float* __restrict__ dy, float* __restrict__ dw) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<long long>(g.K) * g.C) return;
  const int c = static_cast<int>(i % g.C), k = static_cast<int>(i / g.C);

  float sum = 0.0f;
  for (int n = 0; n < g.N; ++n)
    sum += dy[static_cast<long long>(n) * g.K + k] * x[static_cast<long long>(n) * g.C + c];
  dw[i] = sum;
}
