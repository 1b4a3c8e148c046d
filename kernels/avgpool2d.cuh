// avgpool2d.cuh: what the average-pooling kernels share: which taps of a window see the image, and how many
// count.
#pragma once

#include "storage.cuh"
#include "strip.cuh"

// The taps of a window along one axis: those in [first, end) see the image, at pixel begin + tap * dilation.
struct Taps {
  int begin, first, end;
  int count;  // how many count for the divisor
};

// `counted` is the end of what counts behind the first pixel: that of the image, or of the padding behind it.
__device__ __forceinline__ Taps taps_along(int window, int taps, int stride, int pad,
                                           const Divider& by_dilation, int size, int counted, bool padding) {
  const int dilation = static_cast<int>(by_dilation.divisor);
  Taps found;
  found.begin = window * stride - pad;
  found.first = min(found.begin < 0 ? (dilation - 1 - found.begin) / by_dilation : 0, taps);
  found.end = found.begin < size ? min((size - 1 - found.begin) / by_dilation + 1, taps) : 0;
  // With the padding counted, every tap from the first on counts: no window begins before the padding.
  const int end = found.begin < counted ? min((counted - 1 - found.begin) / by_dilation + 1, taps) : 0;
  found.count = padding ? end : max(found.end - found.first, 0);
  return found;
}

template <class Geometry>
__device__ __forceinline__ Taps taps_of_row(const Geometry& g, int p) {
  return taps_along(p, g.R, g.stride_h, g.pad_top, g.by_dilation_h, g.H, g.count_h, g.count_include_pad);
}

template <class Geometry>
__device__ __forceinline__ Taps taps_of_column(const Geometry& g, int q) {
  return taps_along(q, g.S, g.stride_w, g.pad_left, g.by_dilation_w, g.W, g.count_w, g.count_include_pad);
}

__device__ __forceinline__ float divisor(const Taps& rows, const Taps& columns) {
  return static_cast<float>(max(rows.count, 1)) * static_cast<float>(max(columns.count, 1));
}
