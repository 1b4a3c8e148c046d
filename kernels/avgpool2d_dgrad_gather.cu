// avgpool2d_dgrad_gather
//   dx[n,c,h,w] = sum of dy[n,c,p,q] / divisor(p,q) over the windows (p, q) that see pixel (h, w)
// divisor(p,q) is that of avgpool2d_fprop.
//
// Tiling   gather: a thread asks each window that its pixel lies in, so that no two threads write one address: no
//          atomics, and a fixed order of summation. A thread makes ROWS pixels below each other; the windows of
//          its column are found once.
// Traffic  dy is read once from DRAM, dx written once: in fp32 4 + 4/(stride_h*stride_w) bytes for each pixel.
//          From L1, dy ceil(R/stride_h) * ceil(S/stride_w) times at most.
// Bound    3 x 3 at stride 2: issue. A pixel lies in 2.25 windows, each of which costs some 30 instructions, a
//          division among them: about 80 for each pixel, against some 35 that fit into the time of its 5 bytes.
//          Predicted: 40 % of the copy rate in fp32, 20 % in the 16-bit types.
//
// /// kernel
// op     = "avgpool2d_dgrad"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ROWS = 4 }
// tune   = { THREADS = [128, 256], ROWS = [1, 2, 4, 8] }
// grid   = ["ceil_div(N*C * ceil_div(H, ROWS) * W, THREADS)"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "avgpool2d.cuh"

extern "C" __launch_bounds__(THREADS) __global__
    void avgpool2d_dgrad_gather(GEOMETRY(AvgPool2d), const storage_t* __restrict__ dy,
                                storage_t* __restrict__ dx) {
  const Strip strip = strip_of_thread(g, g.H, g.W, ROWS);
  if (!strip.any) return;
  const int span_h = (g.R - 1) * g.dilation_h, span_w = (g.S - 1) * g.dilation_w;
  // The last window that may see the pixel, and how far behind the window's begin the pixel lies.
  const int from_left = strip.column + g.pad_left;
  const int last_q = min(from_left / g.stride_w, g.Q - 1);
  const storage_t* const windows = dy + strip.plane * g.P * g.Q;
  const int end = min(strip.row + ROWS, g.H);
  for (int h = strip.row; h < end; ++h) {
    const int from_top = h + g.pad_top;
    float sum = 0.0f;
    int p = min(from_top / g.stride_h, g.P - 1);
    for (int i = from_top - p * g.stride_h; p >= 0 && i <= span_h; --p, i += g.stride_h) {
      if (i % g.dilation_h) continue;  // the pixel lies between two taps
      const Taps rows = taps_of_row(g, p);
      int q = last_q;
      for (int j = from_left - q * g.stride_w; q >= 0 && j <= span_w; --q, j += g.stride_w) {
        if (j % g.dilation_w) continue;
        const float gradient = to_float(windows[static_cast<long long>(p) * g.Q + q]);
        sum += gradient / divisor(rows, taps_of_column(g, q));
      }
    }
    dx[(strip.plane * g.H + h) * g.W + strip.column] = from_float(sum);
  }
}
