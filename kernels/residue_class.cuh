// residue_class.cuh: the pixels of dx that the same taps of a filter hit. In a convolution with strides,
// pixel h meets tap r where (h + pad - r * dilation) is a multiple of the stride: so h + pad modulo the
// stride says which taps.
#pragma once

#include "divider.cuh"

// One axis of a residue class: the pixels first, first + stride, ... of dx, and the taps that hit them, which
// are tap, tap + apart, ... Pixel number i of them meets tap number t at row origin + i - shift(t) of dy.
struct Axis {
  int first, count;      // pixels
  int tap, apart, taps;  // taps
  int origin;            // (first + pad) / stride
  int shift_0, shift_apart;

  __device__ __forceinline__ void set(int index, int pad, const Divider& by_stride, int pixels, int window,
                                      int dilation) {
    first = index;
    count = pixels;
    origin = (index + pad) / by_stride;
    const int residue = (index + pad) % by_stride;
    // The taps with r * dilation = residue modulo stride: the first two say all.
    tap = 0, apart = 1, taps = 0;
    for (int r = 0; r < window; ++r) {
      if (static_cast<long long>(r) * dilation % by_stride != residue) continue;
      if (taps == 0) tap = r;
      if (taps == 1) apart = r - tap;
      ++taps;
    }
    shift_0 = taps ? (tap * dilation - residue) / by_stride : 0;
    shift_apart = apart * dilation / by_stride;
  }
  __device__ __forceinline__ int nth(int t) const { return tap + t * apart; }
  __device__ __forceinline__ int shift(int t) const { return shift_0 + t * shift_apart; }
};
