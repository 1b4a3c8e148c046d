// Direct convolution, backward to the weights
//
//   dw[k,c,r,s] = sum over n, p, q of dy[n,k,p,q] x[n, c, p*stride + r*dilation, q*stride + s*dilation]
//
// Tiling    A register tile of 2 registers of k by 8 channels c for one tap (r, s); it runs over all pixels
//           of an image. Both operands are read as they lie: dy in registers, x in scalars that are
//           neighbours in memory.
// Traffic   dy's tile of k (32 floats for each pixel) and x's block of c (16) are swept once for each tap and
//           half block: from L2, 3 lines for 16 FMAs of 16 lanes. dw, packed, is read and written once for
//           each image.
// Order     Runs of some 512 pixels are summed in registers, the runs of an image, then the images, each in
//           order: errors grow with the square roots of these three lengths, not with that of their product.
//           A task is one tile of k, block of c, and row of taps, for all images.
// Bound     FMA: 16 for 10 loads.
#include "direct.hpp"

#include "transpose.hpp"

namespace convkit {
namespace direct {
namespace {

constexpr int WGRAD_TILE_N = REGISTERS == 32 ? 8 : 4;  // channels c of a register tile
constexpr int64_t RUN = 512;                           // pixels that are summed in registers, about

struct Problem {
  Conv g;
  Layouts l;
  int64_t c, k, frame_H, frame_W;
  bool framed;
  int64_t images;
  float *x, *dy, *packed;
  int64_t bytes;

  Problem(const Conv& conv, Layouts layouts, void* workspace)
      : g(conv), l(layouts), c(g.c_group()), k(g.k_group()) {
    frame_H = frame_extent(g.P, g.stride_h, g.R, g.dilation_h);
    frame_W = frame_extent(g.Q, g.stride_w, g.S, g.dilation_w);
    framed = !l.x_blocked || g.pad_top || g.pad_left || g.pad_bottom || g.pad_right;
    if (!framed) frame_H = g.H, frame_W = g.W;
    const int64_t x_image = maps_x(1, nullptr).image(), dy_image = maps_dy(1, nullptr).image();
    images = framed || !l.y_blocked ? images_of(g.N, x_image + dy_image) : g.N;
    Scratch scratch(workspace);
    x = scratch.floats(framed ? images * x_image : 0);
    dy = scratch.floats(l.y_blocked ? 0 : images * dy_image);
    packed = scratch.floats(g.groups * group_floats());
    bytes = scratch.used();
  }

