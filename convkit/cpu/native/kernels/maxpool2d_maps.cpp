// Max pooling of NCHW arrays, a map at a time.
//
// Idea      A register holds neighbouring outputs of a row. A row of x is split by the remainder of the
//           column modulo the stride, so that tap s of all outputs is an unaligned load; each row's maxima
//           over s, with their taps, go into a ring of rows, which the windows that overlap share, and the
//           maximum over r of those is the output. Row by row and left to right, so the first of equal values
//           wins; NaN as in maxpool2d.hpp.
// Edges     Outputs whose windows stick out to the left or right take a scalar loop, and so do all where
//           windows lie more than 16 columns apart, and backward where they are wider than a row: scratch
//           stays small for any options. Whole registers are loaded and stored as long as they stay inside
//           the map: what they spill into the next row is written again with it.
// dgrad     Gathered: for each remainder, a pixel's windows are unaligned loads of dy and argmax out of a few
//           rows that were widened, with a margin of zeros and of taps that there are not; then the
//           remainders are interleaved.
// Usual     Window 3, stride 2, no padding: the split and the interleaving are shuffles of what is in
//           registers.
// Measured  Zen 4, AVX-512, one thread, window 3 and stride 2: 16 elements of x take 22 cycles forward and 26
//           backward on 55 x 55, 34 and 39 on 27 x 27, where the last registers of a row are half empty.
// Traffic   forward reads x and writes y and argmax, backward reads dy and argmax and writes dx.
#include <utility>

#include "maxpool2d.hpp"

namespace convkit {
namespace {

// Tap s of output q is column q * stride + shift; among the columns of one remainder it is number q + offset.
struct Tap {
  int64_t remainder, offset;
};
CK_INLINE Tap tap_at(const MaxPool& g, int64_t s) {
  const int64_t shift = s * g.dilation_w - g.pad_left;
  const int64_t offset = shift >= 0 ? shift / g.stride_w : -ceil_div(-shift, g.stride_w);
  return {shift - offset * g.stride_w, offset};
}
// The first `count` of them, at the front of some scratch; returns what is behind them.
int64_t tap_floats(int64_t count) { return round_up(count * int64_t(sizeof(Tap) / sizeof(float)), LANES); }
float* fill_taps(const MaxPool& g, int64_t count, float* scratch) {
  for (int64_t s = 0; s < count; ++s) reinterpret_cast<Tap*>(scratch)[s] = tap_at(g, s);
  return scratch + tap_floats(count);
}

// Columns between windows that registers are worth while for; there is a part of scratch for each.
constexpr int64_t NEAR = 16;

// Every second lane of a and b, which lie one behind the other; and the way back.
template <int FIRST, int... L>
CK_INLINE V second_lanes(V a, V b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (2 * L + FIRST)...);
}
template <int FIRST, int... L>
CK_INLINE V alternate(V a, V b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (FIRST + L / 2 + L % 2 * LANES)...);
}
constexpr auto LANE = std::make_integer_sequence<int, LANES>();

template <class S>
CK_NOINLINE void widen(const S* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = load_one(from + i);
}

template <class Index>
CK_NOINLINE void widen_taps(const Index* from, int64_t count, std::int32_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<std::int32_t>(from[i]);
}

CK_INLINE void see_one(float v, int t, float& best, std::int32_t& winner) {
  if (!(v <= best) && best == best) {
    best = v;
    winner = t;
  }
}

template <bool USUAL>
class Fprop {
 public:
  CK_NOINLINE explicit Fprop(const MaxPool& g)
      : g_(g),
        width_(round_up(g.Q, LANES) + LANES),
        part_(ceil_div(g.W, g.stride_w) + 2 * LANES),
        period_(least(g.H, g.span())) {
    first_ = least(g.Q, ceil_div(g.pad_left, g.stride_w));
    const int64_t room = g.W - 1 - (g.S - 1) * g.dilation_w + g.pad_left;
    last_ = room < 0 || g.stride_w > NEAR ? first_ : most(first_, least(g.Q, room / g.stride_w + 1));
    inner_ = first_ < last_ ? g.S : 0;
  }
  int64_t floats() const {
    return tap_floats(inner_) + g_.W + 3 * LANES + parts() + 2 * (period_ + 1) * width_;
  }

