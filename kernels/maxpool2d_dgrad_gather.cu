// maxpool2d_dgrad_gather
//   dx[n,c,h,w] = sum of dy[n,c,p,q] over the windows (p, q) whose argmax says that pixel (h, w) won
// argmax is compared, never an index: a window whose argmax is no position in it, or one in the padding,
// gives its gradient to no pixel.
//
// Tiling   gather: a thread looks at each window that its pixel lies in. So no two threads write one address:
//          no atomics, and a fixed order of summation. A thread makes ROWS pixels below each other; the
//          windows of its column are found once, those of a row follow from the row before without a
//          division. 3 x 3 at stride 2, AlexNet's, has a path of its own, in which a thread loads each of its
//          windows once for all of its pixels.
// Traffic  argmax and dy are read once from DRAM, dx written once: in fp32 4 + 5/(stride_h*stride_w) bytes
//          for each pixel. From L1, argmax ceil(R/stride_h) * ceil(S/stride_w) times at most, dy once for
//          each window won.
// Bound    3 x 3 at stride 2: DRAM bandwidth in fp32, issue in the 16-bit types: 21 instructions for each
//          pixel in fp32 and 26 in 16 bits (counted in the main loop for sm_90a), against some 35 and 17 that
//          fit into the time of its bytes. Predicted: 75 % of the copy rate in fp32, 50 % in the 16-bit
//          types. Other windows: issue, 30 % and less.
//
// /// kernel
// op     = "maxpool2d_dgrad"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ROWS = 8 }
// tune   = { THREADS = [128, 256], ROWS = [2, 4, 8] }
// grid   = ["ceil_div(N*C * ceil_div(H, ROWS) * W, THREADS)"]
// block  = ["THREADS"]
// rank   = 10
// [dividers]
// by_columns    = "W"
// by_strips     = "ceil_div(H, ROWS)"
// by_stride_h   = "stride_h"
// by_stride_w   = "stride_w"
// by_dilation_h = "dilation_h"
// by_dilation_w = "dilation_w"
// ///

#include "maxpool2d.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 64. Without a figure the
// compiler uses fewer, and spills.
constexpr int RESIDENT = 1024;

// A window: the position that won, and its gradient. NO_WINNER is no position.
constexpr unsigned NO_WINNER = 0xffffffffu;
struct Window {
  unsigned winner;
  float gradient;
};

__device__ __forceinline__ Window window_at(const storage_t* __restrict__ dy,
                                            const unsigned char* __restrict__ argmax, long long i,
                                            bool exists) {
  if (!exists) return {NO_WINNER, 0.0f};
  return {argmax[i], to_float(dy[i])};
}

__device__ __forceinline__ float won(const Window& window, unsigned position) {
  return window.winner == position ? window.gradient : 0.0f;
}

// 3 x 3 windows at stride 2, undilated: AlexNet's. A pixel in an even column of the padded image is column 0
// of the window to its right and column 2 of the one to its left; in an odd column, column 1 of one window.
// The same holds for rows, so that windows p and p - 1 make the rows 2p and 2p + 1: going down, each window
// is loaded once.
__device__ __forceinline__ void gather_3x3_stride_2(const Pool2d& g, const Strip& strip,
                                                    const storage_t* __restrict__ dy,
                                                    const unsigned char* __restrict__ argmax,
                                                    storage_t* __restrict__ dx) {
  const int column = strip.column + g.pad_left, q = column / 2;
  const unsigned s = column % 2;  // of window q; window q - 1 has column 2 where s is 0
  // Behind the last window there is at most one row or column of pixels, so windows p - 1 and q - 1 do exist.
  const bool right = q < g.Q, left = s == 0 && q >= 1;
  const int end = min(strip.row + ROWS, g.H);
  int p = (strip.row + g.pad_top) / 2;
  int h = 2 * p - g.pad_top;  // strip.row or the row before it
  long long i = (strip.plane * g.P + p) * g.Q + q;
  storage_t* to = dx + (strip.plane * g.H + h) * g.W + strip.column;
  const bool begun = p >= 1;
  Window above_right = window_at(dy, argmax, i - g.Q, begun && right);
  Window above_left = window_at(dy, argmax, i - g.Q - 1, begun && left);
  for (; h < end; h += 2, ++p, i += g.Q, to += 2 * static_cast<long long>(g.W)) {
    const Window here_right = window_at(dy, argmax, i, p < g.P && right);
    const Window here_left = window_at(dy, argmax, i - 1, p < g.P && left);
    const float even =
        (won(here_right, s) + won(here_left, 2)) + (won(above_right, 6 + s) + won(above_left, 8));
    const float odd = won(here_right, 3 + s) + won(here_left, 5);
    if (h >= strip.row) to[0] = from_float(even);
    if (h + 1 < end) to[g.W] = from_float(odd);
    above_right = here_right;
    above_left = here_left;
  }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void maxpool2d_dgrad_gather(GEOMETRY(Pool2d), const storage_t* __restrict__ dy,
                                const void* __restrict__ argmax, storage_t* __restrict__ dx) {
  const Strip strip = strip_of_thread(g, ROWS);
  if (!strip.any) return;
  if (g.R == 3 && g.S == 3 && g.stride_h == 2 && g.stride_w == 2 && g.dilation_h == 1 && g.dilation_w == 1) {
    gather_3x3_stride_2(g, strip, dy, static_cast<const unsigned char*>(argmax), dx);
    return;
  }

  // The pixel's distance from the edge of the padded image, as windows * stride + rest. Window q begins
  // `rest` before the pixel, window q - 1 `rest + stride` before it, and so on, as far as a window spans.
  const int span_h = (g.R - 1) * g.dilation_h, span_w = (g.S - 1) * g.dilation_w;
  const int from_left = strip.column + g.pad_left;
  const int last_q = min(from_left / g.by_stride_w, g.Q - 1);
  const int rest_w = from_left - last_q * g.stride_w;
  const int from_top = strip.row + g.pad_top;
  int last_p = from_top / g.by_stride_h, phase = from_top % g.by_stride_h;

  const long long windows = strip.plane * g.P * g.Q;
  const int end = min(strip.row + ROWS, g.H);
  for (int h = strip.row; h < end; ++h) {
    float sum = 0.0f;
    int p = min(last_p, g.P - 1);
    for (int i = phase + (last_p - p) * g.stride_h; p >= 0 && i <= span_h; --p, i += g.stride_h) {
      if (i % g.by_dilation_h) continue;  // the pixel lies between two taps
      const int r = i / g.by_dilation_h;
      for (int q = last_q, j = rest_w; q >= 0 && j <= span_w; --q, j += g.stride_w) {
        if (j % g.by_dilation_w) continue;
        const int s = j / g.by_dilation_w;
        const long long window = windows + static_cast<long long>(p) * g.Q + q;
        if (load_argmax(g, argmax, window) == static_cast<unsigned>(r * g.S + s)) sum += to_float(dy[window]);
      }
    }
    dx[(strip.plane * g.H + h) * g.W + strip.column] = from_float(sum);
    if (++phase == g.stride_h) {
      phase = 0;
      ++last_p;
    }
  }
}
