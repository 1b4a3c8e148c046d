// Blocked: maxpool2d.hpp argues the kernels.
#include "maxpool2d.hpp"

namespace convkit {
namespace {

// The window whose taps [r.begin, r.end) x [s.begin, s.end) lie inside; row(r) is where tap (r, 0) lies.
template <class Rows>
CK_INLINE Best window(const MaxPool& g, const Rows& row, Range r, Range s, int part) {
  Best best{splat(-INFINITE), VI{}};
  if (r.begin == r.end || s.begin == s.end) return best;
  const int64_t step = g.dilation_w * BLOCK;
  best = {load(row(r.begin) + s.begin * step + part * LANES), VI{} + int(r.begin * g.S + s.begin)};
  for (int64_t i = r.begin; i < r.end; ++i) {
    const float* at = row(i) + part * LANES;
    for (int64_t j = s.begin; j < s.end; ++j) best.see(load(at + j * step), int(i * g.S + j));
  }
  return best;
}

// Window 3, stride 2: outputs [0, count) of a row of a block, from three rows of x. False if it may have seen
// a NaN.
template <class Index>
CK_INLINE bool usual_fprop(const MaxPool& g, int64_t count, const float* row0, const float* row1,
                           const float* row2, int64_t ahead, float* y, Index* argmax) {
  VI tap[9], nan{};
  CK_UNROLL
  for (int t = 0; t < 9; ++t) tap[t] = VI{} + static_cast<int>(t / 3 * g.S + t % 3);
  for (int64_t q = 0; q < count; ++q) {
    CK_UNROLL
    for (int part = 0; part < PARTS; ++part) {
      const int64_t at = q * 2 * BLOCK + part * LANES, to = q * BLOCK + part * LANES;
      if (ahead && part == 0) {
        CK_UNROLL
        for (int i = 0; i < 2; ++i) {
          __builtin_prefetch(row1 + ahead + q * 2 * BLOCK + i * BLOCK);
          __builtin_prefetch(row2 + ahead + q * 2 * BLOCK + i * BLOCK);
        }
      }
      V best = load(row0 + at), sum = best;
      VI winner = tap[0];
      CK_UNROLL
      for (int t = 1; t < 9; ++t) {
        const V v = load((t < 3 ? row0 : t < 6 ? row1 : row2) + at + t % 3 * BLOCK);
        const VI wins = v > best;
        best = wins ? v : best;
        winner = wins ? tap[t] : winner;
        sum += v;
      }
      nan |= sum != sum;
      store(y + to, best);
      Winners<Index>::store(argmax + to, winner);
    }
  }
  return !any(nan);
}

}  // namespace

template <class Index>
void maxpool2d_fprop_row(const MaxPool& g, int64_t p, bool spare, const RowRing& x, float* y, Index* argmax) {
  const int64_t top = g.top(p);
  const Range r = taps_inside(top, g.dilation_h, g.R, g.H);
  int64_t q = 0;
  if constexpr (may_be_usual<Index>) {
    if (g.usual() && r.end == 3) {
      q = least(g.Q, (g.W - 1) / 2);  // windows with all taps inside
      if (!usual_fprop(g, q, x.row(top), x.row(top + 1), x.row(top + 2), x.ahead, y, argmax)) q = 0;
    }
  }
  for (; q < g.Q; ++q) {
    const int64_t left = g.left(q);
    const Range s = taps_inside(left, g.dilation_w, g.S, g.W);
    const auto row = [&](int64_t i) { return x.row(top + i * g.dilation_h) + left * BLOCK; };
    for (int part = 0; part < PARTS; ++part) {
      Best best = window(g, row, r, s, part);
      if (spare) best.value = masked(lanes_below(g.C % BLOCK, part), best.value);
      store(y + q * BLOCK + part * LANES, best.value);
      Winners<Index>::store(argmax + q * BLOCK + part * LANES, best.tap);
    }
  }
}

namespace {

// Window 3, stride 2: one row of windows, whose tap r this row is. Adds to dx, or begins it.
template <bool ADD, class Index>
CK_INLINE void usual_dgrad(const MaxPool& g, int r, const float* dy, const Index* argmax, float* dx) {
  CK_UNROLL
  for (int part = 0; part < PARTS; ++part) {
    const int64_t o = part * LANES;
    const VI first = VI{} + 3 * r, second = first + 1, third = first + 2;
    const auto put = [&](int64_t w, V v) {
      float* to = dx + w * BLOCK + o;
      store(to, ADD ? load(to) + v : v);
    };
    V right{};  // what the window before gives to its right pixel, which is this one's left
    int64_t w = 0;
    for (int64_t q = 0; q < g.Q; ++q, w += 2) {
      const V dy_v = load(dy + q * BLOCK + o);
      const VI tap = Winners<Index>::load(argmax + q * BLOCK + o);
      put(w, right + masked(tap == first, dy_v));
      if (w + 1 < g.W) put(w + 1, masked(tap == second, dy_v));
      right = masked(tap == third, dy_v);
    }
    for (; w < g.W; ++w, right = V{}) put(w, right);
  }
}

}  // namespace

template <class Index>
void maxpool2d_dgrad_row(const MaxPool& g, int64_t h, const float* dy, const Index* argmax, float* dx) {
  const int64_t row = g.Q * BLOCK;
  if constexpr (may_be_usual<Index>) {
    if (g.usual()) {
      const int64_t p = h / 2;
      const bool upper = h % 2 == 0 && p > 0, own = p < g.P;
      if (upper) usual_dgrad<false>(g, 2, dy + (p - 1) * row, argmax + (p - 1) * row, dx);
      if (upper && own)
        usual_dgrad<true>(g, 0, dy + p * row, argmax + p * row, dx);
      else if (own)
        usual_dgrad<false>(g, int(h % 2), dy + p * row, argmax + p * row, dx);
      else if (!upper)
        std::memset(dx, 0, size_t(g.W * BLOCK) * sizeof(float));
      return;
    }
  }
  for (int64_t w = 0; w < g.W; ++w) {
    for (int part = 0; part < PARTS; ++part) {
      V total{};
      each_window(h + g.pad_top, g.stride_h, g.dilation_h, g.R, g.P, [&](int64_t p, int64_t r) {
        each_window(w + g.pad_left, g.stride_w, g.dilation_w, g.S, g.Q, [&](int64_t q, int64_t s) {
          const int64_t at = p * row + q * BLOCK + part * LANES;
          total += masked(Winners<Index>::load(argmax + at) == VI{} + int(r * g.S + s), load(dy + at));
        });
      });
      store(dx + w * BLOCK + part * LANES, total);
    }
  }
}

template <class Index>
void maxpool2d_fprop_rows_blocked(const MaxPool& g, const float* x, float* y, Index* argmax, int threads) {
  const int64_t blocks = g.blocks(), row = g.Q * BLOCK;
  parallel_for(workers(threads, 4 * g.N * (g.x_image() + g.y_image())), g.N * blocks, [&](int64_t task) {
    const RowRing rows{x + task * g.H * g.W * BLOCK, g.H, g.W * BLOCK, 2 * g.W * BLOCK};
    for (int64_t p = 0; p < g.P; ++p) {
      const int64_t at = (task * g.P + p) * row;
      maxpool2d_fprop_row(g, p, g.spare(task % blocks), rows, y + at, argmax + at);
    }
  });
}

template <class Index>
void maxpool2d_dgrad_rows_blocked(const MaxPool& g, const float* dy, const Index* argmax, float* dx,
                                  int threads) {
  const int64_t blocks = g.blocks(), row = g.W * BLOCK, plane = g.P * g.Q * BLOCK;
  parallel_for(workers(threads, 4 * g.N * (g.x_image() + g.y_image())), g.N * blocks, [&](int64_t task) {
    for (int64_t h = 0; h < g.H; ++h)
      maxpool2d_dgrad_row(g, h, dy + task * plane, argmax + task * plane, dx + (task * g.H + h) * row);
  });
}

#define CK_POOL(Index)                                                                              \
  template void maxpool2d_fprop_row(const MaxPool&, int64_t, bool, const RowRing&, float*, Index*); \
  template void maxpool2d_dgrad_row(const MaxPool&, int64_t, const float*, const Index*, float*);   \
  template void maxpool2d_fprop_rows_blocked(const MaxPool&, const float*, float*, Index*, int);    \
  template void maxpool2d_dgrad_rows_blocked(const MaxPool&, const float*, const Index*, float*, int);
CK_POOL(std::uint8_t)
CK_POOL(std::uint16_t)
CK_POOL(std::uint32_t)
#undef CK_POOL

}  // namespace convkit
