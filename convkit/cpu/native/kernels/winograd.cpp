// Winograd convolution with tiles of 7 x 7 pixels, forward, and backward to the input
//
//   y = conv(x, w), stride 1, filters 3 x 3 (tiles of 5 x 5 outputs), 4 x 4 (4 x 4) or 5 x 5 (3 x 3). A
//   convolution with a stride and few channels runs as one with stride 1 on its space-to-depth image:
//   AlexNet's conv1, 11 x 11 with stride 4 on 3 channels, is 3 x 3 on 48. dgrad is the same correlation with
//   filters turned by 180 degrees and the roles of c and k exchanged.
//
// Work      49 multiply-adds for 25 outputs of a 3 x 3 filter instead of 225 (4.6 times less; 3.45 times on
//           AlexNet's 13 x 13 maps, whose 3 x 3 tiles overhang), for 9 outputs of a 5 x 5 filter instead of
//           225 (4.6 times).
// Phases    For a chunk of tiles: (1) each 7 x 7 tile of each 16 channels is transformed in registers and
//           scattered to 49 matrices V[point][c][tile]; (2) 49 matrix products M[point] = U[point] V[point],
//           where U are the transformed weights; (3) each tile of M is gathered, transformed back, gets bias,
//           ReLU or mask, and is stored.
// Tiling    Products by the register tile of tile.hpp, 2 registers of k by up to 14 tiles. A task of phase 2
//           is one point and one tile of k: its U (c x 32 floats, 32 KB for c = 256) stays in L1/L2 while all
//           tiles of the chunk pass.
// Traffic   A chunk is chosen so that V and M stay close, 4 MB for all threads; U (19 MB for conv3) streams
//           from L3 or memory once for each chunk. Measured on two cores of a Zen 4 with 1 MB of L2 each:
//           AlexNet's layers together take the same time, within 5 %, in chunks of 2 to 5 MB, and some up to
//           15 % more in those of 9 MB. Where U is small (conv1 and conv2; 1 and 2 MB) and chunks are many,
//           each thread has chunks of its own, and does all three phases of them: 4 and 8 % less time for
//           them. With 10 and 14 MB (conv5, conv4) it made no difference, with 19 (conv3) it took a fifth
//           longer, since each thread then streams all of U.
// Bound     FMA: the products are two thirds of the time, the transforms the rest (280 vector operations for
//           a tile in and 192 out, for 16 channels each, against 49 multiply-adds for each pair of c and 16
//           k).
// Measured  Zen 4, 2 threads, N = 16, blocked (bench/results, -layers): 7.2, 10.7, 10.5, 7.7, 6.0 ms for
//           conv1 to conv5, 1.9 to 2.9 times as fast as PyTorch's best; the products reach some 80 % of the
//           FMA probe and take two thirds of the time. Where the two cores are far apart (330 ns for a line
//           to the other and back, instead of 60) conv3 to conv5 take a tenth to a quarter longer, since
//           their threads share V and M; twice as long before units were numbered by groups, and a thread
//           kept to its share of them (thread_pool.hpp).
// Error     Relative RMS 2e-6 to 9e-6 against float64; direct sums have 1e-7 (winograd_transform.hpp).
#include "winograd.hpp"

#include "local.hpp"
#include "transpose.hpp"

