#include "pool2d.hpp"

#include "local.hpp"
#include "lrn.hpp"

namespace convkit {
namespace {

template <class Index>
struct Winners {
  typedef Index Vector __attribute__((vector_size(sizeof(Index) * LANES)));
  static CK_INLINE VI load(const Index* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, VI);
  }
  static CK_INLINE void store(Index* p, VI winner) {
    const Vector v = __builtin_convertvector(winner, Vector);
    std::memcpy(p, &v, sizeof v);
  }
};

struct Best {
  V value;
  VI tap;
  CK_INLINE void see(V v, int t) {
    const VI wins = ~(v <= value) & (value == value);
    value = wins ? v : value;
    tap = wins ? VI{} + t : tap;
  }
};

// The window whose taps [r.begin, r.end) x [s.begin, s.end) lie inside; row(r) is where tap (r, 0) lies.
template <class Rows>
CK_INLINE Best window(const Pool& g, const Rows& row, Range r, Range s, int part) {
  Best best{splat(-INFINITY), VI{}};
  if (r.begin == r.end || s.begin == s.end) return best;
  const int64_t step = g.dilation_w * BLOCK;
  best = {load(row(r.begin) + s.begin * step + part * LANES), VI{} + int(r.begin * g.S + s.begin)};
  for (int64_t i = r.begin; i < r.end; ++i) {
    const float* at = row(i) + part * LANES;
    for (int64_t j = s.begin; j < s.end; ++j) best.see(load(at + j * step), int(i * g.S + j));
  }
  return best;
}

template <class Index>
CK_INLINE void put(const Best& best, bool last, int64_t channels, int part, float* y, Index* argmax) {
  V value = best.value;
  if (last) value = masked(lanes_below(channels, part), value);
  store(y + part * LANES, value);
  Winners<Index>::store(argmax + part * LANES, best.tap);
}

}  // namespace

template <class Index>
void maxpool2d_fprop_row(const Pool& g, int64_t p, const RowRing& x, float* y, Index* argmax) {
  const int64_t blocks = g.blocks(), top = g.top(p), plane = g.P * g.Q * BLOCK;
  const Range r = taps_inside(top, g.dilation_h, g.R, g.H);
  // Outputs whose windows have all their taps inside.
  const int64_t whole = g.usual() && r.end == 3 ? least(g.Q, (g.W - 1) / 2) : 0;
  for (int64_t b = 0; b < blocks; ++b, y += plane, argmax += plane) {
    const bool last = b == blocks - 1;
    const int64_t channels = g.C - b * BLOCK;
    if (whole) {
      const float *row0 = x.row(top, b), *row1 = x.row(top + 1, b), *row2 = x.row(top + 2, b);
      for (int64_t q = 0; q < whole; ++q) {
        CK_UNROLL
        for (int part = 0; part < PARTS; ++part) {
          const int64_t at = q * 2 * BLOCK + part * LANES;
          Best best{load(row0 + at), VI{}};
          best.see(load(row0 + at + BLOCK), 1);
          best.see(load(row0 + at + 2 * BLOCK), 2);
          best.see(load(row1 + at), 3);
          best.see(load(row1 + at + BLOCK), 4);
          best.see(load(row1 + at + 2 * BLOCK), 5);
          best.see(load(row2 + at), 6);
          best.see(load(row2 + at + BLOCK), 7);
          best.see(load(row2 + at + 2 * BLOCK), 8);
          put(best, last, channels, part, y + q * BLOCK, argmax + q * BLOCK);
        }
      }
    }
    for (int64_t q = whole; q < g.Q; ++q) {
      const int64_t left = g.left(q);
      const Range s = taps_inside(left, g.dilation_w, g.S, g.W);
      const auto row = [&](int64_t i) { return x.row(top + i * g.dilation_h, b) + left * BLOCK; };
      for (int part = 0; part < PARTS; ++part)
        put(window(g, row, r, s, part), last, channels, part, y + q * BLOCK, argmax + q * BLOCK);
    }
  }
}

