// maxpool2d_fprop_channels
//   y[n,p,q,c] = max over r,s of x[n, p*stride_h + r*dilation_h - pad_top, q*stride_w + s*dilation_w - pad_left,
//   c], in NHWC; argmax = r*S + s of the first maximum. Pixels outside the image take no part; the first NaN wins.
//
// Tiling   a lane makes ROWS outputs below each other of CHANNELS neighbouring channels; neighbouring lanes
//          have neighbouring channels, and then neighbouring q. So each tap is one access of 16 bytes (of
//          16-bit elements; two in fp32), wherever its pixel lies: odd planes and paddings cost nothing more.
//          The 3 x 3 window is unrolled. Pixels that windows share come from L1: those above from the lane's
//          own loads.
// Traffic  x is read once from DRAM (3/2 * 3/2 times from L1, for 3 x 3 at stride 2), y and argmax written
//          once: in 16 bits 2 * stride_h * stride_w + 3 bytes for each output, in fp32 twice that less 1.
// Bound    DRAM bandwidth: an output of 3 x 3 inside the image is some 60 instructions for each channel
//          (counted in 16 bits in the code for sm_90a); 76 fit into the time of its 11 bytes at stride 2, and
//          145 in fp32. Predicted: 75 % of the copy rate in 16 bits, 85 % in fp32.
//
// /// kernel
// op     = "maxpool2d_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// layout = "NHWC"
// tile   = { THREADS = 256, ROWS = 4, CHANNELS = 8 }
// tune   = { THREADS = [128, 256], ROWS = [1, 2, 4, 8] }
// grid   = ["blocks"]
// block  = ["THREADS"]
// when   = "N * ceil_div(P, ROWS) * Q * runs < 2147400000"
// rank   = 10
//
// [let]
// runs   = "ceil_div(C, CHANNELS)"
// blocks = "ceil_div(N * ceil_div(P, ROWS) * Q * runs, THREADS)"
// [dividers]
// by_runs   = "runs"
// by_Q      = "Q"
// by_strips = "ceil_div(P, ROWS)"
// ///

#include "channels.cuh"
#include "maxpool2d.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 128. Without a figure the
// compiler spills.
constexpr int RESIDENT = 512;

// The maxima so far of a window, and where they are; 0 where the window has seen no pixel.
struct Best {
  float values[CHANNELS];
  unsigned positions[CHANNELS];
  bool begun;

  __device__ __forceinline__ void meet(Run& run, unsigned position) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      const float value = run.value(i);
      // The first pixel, where it is -inf too; or a greater one; or the first NaN.
      if (!begun || (!(value <= values[i]) && values[i] == values[i])) {
        values[i] = value;
        positions[i] = position;
      }
    }
    begun = true;
  }
};

// WINDOW is 3 for an undilated 3 x 3 window, and 0 for all others. `column` is the lane's run in row 0 of the
// image, in column 0.
template <bool INSIDE, int WINDOW>
__device__ __forceinline__ Best best_of_window(const Pool2d& g, const storage_t* __restrict__ column, int top,
                                               int left, int count, bool vector) {
  const int R = WINDOW ? WINDOW : g.R, S = WINDOW ? WINDOW : g.S;
  const int dilation_h = WINDOW ? 1 : g.dilation_h, dilation_w = WINDOW ? 1 : g.dilation_w;
  Best best;
  best.begun = false;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    best.values[i] = -__int_as_float(0x7f800000);
    best.positions[i] = 0;
  }
#pragma unroll(WINDOW ? WINDOW : 1)
  for (int r = 0; r < R; ++r) {
    const int row = top + r * dilation_h;
    if (!INSIDE && (row < 0 || row >= g.H)) continue;
    const storage_t* const pixels = column + (static_cast<long long>(row) * g.W + left) * g.C;
#pragma unroll(WINDOW ? WINDOW : 1)
    for (int s = 0; s < S; ++s) {
      const int across = s * dilation_w;
      if (!INSIDE && (left + across < 0 || left + across >= g.W)) continue;
      Run run = load_run(pixels + static_cast<long long>(across) * g.C, count, vector);
      best.meet(run, static_cast<unsigned>(r * S + s));
    }
  }
  return best;
}

struct Lane {
  long long n;
  int row, column, channel;
};

template <int WINDOW>
__device__ __forceinline__ void pool(const Pool2d& g, const Lane& lane, const storage_t* __restrict__ x,
                                     storage_t* __restrict__ y, void* __restrict__ argmax) {
  const int span_h = WINDOW ? WINDOW - 1 : (g.R - 1) * g.dilation_h;
  const int span_w = WINDOW ? WINDOW - 1 : (g.S - 1) * g.dilation_w;
  const bool vector_x = vectored(g.C, x), vector_y = vectored(g.C, y);
  const bool bytes = window_taps(g) <= 1 << 8, vector_argmax = bytes && vectored_bytes(g.C, argmax);
  const storage_t* const column = x + lane.n * g.H * g.W * g.C + lane.channel;
  const int left = lane.column * g.stride_w - g.pad_left, count = min(g.C - lane.channel, CHANNELS);
  const bool columns_inside = left >= 0 && left + span_w < g.W;
  const int end = min(lane.row + ROWS, g.P);
  const long long step = static_cast<long long>(g.Q) * g.C;
  long long i = ((lane.n * g.P + lane.row) * g.Q + lane.column) * g.C + lane.channel;
  for (int p = lane.row; p < end; ++p, i += step) {
    const int top = p * g.stride_h - g.pad_top;
    const Best best = columns_inside && top >= 0 && top + span_h < g.H
                          ? best_of_window<true, WINDOW>(g, column, top, left, count, vector_x)
                          : best_of_window<false, WINDOW>(g, column, top, left, count, vector_x);
    store_run(y + i, count, vector_y, best.values);
    if (bytes) {
      store_positions(static_cast<unsigned char*>(argmax) + i, count, vector_argmax, best.positions);
    } else {
#pragma unroll
      for (int j = 0; j < CHANNELS; ++j)
        if (j < count) store_argmax(g, argmax, i + j, best.positions[j]);
    }
  }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void maxpool2d_fprop_channels(GEOMETRY(Pool2d), const storage_t* __restrict__ x,
                                  storage_t* __restrict__ y, void* __restrict__ argmax) {
  const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x),
            output = i / g.by_runs;
  const int line = output / g.by_Q;
  Lane lane;
  lane.channel = i % g.by_runs * CHANNELS;
  lane.column = output % g.by_Q;
  lane.row = line % g.by_strips * ROWS;
  lane.n = line / g.by_strips;
  if (lane.n >= g.N) return;
  if (g.R == 3 && g.S == 3 && g.dilation_h == 1 && g.dilation_w == 1)
    pool<3>(g, lane, x, y, argmax);
  else
    pool<0>(g, lane, x, y, argmax);
}