namespace convkit {
namespace winograd {
namespace {

constexpr int64_t CACHE = 4 << 20;   // bytes of V and M of a chunk
constexpr int64_t PACKED = 4 << 20;  // bytes of packed images

int filter_of(const Virtual& v) { return static_cast<int>(v.R); }

Shape fprop_shape(const Conv& g, const Virtual& v) {
  const int64_t top = v.s == 1 ? g.pad_top : 0, left = v.s == 1 ? g.pad_left : 0;
  return {g.N, g.groups, v.C, g.k_group(), v.H, v.W, g.P, g.Q, top, left, TILE + 1 - filter_of(v)};
}

Shape dgrad_shape(const Conv& g, const Virtual& v) {
  const Shape f = fprop_shape(g, v);
  return {g.N, g.groups, f.k, f.c, f.P, f.Q, f.H, f.W, v.R - 1 - f.top, v.R - 1 - f.left, f.m};
}

// ---------------------------------------------------------------------------------------------------
// Weights
// ---------------------------------------------------------------------------------------------------
int64_t weight_plane(const Shape& s) { return s.k_blocks() * BLOCK * s.c + POINT_GAP; }

// U[group][point][tile of k][c][width]. A pair of c and 16 k at a time: their taps are 16 runs of R * R
// floats in memory, forwards or (dgrad) backwards, which a transposition makes registers of k.
template <int R>
void transform_weights(const Shape& s, const Weights& w, int64_t group_step, float* u, int threads) {
  constexpr int64_t TAPS = R * R;
  const int64_t plane = weight_plane(s);
  const bool backwards = w.s_step < 0;
  const float* first = backwards ? w.at - (TAPS - 1) : w.at;
  const float* end =
      first + ((s.groups - 1) * group_step + (s.k - 1) * w.k_step + (s.c - 1) * w.c_step) + TAPS;
  parallel_ranges(threads, s.groups * s.k_blocks() * s.c, 64, [&](int64_t begin, int64_t stop) {
    for (int64_t unit = begin; unit < stop; ++unit) {
      const int64_t c = unit % s.c, block = unit / s.c % s.k_blocks(), group = unit / s.c / s.k_blocks();
      for (int part = 0; part < PARTS; ++part) {
        const int64_t k = block * BLOCK + part * LANES, tile = k / TILE_M, width = tile_width(tile, s.k);
        float* to = u + group * POINTS * plane + tile * TILE_M * s.c + c * width + k % TILE_M;
        V taps[TAPS];
        columns_as_lanes(first + group * group_step + k * w.k_step + c * w.c_step, w.k_step, most(0, s.k - k),
                         TAPS, end, [&](int64_t e, V v) { taps[backwards ? TAPS - 1 - e : e] = v; });
        both_sides<FilterTransform<R>>(
            [&](int i, int j) { return taps[i * R + j]; },
            [&](int i, int j, V a) { store(to + (i * TILE + j) * plane, a * divisor(i, j)); });
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------------
// Products
// ---------------------------------------------------------------------------------------------------
// M[k of the tile][t0 .. t0 + NJ) of one point.
template <int NV, int NJ>
void product(const float* u, int64_t c, const float* v, int64_t block_step, float* m, int64_t m_part) {
  Tile<NV, NJ> tile;
  tile.zero();
  for (int64_t first = 0; first < c; first += BLOCK, v += block_step) {
    const int64_t count = least(BLOCK, c - first);
    tile.run(u, NV * LANES, LANES, v, 1, BLOCK, count);
    u += count * NV * LANES;
  }
  CK_UNROLL
  for (int j = 0; j < NJ; ++j) {
    CK_UNROLL
    for (int part = 0; part < NV; ++part) store(m + part * m_part + j * BLOCK, tile.acc[j][part]);
  }
}

using Product = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t);
template <int NV, int... J>
Product product_for(int64_t rows, std::integer_sequence<int, J...>) {
  static constexpr Product table[] = {product<NV, J + 1>...};
  return table[rows - 1];
}

// All tiles of one point against one tile of k.
void multiply_point(const Shape& s, const float* u, const float* v, float* m, int64_t k_tile, int64_t tiles) {
  const int64_t width = tile_width(k_tile, s.k), first = k_tile * TILE_M;
  const int64_t m_part = LANES < BLOCK ? LANES : tiles * BLOCK;
  m += first / BLOCK * tiles * BLOCK + first % BLOCK;
  const int64_t shares = ceil_div(tiles, TILE_N);
  for (int64_t i = 0; i < shares; ++i) {
    const Range t = piece(i, shares, tiles);
    const auto rows = std::make_integer_sequence<int, TILE_N>();
    const Product f = width == TILE_M ? product_for<TILE_M_REGISTERS>(t.end - t.begin, rows)
                                      : product_for<NARROW_M_REGISTERS>(t.end - t.begin, rows);
    f(u + first * s.c, s.c, v + t.begin * BLOCK, tiles * BLOCK, m + t.begin * BLOCK, m_part);
  }
}

// ---------------------------------------------------------------------------------------------------
// Outputs
// ---------------------------------------------------------------------------------------------------
struct Output {
  float* to;
  const float* mask;
  Finish finish;
  int64_t row;

  CK_INLINE void put(int i, int j, V v) const {
    const int64_t at = i * row + j * BLOCK;
    store(to + at, finish(v, mask ? mask + at : nullptr));
  }
};

template <int M>
CK_INLINE void output_tile(const float* m, int64_t plane, const Output& out, int64_t rows, int64_t columns) {
  const auto get = [&](int i, int j) { return load(m + (i * TILE + j) * plane); };
  if (rows >= M && columns >= M) {
    both_sides<OutputTransform<M>>(get, [&](int i, int j, V v) { out.put(i, j, v); });
  } else {
    both_sides<OutputTransform<M>>(get, [&](int i, int j, V v) {
      if (i < rows && j < columns) out.put(i, j, v);
    });
  }
}

// One row of tiles of one block of output channels.
template <int M>
void output_row(const Shape& s, const float* m, int64_t plane, float* map, const float* mask,
                const Epilogue& e, int64_t group, int64_t block, int64_t tile_row) {
  const int64_t p0 = tile_row * M, at = p0 * s.Q * BLOCK;
  for (int part = 0; part < PARTS; ++part) {
    const int64_t lane = part * LANES;
    const int64_t channel = block * BLOCK + lane;
    const Finish finish(e, group * s.k_blocks() * BLOCK + channel, s.k - channel);
    Output out{map + at + lane, mask ? mask + at + lane : nullptr, finish, s.Q * BLOCK};
    for (int64_t t = 0; t < s.columns(); ++t) {
      if (part == 0) {
        const Place next = ahead(t, s.columns());
        const int64_t p = p0 + next.down * M, q = next.column * M;
        fetch<true>(map, s.P, s.Q, p, q, M);
        if (mask) fetch<false>(mask, s.P, s.Q, p, q, M);
      }
      output_tile<M>(m + t * BLOCK + lane, plane, out, s.P - p0, s.Q - t * M);
      out.to += M * BLOCK;
      if (out.mask) out.mask += M * BLOCK;
    }
  }
}

// ---------------------------------------------------------------------------------------------------
// The three phases over blocked maps
// ---------------------------------------------------------------------------------------------------
struct Buffers {
  float *u, *v, *m;
};

// Some rows of tiles, and where their V and M are.
struct Chunk {
  int64_t first, rows, tiles, v_plane, m_plane;
  float *v, *m;

  Chunk(const Shape& s, Range r, float* v_of, float* m_of)
      : first(r.begin),
        rows(r.end - r.begin),
        tiles(rows * s.columns()),
        v_plane(point_plane(s.c_blocks(), tiles)),
        m_plane(point_plane(s.k_blocks(), tiles)),
        v(v_of),
        m(m_of) {}
  float* v_at(int64_t g) const { return v + g * POINTS * v_plane; }
  float* m_at(int64_t g) const { return m + g * POINTS * m_plane; }
};

// The phases of a chunk: each has some units, of which [begin, end) are done.
template <int R>
struct Phases {
  static constexpr int M = TILE + 1 - R;
  const Shape& s;
  const float* u;
  const Maps &x, &y;
  const Epilogue& e;

  int64_t inputs(const Chunk& chunk) const { return s.groups * s.c_blocks() * chunk.rows; }
  void input(const Chunk& chunk, int64_t begin, int64_t end) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t r = unit % chunk.rows, block = unit / chunk.rows % s.c_blocks(),
                    g = unit / chunk.rows / s.c_blocks();
      const int64_t n = (chunk.first + r) / s.rows(), row = (chunk.first + r) % s.rows();
      transform_row(x.at(n, g, block), s.H, s.W, row * M - s.top, s.left, M, s.columns(),
                    chunk.v_at(g) + (block * chunk.tiles + r * s.columns()) * BLOCK, chunk.v_plane);
    }
  }

  int64_t products() const { return s.groups * POINTS * tiles_of(s.k); }
  void product(const Chunk& chunk, int64_t begin, int64_t end) const {
    const int64_t k_tiles = tiles_of(s.k), u_plane = weight_plane(s);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t k_tile = unit % k_tiles, point = unit / k_tiles % POINTS, g = unit / k_tiles / POINTS;
      multiply_point(s, u + (g * POINTS + point) * u_plane, chunk.v_at(g) + point * chunk.v_plane,
                     chunk.m_at(g) + point * chunk.m_plane, k_tile, chunk.tiles);
    }
  }

  int64_t outputs(const Chunk& chunk) const { return s.groups * s.k_blocks() * chunk.rows; }
  void output(const Chunk& chunk, int64_t begin, int64_t end) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t r = unit % chunk.rows, block = unit / chunk.rows % s.k_blocks(),
                    g = unit / chunk.rows / s.k_blocks();
      const int64_t n = (chunk.first + r) / s.rows(), row = (chunk.first + r) % s.rows();
      const float* mask = e.mask ? e.mask + (y.at(n, g, block) - y.data) : nullptr;
      output_row<M>(s, chunk.m_at(g) + (block * chunk.tiles + r * s.columns()) * BLOCK, chunk.m_plane,
                    y.at(n, g, block), mask, e, g, block, row);
    }
  }
};

template <int R>
void correlate(const Shape& s, const Buffers& b, const Maps& x, const Maps& y, const Epilogue& e,
               int threads) {
  const Phases<R> phases{s, b.u, x, y, e};
  const int64_t all = x.images * s.rows(), step = chunk_rows(s, all);
  const int64_t u_bytes = 4 * s.groups * POINTS * weight_plane(s);
  if (threads > 1 && all >= threads * step && u_bytes <= CACHE) {
    // V and M never leave a thread's caches, and no thread waits for another between phases; but each reads
    // all of U.
    const int64_t chunks = round_up(ceil_div(all, step), threads), rows = ceil_div(all, chunks);
    const int64_t v = s.groups * POINTS * point_plane(s.c_blocks(), rows * s.columns());
    const int64_t m = s.groups * POINTS * point_plane(s.k_blocks(), rows * s.columns());
    parallel_for(threads, chunks, [&](int64_t i) {
      float* memory = local_floats(v + m);
      const Chunk chunk(s, piece(i, chunks, all), memory, memory + v);
      phases.input(chunk, 0, phases.inputs(chunk));
      phases.product(chunk, 0, phases.products());
      phases.output(chunk, 0, phases.outputs(chunk));
    });
    return;
  }
  for (int64_t first = 0; first < all; first += step) {
    const Chunk chunk(s, {first, least(all, first + step)}, b.v, b.m);
    parallel_ranges(threads, phases.inputs(chunk), 4,
                    [&](int64_t i, int64_t j) { phases.input(chunk, i, j); });
    parallel_ranges(threads, phases.products(), 2,
                    [&](int64_t i, int64_t j) { phases.product(chunk, i, j); });
    parallel_ranges(threads, phases.outputs(chunk), 4,
                    [&](int64_t i, int64_t j) { phases.output(chunk, i, j); });
  }
}

template <int R>
void run(const Shape& s, const Weights& w, int64_t group_step, const Buffers& b, const Maps& x, const Maps& y,
         const Epilogue& e, bool weights_too, int threads) {
  if (weights_too) transform_weights<R>(s, w, group_step, b.u, threads);
  correlate<R>(s, b, x, y, e, threads);
}

void run(int r, const Shape& s, const Weights& w, int64_t group_step, const Buffers& b, const Maps& x,
         const Maps& y, const Epilogue& e, bool weights_too, int threads) {
  const auto f = r == 3 ? run<3> : r == 4 ? run<4> : run<5>;
  f(s, w, group_step, b, x, y, e, weights_too, threads);
}

// ---------------------------------------------------------------------------------------------------
// A pass: packing, where the caller's arrays are NCHW, around the phases
// ---------------------------------------------------------------------------------------------------
struct Pass {
  Conv g;
  Virtual v;
  Shape s;
  bool in_blocked, out_blocked;
  int64_t images;  // at a time
  Buffers b;
  float *in, *out, *mask, *bias, *w;
  int64_t bytes;

