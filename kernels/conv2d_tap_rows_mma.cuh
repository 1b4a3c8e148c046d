// conv2d_tap_rows_mma.cuh: convolutions of few channels on tensor cores, by rows of taps. In NHWC the S*C
// elements that a row of taps meets lie together in memory: so gemm_k of fprop (gemm_n of wgrad) is R rows of
// S*C elements, each filled up to whole pairs, whatever C is. conv2d_fprop_tap_rows_mma.cu and
// conv2d_wgrad_tap_rows_mma.cu have the arguments.
//
// A pair is what is copied at once: 4 bytes, asynchronously. Where a pair of an image would begin at an odd
// element (an odd stride, padding or row, times an odd C), elements are copied one by one.
#pragma once

#include "conv2d_corner.cuh"
#include "gemm_mma.cuh"

// The corner of the filter at pixel j, its column in elements.
template <class Geometry>
__device__ __forceinline__ Corner corner_in_elements(const Geometry& g, long long j) {
  Corner corner = corner_of(g, j);
  corner.column *= g.C;
  return corner;
}

// A pair of a row of taps, relative to the corner: elements j and j + 1 of row r, of which `count` exist.
struct TapPair {
  long long offset;  // in elements
  unsigned down;     // rows of x
  int j, count;
};

// Number `pair` of R * by_pairs. One beyond the last has no elements.
template <class Geometry>
__device__ __forceinline__ TapPair tap_pair(const Geometry& g, int pair) {
  const int r = pair / g.by_pairs, j = pair % g.by_pairs * 2, left = g.S * g.C - j, down = r * g.dilation_h;
  return {static_cast<long long>(down) * g.W * g.C + j, static_cast<unsigned>(down), j,
          r >= g.R   ? 0
          : left < 2 ? left
                     : 2};
}

// Whether pairs are whole words of memory, and wholly inside a row of the image or outside.
template <class Geometry>
__device__ __forceinline__ bool pairs_aligned(const Geometry& g, const storage_t* x) {
  return (g.W * g.C | g.stride_w * g.C | g.pad_left * g.C) % 2 == 0 &&
         reinterpret_cast<unsigned long long>(x) % 4 == 0;
}

// Copies what the pair meets at the corner; what does not exist, or is outside the image, is zero. As a word,
// which arrives later; or element by element, at once.
template <class Geometry>
__device__ __forceinline__ void copy_word(const Geometry& g, storage_t* to, const storage_t* x,
                                          const Corner& corner, const TapPair& pair) {
  const bool inside =
      corner.row + pair.down < g.H && corner.column + pair.j < static_cast<unsigned>(g.W * g.C);
  cp_async_4(to, x + corner.offset + pair.offset, inside ? 2 * pair.count : 0);
}
template <class Geometry>
__device__ __forceinline__ void copy_elements(const Geometry& g, storage_t* to, const storage_t* x,
                                              const Corner& corner, const TapPair& pair) {
  const storage_t* const from = x + corner.offset + pair.offset;
  const unsigned column = corner.column + pair.j, width = g.W * g.C;
  const int count = corner.row + pair.down < g.H ? pair.count : 0;
  Pair two = {from_float(0.0f), from_float(0.0f)};
  if (count > 0 && column < width) two.first = from[0];
  if (count > 1 && column + 1 < width) two.second = from[1];
  *reinterpret_cast<Pair*>(to) = two;
}

// Where pair number `pair` of a slab's row stands.
template <class Factor>
__device__ __forceinline__ int pair_at(int row, int pair) {
  return Factor::at(row, pair / 4) + pair % 4 * 2;
}
