// lrn_dgrad_lanes
//   dx[c] = dy[c] * d[c]^-beta - 2*alpha*beta/size * x[c] * sum of t[j] over j in [c - ahead, c + behind]
//   t[j] = dy[j] * x[j] * d[j]^(-beta-1),  d[j] = k + alpha/size * sum of x[i]^2 over i in [j - behind, j +
//   ahead], all at one pixel, as far as i and j are in c's group of channels; in NHWC
//
// Tiling   as lrn_fprop_lanes: a lane has CHANNELS neighbouring channels of a pixel. Shuffles bring it the x
//          beside its own, of which it makes d and t of its own channels, and then the t beside its own,
//          which the neighbours have made: no t is made twice. It makes RUNS runs, all of which it loads
//          first. d is made again from x rather than kept by the forward pass: that would cost a write there
//          and a read here. No shared memory, no barrier.
// Traffic  dy and x once, dx once: 6 bytes for each element in 16 bits, 12 in fp32; 16 bytes to a lane and
//          access. Where the runs of a row do not divide 32, 1 of 15 runs is read twice, from L1 or L2.
// Bound    DRAM bandwidth: for size 5, beta 0.75 and k >= 1 some 37 instructions for each element, 2 of them
//          roots (counted in 16 bits in the code for sm_90a), against 41 that fit into its time in 16 bits
//          and 82 in fp32. Predicted: 70 % of the copy rate in 16 bits, 80 % in fp32.
//
// /// kernel
// op     = "lrn_dgrad"
// dtypes = ["float32", "float16", "bfloat16"]
// layout = "NHWC"
// tile   = { THREADS = 256, RUNS = 2, CHANNELS = 8 }
// tune   = { THREADS = [128, 256], RUNS = [1, 2, 4] }
// grid   = ["blocks"]
// block  = ["THREADS"]
// when   = "within == 0 and (size == 3 or size == 5 or size == 7) and counted < 2147400000"
// rank   = 20
// [let]
// runs    = "ceil_div(C // groups, CHANNELS)"
// step    = "32 if 32 % runs == 0 else 30"
// counted = "N*H*W*groups * runs"
// blocks  = "ceil_div(counted, step * THREADS // 32 * RUNS)"
// [dividers]
// by_channels = "C // groups"
// by_runs     = "runs"
// by_step     = "step"
// ///

#include "lanes.cuh"

// COUNT runs of a lane, from its run `begin` on.
template <int SIZE, bool NORMAL, int COUNT, class Geometry>
__device__ __forceinline__ void differentiate(const Geometry& g, int begin, const storage_t* __restrict__ dy,
                                              const storage_t* __restrict__ x, storage_t* __restrict__ dx) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  static_assert(SIZE - 1 <= CHANNELS, "a lane that lends t has all x that these need");
  const int channels = static_cast<int>(g.by_channels.divisor);
  const int rows = g.N * g.H * g.W * g.groups;
  const float scale = g.alpha / g.taps, factor = 2.0f * scale * g.beta;
  const bool vector_dy = vectored(channels, dy), vector_x = vectored(channels, x);
  const bool vector_dx = vectored(channels, dx);
  Run of_x[COUNT], of_dy[COUNT];
  Lane lanes[COUNT];
  long long at[COUNT];
#pragma unroll
  for (int u = 0; u < COUNT; ++u) {
    lanes[u] = lane_of_thread(g, rows, static_cast<int>(blockIdx.x) * RUNS + begin + u);
    at[u] = static_cast<long long>(lanes[u].row) * channels + lanes[u].first;
    of_x[u] = load_run(x + at[u], lanes[u].count, vector_x);
    of_dy[u] = load_run(dy + at[u], lanes[u].count, vector_dy);
  }
#pragma unroll
  for (int u = 0; u < COUNT; ++u) {
    // xs[j] is channel j - BEHIND of the run, ts[j] is t of channel j - AHEAD.
    float xs[SIZE - 1 + CHANNELS], ts[SIZE - 1 + CHANNELS], made[CHANNELS];
    see<BEHIND, AHEAD>(of_x[u], lanes[u], xs);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      const Powers power = powers_of<NORMAL>(divisor<SIZE>(xs, c, scale, g.k), g.beta);
      const float gradient = of_dy[u].value(c);
      // Behind the row's end this is 0, or NaN where x is NaN so near that every dx which adds it is NaN anyway.
      ts[AHEAD + c] = gradient * xs[BEHIND + c] * power.over_d;
      made[c] = gradient * power.of_d;
    }
    beside<AHEAD, BEHIND>(lanes[u], ts);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      float total = ts[c];
#pragma unroll
      for (int j = 1; j < SIZE; ++j) total += ts[c + j];
      made[c] = fmaf(-factor * xs[BEHIND + c], total, made[c]);
    }
    if (lanes[u].stores) store_run(dx + at[u], lanes[u].count, vector_dx, made);
  }
}

template <int SIZE, class Geometry>
__device__ __forceinline__ void differentiate(const Geometry& g, const storage_t* __restrict__ dy,
                                              const storage_t* __restrict__ x, storage_t* __restrict__ dx) {
  if (g.beta == 0.75f && g.k >= 1.0f) {
    differentiate<SIZE, true, RUNS>(g, 0, dy, x, dx);
    return;
  }
  // powf is long: it stands here once for each channel of a run.
#pragma unroll 1
  for (int u = 0; u < RUNS; ++u) differentiate<SIZE, false, 1>(g, u, dy, x, dx);
}

extern "C" __launch_bounds__(THREADS) __global__
    void lrn_dgrad_lanes(GEOMETRY(LRN), const storage_t* __restrict__ dy, const storage_t* __restrict__ x,
                         storage_t* __restrict__ dx) {
  if (g.size == 3) differentiate<3>(g, dy, x, dx);
  if (g.size == 5) differentiate<5>(g, dy, x, dx);
  if (g.size == 7) differentiate<7>(g, dy, x, dx);
}