  Pass(const Conv& conv, bool backward, bool in_is_blocked, bool out_is_blocked, void* workspace)
      : g(conv),
        v(virtual_of(conv)),
        s(backward ? dgrad_shape(conv, v) : fprop_shape(conv, v)),
        in_blocked(in_is_blocked),
        out_blocked(out_is_blocked) {
    const int64_t in_image = maps_in(1, nullptr).image(), out_image = maps_out(1, nullptr).image();
    images = in_blocked && out_blocked ? g.N : packed_images(g.N, in_image + out_image);
    const int64_t tiles = chunk_rows(s, images * s.rows()) * s.columns();
    Scratch scratch(workspace);
    b.u = scratch.floats(s.groups * POINTS * weight_plane(s));
    b.v = scratch.floats(s.groups * POINTS * point_plane(s.c_blocks(), tiles));
    b.m = scratch.floats(s.groups * POINTS * point_plane(s.k_blocks(), tiles));
    in = scratch.floats(in_blocked ? 0 : images * in_image);
    out = scratch.floats(out_blocked ? 0 : images * out_image);
    mask = scratch.floats(out_blocked || !backward ? 0 : images * out_image);
    bias = scratch.floats(s.groups * s.k_blocks() * BLOCK);
    w = scratch.floats(v.s == 1 ? 0 : g.K * v.C * v.R * v.R);
    bytes = scratch.used();
  }