namespace {

// Windows in which position `at` (counted from the padding's start) of an axis is a tap: f(window, tap), windows ascending.
template <class F>
CK_INLINE void each_window(int64_t at, int64_t stride, int64_t dilation, int64_t taps, int64_t windows, const F& f) {
  const int64_t span = (taps - 1) * dilation;
  const int64_t first = at > span ? ceil_div(at - span, stride) : 0;
  const int64_t last = least(windows - 1, at / stride);
  for (int64_t i = first; i <= last; ++i) {
    const int64_t offset = at - i * stride;
    if (dilation == 1)
      f(i, offset);
    else if (offset % dilation == 0)
      f(i, offset / dilation);
  }
}

template <class Index>
CK_INLINE V won(const float* dy, const Index* argmax, int tap) {
  return masked(Winners<Index>::load(argmax) == VI{} + tap, load(dy));
}

// Window 3, stride 2: one row of windows, whose tap r this row is. w0 is even. Adds to dx, or begins it.
template <bool ADD, class Index>
CK_INLINE void usual_dgrad(const Pool& g, int64_t w0, int64_t n, int r, const float* dy, const Index* argmax, float* dx) {
  CK_UNROLL
  for (int part = 0; part < PARTS; ++part) {
    V left_dy{};
    VI left_tap = VI{} - 1;
    int64_t q = w0 / 2;
    const int64_t o = part * LANES;
    if (q > 0) {
      left_dy = load(dy + (q - 1) * BLOCK + o);
      left_tap = Winners<Index>::load(argmax + (q - 1) * BLOCK + o);
    }
    for (int64_t w = 0; w < n; w += 2, ++q) {
      float* to = dx + w * BLOCK + o;
      V here_dy{};
      VI here_tap = VI{} - 1;
      if (q < g.Q) {
        here_dy = load(dy + q * BLOCK + o);
        here_tap = Winners<Index>::load(argmax + q * BLOCK + o);
      }
      const V even = masked(left_tap == VI{} + (3 * r + 2), left_dy) + masked(here_tap == VI{} + 3 * r, here_dy);
      store(to, ADD ? load(to) + even : even);
      if (w + 1 < n) {
        const V odd = masked(here_tap == VI{} + (3 * r + 1), here_dy);
        store(to + BLOCK, ADD ? load(to + BLOCK) + odd : odd);
      }
      left_dy = here_dy;
      left_tap = here_tap;
    }
  }
}

}  // namespace

template <class Index>
void maxpool2d_dgrad_row(const Pool& g, int64_t h, int64_t w0, int64_t n, const float* dy, const Index* argmax,
                         float* dx) {
  const int64_t row = g.Q * BLOCK;
  if (g.usual() && w0 % 2 == 0) {
    const int64_t p = h / 2;
    const bool upper = h % 2 == 0 && p > 0, own = p < g.P;
    if (upper) usual_dgrad<false>(g, w0, n, 2, dy + (p - 1) * row, argmax + (p - 1) * row, dx);
    if (upper && own)
      usual_dgrad<true>(g, w0, n, 0, dy + p * row, argmax + p * row, dx);
    else if (own)
      usual_dgrad<false>(g, w0, n, int(h % 2), dy + p * row, argmax + p * row, dx);
    else if (!upper)
      std::memset(dx, 0, size_t(n * BLOCK) * sizeof(float));
    return;
  }
  for (int64_t w = 0; w < n; ++w) {
    for (int part = 0; part < PARTS; ++part) {
      V total{};
      each_window(h + g.pad_top, g.stride_h, g.dilation_h, g.R, g.P, [&](int64_t p, int64_t r) {
        each_window(w0 + w + g.pad_left, g.stride_w, g.dilation_w, g.S, g.Q, [&](int64_t q, int64_t s) {
          const int64_t at = p * row + q * BLOCK + part * LANES;
          total += won(dy + at, argmax + at, int(r * g.S + s));
        });
      });
      store(dx + w * BLOCK + part * LANES, total);
    }
  }
}

template <class Index>
void maxpool2d_fprop_blocked(const Pool& g, const float* x, float* y, Index* argmax, int threads) {
  const int64_t cut = bands(g.N, g.P, 2), row = g.W * BLOCK;
  parallel_for(workers(threads, 4 * g.N * (g.x_image() + g.y_image())), g.N * cut, [&](int64_t task) {
    const int64_t n = task / cut;
    const Range band = piece(task % cut, cut, g.P);
    const RowRing rows{x + n * g.x_image(), g.H, row, g.H * row};
    for (int64_t p = band.begin; p < band.end; ++p) {
      const int64_t at = n * g.y_image() + p * g.Q * BLOCK;
      maxpool2d_fprop_row(g, p, rows, y + at, argmax + at);
    }
  });
}

template <class Index>
void maxpool2d_dgrad_blocked(const Pool& g, const float* dy, const Index* argmax, float* dx, int threads) {
  const int64_t blocks = g.blocks(), row = g.W * BLOCK, plane = g.P * g.Q * BLOCK;
  parallel_for(workers(threads, 4 * g.N * (g.x_image() + g.y_image())), g.N * blocks, [&](int64_t task) {
    for (int64_t h = 0; h < g.H; ++h)
      maxpool2d_dgrad_row(g, h, 0, g.W, dy + task * plane, argmax + task * plane, dx + (task * g.H + h) * row);
  });
}

#define CK_POOL(Index)                                                                                              \
  template void maxpool2d_fprop_row(const Pool&, int64_t, const RowRing&, float*, Index*);                          \
  template void maxpool2d_dgrad_row(const Pool&, int64_t, int64_t, int64_t, const float*, const Index*, float*);    \
  template void maxpool2d_fprop_blocked(const Pool&, const float*, float*, Index*, int);                            \
  template void maxpool2d_dgrad_blocked(const Pool&, const float*, const Index*, float*, int);
CK_POOL(std::uint8_t)
CK_POOL(std::uint16_t)
CK_POOL(std::uint32_t)
#undef CK_POOL

}  // namespace convkit
