// conv2d_corner.cuh: where a pixel's window begins, for kernels that keep a table of pixels in shared
// memory: so each is worked out once, and takes no registers in the main loop.
#pragma once

#include "divider.cuh"

// `row` and `column` are unsigned, so that what is above the image or left of it becomes a huge number, and
// one comparison covers both ends.
struct alignas(16) Corner {
  long long offset;  // in elements
  unsigned row, column;
};

// A row that is in no image, whatever is added to it.
constexpr unsigned OUTSIDE = 0x80000000u;

// In x, NHWC, of the filter at pixel j of all images' y; one beyond the last is outside.
template <class Geometry>
__device__ __forceinline__ Corner corner_of(const Geometry& g, long long j) {
  if (j >= g.by_pixels.divisor * g.N) return {0, OUTSIDE, 0};
  const long long n = j / g.by_pixels, pixel = j % g.by_pixels;
  const int p = static_cast<int>(pixel / g.by_Q), q = static_cast<int>(pixel % g.by_Q);
  const int row = p * g.stride_h - g.pad_top, column = q * g.stride_w - g.pad_left;
  return {((n * g.H + row) * g.W + column) * g.C, static_cast<unsigned>(row), static_cast<unsigned>(column)};
}