  template <class S, class Index>
  void plane(const S* x, S* y, Index* argmax, float* scratch) {
    tap_ = reinterpret_cast<Tap*>(scratch);
    row_ = fill_taps(g_, inner_, scratch);
    parts_ = row_ + g_.W + 3 * LANES;
    values_ = parts_ + parts();
    taps_ = reinterpret_cast<std::int32_t*>(values_ + (period_ + 1) * width_);
    int64_t next = 0;
    for (int64_t p = 0; p < g_.P; ++p) {
      const int64_t top = g_.top(p);
      const Range r = taps_inside(top, g_.dilation_h, g_.R, g_.H);
      next = most(next, top);
      for (; next < least(g_.H, top + g_.span()); ++next)
        across(x + next * g_.W, (g_.H - next) * g_.W, next % period_);
      down(top, r, y + p * g_.Q, argmax + p * g_.Q, (g_.P - p) * g_.Q);
    }
  }

 private:
  int64_t parts() const { return first_ < last_ ? g_.stride_w * part_ : 0; }

  // Whether some outputs' windows stick out to the left or right. Calls for nothing took 8 % of a pool on 55 x 55.
  bool ends() const { return first_ > 0 || last_ < g_.Q; }

  // A row of x: the maxima over s, into slot `slot` of the ring. `room` elements may be read.
  template <class S>
  void across(const S* x, int64_t room, int64_t slot) {
    if constexpr (USUAL) {
      if (2 * round_up(last_, LANES) + 2 <= room) {
        across_usual(x, slot);
      } else {
        widen(x, g_.W, row_);
        across_usual(row_, slot);
      }
      if (last_ < g_.Q) widen(x + 2 * last_, g_.W - 2 * last_, row_ + 2 * last_);
    } else {
      widen(x, g_.W, row_);
      across_any(slot);
    }
    if (ends()) across_ends(slot);
  }

  // A row of the ring. Its pointers are local variables of a loop: from members they would be read again for
  // each register that is stored.
  struct Row {
    float* values;
    std::int32_t* taps;

    CK_INLINE void put(int64_t q, const Best& best) const {
      store(values + q, best.value);
      std::memcpy(taps + q, &best.tap, sizeof best.tap);
    }
  };
  CK_INLINE Row row_at(int64_t slot) const { return {values_ + slot * width_, taps_ + slot * width_}; }

  // Any window, of row_: the outputs whose windows do not stick out.
  CK_NOINLINE void across_any(int64_t slot) {
    const float* parts = g_.stride_w > 1 && first_ < last_ ? split() : row_;
    const Row row = row_at(slot);
    for (int64_t q = first_; q < last_; q += LANES) {
      Best best{load_tap(parts, 0, q), VI{}};
      for (int64_t s = 1; s < g_.S; ++s) best.see(load_tap(parts, s, q), static_cast<int>(s));
      row.put(q, best);
    }
  }

  // The other outputs, one by one.
  CK_NOINLINE void across_ends(int64_t slot) {
    float* values = values_ + slot * width_;
    std::int32_t* taps = taps_ + slot * width_;
    for (int64_t q = 0; q < g_.Q; ++q) {
      if (q == first_) q = last_;
      if (q == g_.Q) break;
      const Range s = taps_inside(g_.left(q), g_.dilation_w, g_.S, g_.W);
      const float* at = row_ + g_.left(q);
      values[q] = -INFINITE;
      taps[q] = 0;
      if (s.begin == s.end) continue;
      values[q] = at[s.begin * g_.dilation_w];
      taps[q] = static_cast<int>(s.begin);
      for (int64_t i = s.begin + 1; i < s.end; ++i)
        see_one(at[i * g_.dilation_w], static_cast<int>(i), values[q], taps[q]);
    }
  }

