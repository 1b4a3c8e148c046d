// lrn_dgrad_sliding
//   dx[c] = dy[c] * d[c]^-beta - 2*alpha*beta/size * x[c] * sum of t[j] over j in [c - ahead, c + behind]
//   t[j] = dy[j] * x[j] * d[j]^(-beta-1),  d[j] = k + alpha/size * sum of x[i]^2 over i in [j - behind, j +
//   ahead], all at one pixel, as far as i and j are in c's group of channels
//
// Tiling   as lrn_fprop_sliding: a thread owns a pixel and walks SEGMENT channels, UNROLL at a time. Three
//          windows slide in registers: of x, which runs ahead; of t; and of dy * d^-beta, which waits for the
//          sum of t. Both sums are taken afresh for each channel. d is made again from x rather than kept by
//          the forward pass: that would cost a write there and a read here.
// Traffic  dy and x are read once from DRAM, and 2*(size - 1)/SEGMENT of x once more from L2; dx is written
//          once. 12 bytes for each element in fp32, 6 in the 16-bit types.
// Bound    DRAM bandwidth in fp32: for size 5 and beta 0.75, 66 instructions for each element (counted in the
//          code for sm_90a), against about 80 that fit into its time. Issue in the 16-bit types: 71 against
//          40. Predicted: 75 % of the copy rate in fp32, 50 % in the 16-bit types.
//
// /// kernel
// op     = "lrn_dgrad"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, SEGMENT = 64, UNROLL = 4 }
// tune   = { THREADS = [128, 256], SEGMENT = [32, 64, 128], UNROLL = [2, 4] }
// grid   = ["ceil_div(N*H*W, THREADS) * PARTS"]
// block  = ["THREADS"]
// when   = "within == 0 and C*H*W < 2147483648 and (size == 3 or size == 5 or size == 7)"
// rank   = 20
// [let]
// SEGMENTS = "ceil_div(C // groups, SEGMENT)"
// PARTS    = "groups * SEGMENTS"
// [dividers]
// by_channels = "C // groups"
// by_segments = "SEGMENTS"
// by_parts    = "PARTS"
// by_pixels   = "H*W"
// ///

#include "lrn.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 48: enough, without
// spills.
constexpr int RESIDENT = 1280;

// STEPS channels are loaded at once. powf is long: unrolled, it would take all registers.
template <int SIZE, bool THREE_QUARTERS, int STEPS = THREE_QUARTERS ? UNROLL : 2>
__device__ __forceinline__ void slide(const LRN& g, const Walk& walk, const storage_t* __restrict__ dy,
                                      const storage_t* __restrict__ x, storage_t* __restrict__ dx) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  const float scale = g.alpha / g.taps, factor = 2.0f * scale * g.beta;
  const int stop_t = min(walk.last + BEHIND, walk.end);  // t is needed before this channel
  const int stop_x = min(walk.last + BEHIND + AHEAD, walk.end);
  // Step f makes t[f] from x[f - BEHIND ... f + AHEAD], and then dx[f - BEHIND] from t[f - SIZE + 1 ... f].
  // At the head of the loop, xs[j] is x[f - BEHIND + j], ts[j] is t[f - SIZE + 1 + j], and firsts[j] is dy *
  // d^-beta of channel f - BEHIND + j. What is outside the group, or not needed, is zero.
  float xs[SIZE - 1 + STEPS], ts[SIZE - 1 + STEPS], firsts[BEHIND + STEPS];
  const int start = walk.first - AHEAD;  // the first t that is needed
  // Offsets in the image, 32 bits wide (`when` sees to that): 64-bit pointers would cost twice the
  // instructions and registers. Those of channels that do not exist wrap around, and are not used.
  dy += walk.base;
  x += walk.base;
  dx += walk.base;
  const unsigned step = static_cast<unsigned>(walk.step);
  unsigned at_x = (start - BEHIND) * step, at_dy = start * step, at_dx = at_x;
#pragma unroll
  for (int j = 0; j < SIZE - 1; ++j, at_x += step) {
    const int channel = start - BEHIND + j;
    xs[j] = channel >= walk.begin && channel < stop_x ? to_float(x[at_x]) : 0.0f;
    ts[j] = 0.0f;
  }
#pragma unroll
  for (int j = 0; j < BEHIND; ++j) firsts[j] = 0.0f;

  for (int f = start; f < walk.last + BEHIND; f += STEPS) {
    float gradients[STEPS];
#pragma unroll
    for (int u = 0; u < STEPS; ++u, at_x += step, at_dy += step) {
      const int channel = f + u, leading = channel + AHEAD;
      const bool read = leading >= walk.begin && leading < stop_x;
      xs[SIZE - 1 + u] = read ? to_float(x[at_x]) : 0.0f;
      const bool needed = channel >= walk.begin && channel < stop_t;
      gradients[u] = needed ? to_float(dy[at_dy]) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < STEPS; ++u, at_dx += step) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < SIZE; ++j) sum = fmaf(xs[u + j], xs[u + j], sum);
      const Powers power = powers<THREE_QUARTERS>(fmaf(scale, sum, g.k), g.beta);
      // Outside the group this is 0, or NaN where x is NaN so near that every dx which adds it is NaN anyway.
      ts[SIZE - 1 + u] = gradients[u] * xs[u + BEHIND] * power.over_d;
      firsts[BEHIND + u] = gradients[u] * power.of_d;
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < SIZE; ++j) total += ts[u + j];
      const int c = f + u - BEHIND;
      if (c >= walk.first && c < walk.last) dx[at_dx] = from_float(fmaf(-factor * xs[u], total, firsts[u]));
    }
#pragma unroll
    for (int j = 0; j < SIZE - 1; ++j) {
      xs[j] = xs[j + STEPS];
      ts[j] = ts[j + STEPS];
    }
#pragma unroll
    for (int j = 0; j < BEHIND; ++j) firsts[j] = firsts[j + STEPS];
  }
}

template <int SIZE>
__device__ __forceinline__ void slide(const LRN& g, const Walk& walk, const storage_t* __restrict__ dy,
                                      const storage_t* __restrict__ x, storage_t* __restrict__ dx) {
  if (g.beta == 0.75f)
    slide<SIZE, true>(g, walk, dy, x, dx);
  else
    slide<SIZE, false>(g, walk, dy, x, dx);
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_dgrad_sliding(GEOMETRY(LRN), const storage_t* __restrict__ dy, const storage_t* __restrict__ x,
                           storage_t* __restrict__ dx) {
  const Walk walk = walk_of_thread<SEGMENT>(g);
  if (!walk.any) return;
  if (g.size == 3) slide<3>(g, walk, dy, x, dx);
  if (g.size == 5) slide<5>(g, walk, dy, x, dx);
  if (g.size == 7) slide<7>(g, walk, dy, x, dx);
}
