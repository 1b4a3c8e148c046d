// relu_dgrad_early: writes before it reads, which is wrong where dx is dy's own memory
// /// kernel
// op = "relu_dgrad"
// grid = ["ceil_div(size, 64)"]
// block = ["64"]
// rank = -90
// ///
extern "C" __global__ void relu_dgrad_early(GEOMETRY(Elementwise), const float* dy, const float* y,
                                            float* dx) {
  const long long i = blockIdx.x * 64LL + threadIdx.x;
  if (i >= g.size) return;
  const bool passes = !(y[i] <= 0);
  *static_cast<volatile float*>(dx + i) = 0;
  if (passes) dx[i] = *static_cast<const volatile float*>(dy + i);
}
