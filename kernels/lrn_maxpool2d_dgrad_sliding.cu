// lrn_maxpool2d_dgrad_sliding
//   dz = the gradient of 3 x 3 max pooling at stride 2, as maxpool2d_dgrad has it; dx[c] = dz[c] * d[c]^-3/4 -
//   3/2*alpha/size * x[c] * sum of t[j] over j in [c - ahead, c + behind], t[j] = dz[j] * x[j] * d[j]^-7/4,
//   as lrn_dgrad has it. dz is not stored. With relu, dx is zero where x is not positive.
//
// Tiling   a thread owns one column of 2 * PAIRS rows of pixels and walks SEGMENT channels. A pixel in an even
//          row and column of the padded image lies in four windows, in an odd row or column in half as many:
//          the thread loads the 2 * (PAIRS + 1) windows that its pixels lie in once for each channel. What
//          slides over the channels (x, t, and dz * d^-3/4, which waits for the sum of t) stays in registers:
//          the loop is unrolled size + 1 times, so that the newest channel takes the place of the oldest, and
//          nothing moves. The one place more lets the next channel's loads be under way during a step.
//          Neighbouring lanes own neighbouring columns: x and dx move in whole sectors. No atomics, no shared
//          memory, no barrier.
// Traffic  x, dy and argmax are read once from DRAM and dx is written once: 9.25 bytes for each pixel in fp32,
//          4.75 in the 16-bit types. Again from L1 or L2: each window by the two or three columns and the two
//          pairs of rows that it covers; 2*(size - 1) channels of x and size - 1 of the windows for each
//          SEGMENT. One after the other, the gradients of the pool, of LRN and of the ReLU move 29.25 and
//          14.75 bytes.
// Bound    62 instructions for each pixel in fp32, 67 in the 16-bit types, and 8 % of them once more where
//          segments meet (counted in the code for sm_90a). About 62 and 32 fit into the time of the bytes: so
//          DRAM bandwidth and issue alike in fp32, issue in the 16-bit types. An SM holds 16 warps, whose
//          loads for the next channel, some 11 KB from DRAM, are under way all the time. Predicted: 65 % of the
//          copy rate in fp32, 40 % in the 16-bit types.
//
// /// kernel
// op      = "lrn_maxpool2d_dgrad"
// dtypes  = ["float32", "float16", "bfloat16"]
// options = { relu = "int" }
// tile    = { THREADS = 128, PAIRS = 2, SEGMENT = 48 }
// tune    = { THREADS = [64, 128], PAIRS = [1, 2], SEGMENT = [24, 48, 64, 96] }
// when    = """within == 0 and (size == 3 or size == 5) and 4*beta == 3 and k >= 1 and R == 3 and S == 3 \
//           and stride_h == 2 and stride_w == 2 and dilation_h == 1 and dilation_w == 1 \
//           and C*H*W < 2147483648 and C*P*Q < 2147483648 and blocks < 2147483648"""
// grid    = ["blocks"]
// block   = ["THREADS"]
// rank    = 20
//
// [let]
// segments = "ceil_div(C // groups, SEGMENT)"
// each     = "ceil_div(C // groups, segments)"
// parts    = "groups * segments"
// bands    = "ceil_div((pad_top + H - 1) // 2 - pad_top // 2 + 1, PAIRS)"
// blocks   = "parts * ceil_div(N * bands * W, THREADS)"
// [dividers]
// by_parts    = "parts"
// by_segments = "segments"
// by_each     = "each"
// by_channels = "C // groups"
// by_bands    = "bands"
// by_W        = "W"
// ///

#include "convkit.cuh"
#include "storage.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 128.
constexpr int RESIDENT = 512;
constexpr int PIXELS = 2 * PAIRS;

// A window: the position that won, and its gradient.
struct Window {
  unsigned winner;
  float gradient;
};
constexpr unsigned NO_POSITION = 0x100u;  // beyond what an unsigned char holds

__device__ __forceinline__ float won(const Window& window, unsigned position) {
  return window.winner == position ? window.gradient : 0.0f;
}

// What a thread makes: padded rows 2p to 2p + 2 * PAIRS - 1 of a padded column 2q or 2q + 1. They lie in the
// windows p - 1 to p + PAIRS - 1, and in q; those of column 2q in q - 1 too.
struct Column {
  long long n;
  int row, column;  // the first pixel; its row may be above the image
  int p, q;
  bool odd;  // column 2q + 1
  bool any;  // false for the threads behind the last column
};

