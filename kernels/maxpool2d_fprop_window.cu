// maxpool2d_fprop_window
//   y[n,c,p,q] = max over r,s of x[n, c, p*stride_h + r*dilation_h - pad_top, q*stride_w + s*dilation_w -
//   pad_left] argmax = r*S + s of the first maximum. Pixels outside the image take no part; the first NaN
//   wins.
//
// Tiling   a thread makes ROWS outputs below each other, so that the divisions of its index are paid once;
//          neighbouring threads make neighbouring q. The 3 x 3 window is unrolled: its nine loads are issued
//          before the first comparison waits. Pixels that windows share come from L1.
// Traffic  x is read once from DRAM (3/2 * 3/2 times from L1, for 3 x 3 at stride 2), y and argmax written
//          once. In fp32 4 * stride_h * stride_w + 5 bytes for each output.
// Bound    DRAM bandwidth in fp32: 3 x 3 inside the image is some 75 instructions for each output (counted in
//          the code for sm_90a), against about 140 that fit into the time of its 21 bytes at stride 2.
//          Predicted: 80 % of the copy rate in fp32, 65 % in the 16-bit types.
//
// /// kernel
// op     = "maxpool2d_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ROWS = 4 }
// tune   = { THREADS = [128, 256], ROWS = [1, 2, 4, 8] }
// grid   = ["ceil_div(N*C * ceil_div(P, ROWS) * Q, THREADS)"]
// block  = ["THREADS"]
// rank   = 10
// dividers = { by_columns = "Q", by_strips = "ceil_div(P, ROWS)" }
// ///

#include "maxpool2d.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 40. Without a figure the
// compiler uses fewer, and spills.
constexpr int RESIDENT = 1536;

// The maximum of a window and its position, -1 where the window sees no pixel. Taps known to be INSIDE the
// image are read without a check. `first` is the first column of the window that is inside, or negative.
template <bool INSIDE, int WINDOW>
__device__ __forceinline__ int best_of_window(const Pool2d& g, const storage_t* __restrict__ image, int top,
                                              int left, int first, storage_t& best) {
  const int R = WINDOW ? WINDOW : g.R, S = WINDOW ? WINDOW : g.S;
  const int dilation_h = WINDOW ? 1 : g.dilation_h, dilation_w = WINDOW ? 1 : g.dilation_w;
  int winner = INSIDE ? 0 : -1;
  best = from_float(-__int_as_float(0x7f800000));
#pragma unroll(WINDOW ? WINDOW : 1)
  for (int r = 0; r < R; ++r) {
    const int row = top + r * dilation_h;
    if (!INSIDE && (row < 0 || row >= g.H)) continue;
    const storage_t* const pixels = image + static_cast<long long>(row) * g.W + left;
    // Where every pixel is -inf, the first one has to win: nothing is greater than -inf.
    if (!INSIDE && winner < 0 && first >= 0) winner = r * S + first;
#pragma unroll(WINDOW ? WINDOW : 1)
    for (int s = 0; s < S; ++s) {
      const int column = s * dilation_w;
      if (!INSIDE && (left + column < 0 || left + column >= g.W)) continue;
      const storage_t value = pixels[column];
      // Greater, or the first NaN.
      if (!(to_float(value) <= to_float(best)) && to_float(best) == to_float(best)) {
        best = value;
        winner = r * S + s;
      }
    }
  }
  return winner;
}

// WINDOW is 3 for an undilated 3 x 3 window, and 0 for all others.
template <int WINDOW>
__device__ __forceinline__ void pool(const Pool2d& g, const Strip& strip, const storage_t* __restrict__ x,
                                     storage_t* __restrict__ y, void* __restrict__ argmax) {
  const int span_h = WINDOW ? WINDOW - 1 : (g.R - 1) * g.dilation_h;
  const int span_w = WINDOW ? WINDOW - 1 : (g.S - 1) * g.dilation_w;
  const storage_t* const image = x + strip.plane * g.H * g.W;
  const int left = strip.column * g.stride_w - g.pad_left;
  const bool columns_inside = left >= 0 && left + span_w < g.W;
  int first = 0;
  if (!columns_inside) {
    while (first < g.S && left + first * g.dilation_w < 0) ++first;
    if (first == g.S || left + first * g.dilation_w >= g.W) first = -1;
  }
  const int end = min(strip.row + ROWS, g.P);
  long long i = (strip.plane * g.P + strip.row) * g.Q + strip.column;
  for (int p = strip.row; p < end; ++p, i += g.Q) {
    const int top = p * g.stride_h - g.pad_top;
    storage_t best;
    const int winner = columns_inside && top >= 0 && top + span_h < g.H
                           ? best_of_window<true, WINDOW>(g, image, top, left, first, best)
                           : best_of_window<false, WINDOW>(g, image, top, left, first, best);
    y[i] = best;
    store_argmax(g, argmax, i, static_cast<unsigned>(max(winner, 0)));
  }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void maxpool2d_fprop_window(GEOMETRY(Pool2d), const storage_t* __restrict__ x, storage_t* __restrict__ y,
                                void* __restrict__ argmax) {
  const Strip strip = strip_of_thread(g, ROWS);
  if (!strip.any) return;
  if (g.R == 3 && g.S == 3 && g.dilation_h == 1 && g.dilation_w == 1)
    pool<3>(g, strip, x, y, argmax);
  else
    pool<0>(g, strip, x, y, argmax);
}
