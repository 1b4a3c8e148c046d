// relu_fprop_unaligned
// Right but for one thing: it takes four elements at a time wherever the arrays begin. A view at an odd element is
// contiguous and not aligned to 16 bytes.
//
// /// kernel
// op    = "relu_fprop"
// tile  = { THREADS = 64 }
// grid  = ["ceil_div(ceil_div(size, 4), THREADS)"]
// block = ["THREADS"]
// rank  = -90
// ///
extern "C" __global__ void relu_fprop_unaligned(GEOMETRY(Elementwise), const float* x, float* y) {
  const long long i = 4 * (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x);
  auto relu = [](float value) { return value < 0.0f ? 0.0f : value; };
  if (i + 4 <= g.size) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    *reinterpret_cast<float4*>(y + i) = make_float4(relu(v.x), relu(v.y), relu(v.z), relu(v.w));
  } else {
    for (long long j = i; j < g.size; ++j) y[j] = relu(x[j]);
  }
}