template <class Geometry>
__device__ __forceinline__ Column column_of_thread(const Geometry& g, long long block) {
  const long long i = block * THREADS + threadIdx.x, band = i / g.by_W;
  Column mine;
  mine.column = static_cast<int>(i % g.by_W);
  mine.n = band / g.by_bands;
  mine.p = g.pad_top / 2 + static_cast<int>(band % g.by_bands) * PAIRS;
  mine.row = 2 * mine.p - g.pad_top;
  mine.q = (mine.column + g.pad_left) / 2;
  mine.odd = (mine.column + g.pad_left) % 2 != 0;
  mine.any = mine.n < g.N;
  return mine;
}

template <int SIZE>
__device__ __forceinline__ void slide(const LrnMaxPool2d& g, const Column& mine, int first, int last,
                                      int begin, int end, const storage_t* __restrict__ dy,
                                      const unsigned char* __restrict__ argmax,
                                      const storage_t* __restrict__ x, storage_t* __restrict__ dx,
                                      float limit) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2, TURN = SIZE + 1;
  static_assert(TURN % 2 == 0, "two places for windows");
  const float scale = g.alpha / g.taps, factor = 2.0f * scale * g.beta;
  const int stop_t = min(last + BEHIND, end);  // t is needed before this channel
  const int stop_x = min(last + BEHIND + AHEAD, end);
  const int start = first - AHEAD;  // the first t that is needed
  const int step = g.H * g.W, step_out = g.P * g.Q;

  // Where the pixels and the windows are in a plane. In the place of one that does not exist the nearest one
  // is read, which costs less than a condition: such a pixel is not stored, and `nothing` sees to it that
  // such a window has no winner.
  unsigned pixels[PIXELS], windows_at[PAIRS + 1][2], nothing[PAIRS + 1], stores = 0;
#pragma unroll
  for (int r = 0; r < PIXELS; ++r) {
    const int row = mine.row + r;
    pixels[r] = min(max(row, 0), g.H - 1) * g.W + mine.column;
    if (row >= 0 && row < g.H) stores |= 1u << r;
  }
#pragma unroll
  for (int i = 0; i <= PAIRS; ++i) {
    const int p = mine.p - 1 + i, nearest = min(max(p, 0), g.P - 1) * g.Q;
    windows_at[i][0] = nearest + min(mine.q, g.Q - 1);
    windows_at[i][1] = nearest + max(mine.q - 1, 0);
    nothing[i] = p >= 0 && p < g.P ? 0 : NO_POSITION;
  }
  // The positions of an even row's pixel in the windows q and q - 1 of its own pair of rows; in the next row
  // they are 3 more, in the pair before 6.
  const unsigned right = mine.q >= g.Q ? 2 * NO_POSITION : mine.odd;
  const unsigned left = mine.odd || mine.q < 1 ? 2 * NO_POSITION : 2;

  // Step f makes t[f] from x[f - BEHIND ... f + AHEAD], and then dx[f - BEHIND] from t[f - SIZE + 1 ... f].
  // Channel start - BEHIND + i of x has place i % TURN; channel start + i of t, of dz * d^-3/4 and, modulo
  // 2, of the windows has place i. What is outside the group, or not needed, is zero.
  float xs[PIXELS][TURN], ts[PIXELS][TURN], firsts[PIXELS][TURN];
  Window windows[2][PAIRS + 1][2];
  const storage_t* next_x = x + (mine.n * g.C + start - BEHIND) * step;
  const storage_t* next_dy = dy + (mine.n * g.C + start) * step_out;
  const unsigned char* next_argmax = argmax + (mine.n * g.C + start) * step_out;
  storage_t* next_dx = dx + (mine.n * g.C + start - BEHIND) * step;
  const auto load_x = [&](int channel, int place) {
    if (channel >= begin && channel < stop_x) {
#pragma unroll
      for (int r = 0; r < PIXELS; ++r) xs[r][place] = to_float(next_x[pixels[r]]);
    } else {
#pragma unroll
      for (int r = 0; r < PIXELS; ++r) xs[r][place] = 0.0f;
    }
    next_x += step;
  };
  const auto load_windows = [&](int channel, int place) {
    Window(&to)[PAIRS + 1][2] = windows[place];
    if (channel >= begin && channel < stop_t) {
#pragma unroll
      for (int i = 0; i <= PAIRS; ++i)
#pragma unroll
        for (int s = 0; s < 2; ++s)
          to[i][s] = {next_argmax[windows_at[i][s]] | nothing[i], to_float(next_dy[windows_at[i][s]])};
    } else {
#pragma unroll
      for (int i = 0; i <= PAIRS; ++i) to[i][0].winner = to[i][1].winner = NO_POSITION;
    }
    next_dy += step_out;
    next_argmax += step_out;
  };
