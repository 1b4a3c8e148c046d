// strip.cuh: which part of a plane a thread of a pooling kernel makes.
#pragma once

#include "divider.cuh"

// A strip is `rows` pixels of one column of one plane: index -> (plane, first row, column). Indices run along
// the columns first, so that neighbouring threads make neighbouring pixels. The header's dividers say how
// many there are: by_columns, columns of a plane; by_strips, strips of a column.
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
