// Direct convolution, forward, and backward to the input: any stride, dilation, padding, groups and size
//
//   y[n,k,p,q] = b[k] + sum over c, r, s of x[n, c, p*stride + r*dilation, q*stride + s*dilation] w[k,c,r,s]
//
// The input lies in a frame of zeros, so that no loop asks where the image ends: images are copied into it
// (or packed, from NCHW) a few at a time; a blocked tensor without padding is its own frame.
//
// dgrad     The outputs dx[h, w] fall into stride_h x stride_w classes by their residues. Each class is a
//           correlation with stride 1 of dy and every stride-th tap of the turned filter: no multiplication
//           by zeros.
// Tiling    A register tile of 2 registers of k by up to 14 pixels of a row (two rows where a row is short),
//           over all of c, r, s: a sum stays in its register from the first to the last term. Scalars of x
//           are broadcast from memory, at constant distances.
// Traffic   Weights are packed once for a call, [tile of k][block of c][r][s][c][k]; a tile's (c r s * 32
//           floats, 295 KB for conv3) stream from L2 for each 14 pixels: 16 GB/s at the FMA peak. x is read
//           K/32 times, from L2.
// Bound     FMA. Where 14 pixels do not divide a row, its shares are even (27 = 14 + 13).
// Error     One float32 sum of c*r*s terms.
#include "direct.hpp"

#include "transpose.hpp"

namespace convkit {
namespace direct {
namespace {

// A stride-1 or strided correlation of one set of taps, whose outputs may be some rows and columns of the map
// only.
struct Taps {
  int64_t R, S;         // taps
  Weights w;            // of group 0
  int64_t row, column;  // of the frame, where the first tap of the first output lies
  int64_t out_row, out_column, outputs_h,
      outputs_w;  // the outputs: where the first lies in the map, and how many
  float* packed;
};

struct Pass {
  Conv g;
  bool backward, in_blocked, out_blocked;
  int64_t c, k;  // in and out, of a group
  int64_t in_H, in_W, out_H, out_W;
  int64_t in_stride_h, in_stride_w, out_stride_h, out_stride_w, dilation_h, dilation_w;
  int64_t frame_H, frame_W, top, left;
  bool framed;  // or the caller's own memory serves
  int64_t images, classes;
  Taps taps[MAX_CLASSES];
  float *in, *out, *mask, *bias;
  const float* w_end;
  int64_t bytes;

  Pass(const Conv& conv, bool back, bool in_is_blocked, bool out_is_blocked, const float* w, void* workspace)
      : g(conv), backward(back), in_blocked(in_is_blocked), out_blocked(out_is_blocked) {
    backward ? split_backward(w) : whole_forward(w);
    w_end = w ? w + g.K * g.c_group() * g.R * g.S : nullptr;
    framed = !in_blocked || top || left || frame_H != in_H || frame_W != in_W;
    const int64_t in_image = maps_in(1, nullptr).image(), out_image = maps_out(1, nullptr).image();
    images = framed || !out_blocked ? images_of(g.N, in_image + out_image) : g.N;
    Scratch scratch(workspace);
    for (int64_t i = 0; i < classes; ++i) taps[i].packed = scratch.floats(g.groups * packed_group(taps[i]));
    in = scratch.floats(framed ? images * in_image : 0);
    out = scratch.floats(out_blocked ? 0 : images * out_image);
    mask = scratch.floats(out_blocked || !backward ? 0 : images * out_image);
    bias = scratch.floats(g.groups * round_up(k, BLOCK));
    bytes = scratch.used();
  }

  int64_t packed_group(const Taps& t) const { return round_up(k, BLOCK) * c * t.R * t.S; }
  Maps maps_in(int64_t n, float* data) const { return {data, n, g.groups, c, frame_H, frame_W}; }
  Maps maps_out(int64_t n, float* data) const { return {data, n, g.groups, k, out_H, out_W}; }