#pragma unroll
  for (int i = 0; i < SIZE; ++i) load_x(start - BEHIND + i, i);
  load_windows(start, 0);
#pragma unroll
  for (int r = 0; r < PIXELS; ++r)
#pragma unroll
    for (int i = 0; i < TURN; ++i) ts[r][i] = firsts[r][i] = 0.0f;

  for (int f = start;;) {
#pragma unroll
    for (int phase = 0; phase < TURN; ++phase, ++f, next_dx += step) {
      if (f == last + BEHIND) return;
      load_x(f + AHEAD + 1, (phase + SIZE) % TURN);
      load_windows(f + 1, (phase + 1) % 2);
      float made[PIXELS];
#pragma unroll
      for (int r = 0; r < PIXELS; ++r) {
        const Window(&above)[2] = windows[phase % 2][r / 2];  // of the pair of rows before r's
        const Window(&here)[2] = windows[phase % 2][r / 2 + 1];
        const float gradient = r % 2 == 0 ? (won(here[0], right) + won(here[1], left)) +
                                                (won(above[0], right + 6) + won(above[1], left + 6))
                                          : won(here[0], right + 3) + won(here[1], left + 3);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < SIZE; ++i) {
          const float value = xs[r][(phase + i) % TURN];
          sum = fmaf(value, value, sum);
        }
        const float root = rsqrt_normal(fmaf(scale, sum, g.k));  // d^-3/4 = d^-1/2 * (d^-1/2)^1/2
        const float term = gradient * (root * sqrt_normal(root));
        firsts[r][phase] = term;
        // Outside the group this is 0, or NaN where x is NaN so near that every dx which adds it is NaN
        // anyway.
        ts[r][phase] = term * xs[r][(phase + BEHIND) % TURN] * (root * root);
        float total = ts[r][(phase + 2) % TURN];
#pragma unroll
        for (int i = 3; i <= TURN; ++i) total += ts[r][(phase + i) % TURN];
        const float value = xs[r][phase];
        made[r] = fmaf(-factor * value, total, firsts[r][(phase + TURN - BEHIND) % TURN]);
        if (value <= limit) made[r] = 0.0f;
      }
      if (f - BEHIND >= first) {
#pragma unroll
        for (int r = 0; r < PIXELS; ++r)
          if (stores >> r & 1) next_dx[pixels[r]] = from_float(made[r]);
      }
    }
  }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_maxpool2d_dgrad_sliding(GEOMETRY(LrnMaxPool2d), const storage_t* __restrict__ dy,
                                     const unsigned char* __restrict__ argmax,
                                     const storage_t* __restrict__ x, storage_t* __restrict__ dx, int relu) {
  // Blocks that make neighbouring segments of the same pixels have neighbouring indices, and so run side by
  // side.
  const int part = static_cast<int>(blockIdx.x % g.by_parts);
  const Column mine = column_of_thread(g, blockIdx.x / g.by_parts);
  if (!mine.any) return;
  const int channels = static_cast<int>(g.by_channels.divisor), each = static_cast<int>(g.by_each.divisor);
  const int begin = part / g.by_segments * channels, end = begin + channels;
  const int first = begin + part % g.by_segments * each, last = min(first + each, end);
  const float limit = relu ? 0.0f : __int_as_float(0x7fc00000);  // no x is below or equal to a NaN
  if (g.size == 5)
    slide<5>(g, mine, first, last, begin, end, dy, argmax, x, dx, limit);
  else
    slide<3>(g, mine, first, last, begin, end, dy, argmax, x, dx, limit);
}