  Maps maps_x(int64_t n, float* data) const { return {data, n, g.groups, c, frame_H, frame_W}; }
  Maps maps_dy(int64_t n, float* data) const { return {data, n, g.groups, k, g.P, g.Q}; }
  // [tile of k][r][s][c][width], of each group.
  int64_t group_floats() const { return round_up(k, BLOCK) * g.R * g.S * round_up(c, BLOCK); }
};

struct Sweep {
  int64_t rows, columns;  // of dy
  int64_t dy_row, dy_part, x_row, x_pixel;
};

template <int NV, int STRIDE>
void image(const Sweep& s, const float* dy, const float* x, float* to, bool first) {
  float sums[WGRAD_TILE_N * NV * LANES] = {};
  // Rows, in parts where they are longer than a run: all pixels of an image may be one row.
  const int64_t rows = most(1, RUN / s.columns), columns = rows > 1 ? s.columns : least(s.columns, RUN);
  const int64_t x_pixel = STRIDE ? STRIDE * BLOCK : s.x_pixel;
  for (int64_t p = 0; p < s.rows; p += rows) {
    for (int64_t q = 0; q < s.columns; q += columns) {
      Tile<NV, WGRAD_TILE_N> tile;
      tile.zero();
      for (int64_t i = p; i < least(s.rows, p + rows); ++i)
        tile.run(dy + i * s.dy_row + q * BLOCK, BLOCK, s.dy_part, x + i * s.x_row + q * x_pixel, x_pixel, 1,
                 least(columns, s.columns - q));
      CK_UNROLL
      for (int j = 0; j < WGRAD_TILE_N * NV; ++j) {
        float* at = sums + j * LANES;
        store(at, load(at) + tile.acc[j / NV][j % NV]);
      }
    }
  }
  CK_UNROLL
  for (int j = 0; j < WGRAD_TILE_N * NV; ++j) {
    const V sum = load(sums + j * LANES);
    store(to + j * LANES, first ? sum : load(to + j * LANES) + sum);
  }
}

// One tile of k, one block of c, one row of taps, all images of the chunk.
void row_of_taps(const Problem& p, const Maps& x, const Maps& dy, int64_t g, int64_t k_tile, int64_t block,
                 int64_t r, bool first) {
  const Conv& conv = p.g;
  const int64_t k = k_tile * TILE_M, width = tile_width(k_tile, p.k), area = conv.R * conv.S,
                padded = round_up(p.c, BLOCK);
  Sweep s{conv.P,
          conv.Q,
          conv.Q * BLOCK,
          LANES < BLOCK ? LANES : dy.plane(),
          conv.stride_h * x.W * BLOCK,
          conv.stride_w * BLOCK};
  if (s.x_pixel == BLOCK && s.x_row == s.dy_row)
    s.columns *= s.rows, s.rows = 1;  // rows follow each other in both
  const auto f = width == TILE_M
                     ? (conv.stride_w == 1 ? image<TILE_M_REGISTERS, 1> : image<TILE_M_REGISTERS, 0>)
                     : (conv.stride_w == 1 ? image<NARROW_M_REGISTERS, 1> : image<NARROW_M_REGISTERS, 0>);
  const int64_t channels = least(BLOCK, p.c - block * BLOCK);
  for (int64_t tap = 0; tap < conv.S; ++tap) {
    for (int64_t c = 0; c < channels; c += WGRAD_TILE_N) {
      float* to = p.packed + g * p.group_floats() + k * area * padded +
                  ((r * conv.S + tap) * padded + block * BLOCK + c) * width;
      for (int64_t n = 0; n < x.images; ++n)
        f(s, dy.at(n, g, k / BLOCK) + k % BLOCK,
          x.at(n, g, block) + (r * conv.dilation_h * x.W + tap * conv.dilation_w) * BLOCK + c, to,
          first && n == 0);
    }
  }
}

void unpack_weights(const Problem& p, float* dw, int threads) {
  const int64_t parts = round_up(p.k, BLOCK) / LANES, area = p.g.R * p.g.S, padded = round_up(p.c, BLOCK);
  parallel_ranges(threads, p.g.groups * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t k = unit % parts * LANES, g = unit / parts, tile = k / TILE_M,
                    width = tile_width(tile, p.k);
      if (k >= p.k) continue;
      const float* from = p.packed + g * p.group_floats() + tile * TILE_M * area * padded + k % TILE_M;
      lanes_as_columns([&](int64_t e) { return load(from + (e % area * padded + e / area) * width); },
                       p.k - k, p.c * area, dw + (g * p.k + k) * p.c * area, p.c * area);
    }
  });
}

}  // namespace
}  // namespace direct

using namespace direct;

int64_t conv2d_wgrad_direct_workspace(const Conv& g, Layouts l) { return Problem(g, l, nullptr).bytes; }

void conv2d_wgrad_direct(const Conv& g, Layouts l, const float* x, const float* dy, float* dw,
                         void* workspace, int threads) {
  const Problem p(g, l, workspace);
  const int64_t k_tiles = tiles_of(p.k), blocks = ceil_div(p.c, BLOCK);
  for (int64_t n = 0; n < g.N; n += p.images) {
    const int64_t count = least(p.images, g.N - n);
    Maps xs = p.maps_x(count, p.x), dys = p.maps_dy(count, p.dy);
    if (p.framed)
      (l.x_blocked ? frame : pack)(x, n, g.H, g.W, xs, g.pad_top, g.pad_left, threads);
    else
      xs.data = const_cast<float*>(x) + n * xs.image();
    if (l.y_blocked)
      dys.data = const_cast<float*>(dy) + n * dys.image();
    else
      pack(dy, n, g.P, g.Q, dys, 0, 0, threads);
    parallel_ranges(threads, g.groups * k_tiles * blocks * g.R, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t r = unit % g.R, block = unit / g.R % blocks, k_tile = unit / g.R / blocks % k_tiles;
        row_of_taps(p, xs, dys, unit / g.R / blocks / k_tiles, k_tile, block, r, n == 0);
      }
    });
  }
  unpack_weights(p, dw, threads);
}

}  // namespace convkit