  template <class S>
  CK_INLINE void across_usual(const S* x, int64_t slot) {
    const Row row = row_at(slot);
    for (int64_t q = 0; q < last_; q += LANES, x += 2 * LANES) {
      const V a = load(x), b = load(x + LANES);
      Best best{second_lanes<0>(a, b, LANE), VI{}};
      best.see(second_lanes<1>(a, b, LANE), 1);
      best.see(second_lanes<0>(load(x + 2), load(x + LANES + 2), LANE), 2);
      row.put(q, best);
    }
  }

  // The columns of row_, those of each remainder together.
  CK_NOINLINE const float* split() {
    for (int64_t j = 0; j < least(g_.stride_w, g_.W); ++j) {
      const int64_t count = (g_.W - j - 1) / g_.stride_w + 1;
      for (int64_t i = 0; i < count; ++i) parts_[j * part_ + i] = row_[i * g_.stride_w + j];
    }
    return parts_;
  }

  CK_INLINE V load_tap(const float* parts, int64_t s, int64_t q) const {
    const Tap t = tap_[s];
    return load(parts + t.remainder * part_ + q + t.offset);
  }

  template <class S, class Index>
  void down(int64_t top, Range r, S* y, Index* argmax, int64_t room) {
    const int64_t first = (top + r.begin * g_.dilation_h) % period_, step = g_.dilation_h % period_;
    for (int64_t q = 0; q < g_.Q; q += LANES) {
      Best best{splat(-INFINITE), VI{}};
      int64_t slot = first;
      for (int64_t i = r.begin; i < r.end; ++i) {
        VI tap;
        std::memcpy(&tap, taps_ + slot * width_ + q, sizeof tap);
        tap += static_cast<int>(i * g_.S);
        const V v = load(values_ + slot * width_ + q);
        if (i == r.begin)
          best = {v, tap};
        else
          best.see(v, tap);
        slot += step;
        if (slot >= period_) slot -= period_;
      }
      const int64_t count = least(LANES, g_.Q - q);
      if (q + LANES <= room) {
        store(y + q, best.value);
        Winners<Index>::store(argmax + q, best.tap);
      } else {
        store_part(y + q, best.value, count);
        Winners<Index>::store_part(argmax + q, best.tap, count);
      }
    }
    if (ends()) see_nothing(argmax);
  }

  // Windows that lie in the padding alone.
  template <class Index>
  CK_NOINLINE void see_nothing(Index* argmax) {
    for (int64_t q = 0; q < g_.Q; ++q) {
      if (q == first_) q = last_;
      if (q == g_.Q) break;
      const Range s = taps_inside(g_.left(q), g_.dilation_w, g_.S, g_.W);
      if (s.begin == s.end) argmax[q] = 0;
    }
  }

  const MaxPool& g_;
  int64_t width_, part_,
      period_;            // floats of a row of outputs, and of a remainder's columns; rows of the ring
  int64_t first_, last_;  // outputs whose windows do not stick out, unless all are done one by one
  int64_t inner_;         // taps of those
  const Tap* tap_ = nullptr;
  float *row_ = nullptr, *parts_ = nullptr, *values_ = nullptr;
  std::int32_t* taps_ = nullptr;
};

