// lrn_maxpool2d_fprop_lanes
//   z = x * d^-3/4, as lrn_fprop has it; y and argmax = the maximum of z over each window of 3 x 3 at stride 2,
//   and where it is, as maxpool2d_fprop has them; in NHWC. z is not stored.
//
// Tiling   a lane makes WIDE outputs side by side, of CHANNELS neighbouring channels, and walks down up to
//          ROWS rows of them: of each row of pixels it normalises 2 * WIDE + 1, whose neighbouring channels
//          come by shuffles (lanes.cuh), takes the maxima of 3 columns, and lets these meet the windows that
//          the row lies in. So rows and columns are compared in the order of positions, and nothing is kept
//          but one window's maxima. No shared memory, no barrier. The border of the image is repeated where a
//          window reaches beyond it: a repeated value comes behind the one that it repeats, which has won by
//          then; at the top and on the left it comes first, and is given the position of what it repeats.
// Traffic  x is read once from DRAM; again, from L1 or L2, 1 of 2 * WIDE columns and 1 of 2 * ROWS rows, and
//          1 of 15 runs where those of a row do not divide 32. y and argmax are written once: 11 bytes for
//          each output in 16 bits, 21 in fp32. The two kernels apart write z and read it: 27 and 53.
// Bound    issue in 16 bits: an output takes (1 + 1/(2 WIDE)) (1 + 1/(2 ROWS)) * 4 = 5.4 normalised pixels,
//          with 2 roots each, and the comparisons: for size 5 some 115 instructions (counted in the code for
//          sm_90a), where 76 fit into the time of its bytes. In fp32, where 145 fit, DRAM bandwidth.
//          Predicted: 45 % of the copy rate in 16 bits, 70 % in fp32.
//
// /// kernel
// op     = "lrn_maxpool2d_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// layout = "NHWC"
// tile   = { THREADS = 128, WIDE = 2, ROWS = 7, CHANNELS = 8 }
// tune   = { THREADS = [64, 128], WIDE = [1, 2], ROWS = [3, 5, 7, 14] }
// when   = """within == 0 and (size == 3 or size == 5) and 4*beta == 3 and k >= 1 and R == 3 and S == 3 \
//          and stride_h == 2 and stride_w == 2 and dilation_h == 1 and dilation_w == 1 \
//          and counted < 2147400000"""
// grid   = ["blocks"]
// block  = ["THREADS"]
// rank   = 20
//
// [let]
// runs    = "ceil_div(C // groups, CHANNELS)"
// step    = "32 if 32 % runs == 0 else 30"
// bands   = "ceil_div(P, ROWS)"
// columns = "ceil_div(Q, WIDE)"
// counted = "N * bands * columns * groups * runs"
// blocks  = "ceil_div(counted, step * THREADS // 32)"
// [dividers]
// by_channels = "C // groups"
// by_groups   = "groups"
// by_runs     = "runs"
// by_step     = "step"
// by_bands    = "bands"
// by_columns  = "columns"
// by_each     = "ceil_div(P, bands)"
// ///

#include "lanes.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 128.
constexpr int RESIDENT = 512;
constexpr int COLUMNS = 2 * WIDE + 1;

// The maxima so far of CHANNELS channels, and where they are; other values take their place where they are greater,
// or the first NaN.
struct Best {
  float values[CHANNELS];
  unsigned positions[CHANNELS];

  __device__ __forceinline__ void begin(const float (&others)[CHANNELS], unsigned position) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      values[c] = others[c];
      positions[c] = position;
    }
  }
  __device__ __forceinline__ void meet(int c, float other, unsigned position) {
    if (!(other <= values[c]) && values[c] == values[c]) {
      values[c] = other;
      positions[c] = position;
    }
  }
  __device__ __forceinline__ void meet(const float (&others)[CHANNELS], unsigned position) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) meet(c, others[c], position);
  }
  __device__ __forceinline__ void meet(const Best& others, unsigned more) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) meet(c, others.values[c], others.positions[c] + more);
  }
};

template <int SIZE, class Geometry>
__device__ __forceinline__ void walk(const Geometry& g, const storage_t* __restrict__ x,
                                     storage_t* __restrict__ y, unsigned char* __restrict__ argmax) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  const int channels = static_cast<int>(g.by_channels.divisor), each = static_cast<int>(g.by_each.divisor);
  const int patches = g.N * static_cast<int>(g.by_bands.divisor * g.by_columns.divisor);
  const Lane lane = lane_of_thread(g, patches * g.groups, static_cast<int>(blockIdx.x));
  const int place = lane.row / g.by_groups, line = place / g.by_columns;
  const long long n = line / g.by_bands;
  const int channel = lane.row % g.by_groups * channels + lane.first;
  const int p = line % g.by_bands * each, q = place % g.by_columns * WIDE;
  const int top = 2 * p - g.pad_top, left = 2 * q - g.pad_left;
  const float scale = g.alpha / g.taps;
  const bool vector_x = vectored(channels, x), vector_y = vectored(channels, y);
  const bool vector_argmax = vectored_bytes(channels, argmax);

  const storage_t* const image = x + n * g.H * g.W * g.C + channel;
  int at[COLUMNS];  // columns of pixels
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) at[i] = min(max(left + i, 0), g.W - 1);
  unsigned first_s[WIDE];
#pragma unroll
  for (int t = 0; t < WIDE; ++t) first_s[t] = static_cast<unsigned>(max(-left - 2 * t, 0));

  Best window[WIDE];
#pragma unroll 1
  for (int i = 0; i <= 2 * each; ++i) {
    const long long start = static_cast<long long>(min(max(top + i, 0), g.H - 1)) * g.W;
    Run runs[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      const long long pixel = (start + at[j]) * g.C;
      runs[j] = load_run(image + pixel, lane.count, vector_x);
    }
    Best row[WIDE];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      float seen[SIZE - 1 + CHANNELS], normal[CHANNELS];
      see<BEHIND, AHEAD>(runs[j], lane, seen);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c)
        normal[c] = seen[BEHIND + c] * powers_of<true>(divisor<SIZE>(seen, c, scale, g.k), g.beta).of_d;
#pragma unroll
      for (int t = 0; t < WIDE; ++t) {
        if (j == 2 * t) row[t].begin(normal, first_s[t]);
        if (j == 2 * t + 1) row[t].meet(normal, 1);
        if (j == 2 * t + 2) row[t].meet(normal, 2);
      }
    }
#pragma unroll
    for (int t = 0; t < WIDE; ++t) {
      if (i % 2 == 1) {
        window[t].meet(row[t], 3);
        continue;
      }
      if (i > 0) {
        window[t].meet(row[t], 6);
        const int made = p + i / 2 - 1;
        if (lane.stores && made < g.P && q + t < g.Q) {
          const long long to = ((n * g.P + made) * g.Q + q + t) * g.C + channel;
          store_run(y + to, lane.count, vector_y, window[t].values);
          store_positions(argmax + to, lane.count, vector_argmax, window[t].positions);
        }
      }
      // The first row of the next window, or a repeated one above the image.
      const unsigned first_r = static_cast<unsigned>(max(-top - i, 0));
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        window[t].values[c] = row[t].values[c];
        window[t].positions[c] = row[t].positions[c] + 3 * first_r;
      }
    }
  }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_maxpool2d_fprop_lanes(GEOMETRY(LrnMaxPool2d), const storage_t* __restrict__ x,
                                   storage_t* __restrict__ y, unsigned char* __restrict__ argmax) {
  if (g.size == 5)
    walk<5>(g, x, y, argmax);
  else
    walk<3>(g, x, y, argmax);
}
