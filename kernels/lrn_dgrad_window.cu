// lrn_dgrad_window
//   dx[i] = dy[i] * d[i]^-beta - 2*alpha*beta/taps * x[i] * sum of t[j] over the mirrored window of i t[j] =
//   dy[j] * x[j] * d[j]^(-beta-1),  d[j] = k + alpha/taps * sum of x^2 over the window of j: neighbouring
//   channels of its group, or pixels of its map (region "within_channel"). For every size and region.
//
// Tiling   none: a thread makes one element. The first launch writes t and dy * d^-beta, as floats, into the
//          workspace, so that d is made once for each element and not once for each pair; the second one adds
//          up t.
// Traffic  first launch: x `taps` times, all but once from L1 and L2; dy once; 8 bytes written. Second
//          launch: t likewise, 4 bytes of dy * d^-beta, x; dx written. In all 36 bytes of DRAM for each
//          element in fp32, against 12 of the sliding kernel.
// Bound    load issue, at some 4 instructions for each tap. Predicted: 15 % of the rate of a copy of the
//          compulsory bytes for windows of 5 channels, 8 % for 5 x 5 pixels.
//
// /// kernel
// op        = "lrn_dgrad"
// dtypes    = ["float32", "float16", "bfloat16"]
// tile      = { THREADS = 256 }
// tune      = { THREADS = [128, 256, 512] }
// workspace = "8 * N*C*H*W"
// rank      = 0
// launch    = [
//     { entry = "lrn_dgrad_window_terms", grid = ["ceil_div(N*C*H*W, THREADS)"], block = ["THREADS"] },
//     { entry = "lrn_dgrad_window", grid = ["ceil_div(N*C*H*W, THREADS)"], block = ["THREADS"] },
// ]
// [dividers]
// by_channels = "C // groups"
// by_pixels   = "H*W"
// by_C        = "C"
// by_H        = "H"
// by_W        = "W"
// ///

#include "lrn.cuh"

// workspace: t of every element, then dy * d^-beta of every element.
extern "C" __launch_bounds__(THREADS) __global__
    void lrn_dgrad_window_terms(GEOMETRY(LRN), const storage_t* __restrict__ dy,
                                const storage_t* __restrict__ x, storage_t* __restrict__ dx,
                                float* __restrict__ workspace) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long size = static_cast<long long>(g.N) * g.C * g.H * g.W;
  if (i >= size) return;
  const float sum = window_sum(g, i, g.behind, g.ahead, [x](long long j) {
    const float value = to_float(x[j]);
    return value * value;
  });
  const Powers power = powers(fmaf(g.alpha / g.taps, sum, g.k), g.beta);
  const float gradient = to_float(dy[i]);
  workspace[i] = gradient * to_float(x[i]) * power.over_d;
  workspace[size + i] = gradient * power.of_d;
}

extern "C" __launch_bounds__(THREADS) __global__
    void lrn_dgrad_window(GEOMETRY(LRN), const storage_t* __restrict__ dy, const storage_t* __restrict__ x,
                          storage_t* __restrict__ dx, float* __restrict__ workspace) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long size = static_cast<long long>(g.N) * g.C * g.H * g.W;
  if (i >= size) return;
  const float total = window_sum(g, i, g.ahead, g.behind, [workspace](long long j) { return workspace[j]; });
  const float factor = 2.0f * (g.alpha / g.taps) * g.beta;
  dx[i] = from_float(fmaf(-factor * to_float(x[i]), total, workspace[size + i]));
}
