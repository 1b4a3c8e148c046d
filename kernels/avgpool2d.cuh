// avgpool2d.cuh: what the average-pooling kernels share: which taps of a window see the image, and how many count.
#pragma once

#include "pool.cuh"

// The taps of a window along one axis: those in [first, end) see the image, at pixel begin + tap * dilation.
struct Taps {
  int begin, first, end;
  int count;  // how many count for the divisor
};

// `counted` is the end of what counts behind the first pixel: that of the image, or of the padding behind it.
__device__ __forceinline__ Taps taps_along(int window, int taps, int stride, int pad, int dilation, int size,
                                           int counted, bool padding) {
  Taps found;
  found.begin = window * stride - pad;
  found.first = min(found.begin < 0 ? (dilation - 1 - found.begin) / dilation : 0, taps);
  found.end = found.begin < size ? min((size - 1 - found.begin) / dilation + 1, taps) : 0;
  // With the padding counted, every tap from the first on counts: no window begins before the padding.
  const int end = found.begin < counted ? min((counted - 1 - found.begin) / dilation + 1, taps) : 0;
  found.count = padding ? end : max(found.end - found.first, 0);
  return found;
}

__device__ __forceinline__ Taps taps_of_row(const AvgPool2d& g, int p) {
  return taps_along(p, g.R, g.stride_h, g.pad_top, g.dilation_h, g.H, g.count_h, g.count_include_pad);
}

__device__ __forceinline__ Taps taps_of_column(const AvgPool2d& g, int q) {
  return taps_along(q, g.S, g.stride_w, g.pad_left, g.dilation_w, g.W, g.count_w, g.count_include_pad);
}

__device__ __forceinline__ float divisor(const Taps& rows, const Taps& columns) {
  return static_cast<float>(max(rows.count, 1)) * static_cast<float>(max(columns.count, 1));
}