  Maps maps_in(int64_t n, float* data) const { return {data, n, s.groups, s.c, s.H, s.W}; }
  Maps maps_out(int64_t n, float* data) const { return {data, n, s.groups, s.k, s.P, s.Q}; }
};

}  // namespace

void transform_row(const float* map, int64_t H, int64_t W, int64_t h0, int64_t left, int64_t m,
                   int64_t columns, float* v, int64_t plane) {
  const bool rows_inside = h0 >= 0 && h0 + TILE <= H;
  for (int64_t t = 0; t < columns; ++t) {
    const int64_t w0 = t * m - left;
    const Place next = ahead(t, columns);
    // What the tiles before it have not read yet: its last m rows and columns.
    fetch<false>(map, H, W, h0 + next.down * m + TILE - m, next.column * m - left + TILE - m, m);
    const float* from = map + (h0 * W + w0) * BLOCK;
    int64_t row = W * BLOCK;
    alignas(64) float border[TILE][TILE][BLOCK];
    if (!rows_inside || w0 < 0 || w0 + TILE > W) {
      for (int64_t i = 0; i < TILE; ++i) {
        for (int64_t j = 0; j < TILE; ++j) {
          const bool inside = h0 + i >= 0 && h0 + i < H && w0 + j >= 0 && w0 + j < W;
          const float* pixel = from + i * row + j * BLOCK;
          for (int part = 0; part < PARTS; ++part)
            store(&border[i][j][part * LANES], inside ? load(pixel + part * LANES) : V{});
        }
      }
      from = &border[0][0][0];
      row = TILE * BLOCK;
    }
    for (int part = 0; part < PARTS; ++part)
      transform_tile(from + part * LANES, row, v + t * BLOCK + part * LANES, plane);
  }
}

int64_t packed_images(int64_t N, int64_t floats_per_image) {
  const int64_t at_a_time = most(1, PACKED / 4 / most(1, floats_per_image));
  return ceil_div(N, ceil_div(N, least(N, at_a_time)));
}

int64_t chunk_rows(const Shape& s, int64_t rows) {
  const int64_t row_bytes = 4 * s.groups * POINTS * s.columns() * BLOCK * (s.c_blocks() + s.k_blocks());
  const int64_t at_a_time = least(rows, most(1, CACHE / row_bytes));
  // Some rows fewer may fill the register tiles better.
  int64_t best = at_a_time, best_tiles = 1, best_places = TILE_N;
  for (int64_t r = at_a_time; 2 * r > at_a_time; --r) {
    const int64_t tiles = r * s.columns(), places = round_up(tiles, TILE_N);
    if (tiles * best_places > best_tiles * places) best = r, best_tiles = tiles, best_places = places;
  }
  return best;
}

Virtual virtual_of(const Conv& g) {
  const int64_t s = g.stride_h;
  if (s == 1) return {1, g.c_group(), g.R, g.H, g.W};
  const int64_t R = ceil_div(most(g.R, g.S), s);
  return {s, g.C * s * s, R, g.P + R - 1, g.Q + R - 1};
}

void spread_weights(const Conv& g, const Virtual& v, const float* w, float* to) {
  for (int64_t k = 0; k < g.K; ++k)
    for (int64_t c = 0; c < v.C; ++c)
      for (int64_t i = 0; i < v.R * v.R; ++i) {
        const int64_t r = i / v.R * v.s + c / v.s % v.s, s = i % v.R * v.s + c % v.s, from = c / (v.s * v.s);
        *to++ = r < g.R && s < g.S ? w[((k * g.C + from) * g.R + r) * g.S + s] : 0.0f;
      }
}

void gather_weights(const Conv& g, const Virtual& v, const float* from, float* dw) {
  for (int64_t k = 0; k < g.K; ++k)
    for (int64_t c = 0; c < g.C; ++c)
      for (int64_t r = 0; r < g.R; ++r)
        for (int64_t s = 0; s < g.S; ++s) {
          const int64_t channel = (c * v.s + r % v.s) * v.s + s % v.s;
          *dw++ = from[((k * v.C + channel) * v.R + r / v.s) * v.R + s / v.s];
        }
}

}  // namespace winograd

