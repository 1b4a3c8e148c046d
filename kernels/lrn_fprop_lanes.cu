// lrn_fprop_lanes
//   y[n,h,w,c] = x[n,h,w,c] * d^-beta,  d = k + alpha/size * sum of x[n,h,w,j]^2 over j in [c - behind, c +
//   ahead], as far as j is in c's group of channels; in NHWC
//
// Tiling   a window lies along memory. A lane has CHANNELS neighbouring channels of a pixel, neighbouring
//          lanes the next ones, and what a window sees of the runs beside the lane's own comes by shuffles
//          (lanes.cuh). It makes RUNS runs, all of which it loads before it computes. The squares are added
//          afresh for each channel: a running sum would keep rounding errors, and a NaN, for good. No shared
//          memory, no barrier.
// Traffic  x once, y once: 4 bytes for each element in 16 bits, 8 in fp32; 16 bytes to a lane and access.
//          Where the runs of a row do not divide 32, 1 of 15 runs is read twice, from L1 or L2.
// Bound    DRAM bandwidth: for size 5, beta 0.75 and k >= 1 some 25 instructions for each element, 2 of them
//          roots (counted in 16 bits in the code for sm_90a), against 27 that fit into its time in 16 bits
//          and 55 in fp32. Predicted: 70 % of the copy rate in 16 bits, 85 % in fp32.
//
// /// kernel
// op     = "lrn_fprop"
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
__device__ __forceinline__ void normalise(const Geometry& g, int begin, const storage_t* __restrict__ x,
                                          storage_t* __restrict__ y) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  const int channels = static_cast<int>(g.by_channels.divisor);
  const int rows = g.N * g.H * g.W * g.groups;
  const float scale = g.alpha / g.taps;
  const bool vector_x = vectored(channels, x), vector_y = vectored(channels, y);
  Run runs[COUNT];
  Lane lanes[COUNT];
  long long at[COUNT];
#pragma unroll
  for (int u = 0; u < COUNT; ++u) {
    lanes[u] = lane_of_thread(g, rows, static_cast<int>(blockIdx.x) * RUNS + begin + u);
    at[u] = static_cast<long long>(lanes[u].row) * channels + lanes[u].first;
    runs[u] = load_run(x + at[u], lanes[u].count, vector_x);
  }
#pragma unroll
  for (int u = 0; u < COUNT; ++u) {
    float seen[SIZE - 1 + CHANNELS], made[CHANNELS];
    see<BEHIND, AHEAD>(runs[u], lanes[u], seen);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c)
      made[c] = seen[BEHIND + c] * powers_of<NORMAL>(divisor<SIZE>(seen, c, scale, g.k), g.beta).of_d;
    if (lanes[u].stores) store_run(y + at[u], lanes[u].count, vector_y, made);
  }
}

template <int SIZE, class Geometry>
__device__ __forceinline__ void normalise(const Geometry& g, const storage_t* __restrict__ x,
                                          storage_t* __restrict__ y) {
  if (g.beta == 0.75f && g.k >= 1.0f) {
    normalise<SIZE, true, RUNS>(g, 0, x, y);
    return;
  }
  // powf is long: it stands here once for each channel of a run.
#pragma unroll 1
  for (int u = 0; u < RUNS; ++u) normalise<SIZE, false, 1>(g, u, x, y);
}

extern "C" __launch_bounds__(THREADS) __global__
    void lrn_fprop_lanes(GEOMETRY(LRN), const storage_t* __restrict__ x, storage_t* __restrict__ y) {
  if (g.size == 3) normalise<3>(g, x, y);
  if (g.size == 5) normalise<5>(g, x, y);
  if (g.size == 7) normalise<7>(g, x, y);
}
