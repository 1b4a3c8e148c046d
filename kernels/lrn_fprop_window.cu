// lrn_fprop_window
//   y[i] = x[i] * d^-beta,  d = k + alpha/taps * sum of x[j]^2 over the window of i: neighbouring channels of
//   its group, or neighbouring pixels of its map (region "within_channel"). The definition, for every size
//   and region.
//
// Tiling   none: a thread makes one element, and reads its whole window.
// Traffic  x is read `taps` times, for all but the first from L1 and L2; y is written once.
// Bound    load issue, at some 4 instructions for each tap. Predicted: 35 % of the copy rate for windows of 5
//          channels; size^2 taps within a channel: 10 % for size 5.
//
// /// kernel
// op     = "lrn_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256 }
// tune   = { THREADS = [128, 256, 512] }
// grid   = ["ceil_div(N*C*H*W, THREADS)"]
// block  = ["THREADS"]
// rank   = 0
// [dividers]
// by_channels = "C // groups"
// by_pixels   = "H*W"
// by_C        = "C"
// by_H        = "H"
// by_W        = "W"
// ///

#include "lrn.cuh"

extern "C" __launch_bounds__(THREADS) __global__
    void lrn_fprop_window(GEOMETRY(LRN), const storage_t* __restrict__ x, storage_t* __restrict__ y) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<long long>(g.N) * g.C * g.H * g.W) return;
  const float sum = window_sum(g, i, g.behind, g.ahead, [x](long long j) {
    const float value = to_float(x[j]);
    return value * value;
  });
  const float d = fmaf(g.alpha / g.taps, sum, g.k);
  y[i] = from_float(to_float(x[i]) * powers(d, g.beta).of_d);
}
