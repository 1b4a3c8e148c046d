// linear_dgrad_naive
//   dx[n,c] = sum_k dy[n,k] * w[k,c]
//   The definition, to read and to compare others with.
//
// Tiling   none: a thread makes one element of dx, and neighbouring threads neighbouring elements.
// Traffic  every multiply-add loads its two operands, 8 bytes: dy as a broadcast, w
//          coalesced.
// Bound    load issue. Predicted: 3 to 5 % of the FP32 peak at a batch of 128, less at small ones. Its place
//          is the test bench.
//
// /// kernel
// op     = "linear_dgrad"
// dtypes = ["float32"]
// tile   = { THREADS = 256 }
// grid   = ["ceil_div(N*C, THREADS)"]
// block  = ["THREADS"]
// rank   = -50
// ///

extern "C" __global__ void linear_dgrad_naive(GEOMETRY(Linear), const float* __restrict__ dy,
                                              const float* __restrict__ w, float* __restrict__ dx) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<long long>(g.N) * g.C) return;
  const int c = static_cast<int>(i % g.C);
  const float* left = dy + i / g.C * g.K;

  float sum = 0.0f;
  for (int k = 0; k < g.K; ++k) sum += left[k] * w[static_cast<long long>(k) * g.C + c];
  dx[i] = sum;
}
