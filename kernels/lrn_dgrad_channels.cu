// lrn_dgrad_channels
//   dx[i] = dy[i] * d[i]^-beta - 2*alpha*beta/size^2 * x[i] * sum of t[j] over the mirrored window of i
//   t[j] = dy[j] * x[j] * d[j]^(-beta-1),  d[j] = k + alpha/size^2 * sum of x^2 over the window of j: size x size
//   pixels of its map (region "within_channel"); in NHWC
//
// Tiling   a lane makes CHANNELS neighbouring channels of a pixel, as in lrn_fprop_channels. The first launch
//          writes t and dy * d^-beta, as floats, into the workspace, so that d is made once for each element
//          and not once for each pair; the second one adds up t.
// Traffic  first launch: x size^2 times, all but once from L1 and L2; dy once; 8 bytes written. Second
//          launch: t likewise, 4 bytes of dy * d^-beta, x; dx written. In all 26 bytes of DRAM for each
//          element in 16 bits, 36 in fp32, against 6 and 12 that are compulsory.
// Bound    L1 and issue: some 2.5 instructions for each tap and channel. Predicted: 15 % of the rate of a
//          copy of the compulsory bytes for 5 x 5 in 16 bits, 20 % in fp32.
//
// /// kernel
// op        = "lrn_dgrad"
// dtypes    = ["float32", "float16", "bfloat16"]
// layout    = "NHWC"
// tile      = { THREADS = 256, CHANNELS = 8 }
// tune      = { THREADS = [128, 256, 512] }
// workspace = "8 * N*H*W * C"
// when      = "within == 1 and counted < 2147400000"
// rank      = 10
// launch    = [
//     { entry = "lrn_dgrad_channels_terms", grid = ["ceil_div(counted, THREADS)"], block = ["THREADS"] },
//     { entry = "lrn_dgrad_channels", grid = ["ceil_div(counted, THREADS)"], block = ["THREADS"] },
// ]
// [let]
// runs    = "ceil_div(C, CHANNELS)"
// counted = "N*H*W * runs"
// [dividers]
// by_runs = "runs"
// by_W    = "W"
// by_H    = "H"
// ///

#include "maps.cuh"

// Numbers of the workspace: a run of them is 32 bytes. It is aligned as memory of the device is, so that rows of
// whole runs decide.
__device__ __forceinline__ void load_floats(const float* from, int count, bool vector,
                                            float (&values)[CHANNELS]) {
  if (vector) {
#pragma unroll
    for (int j = 0; j < CHANNELS; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + j);
      values[j] = four.x, values[j + 1] = four.y, values[j + 2] = four.z, values[j + 3] = four.w;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < CHANNELS; ++j) values[j] = j < count ? from[j] : 0.0f;
}

__device__ __forceinline__ void store_floats(float* to, int count, bool vector,
                                             const float (&values)[CHANNELS]) {
  if (vector) {
#pragma unroll
    for (int j = 0; j < CHANNELS; j += 4)
      *reinterpret_cast<float4*>(to + j) =
          make_float4(values[j], values[j + 1], values[j + 2], values[j + 3]);
    return;
  }
#pragma unroll
  for (int j = 0; j < CHANNELS; ++j)
    if (j < count) to[j] = values[j];
}

// workspace: t of every element, then dy * d^-beta of every element.
extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_dgrad_channels_terms(GEOMETRY(LRN), const storage_t* __restrict__ dy,
                                  const storage_t* __restrict__ x, storage_t* __restrict__ dx,
                                  float* __restrict__ workspace) {
  const Pixel pixel = pixel_of_thread(g);
  if (pixel.n >= g.N) return;
  const long long at = pixel.element(g), size = static_cast<long long>(g.N) * g.H * g.W * g.C;
  const bool vector = vectored(g.C, x), whole = g.C % CHANNELS == 0 && aligned(workspace);
  float sums[CHANNELS], terms[CHANNELS], firsts[CHANNELS];
  map_sum(g, pixel, g.behind, g.ahead, sums, [&](long long i, float (&values)[CHANNELS]) {
    Run run = load_run(x + i, pixel.count, vector);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) values[c] = run.value(c) * run.value(c);
  });
  Run run = load_run(x + at, pixel.count, vector);
  Run gradients = load_run(dy + at, pixel.count, vectored(g.C, dy));
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const Powers power = powers(fmaf(g.alpha / g.taps, sums[c], g.k), g.beta);
    const float gradient = gradients.value(c);
    terms[c] = gradient * run.value(c) * power.over_d;
    firsts[c] = gradient * power.of_d;
  }
  store_floats(workspace + at, pixel.count, whole, terms);
  store_floats(workspace + size + at, pixel.count, whole, firsts);
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_dgrad_channels(GEOMETRY(LRN), const storage_t* __restrict__ dy, const storage_t* __restrict__ x,
                            storage_t* __restrict__ dx, float* __restrict__ workspace) {
  const Pixel pixel = pixel_of_thread(g);
  if (pixel.n >= g.N) return;
  const long long at = pixel.element(g), size = static_cast<long long>(g.N) * g.H * g.W * g.C;
  const bool whole = g.C % CHANNELS == 0 && aligned(workspace);
  float totals[CHANNELS], made[CHANNELS];
  map_sum(g, pixel, g.ahead, g.behind, totals, [&](long long i, float (&values)[CHANNELS]) {
    load_floats(workspace + i, pixel.count, whole, values);
  });
  load_floats(workspace + size + at, pixel.count, whole, made);
  Run run = load_run(x + at, pixel.count, vectored(g.C, x));
  const float factor = 2.0f * (g.alpha / g.taps) * g.beta;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) made[c] = fmaf(-factor * run.value(c), totals[c], made[c]);
  store_run(dx + at, pixel.count, vectored(g.C, dx), made);
}
