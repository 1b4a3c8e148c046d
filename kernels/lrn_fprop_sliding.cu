// lrn_fprop_sliding
//   y[n,c,h,w] = x[n,c,h,w] * d^-beta,  d = k + alpha/size * sum of x[n,j,h,w]^2 over j in [c - behind, c +
//   ahead], as far as j is in c's group of channels
//
// Tiling   a thread owns a pixel and walks SEGMENT channels of it, UNROLL at a time; neighbouring threads own
//          neighbouring pixels, so that every access of a warp is one run of memory. The values of the window
//          stay in registers. Their squares are added afresh for each channel: `size` multiply-adds, which
//          are free here; a running sum that adds one square and subtracts another would keep the rounding
//          errors of all channels, and a NaN or an infinity for good.
// Traffic  x is read once from DRAM, and (size - 1)/SEGMENT of it once more from L2, where two segments meet;
//          y is written once. 8 bytes for each element in fp32, 4 in the 16-bit types, whose accesses are 64
//          bytes a warp wide: planes of odd size do not allow wider ones.
// Bound    DRAM bandwidth in fp32: for size 5 and beta 0.75, 39 instructions for each element (counted in the
//          code for sm_90a; 2 of them reciprocal roots, 8 their care for subnormals), against about 50 that
//          fit into its time. Issue in the 16-bit types: 42 against 26. Predicted: 80 % of the copy rate in
//          fp32, 55 % in the 16-bit types.
//
// /// kernel
// op     = "lrn_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, SEGMENT = 32, UNROLL = 8 }
// tune   = { THREADS = [128, 256], SEGMENT = [16, 32, 64, 128], UNROLL = [4, 8] }
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

// Threads that an SM is to hold: the most on sm_86, sm_89 and sm_120, and three quarters of it elsewhere. An
// SM has 65536 registers, so that a thread may have 40. With 48 (1280 threads) the compiler spills on sm_90a.
constexpr int RESIDENT = 1536;

// STEPS channels are loaded at once. powf is long: unrolled, it would take all registers.
template <int SIZE, bool THREE_QUARTERS, int STEPS = THREE_QUARTERS ? UNROLL : 2>
__device__ __forceinline__ void slide(const LRN& g, const Walk& walk, const storage_t* __restrict__ x,
                                      storage_t* __restrict__ y) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  const float scale = g.alpha / g.taps;
  const int stop =
      min(walk.last + AHEAD, walk.end);  // channels from here on are not needed, or not in the group
  // Offsets in the image, 32 bits wide (`when` sees to that): 64-bit pointers would cost twice the
  // instructions and registers. Those of channels that do not exist wrap around, and are not used.
  x += walk.base;
  y += walk.base;
  const unsigned step = static_cast<unsigned>(walk.step);
  unsigned from = (walk.first - BEHIND) * step, to = walk.first * step;
  // values[j] is channel c - BEHIND + j; outside the group it is zero.
  float values[SIZE - 1 + STEPS];
#pragma unroll
  for (int j = 0; j < SIZE - 1; ++j, from += step) {
    const int channel = walk.first - BEHIND + j;
    values[j] = channel >= walk.begin && channel < stop ? to_float(x[from]) : 0.0f;
  }
  for (int c = walk.first; c < walk.last; c += STEPS) {
#pragma unroll
    for (int u = 0; u < STEPS; ++u, from += step)
      values[SIZE - 1 + u] = c + AHEAD + u < stop ? to_float(x[from]) : 0.0f;
#pragma unroll
    for (int u = 0; u < STEPS; ++u, to += step) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < SIZE; ++j) sum = fmaf(values[u + j], values[u + j], sum);
      const float power = powers<THREE_QUARTERS>(fmaf(scale, sum, g.k), g.beta).of_d;
      if (c + u < walk.last) y[to] = from_float(values[u + BEHIND] * power);
    }
#pragma unroll
    for (int j = 0; j < SIZE - 1; ++j) values[j] = values[j + STEPS];
  }
}

template <int SIZE>
__device__ __forceinline__ void slide(const LRN& g, const Walk& walk, const storage_t* __restrict__ x,
                                      storage_t* __restrict__ y) {
  if (g.beta == 0.75f)
    slide<SIZE, true>(g, walk, x, y);
  else
    slide<SIZE, false>(g, walk, x, y);
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_fprop_sliding(GEOMETRY(LRN), const storage_t* __restrict__ x, storage_t* __restrict__ y) {
  const Walk walk = walk_of_thread<SEGMENT>(g);
  if (!walk.any) return;
  if (g.size == 3) slide<3>(g, walk, x, y);
  if (g.size == 5) slide<5>(g, walk, x, y);
  if (g.size == 7) slide<7>(g, walk, x, y);
}
