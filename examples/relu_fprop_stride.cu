// relu_fprop_stride
//   y = max(x, 0)
//
// Tiling   at most BLOCKS blocks; each thread starts at its own element and goes on in strides of the whole grid
// Traffic  8 bytes an element: x is read once, y is written once
// Bound    memory; predicted 85 % of the copy rate: 32-bit accesses leave some of it
//
// /// kernel
// op    = "relu_fprop"
// tile  = { THREADS = 256, BLOCKS = 1024 }
// grid  = ["min(ceil_div(size, THREADS), BLOCKS)"]
// block = ["THREADS"]
// rank  = -1
// ///
extern "C" __global__ void relu_fprop_stride(GEOMETRY(Elementwise), const float* x, float* y) {
  const long long step = static_cast<long long>(gridDim.x) * THREADS;
  for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < g.size; i += step) {
    y[i] = x[i] < 0 ? 0 : x[i];  // a NaN passes
  }
}