template <bool USUAL>
class Dgrad {
 public:
  CK_NOINLINE explicit Dgrad(const MaxPool& g) : g_(g), part_(round_up(ceil_div(g.W, g.stride_w), LANES)) {
    apart_ = g.stride_w > NEAR || g.S > g.W;
    inner_ = apart_ ? 0 : g.S;
    int64_t behind = 0;
    for (int64_t s = 0; s < inner_; ++s) {
      const int64_t offset = tap_at(g, s).offset;
      if (reaches(offset)) before_ = most(before_, offset), behind = most(behind, -offset);
    }
    width_ = round_up(before_ + most(g.Q, part_ + behind) + LANES, LANES);
    if (apart_) width_ = round_up(g.Q, LANES);
    period_ = least(g.P, (g.span() - 1) / g.stride_h + 2);  // one more than a row of dx wants: it comes early
  }
  int64_t floats() const {
    return tap_floats(inner_) + 2 * period_ * width_ + parts() + round_up(g_.W, LANES);
  }

  template <class S, class Index>
  void plane(const S* dy, const Index* argmax, S* dx, float* scratch) {
    tap_ = reinterpret_cast<Tap*>(scratch);
    dy_ = fill_taps(g_, inner_, scratch);
    taps_ = reinterpret_cast<std::int32_t*>(dy_ + period_ * width_);
    parts_ = dy_ + 2 * period_ * width_;
    for (int64_t i = 0; i < period_ * width_; ++i) dy_[i] = 0;
    for (int64_t i = 0; i < period_ * width_; ++i) taps_[i] = -1;
    int64_t next = 0;
    for (int64_t h = 0; h < g_.H; ++h) {
      for (; next < least(g_.P, (h + g_.pad_top) / g_.stride_h + 2); ++next) {
        const int64_t at = next % period_ * width_ + before_;
        widen(dy + next * g_.Q, g_.Q, dy_ + at);
        widen_taps(argmax + next * g_.Q, g_.Q, taps_ + at);
      }
      if constexpr (USUAL) {
        usual_row(h, dx + h * g_.W);
      } else {
        write(any_row(h), dx + h * g_.W);
      }
    }
  }

 private:
  int64_t parts() const { return apart_ ? 0 : g_.stride_w * part_; }
  // Whether a tap of that offset may be anything else than padding.
  bool reaches(int64_t offset) const { return offset < part_ && -offset < g_.Q; }

  // What dy at `at` gives to its tap t.
  CK_INLINE V won(int64_t at, int64_t t) const {
    VI tap;
    std::memcpy(&tap, taps_ + at, sizeof tap);
    return masked(tap == VI{} + static_cast<int>(t), load(dy_ + at));
  }

  template <class S>
  CK_INLINE void usual_row(int64_t h, S* dx) {
    const int64_t room = (g_.H - h) * g_.W;
    for (int64_t w = 0; w < g_.W; w += 2 * LANES) {
      V even{}, odd{};
      each_window(h, 2, 1, 3, g_.P, [&](int64_t p, int64_t r) {
        const int64_t at = p % period_ * width_ + before_ + w / 2;
        even += won(at - 1, 3 * r + 2) + won(at, 3 * r);
        odd += won(at, 3 * r + 1);
      });
      put(dx + w, alternate<0>(even, odd, LANE), g_.W - w, room - w);
      put(dx + w + LANES, alternate<LANES / 2>(even, odd, LANE), g_.W - w - LANES, room - w - LANES);
    }
  }
  // `count` elements are wanted; `room` may be written to.
  template <class S>
  CK_INLINE void put(S* dx, V v, int64_t count, int64_t room) {
    if (count <= 0) return;
    if (room >= LANES)
      store(dx, v);
    else
      store_part(dx, v, count);
  }

  // A row of dx, for any window.
  const float* any_row(int64_t h) {
    if (!apart_) {
      gather(h);
      return interleave();
    }
    one_by_one(h);
    return parts_;
  }

  CK_NOINLINE void gather(int64_t h) {
    for (int64_t j = 0; j < g_.stride_w; ++j) {
      for (int64_t i = 0; i < part_; i += LANES) {
        V total{};
        each_window(h + g_.pad_top, g_.stride_h, g_.dilation_h, g_.R, g_.P, [&](int64_t p, int64_t r) {
          const int64_t at = p % period_ * width_ + before_ + i;
          for (int64_t s = 0; s < g_.S; ++s) {
            const Tap t = tap_[s];
            if (t.remainder == j && reaches(t.offset)) total += won(at - t.offset, r * g_.S + s);
          }
        });
        store(parts_ + j * part_ + i, total);
      }
    }
  }