  void whole_forward(const float* w) {
    c = g.c_group(), k = g.k_group();
    in_H = g.H, in_W = g.W, out_H = g.P, out_W = g.Q;
    in_stride_h = g.stride_h, in_stride_w = g.stride_w, out_stride_h = out_stride_w = 1;
    dilation_h = g.dilation_h, dilation_w = g.dilation_w;
    top = g.pad_top, left = g.pad_left;
    frame_H = frame_extent(g.P, g.stride_h, g.R, g.dilation_h);
    frame_W = frame_extent(g.Q, g.stride_w, g.S, g.dilation_w);
    if (in_blocked && !top && !left && !g.pad_bottom && !g.pad_right) frame_H = in_H, frame_W = in_W;
    classes = 1;
    taps[0] = {g.R, g.S, {w, c * g.R * g.S, g.R * g.S, g.S, 1}, 0, 0, 0, 0, g.P, g.Q, nullptr};
  }

  // One axis of the classes of dx: of the outputs first, first + stride, ... the taps that reach them.
  struct Axis {
    int64_t outputs, taps, first_tap,
        start;  // start: row of dy under the first (turned) tap of the first output
  };
  static Axis axis(int64_t first, int64_t extent, int64_t stride, int64_t pad, int64_t window,
                   int64_t dilation) {
    if (stride == 1) return {extent, window, 0, pad - (window - 1) * dilation};
    const int64_t tap = (first + pad) % stride, base = (first + pad) / stride;
    const int64_t count = tap < window ? ceil_div(window - tap, stride) : 0;
    return {ceil_div(extent - first, stride), count, tap, base - (count - 1)};
  }

