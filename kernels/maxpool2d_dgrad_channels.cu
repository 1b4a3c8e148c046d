// maxpool2d_dgrad_channels
//   dx[n,h,w,c] = sum of dy[n,p,q,c] over the windows (p, q) whose argmax says that pixel (h, w) won, in NHWC
// argmax is compared, never an index: a window whose argmax is no position in it, or one in the padding,
// gives its gradient to no pixel.
//
// Tiling   gather, in a fixed order: no atomics. 3 x 3 at stride 2, AlexNet's, has an entry of its own, in
//          which a lane makes 2 x 2 pixels of CHANNELS channels from the four windows that they lie in
//          (patch.cuh). For other windows a lane makes one pixel of CHANNELS channels, and looks at each
//          window that it lies in.
// Traffic  argmax and dy are read once from DRAM, dx written once: for each pixel in 16 bits 2 + 3/4 bytes,
//          in fp32 4 + 5/4. From L1, each window four times. Accesses are 16 bytes to a lane, 8 of argmax.
// Bound    3 x 3 at stride 2: issue and DRAM bandwidth alike in 16 bits, where a pixel is 18 instructions for
//          each channel (counted in the code for sm_90a) and 19 fit into the time of its bytes; in fp32, with
//          36, DRAM bandwidth. Predicted: 65 % of the copy rate in 16 bits, 80 % in fp32. Other windows: 50 %
//          where a pixel lies in few of them.
//
// /// kernel
// op     = "maxpool2d_dgrad"
// dtypes = ["float32", "float16", "bfloat16"]
// layout = "NHWC"
// tile   = { THREADS = 256, CHANNELS = 8 }
// tune   = { THREADS = [128, 256] }
// when   = "max(bands * columns, H*W) * N * runs < 2147400000"
// rank   = 10
//
// [let]
// runs    = "ceil_div(C, CHANNELS)"
// patched = "R == 3 and S == 3 and stride_h == 2 and stride_w == 2 and dilation_h == 1 and dilation_w == 1"
// bands   = "(pad_top + H - 1) // 2 - pad_top // 2 + 1"
// columns = "(pad_left + W - 1) // 2 - pad_left // 2 + 1"
// patches = "ceil_div(N * bands * columns * runs, THREADS)"
// pixels  = "ceil_div(N * H * W * runs, THREADS)"
// [dividers]
// by_runs       = "runs"
// by_bands      = "bands"
// by_columns    = "columns"
// by_W          = "W"
// by_H          = "H"
// by_stride_h   = "stride_h"
// by_stride_w   = "stride_w"
// by_dilation_h = "dilation_h"
// by_dilation_w = "dilation_w"
//
// [[launch]]
// entry = "maxpool2d_dgrad_channels"
// grid  = ["patches if patched else 0"]
// block = ["THREADS"]
//
// [[launch]]
// entry = "maxpool2d_dgrad_channels_any"
// grid  = ["0 if patched else pixels"]
// block = ["THREADS"]
// ///

#include "maxpool2d.cuh"
#include "patch.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 80. Without a figure the
// compiler spills.
constexpr int RESIDENT = 768;

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void maxpool2d_dgrad_channels(GEOMETRY(Pool2d), const storage_t* __restrict__ dy,
                                  const void* __restrict__ argmax, storage_t* __restrict__ dx) {
  const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
  const Patch patch = patch_at(g, i / g.by_runs);
  if (patch.n >= g.N) return;
  const int channel = i % g.by_runs * CHANNELS, count = min(g.C - channel, CHANNELS);
  Windows windows;
  windows.load(g, patch, channel, count, dy, static_cast<const unsigned char*>(argmax), vectored(g.C, dy),
               vectored_bytes(g.C, argmax));
  const bool vector = vectored(g.C, dx);
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int row = patch.row + r, column = patch.column + s;
      if (row < 0 || row >= g.H || column < 0 || column >= g.W) continue;
      float made[CHANNELS];
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) made[c] = windows.gradient(r, s, c);
      const long long pixel = ((patch.n * g.H + row) * g.W + column) * g.C + channel;
      store_run(dx + pixel, count, vector, made);
    }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void maxpool2d_dgrad_channels_any(GEOMETRY(Pool2d), const storage_t* __restrict__ dy,
                                      const void* __restrict__ argmax, storage_t* __restrict__ dx) {
  const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x), pixel = i / g.by_runs;
  const int line = pixel / g.by_W;
  const long long n = line / g.by_H;
  if (n >= g.N) return;
  const int channel = i % g.by_runs * CHANNELS, count = min(g.C - channel, CHANNELS);
  const bool bytes = window_taps(g) <= 1 << 8, vector_argmax = bytes && vectored_bytes(g.C, argmax);
  const bool vector_dy = vectored(g.C, dy);

  // The pixel's distance from the edge of the padded image, as windows * stride + rest. Window q begins
  // `rest` before the pixel, window q - 1 `rest + stride` before it, and so on, as far as a window spans.
  const int span_h = (g.R - 1) * g.dilation_h, span_w = (g.S - 1) * g.dilation_w;
  const int from_left = pixel % g.by_W + g.pad_left;
  const int last_q = min(from_left / g.by_stride_w, g.Q - 1), rest_w = from_left - last_q * g.stride_w;
  const int from_top = line % g.by_H + g.pad_top;
  const int last_p = min(from_top / g.by_stride_h, g.P - 1), rest_h = from_top - last_p * g.stride_h;

  float sums[CHANNELS] = {};
  for (int p = last_p, at_h = rest_h; p >= 0 && at_h <= span_h; --p, at_h += g.stride_h) {
    if (at_h % g.by_dilation_h) continue;  // the pixel lies between two taps
    const int r = at_h / g.by_dilation_h;
    for (int q = last_q, at_w = rest_w; q >= 0 && at_w <= span_w; --q, at_w += g.stride_w) {
      if (at_w % g.by_dilation_w) continue;
      const unsigned position = static_cast<unsigned>(r * g.S + at_w / g.by_dilation_w);
      const long long window = ((n * g.P + p) * g.Q + q) * g.C + channel;
      Run gradient = load_run(dy + window, count, vector_dy);
      if (bytes) {
        const Positions winners =
            load_positions(static_cast<const unsigned char*>(argmax) + window, count, vector_argmax);
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c)
          if (winners[c] == position) sums[c] += gradient.value(c);
      } else {
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c)
          if (c < count && load_argmax(g, argmax, window + c) == position) sums[c] += gradient.value(c);
      }
    }
  }
  const long long to = static_cast<long long>(pixel) * g.C + channel;
  store_run(dx + to, count, vectored(g.C, dx), sums);
}
