// lrn_maxpool2d_dgrad_lanes
//   dz = the gradient of 3 x 3 max pooling at stride 2, as maxpool2d_dgrad has it; dx[c] = dz[c] * d[c]^-3/4 -
//   3/2*alpha/size * x[c] * sum of t[j] over j in [c - ahead, c + behind], t[j] = dz[j] * x[j] * d[j]^-7/4, as
//   lrn_dgrad has it; in NHWC. dz is not stored. With relu, dx is zero where x is not positive.
//
// Tiling   a lane makes 2 x 2 pixels of CHANNELS neighbouring channels: it loads the four windows that they
//          lie in, each once (patch.cuh), and makes dz of them in registers. Along the channels it does as
//          lrn_dgrad_lanes: shuffles bring the x beside its own, and then the t that its neighbours have
//          made. A lane's loads are all under way before it computes. No atomics, no shared memory, no
//          barrier.
// Traffic  x, dy and argmax are read once from DRAM and dx is written once: 4.75 bytes for each pixel in 16
//          bits, 9.25 in fp32. From L1, each window four times; from L1 or L2, 1 of 15 runs twice where those
//          of a row do not divide 32. One after the other, the gradients of the pool, of LRN and of the ReLU
//          move 14.75 and 29.25 bytes.
// Bound    issue in 16 bits: for size 5 some 45 instructions for each element, 2 of them roots (counted in
//          the code for sm_90a), where 33 fit into its time; in fp32, with 64, DRAM bandwidth. Predicted: 55
//          % of the copy rate in 16 bits, 70 % in fp32.
//
// /// kernel
// op      = "lrn_maxpool2d_dgrad"
// dtypes  = ["float32", "float16", "bfloat16"]
// layout  = "NHWC"
// options = { relu = "int" }
// tile    = { THREADS = 128, CHANNELS = 8 }
// tune    = { THREADS = [64, 128, 256] }
// when    = """within == 0 and (size == 3 or size == 5) and 4*beta == 3 and k >= 1 and R == 3 and S == 3 \
//           and stride_h == 2 and stride_w == 2 and dilation_h == 1 and dilation_w == 1 \
//           and counted < 2147400000"""
// grid    = ["blocks"]
// block   = ["THREADS"]
// rank    = 20
//
// [let]
// runs    = "ceil_div(C // groups, CHANNELS)"
// step    = "32 if 32 % runs == 0 else 30"
// bands   = "(pad_top + H - 1) // 2 - pad_top // 2 + 1"
// columns = "(pad_left + W - 1) // 2 - pad_left // 2 + 1"
// counted = "N * bands * columns * groups * runs"
// blocks  = "ceil_div(counted, step * THREADS // 32)"
// [dividers]
// by_channels = "C // groups"
// by_groups   = "groups"
// by_runs     = "runs"
// by_step     = "step"
// by_bands    = "bands"
// by_columns  = "columns"
// ///

#include "lanes.cuh"
#include "patch.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 128.
constexpr int RESIDENT = 512;

template <int SIZE, class Geometry>
__device__ __forceinline__ void differentiate(const Geometry& g, const storage_t* __restrict__ dy,
                                              const unsigned char* __restrict__ argmax,
                                              const storage_t* __restrict__ x, storage_t* __restrict__ dx,
                                              float limit) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  static_assert(SIZE - 1 <= CHANNELS, "a lane that lends t has all x that these need");
  const int channels = static_cast<int>(g.by_channels.divisor);
  const int patches = g.N * static_cast<int>(g.by_bands.divisor * g.by_columns.divisor);
  const Lane lane = lane_of_thread(g, patches * g.groups, static_cast<int>(blockIdx.x));
  const Patch patch = patch_at(g, lane.row / g.by_groups);
  const int channel = lane.row % g.by_groups * channels + lane.first;

  Windows windows;
  windows.load(g, patch, channel, lane.count, dy, argmax, vectored(channels, dy),
               vectored_bytes(channels, argmax));
  const bool vector_x = vectored(channels, x), vector_dx = vectored(channels, dx);
  const long long first = ((patch.n * g.H + patch.row) * g.W + patch.column) * g.C + channel;
  Run of_x[2][2];
  bool inside[2][2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int row = patch.row + r, column = patch.column + s;
      inside[r][s] = row >= 0 && row < g.H && column >= 0 && column < g.W;
      const long long pixel = first + (static_cast<long long>(r) * g.W + s) * g.C;
      of_x[r][s] = load_run(x + pixel, inside[r][s] ? lane.count : 0, vector_x);
    }

  const float scale = g.alpha / g.taps, factor = 2.0f * scale * g.beta;
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      // xs[j] is channel j - BEHIND of the run, ts[j] is t of channel j - AHEAD.
      float xs[SIZE - 1 + CHANNELS], ts[SIZE - 1 + CHANNELS], made[CHANNELS];
      see<BEHIND, AHEAD>(of_x[r][s], lane, xs);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        const float root = rsqrt_normal(divisor<SIZE>(xs, c, scale, g.k));
        made[c] = windows.gradient(r, s, c) * (root * sqrt_normal(root));  // d^-3/4 = d^-1/2 * (d^-1/2)^1/2
        // Behind the row's end this is 0, or NaN where x is NaN so near that every dx which adds it is NaN
        // anyway.
        ts[AHEAD + c] = made[c] * xs[BEHIND + c] * (root * root);
      }
      beside<AHEAD, BEHIND>(lane, ts);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        float total = ts[c];
#pragma unroll
        for (int j = 1; j < SIZE; ++j) total += ts[c + j];
        made[c] = fmaf(-factor * xs[BEHIND + c], total, made[c]);
        if (xs[BEHIND + c] <= limit) made[c] = 0.0f;
      }
      const long long pixel = first + (static_cast<long long>(r) * g.W + s) * g.C;
      if (lane.stores && inside[r][s]) store_run(dx + pixel, lane.count, vector_dx, made);
    }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_maxpool2d_dgrad_lanes(GEOMETRY(LrnMaxPool2d), const storage_t* __restrict__ dy,
                                   const unsigned char* __restrict__ argmax, const storage_t* __restrict__ x,
                                   storage_t* __restrict__ dx, int relu) {
  const float limit = relu ? 0.0f : __int_as_float(0x7fc00000);  // no x is below or equal to a NaN
  if (g.size == 5)
    differentiate<5>(g, dy, argmax, x, dx, limit);
  else
    differentiate<3>(g, dy, argmax, x, dx, limit);
}