  CK_NOINLINE void one_by_one(int64_t h) {
    for (int64_t w = 0; w < g_.W; ++w) {
      float total = 0;
      each_window(h + g_.pad_top, g_.stride_h, g_.dilation_h, g_.R, g_.P, [&](int64_t p, int64_t r) {
        const int64_t row = p % period_ * width_;
        each_window(w + g_.pad_left, g_.stride_w, g_.dilation_w, g_.S, g_.Q, [&](int64_t q, int64_t s) {
          if (taps_[row + q] == static_cast<std::int32_t>(r * g_.S + s)) total += dy_[row + q];
        });
      });
      parts_[w] = total;
    }
  }

  template <class S>
  CK_NOINLINE void write(const float* row, S* dx) {
    for (int64_t w = 0; w < g_.W; w += LANES) put(dx + w, load(row + w), g_.W - w, g_.W - w);
  }

  // What gather left, in the order of the pixels.
  CK_NOINLINE const float* interleave() {
    const int64_t stride = g_.stride_w;
    if (stride == 1) return parts_;
    float* row = parts_ + stride * part_;
    for (int64_t j = 0; j < least(stride, g_.W); ++j)
      for (int64_t i = 0; i * stride + j < g_.W; ++i) row[i * stride + j] = parts_[j * part_ + i];
    return row;
  }

  const MaxPool& g_;
  bool apart_;     // pixels are done one by one
  int64_t inner_;  // taps of registers
  int64_t part_, before_ = 0, width_, period_;
  const Tap* tap_ = nullptr;
  float *dy_ = nullptr, *parts_ = nullptr;
  std::int32_t* taps_ = nullptr;
};

}  // namespace

template <class S, class Index>
void maxpool2d_fprop_rows(const MaxPool& g, const S* x, S* y, Index* argmax, int threads) {
  const auto run = [&](auto usual) {
    parallel_for(workers(threads, 4 * g.N * g.C * (g.H * g.W + g.P * g.Q)), g.N * g.C, [&](int64_t i) {
      Fprop<decltype(usual)::value> pool(g);
      pool.plane(x + i * g.H * g.W, y + i * g.P * g.Q, argmax + i * g.P * g.Q, local_floats(pool.floats()));
    });
  };
  if constexpr (may_be_usual<Index>) {
    if (g.usual()) return run(std::true_type());
  }
  run(std::false_type());
}

template <class S, class Index>
void maxpool2d_dgrad_rows(const MaxPool& g, const S* dy, const Index* argmax, S* dx, int threads) {
  const auto run = [&](auto usual) {
    parallel_for(workers(threads, 4 * g.N * g.C * (g.H * g.W + g.P * g.Q)), g.N * g.C, [&](int64_t i) {
      Dgrad<decltype(usual)::value> pool(g);
      pool.plane(dy + i * g.P * g.Q, argmax + i * g.P * g.Q, dx + i * g.H * g.W, local_floats(pool.floats()));
    });
  };
  if constexpr (may_be_usual<Index>) {
    if (g.usual()) return run(std::true_type());
  }
  run(std::false_type());
}

#define CK_MAPS(S, Index)                                                        \
  template void maxpool2d_fprop_rows(const MaxPool&, const S*, S*, Index*, int); \
  template void maxpool2d_dgrad_rows(const MaxPool&, const S*, const Index*, S*, int);
#define CK_MAPS_OF(S) CK_MAPS(S, std::uint8_t) CK_MAPS(S, std::uint16_t) CK_MAPS(S, std::uint32_t)
CK_MAPS_OF(float)
CK_MAPS_OF(BFloat16)
CK_MAPS_OF(Float16)

}  // namespace convkit