using namespace winograd;

const char* conv2d_winograd_refusal(const Conv& g) {
  const Virtual v = virtual_of(g);
  if (g.dilation_h != 1 || g.dilation_w != 1) return "needs dilation 1";
  if (g.stride_h != g.stride_w) return "needs one stride for rows and columns";
  if (v.s > 1 && (g.groups > 1 || g.C * v.s * v.s > 64))
    return "takes a stride only without groups, on few channels";
  if (g.R != g.S || v.R < 3 || v.R > 5) return "needs square filters of 3 x 3 to 5 x 5, as stride 1 has them";
  // A tile's sums also have pixels that no window sees, whose rounding would be all there is where windows
  // see padding alone.
  const int64_t rows = (g.P - 1) * v.s + g.R - g.pad_top, columns = (g.Q - 1) * v.s + g.S - g.pad_left;
  if (rows <= 0 || columns <= 0 || (v.s == 1 && (rows < g.H || columns < g.W)))
    return "needs windows that reach all pixels";
  return nullptr;
}

int64_t conv2d_fprop_winograd_workspace(const Conv& g, Layouts l) {
  return Pass(g, false, l.x_blocked, l.y_blocked, nullptr).bytes;
}
int64_t conv2d_dgrad_winograd_workspace(const Conv& g, Layouts l) {
  return Pass(g, true, l.y_blocked, l.x_blocked, nullptr).bytes;
}

