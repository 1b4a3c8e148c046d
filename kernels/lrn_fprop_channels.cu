// lrn_fprop_channels
//   y[n,h,w,c] = x[n,h,w,c] * d^-beta,  d = k + alpha/size^2 * sum of x[n,i,j,c]^2 over the pixels (i, j) of a
//   window of size x size around (h, w), as far as they are in the map (region "within_channel"); in NHWC
//
// Tiling   a lane makes CHANNELS neighbouring channels of a pixel, for which each pixel of the window is one
//          access of 16 bytes (of 16-bit elements; two in fp32). A row of the window is added up before it is
//          added to the others.
// Traffic  x once from DRAM, size^2 times from L1 and L2; y once.
// Bound    L1 and issue: some 2.5 instructions for each tap and channel. Predicted: 35 % of the copy rate for
//          5 x 5 in 16 bits, 60 % in fp32.
//
// /// kernel
// op     = "lrn_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// layout = "NHWC"
// tile   = { THREADS = 256, CHANNELS = 8 }
// tune   = { THREADS = [128, 256, 512] }
// grid   = ["ceil_div(counted, THREADS)"]
// block  = ["THREADS"]
// when   = "within == 1 and counted < 2147400000"
// rank   = 10
// [let]
// runs    = "ceil_div(C, CHANNELS)"
// counted = "N*H*W * runs"
// [dividers]
// by_runs = "runs"
// by_W    = "W"
// by_H    = "H"
// ///

#include "maps.cuh"

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_fprop_channels(GEOMETRY(LRN), const storage_t* __restrict__ x, storage_t* __restrict__ y) {
  const Pixel pixel = pixel_of_thread(g);
  if (pixel.n >= g.N) return;
  const long long at = pixel.element(g);
  const bool vector = vectored(g.C, x);
  float sums[CHANNELS];
  map_sum(g, pixel, g.behind, g.ahead, sums, [&](long long i, float (&values)[CHANNELS]) {
    Run run = load_run(x + i, pixel.count, vector);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) values[c] = run.value(c) * run.value(c);
  });
  Run run = load_run(x + at, pixel.count, vector);
  float made[CHANNELS];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c)
    made[c] = run.value(c) * powers(fmaf(g.alpha / g.taps, sums[c], g.k), g.beta).of_d;
  store_run(y + at, pixel.count, vectored(g.C, y), made);
}