  void split_backward(const float* w) {
    c = g.k_group(), k = g.c_group();
    in_H = g.P, in_W = g.Q, out_H = g.H, out_W = g.W;
    in_stride_h = in_stride_w = 1, out_stride_h = g.stride_h, out_stride_w = g.stride_w;
    dilation_h = g.stride_h == 1 ? g.dilation_h : 1, dilation_w = g.stride_w == 1 ? g.dilation_w : 1;
    top = left = 0;
    int64_t bottom = 1, right = 1;
    classes = 0;
    for (int64_t a = 0; a < least(g.stride_h, g.H); ++a) {
      for (int64_t b = 0; b < least(g.stride_w, g.W); ++b) {
        const Axis h = axis(a, g.H, g.stride_h, g.pad_top, g.R, g.dilation_h);
        const Axis v = axis(b, g.W, g.stride_w, g.pad_left, g.S, g.dilation_w);
        const bool reached = h.taps > 0 && v.taps > 0;  // or dx is zero there
        const int64_t r_last = h.first_tap + (h.taps - 1) * g.stride_h,
                      s_last = v.first_tap + (v.taps - 1) * g.stride_w;
        const float* last = w && reached ? w + r_last * g.S + s_last : nullptr;
        const Weights turned{last, g.R * g.S, k * g.R * g.S, -g.stride_h * g.S, -g.stride_w};
        taps[classes++] = {h.taps, v.taps, turned, h.start, v.start, a, b, h.outputs, v.outputs, nullptr};
        if (!reached) continue;
        top = most(top, -h.start), left = most(left, -v.start);
        bottom = most(bottom, h.start + h.outputs + (h.taps - 1) * dilation_h);
        right = most(right, v.start + v.outputs + (v.taps - 1) * dilation_w);
      }
    }
    // One frame for all classes. It may end before dy does: then nothing reaches the rest.
    frame_H = top + bottom, frame_W = left + right;
    if (in_blocked && !top && !left && bottom <= in_H && right <= in_W) frame_H = in_H, frame_W = in_W;
    for (int64_t i = 0; i < classes; ++i) taps[i].row += top, taps[i].column += left;
  }
};

// One block of c of one register's worth of k, at `to`, in rows of `width`: by transposition where the taps
// are neighbours in memory, as they are but for dgrad with a stride.
void pack_block(const Taps& t, const float* from, int64_t lanes, int64_t count, int64_t width,
                const float* end, float* to) {
  const int64_t area = t.R * t.S;
  const auto put = [&](int64_t c, int64_t i, V v) { store(to + (i * count + c) * width, v); };
  if (t.w.s_step == 1 && t.w.r_step == t.S && t.w.c_step == area) {
    columns_as_lanes(from, t.w.k_step, lanes, count * area, end,
                     [&](int64_t e, V v) { put(e / area, e % area, v); });
  } else if (t.w.s_step == -1 && t.w.r_step == -t.S && t.w.k_step == area) {
    for (int64_t c = 0; c < count; ++c)
      columns_as_lanes(from + c * t.w.c_step - (area - 1), area, lanes, area, end,
                       [&](int64_t e, V v) { put(c, area - 1 - e, v); });
  } else {
    for (int64_t i = 0; i < area; ++i)
      for (int64_t c = 0; c < count; ++c) {
        const float* tap = from + c * t.w.c_step + i / t.S * t.w.r_step + i % t.S * t.w.s_step;
        for (int64_t lane = 0; lane < LANES; ++lane)
          to[(i * count + c) * width + lane] = lane < lanes ? tap[lane * t.w.k_step] : 0.0f;
      }
  }
}

// packed[tile of k][block of c][r][s][c][width], of each group.
void pack_weights(const Pass& p, const Taps& t, int threads) {
  const int64_t tiles = tiles_of(p.k), group_step = p.g.k_group() * p.g.c_group() * p.g.R * p.g.S;
  const int64_t blocks = ceil_div(p.c, BLOCK), area = t.R * t.S;
  parallel_ranges(threads, p.g.groups * tiles * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t block = unit % blocks, tile = unit / blocks % tiles, group = unit / blocks / tiles;
      const int64_t width = tile_width(tile, p.k), count = least(BLOCK, p.c - block * BLOCK);
      float* to = t.packed + group * p.packed_group(t) + (tile * TILE_M * p.c + block * BLOCK * width) * area;
      for (int64_t lane = 0; lane < width; lane += LANES) {
        const int64_t k = tile * TILE_M + lane;
        const float* from = t.w.at + group * group_step + k * t.w.k_step + block * BLOCK * t.w.c_step;
        if (k < p.k)
          pack_block(t, from, p.k - k, count, width, p.w_end, to + lane);
        else
          for (int64_t i = 0; i < area * count; ++i) store(to + i * width + lane, V{});
      }
    }
  });
}

// What a register tile needs to know of its surroundings; distances in floats.
struct Walk {
  int64_t c, R, S;
  int64_t block_step, row_step, tap_step;  // to the next block of c, the next row of taps, the next tap
  int64_t pixel, pitch;                    // from output to output in x: along a row, to the next row
  float* y;
  const float* mask;
  int64_t y_part, y_pixel, y_pitch;
  Finish finish[TILE_M_REGISTERS];
};

// NJ outputs in rows of COLUMNS. STRIDE: pixel / BLOCK where it is a constant, else 0.
template <int NV, int NJ, int COLUMNS, int STRIDE>
void outputs(const Walk& walk, const float* u, const float* x) {
  Tile<NV, NJ> tile;
  tile.zero();
  const int64_t pixel = STRIDE ? STRIDE * BLOCK : walk.pixel;
  for (int64_t first = 0; first < walk.c; first += BLOCK, x += walk.block_step) {
    const int64_t count = least(BLOCK, walk.c - first);
    for (int64_t r = 0; r < walk.R; ++r) {
      for (int64_t s = 0; s < walk.S; ++s) {
        const float* from = x + r * walk.row_step + s * walk.tap_step;
        for (int64_t c = 0; c < count; ++c, u += NV * LANES)
          tile.step(u, LANES,
                    [&](int j) { return from[c + j / COLUMNS * walk.pitch + j % COLUMNS * pixel]; });
      }
    }
  }
  CK_UNROLL
  for (int j = 0; j < NJ; ++j) {
    const int64_t at = j / COLUMNS * walk.y_pitch + j % COLUMNS * walk.y_pixel;
    CK_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int64_t to = at + v * walk.y_part;
      store(walk.y + to, walk.finish[v](tile.acc[j][v], walk.mask ? walk.mask + to : nullptr));
    }
  }
}

