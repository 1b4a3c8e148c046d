// Winograd convolution with tiles of 7 x 7 pixels, backward to the weights
//
//   dw[k,c] = sum over images and tiles of A^T [ (G dy G^T) * (B^T x B) ] A
//
//   The R x R weights are the outputs, the M x M pixels of a tile of dy the filter: F(R, M) with R + M - 1 =
//   7, so that x has the same tiles and the same transform as in the forward pass. The sum over images and
//   tiles is taken before the transform back: 49 matrix products, once over the whole batch, and one
//   transform for each (k, c).
//
// Work      49 multiply-adds for each tile and (k, c), instead of 225 (R = 3 or 5).
// Phases    For a chunk of tiles: (1) V = B^T x B, D = G dy G^T; (2) M[point][k][c] += D[point] V[point]^T.
//           At the end (3) dw = A^T M A, gathered from 49 matrices, 16 filters at a time, and spread to (K,
//           C, R, R).
// Tiling    A register tile of 2 registers of k by WGRAD_TILE_N channels c, summed over the tiles of the
//           chunk; both operands are read as they were stored, neither is packed again.
// Traffic   M is read and written once for each chunk (19 MB for conv3), so chunks are as large as V and D
//           may be.
// Bound     FMA for large batches. With few tiles (9 for an image of conv3) M's traffic is: there direct sums
//           are faster, and chosen (`when` in convkit/cpu/conv2d_native.py).
// Order     Runs of 128 tiles are summed in registers, then added to M, so that errors grow with sqrt(128 +
//           tiles / 128) instead of sqrt(tiles): 3e-5 of conv2 at batch 128 became 5e-6. Runs and chunks
//           follow each other, and their size depends on the problem alone: the same bits for any threads.
#include "winograd.hpp"

namespace convkit {
namespace winograd {
namespace {

constexpr int64_t CACHE = 12 << 20;  // bytes of V and D of a chunk
constexpr int64_t PACKED = 16 << 20;
constexpr int WGRAD_TILE_N = REGISTERS == 32 ? 8 : 4;  // channels c of a register tile
constexpr int64_t RUN = 128;                           // tiles that are summed in registers

struct Problem {
  Conv g;
  Virtual v;
  Shape s;
  Layouts l;
  int64_t images, chunk;  // packed at a time; rows of tiles at a time
  float *x, *dy, *vt, *dt, *m, *w;
  int64_t bytes;

  Problem(const Conv& conv, Layouts layouts, void* workspace) : g(conv), v(virtual_of(conv)), l(layouts) {
    const bool strided = v.s > 1;
    s = {g.N,
         g.groups,
         v.C,
         g.k_group(),
         v.H,
         v.W,
         g.P,
         g.Q,
         strided ? 0 : g.pad_top,
         strided ? 0 : g.pad_left,
         TILE + 1 - static_cast<int>(v.R)};
    const int64_t per_image = maps_x(1, nullptr).image() + maps_dy(1, nullptr).image();
    const int64_t at_a_time = l.x_blocked && l.y_blocked ? g.N : most(1, PACKED / 4 / per_image);
    images = ceil_div(g.N, ceil_div(g.N, least(g.N, at_a_time)));
    const int64_t row_bytes = 4 * s.groups * POINTS * s.columns() * BLOCK * (s.c_blocks() + s.k_blocks());
    const int64_t rows = images * s.rows(), rows_at_a_time = least(rows, most(1, CACHE / row_bytes));
    chunk = ceil_div(rows, ceil_div(rows, rows_at_a_time));
    Scratch scratch(workspace);
    x = scratch.floats(l.x_blocked ? 0 : images * maps_x(1, nullptr).image());
    dy = scratch.floats(l.y_blocked ? 0 : images * maps_dy(1, nullptr).image());
    vt = scratch.floats(s.groups * POINTS * point_plane(s.c_blocks(), chunk * s.columns()));
    dt = scratch.floats(s.groups * POINTS * point_plane(s.k_blocks(), chunk * s.columns()));
    m = scratch.floats(s.groups * POINTS * m_plane());
    w = scratch.floats(strided ? g.K * v.C * v.R * v.R : 0);
    bytes = scratch.used();
  }

