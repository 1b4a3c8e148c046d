// maxpool2d.cuh: what the max-pool kernels share: argmax, and which part of a plane a thread makes.
// A Geometry has the members of Pool2d: it is Pool2d itself, or LrnMaxPool2d.
#pragma once

#include "divider.cuh"
#include "storage.cuh"

// argmax is a position in the window, in the smallest unsigned type that holds R*S of them (geometry.Pool2d). The
// type is the same for all threads, so the branch costs next to nothing.
template <class Geometry>
__device__ __forceinline__ long long window_taps(const Geometry& g) {
  return static_cast<long long>(g.R) * g.S;
}

template <class Geometry>
__device__ __forceinline__ unsigned load_argmax(const Geometry& g, const void* argmax, long long i) {
  if (window_taps(g) <= 1 << 8) return static_cast<const unsigned char*>(argmax)[i];
  if (window_taps(g) <= 1 << 16) return static_cast<const unsigned short*>(argmax)[i];
  return static_cast<const unsigned*>(argmax)[i];
}

template <class Geometry>
__device__ __forceinline__ void store_argmax(const Geometry& g, void* argmax, long long i, unsigned value) {
  if (window_taps(g) <= 1 << 8)
    static_cast<unsigned char*>(argmax)[i] = static_cast<unsigned char>(value);
  else if (window_taps(g) <= 1 << 16)
    static_cast<unsigned short*>(argmax)[i] = static_cast<unsigned short>(value);
  else
    static_cast<unsigned*>(argmax)[i] = value;
}

// A strip is `rows` pixels of one column of one plane: index -> (plane, first row, column). Indices run along the
// columns first, so that neighbouring threads make neighbouring pixels. The header's dividers say how many there are:
// by_columns, columns of a plane; by_strips, strips of a column.
struct Strip {
  long long plane;  // n*C + c
  int row, column;
  bool any;  // false for the threads behind the last strip
};

template <class Geometry>
__device__ __forceinline__ Strip strip_of_thread(const Geometry& g, int rows) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long line = i / g.by_columns;
  Strip strip;
  strip.column = static_cast<int>(i % g.by_columns);
  strip.row = static_cast<int>(line % g.by_strips) * rows;
  strip.plane = line / g.by_strips;
  strip.any = strip.plane < static_cast<long long>(g.N) * g.C;
  return strip;
}