using Outputs = void (*)(const Walk&, const float*, const float*);
template <int NV, int STRIDE, int... J>
Outputs one_row(int64_t count, std::integer_sequence<int, J...>) {
  static constexpr Outputs table[] = {outputs<NV, J + 1, J + 1, STRIDE>...};
  return table[count - 1];
}
template <int NV, int STRIDE, int... J>
Outputs two_rows(int64_t columns, std::integer_sequence<int, J...>) {
  static constexpr Outputs table[] = {outputs<NV, 2 * (J + 1), J + 1, STRIDE>...};
  return table[columns - 1];
}
template <int NV, int STRIDE>
Outputs choose(int64_t rows, int64_t columns) {
  return rows == 2 ? two_rows<NV, STRIDE>(columns, std::make_integer_sequence<int, TILE_N / 2>())
                   : one_row<NV, STRIDE>(columns, std::make_integer_sequence<int, TILE_N>());
}
Outputs choose(bool wide, int64_t stride, int64_t rows, int64_t columns) {
  if (wide)
    return stride == 1   ? choose<TILE_M_REGISTERS, 1>(rows, columns)
           : stride == 2 ? choose<TILE_M_REGISTERS, 2>(rows, columns)
                         : choose<TILE_M_REGISTERS, 0>(rows, columns);
  return stride == 1 ? choose<NARROW_M_REGISTERS, 1>(rows, columns)
                     : choose<NARROW_M_REGISTERS, 0>(rows, columns);
}

// A part of a map for one tile of k: output rows [p0, p1), columns [q0, q1).
struct Window {
  int64_t p0, p1, q0, q1;
};

void window(const Pass& p, const Taps& t, const Maps& x, const Maps& y, const Epilogue& e, int64_t n,
            int64_t g, int64_t k_tile, const Window& area) {
  const int64_t k = k_tile * TILE_M, width = tile_width(k_tile, p.k), k0 = g * round_up(p.k, BLOCK) + k;
  const float* u = t.packed + g * p.packed_group(t) + k * p.c * t.R * t.S;
  const float* from = x.at(n, g, 0) + (t.row * x.W + t.column) * BLOCK;
  float* to = y.at(n, g, k / BLOCK) + k % BLOCK + (t.out_row * y.W + t.out_column) * BLOCK;
  const int64_t row = p.in_stride_h * x.W * BLOCK, pixel = p.in_stride_w * BLOCK;
  const int64_t y_row = p.out_stride_h * y.W * BLOCK, y_pixel = p.out_stride_w * BLOCK;
  Walk walk{p.c,
            t.R,
            t.S,
            x.plane(),
            p.dilation_h * x.W * BLOCK,
            p.dilation_w * BLOCK,
            pixel,
            row,
            nullptr,
            nullptr,
            LANES < BLOCK ? LANES : y.plane(),
            y_pixel,
            y_row,
            {Finish(e, k0, p.k - k), Finish(e, width == TILE_M ? k0 + LANES : k0, p.k - k - LANES)}};
  const int64_t columns = area.q1 - area.q0, shares = ceil_div(columns, TILE_N);
  const int64_t together = columns <= TILE_N / 2 ? 2 : 1;
  for (int64_t i = area.p0; i < area.p1; i += together) {
    const int64_t rows = least(together, area.p1 - i);
    for (int64_t share = 0; share < shares; ++share) {
      const Range q = piece(share, shares, columns);
      const int64_t at = i * y_row + (area.q0 + q.begin) * y_pixel;
      walk.y = to + at;
      walk.mask = e.mask ? e.mask + (walk.y - y.data) : nullptr;
      choose(width == TILE_M, p.in_stride_w, rows, q.end - q.begin)(
          walk, u, from + i * row + (area.q0 + q.begin) * pixel);
    }
  }
}

void no_taps(const Pass& p, const Taps& t, const Maps& y, int64_t n, int64_t g, int64_t block) {
  for (int64_t i = 0; i < t.outputs_h; ++i)
    for (int64_t j = 0; j < t.outputs_w; ++j) {
      const int64_t h = t.out_row + i * p.out_stride_h, w = t.out_column + j * p.out_stride_w;
      std::memset(y.at(n, g, block) + (h * y.W + w) * BLOCK, 0, BLOCK * sizeof(float));
    }
}

// Whether the rows of the outputs follow each other without a gap, in x and in y: an image is then one long
// row.
bool rows_are_one(const Pass& p, const Taps& t, const Maps& x, const Maps& y) {
  const bool whole = x.H == y.H && x.W == y.W && t.outputs_h == y.H && t.outputs_w == y.W;
  const bool dense = p.in_stride_h == 1 && p.in_stride_w == 1 && p.out_stride_h == 1 && p.out_stride_w == 1;
  return t.R == 1 && t.S == 1 && whole && dense && !t.row && !t.column && !t.out_row && !t.out_column;
}