  Maps maps_x(int64_t n, float* data) const { return {data, n, s.groups, s.c, s.H, s.W}; }
  Maps maps_dy(int64_t n, float* data) const { return {data, n, s.groups, s.k, s.P, s.Q}; }
  // [tile of k][c][width], for each point.
  int64_t m_plane() const { return s.k_blocks() * BLOCK * s.c_blocks() * BLOCK + POINT_GAP; }
};

// One row of tiles of dy: M x M pixels, transformed; what lies beyond the map is zero.
template <int M>
void gradient_row(const Problem& p, const float* map, int64_t p0, float* d, int64_t plane) {
  const int64_t P = p.s.P, Q = p.s.Q;
  for (int64_t t = 0; t < p.s.columns(); ++t) {
    const int64_t q0 = t * M;
    const Place next = ahead(t, p.s.columns());
    fetch<false>(map, P, Q, p0 + next.down * M, next.column * M, M);
    const float* from = map + (p0 * Q + q0) * BLOCK;
    const bool inside = p0 + M <= P && q0 + M <= Q;
    for (int part = 0; part < PARTS; ++part) {
      float* to = d + t * BLOCK + part * LANES;
      const float* at = from + part * LANES;
      const auto put = [&](int i, int j, V a) { store(to + (i * TILE + j) * plane, a); };
      if (inside) {
        both_sides<FilterTransform<M>>([&](int i, int j) { return load(at + (i * Q + j) * BLOCK); }, put);
      } else {
        both_sides<FilterTransform<M>>(
            [&](int i, int j) { return p0 + i < P && q0 + j < Q ? load(at + (i * Q + j) * BLOCK) : V{}; },
            put);
      }
    }
  }
}

// M[c0 .. c0 + NJ) of one tile of k += sum over the chunk's tiles.
template <int NV, int NJ>
void accumulate(const float* d, int64_t part_step, const float* v, int64_t tiles, float* m, bool first) {
  for (int64_t t = 0; t < tiles; t += RUN) {
    Tile<NV, NJ> tile;
    tile.zero();
    tile.run(d + t * BLOCK, BLOCK, part_step, v + t * BLOCK, BLOCK, 1, least(RUN, tiles - t));
    const bool begins = first && t == 0;
    CK_UNROLL
    for (int j = 0; j < NJ; ++j) {
      CK_UNROLL
      for (int part = 0; part < NV; ++part) {
        float* at = m + (j * NV + part) * LANES;
        store(at, begins ? tile.acc[j][part] : load(at) + tile.acc[j][part]);
      }
    }
  }
}

void accumulate_point(const Shape& s, const float* d, const float* v, float* m, int64_t k_tile, int64_t tiles,
                      bool first) {
  const int64_t k = k_tile * TILE_M, width = tile_width(k_tile, s.k);
  const int64_t part_step = LANES < BLOCK ? LANES : tiles * BLOCK;
  d += k / BLOCK * tiles * BLOCK + k % BLOCK;
  m += k * s.c_blocks() * BLOCK;
  const auto f = width == TILE_M ? accumulate<TILE_M_REGISTERS, WGRAD_TILE_N>
                                 : accumulate<NARROW_M_REGISTERS, WGRAD_TILE_N>;
  for (int64_t c = 0; c < round_up(s.c, WGRAD_TILE_N); c += WGRAD_TILE_N)
    f(d, part_step, v + (c / BLOCK * tiles) * BLOCK + c % BLOCK, tiles, m + c * width, first);
}

template <int R>
void chunk_of(const Problem& p, const Maps& x, const Maps& dy, int64_t first, int64_t rows, bool begin_sum,
              int threads) {
  constexpr int M = TILE + 1 - R;
  const Shape& s = p.s;
  const int64_t tiles = rows * s.columns();
  const int64_t v_plane = point_plane(s.c_blocks(), tiles), d_plane = point_plane(s.k_blocks(), tiles);
  // Units in the order of the groups, as those of the products: a thread multiplies much of what it
  // transformed.
  const int64_t of_x = s.c_blocks() * rows, of_group = of_x + s.k_blocks() * rows;
  parallel_ranges(threads, s.groups * of_group, 4, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t g = unit / of_group, of = unit % of_group;
      const bool is_x = of < of_x;
      const int64_t r = of % rows, block = (is_x ? of : of - of_x) / rows;
      const int64_t n = (first + r) / s.rows(), row = (first + r) % s.rows();
      const int64_t at = (block * tiles + r * s.columns()) * BLOCK;
      if (is_x)
        transform_row(x.at(n, g, block), s.H, s.W, row * M - s.top, s.left, M, s.columns(),
                      p.vt + g * POINTS * v_plane + at, v_plane);
      else
        gradient_row<M>(p, dy.at(n, g, block), row * M, p.dt + g * POINTS * d_plane + at, d_plane);
    }
  });
  const int64_t k_tiles = tiles_of(s.k);
  parallel_ranges(threads, s.groups * POINTS * k_tiles, 2, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t k_tile = unit % k_tiles, point = unit / k_tiles % POINTS, g = unit / k_tiles / POINTS;
      accumulate_point(s, p.dt + (g * POINTS + point) * d_plane, p.vt + (g * POINTS + point) * v_plane,
                       p.m + (g * POINTS + point) * p.m_plane(), k_tile, tiles, begin_sum);
    }
  });
}

