// Winograd convolution: what fprop, dgrad and wgrad share. winograd_transform.hpp has the mathematics.
#pragma once

#include "conv.hpp"
#include "gemm.hpp"
#include "pack.hpp"
#include "winograd_transform.hpp"

namespace convkit {
namespace winograd {

// Floats between two points' matrices beyond their size. Without them all 49 fall on the same sets of the L1
// cache (their sizes are multiples of 4 KB for most layers), and the transforms, which write one line to
// each, wait for it: in the study before this code they took 2.7 times as long.
constexpr int64_t POINT_GAP = 80;

// A correlation with stride 1 of square filters, seen from one of its passes: c channels in, k channels out,
// of each group, on maps of H x W and P x Q pixels.
struct Shape {
  int64_t N, groups, c, k, H, W, P, Q, top, left;
  int m;  // outputs of a tile's side

  int64_t c_blocks() const { return ceil_div(c, BLOCK); }
  int64_t k_blocks() const { return ceil_div(k, BLOCK); }
  int64_t rows() const { return ceil_div(P, m); }  // of tiles, in an image
  int64_t columns() const { return ceil_div(Q, m); }
};

// The stride-1 problem behind a convolution: itself, or, where stride > 1, the one on its space-to-depth
// image, whose channels are the s x s phases of the pixels.
struct Virtual {
  int64_t s;           // the stride that was taken away; 1: nothing was
  int64_t C, R, H, W;  // of the virtual problem (channels of a group)
};
Virtual virtual_of(const Conv& g);

// w of the virtual problem, (K, C * s * s, R', R'): taps beyond the filter are zeros.
void spread_weights(const Conv& g, const Virtual& v, const float* w, float* to);
// The way back for its gradient.
void gather_weights(const Conv& g, const Virtual& v, const float* from, float* dw);

// Images that are packed at a time, where the caller's arrays are NCHW.
int64_t packed_images(int64_t N, int64_t floats_per_image);
// Rows of tiles that are in the caches at a time.
int64_t chunk_rows(const Shape& s, int64_t rows);

CK_INLINE int64_t point_plane(int64_t blocks, int64_t tiles) { return blocks * tiles * BLOCK + POINT_GAP; }

// One tile of the input, transformed: 49 registers, each to its point's matrix. `row` is the distance of two
// rows.
CK_INLINE void transform_tile(const float* x, int64_t row, float* v, int64_t plane) {
  both_sides<InputTransform>([&](int i, int j) { return load(x + i * row + j * BLOCK); },
                             [&](int i, int j, V a) { store(v + (i * TILE + j) * plane, a); });
}

// Tiles that memory is asked for ahead of the transforms. A tile is m short runs of lines in rows that lie
// apart, which the hardware's prefetcher does not follow; and a line that is written must be fetched too.
// Worth 2 % of a step at batch 128, where maps are far larger than the caches (medians of 4 processes each,
// in turn), nothing at batch 16.
constexpr int64_t AHEAD = 3;

// Fetches the m x m pixels at (h, w) of a map, to be written or read.
template <bool WRITE>
CK_INLINE void fetch(const float* map, int64_t H, int64_t W, int64_t h, int64_t w, int64_t m) {
  const int64_t bottom = least(H, h + m), right = least(W, w + m);
  for (int64_t i = most(0, h); i < bottom; ++i)
    for (int64_t j = most(0, w); j < right; ++j) __builtin_prefetch(map + (i * W + j) * BLOCK, WRITE);
}

// The place of a tile that many tiles behind tile t of a row of tiles: here, or in the next row.
struct Place {
  int64_t down, column;  // rows of tiles further down; tile of that row
};
CK_INLINE Place ahead(int64_t t, int64_t columns) {
  if (t + AHEAD < columns) return {0, t + AHEAD};
  return {1, least(t + AHEAD - columns, columns - 1)};
}

// Transforms the tiles of one row of tiles of one block of channels: TILE x TILE pixels at steps of m.
void transform_row(const float* map, int64_t H, int64_t W, int64_t h0, int64_t left, int64_t m,
                   int64_t columns, float* v, int64_t plane);

}  // namespace winograd
}  // namespace convkit