void correlate(const Pass& p, Taps t, const Maps& x_maps, const Maps& y_maps, const Epilogue& e,
               int threads) {
  Maps x = x_maps, y = y_maps;
  if (!t.R || !t.S) {
    parallel_ranges(threads, y.images * y.groups * y.blocks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        no_taps(p, t, y, i / y.blocks() / y.groups, i / y.blocks() % y.groups, i % y.blocks());
    });
    return;
  }
  if (rows_are_one(p, t, x, y)) {
    x.W = y.W = t.outputs_w = x.H * x.W;
    x.H = y.H = t.outputs_h = 1;
  }
  const int64_t ROWS = 4, COLUMNS = 8 * TILE_N;
  const int64_t bands = ceil_div(t.outputs_h, ROWS), segments = ceil_div(t.outputs_w, COLUMNS),
                k_tiles = tiles_of(p.k);
  parallel_ranges(
      threads, y.groups * k_tiles * y.images * bands * segments, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          int64_t i = unit;
          const int64_t segment = i % segments;
          i /= segments;
          const int64_t band = i % bands;
          i /= bands;
          const int64_t n = i % y.images, k_tile = i / y.images % k_tiles, g = i / y.images / k_tiles;
          const Range rows = piece(band, bands, t.outputs_h), columns = piece(segment, segments, t.outputs_w);
          window(p, t, x, y, e, n, g, k_tile, {rows.begin, rows.end, columns.begin, columns.end});
        }
      });
}

void run(const Pass& p, const float* in, const float* b, bool relu, const float* mask, float* out,
         int threads) {
  pad_bias(b, p.g.groups, p.k, p.bias);
  for (int64_t i = 0; i < p.classes; ++i)
    if (p.taps[i].R && p.taps[i].S) pack_weights(p, p.taps[i], threads);
  for (int64_t n = 0; n < p.g.N; n += p.images) {
    const int64_t count = least(p.images, p.g.N - n);
    Maps x = p.maps_in(count, p.in);
    Maps y = p.maps_out(count, p.out_blocked ? out + n * p.maps_out(1, nullptr).image() : p.out);
    if (!p.framed)
      x.data = const_cast<float*>(in) + n * p.maps_in(1, nullptr).image();
    else
      (p.in_blocked ? frame : pack)(in, n, p.in_H, p.in_W, x, p.top, p.left, threads);
    Epilogue e{b ? p.bias : nullptr, relu, nullptr};
    if (mask && p.out_blocked) e.mask = mask + n * p.maps_out(1, nullptr).image();
    if (mask && !p.out_blocked) {
      Maps m = y;
      m.data = p.mask;
      pack(mask, n, p.out_H, p.out_W, m, 0, 0, threads);
      e.mask = p.mask;
    }
    for (int64_t i = 0; i < p.classes; ++i) correlate(p, p.taps[i], x, y, e, threads);
    if (!p.out_blocked) unpack(y, n, out, threads);
  }
}

}  // namespace
}  // namespace direct

using namespace direct;

const char* conv2d_direct_refusal(const Conv& g) {
  const bool strided = g.stride_h > 1 || g.stride_w > 1, dilated = g.dilation_h > 1 || g.dilation_w > 1;
  if (strided && dilated) return "takes a stride or a dilation, not both";
  if (least(g.stride_h, g.H) * least(g.stride_w, g.W) > MAX_CLASSES) return "takes strides up to 8 x 8";
  return nullptr;
}

int64_t conv2d_fprop_direct_workspace(const Conv& g, Layouts l) {
  return Pass(g, false, l.x_blocked, l.y_blocked, nullptr, nullptr).bytes;
}
int64_t conv2d_dgrad_direct_workspace(const Conv& g, Layouts l) {
  return Pass(g, true, l.y_blocked, l.x_blocked, nullptr, nullptr).bytes;
}

void conv2d_fprop_direct(const Conv& g, Layouts l, const float* x, const float* w, const float* b, float* y,
                         bool relu, void* workspace, int threads) {
  run(Pass(g, false, l.x_blocked, l.y_blocked, w, workspace), x, b, relu, nullptr, y, threads);
}

void conv2d_dgrad_direct(const Conv& g, Layouts l, const float* dy, const float* w, const float* x_mask,
                         float* dx, void* workspace, int threads) {
  run(Pass(g, true, l.y_blocked, l.x_blocked, w, workspace), dy, nullptr, false, x_mask, dx, threads);
}

}  // namespace convkit