// dw (K, C, R, R) of the stride-1 problem.
template <int R>
void transform_back(const Problem& p, float* dw, int threads) {
  const Shape& s = p.s;
  const int64_t plane = p.m_plane();
  parallel_ranges(threads, s.groups * s.k_blocks() * s.c, 64, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t c = unit % s.c, block = unit / s.c % s.k_blocks(), g = unit / s.c / s.k_blocks();
      float taps[R * R][BLOCK];
      for (int part = 0; part < PARTS; ++part) {
        const int64_t k = block * BLOCK + part * LANES, tile = k / TILE_M, width = tile_width(tile, s.k);
        const float* from =
            p.m + g * POINTS * plane + tile * TILE_M * s.c_blocks() * BLOCK + c * width + k % TILE_M;
        both_sides<OutputTransform<R>>(
            [&](int i, int j) { return load(from + (i * TILE + j) * plane) * divisor(i, j); },
            [&](int i, int j, V a) { store(&taps[i * R + j][part * LANES], a); });
      }
      const int64_t lanes = least(BLOCK, s.k - block * BLOCK);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        float* to = dw + ((g * s.k + block * BLOCK + lane) * s.c + c) * R * R;
        for (int i = 0; i < R * R; ++i) to[i] = taps[i][lane];
      }
    }
  });
}

template <int R>
void run(const Problem& p, const float* x, const float* dy, float* dw, int threads) {
  const Conv& g = p.g;
  bool begin_sum = true;
  for (int64_t n = 0; n < g.N; n += p.images) {
    const int64_t count = least(p.images, g.N - n);
    const Maps xs =
        p.maps_x(count, p.l.x_blocked ? const_cast<float*>(x) + n * p.maps_x(1, nullptr).image() : p.x);
    const Maps dys =
        p.maps_dy(count, p.l.y_blocked ? const_cast<float*>(dy) + n * p.maps_dy(1, nullptr).image() : p.dy);
    if (p.v.s > 1)
      space_to_depth(x, n, g.C, g.H, g.W, p.v.s, xs, g.pad_top, g.pad_left, threads);
    else if (!p.l.x_blocked)
      pack(x, n, g.H, g.W, xs, 0, 0, threads);
    if (!p.l.y_blocked) pack(dy, n, g.P, g.Q, dys, 0, 0, threads);
    const int64_t all = count * p.s.rows();
    for (int64_t first = 0; first < all; first += p.chunk) {
      chunk_of<R>(p, xs, dys, first, least(p.chunk, all - first), begin_sum, threads);
      begin_sum = false;
    }
  }
  transform_back<R>(p, p.v.s > 1 ? p.w : dw, threads);
  if (p.v.s > 1) gather_weights(g, p.v, p.w, dw);
}

}  // namespace
}  // namespace winograd

using namespace winograd;

int64_t conv2d_wgrad_winograd_workspace(const Conv& g, Layouts l) { return Problem(g, l, nullptr).bytes; }

void conv2d_wgrad_winograd(const Conv& g, Layouts l, const float* x, const float* dy, float* dw,
                           void* workspace, int threads) {
  const Problem p(g, l, workspace);
  (p.v.R == 3 ? run<3> : p.v.R == 4 ? run<4> : run<5>)(p, x, dy, dw, threads);
}

}  // namespace convkit