void conv2d_fprop_winograd(const Conv& g, Layouts l, const float* x, const float* w, const float* b, float* y,
                           bool relu, void* workspace, int threads) {
  Pass p(g, false, l.x_blocked, l.y_blocked, workspace);
  const int64_t taps = p.v.R * p.v.R;
  if (p.v.s > 1) spread_weights(g, p.v, w, p.w);
  const Weights weights{p.v.s > 1 ? p.w : w, p.s.c * taps, taps, p.v.R, 1};
  pad_bias(b, g.groups, p.s.k, p.bias);
  for (int64_t n = 0; n < g.N; n += p.images) {
    const int64_t count = least(p.images, g.N - n);
    const Maps in =
        p.maps_in(count, l.x_blocked ? const_cast<float*>(x) + n * p.maps_in(1, nullptr).image() : p.in);
    const Maps out = p.maps_out(count, l.y_blocked ? y + n * p.maps_out(1, nullptr).image() : p.out);
    if (p.v.s > 1)
      space_to_depth(x, n, g.C, g.H, g.W, p.v.s, in, g.pad_top, g.pad_left, threads);
    else if (!l.x_blocked)
      pack(x, n, g.H, g.W, in, 0, 0, threads);
    run(filter_of(p.v), p.s, weights, p.s.k * p.s.c * taps, p.b, in, out,
        {b ? p.bias : nullptr, relu, nullptr}, n == 0, threads);
    if (!l.y_blocked) unpack(out, n, y, threads);
  }
}

void conv2d_dgrad_winograd(const Conv& g, Layouts l, const float* dy, const float* w, const float* x_mask,
                           float* dx, void* workspace, int threads) {
  Pass p(g, true, l.y_blocked, l.x_blocked, workspace);
  const int64_t taps = p.v.R * p.v.R;
  if (p.v.s > 1) spread_weights(g, p.v, w, p.w);
  // The last tap first: filters turned by 180 degrees; what comes out are channels c.
  const Weights weights{(p.v.s > 1 ? p.w : w) + taps - 1, taps, p.s.k * taps, -p.v.R, -1};
  for (int64_t n = 0; n < g.N; n += p.images) {
    const int64_t count = least(p.images, g.N - n);
    const Maps in =
        p.maps_in(count, l.y_blocked ? const_cast<float*>(dy) + n * p.maps_in(1, nullptr).image() : p.in);
    const Maps out = p.maps_out(count, l.x_blocked ? dx + n * p.maps_out(1, nullptr).image() : p.out);
    Epilogue e;
    if (x_mask && l.x_blocked) e.mask = x_mask + n * p.maps_out(1, nullptr).image();
    if (x_mask && !l.x_blocked) {
      Maps mask = out;
      mask.data = p.mask;
      if (p.v.s > 1)
        space_to_depth(x_mask, n, g.C, g.H, g.W, p.v.s, mask, g.pad_top, g.pad_left, threads);
      else
        pack(x_mask, n, g.H, g.W, mask, 0, 0, threads);
      e.mask = p.mask;
    }
    if (!l.y_blocked) pack(dy, n, g.P, g.Q, in, 0, 0, threads);
    run(filter_of(p.v), p.s, weights, p.s.c * p.s.k * taps, p.b, in, out, e, n == 0, threads);
    if (p.v.s > 1)
      depth_to_space(out, n, dx, g.C, g.H, g.W, p.v.s, g.pad_top, g.pad_left, threads);
    else if (!l.x_blocked)
      unpack(out, n, dx, threads);
  }
}

}  // namespace convkit
