// Blocked: lrn.hpp argues the kernels.
#include "lrn.hpp"

#include <utility>

namespace convkit {

LrnRows::LrnRows(const Lrn& given) : g_(given.clamped()) {
  const Lrn& g = g_;
  const int64_t size = g.group();
  ragged_ = g.groups > 1 && size % BLOCK != 0;
  usual_ = !ragged_ && g.five() && g.root();
  section_ = ragged_ || g.groups == 1 ? g.blocks() : size / BLOCK;
  pad_ = round_up(most(g_.behind, g_.ahead), BLOCK);
  width_ = pad_ + (g.blocks() / section_) * (section_ * BLOCK + pad_);
  chunk_ = most(1, 1024 / (g.blocks() * BLOCK));
}

void LrnRows::prepare(float* scratch) {
  squares_ = scratch;
  terms_ = squares_ + chunk_ * width_;
  direct_ = terms_ + chunk_ * width_;
  std::memset(scratch, 0, size_t(floats()) * sizeof(float));
}

// ---------------------------------------------------------------------------------------------------
// Any window
// ---------------------------------------------------------------------------------------------------
void LrnRows::squares(BlockedRow<> x, int64_t w0, int64_t n) const {
  each_block([&](int64_t b, int64_t at) {
    const float* from = x.p + b * x.stride + w0 * BLOCK;
    for (int64_t w = 0; w < n; ++w) {
      CK_UNROLL
      for (int i = 0; i < PARTS; ++i) {
        const V v = load(from + w * BLOCK + i * LANES);
        store(squares_ + w * width_ + at + i * LANES, v * v);
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------------
// AlexNet's window: a pixel's channels go through registers
// ---------------------------------------------------------------------------------------------------
namespace {

// Floats ahead that are asked for, four pixels of a block: 16 blocks of two or three tensors are more streams
// than the hardware keeps apart.
constexpr int64_t AHEAD = 4 * BLOCK;

// The register of lanes D before those of b, or behind those of a; a comes before b.
template <int D, int... L>
CK_INLINE V before(V a, V b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (LANES - D + L)...);
}
template <int D, int... L>
CK_INLINE V behind(V a, V b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (D + L)...);
}
CK_INLINE V five(V a, V b, V c) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>();
  return ((before<2>(a, b, lanes) + before<1>(a, b, lanes)) +
          (behind<1>(b, c, lanes) + behind<2>(b, c, lanes))) +
         b;
}

}  // namespace

void LrnRows::fprop_pixels(BlockedRow<> x, BlockedRow<float> y) const {
  const V k = splat(g_.k), scale = splat(g_.scale);
  const int64_t last = g_.C / BLOCK;
  for (int64_t w = 0; w < g_.W; ++w) {
    for (int64_t b = 0; b < g_.blocks();) {
      const float* from = x.p + b * x.stride + w * BLOCK;
      float* to = y.p + b * y.stride + w * BLOCK;
      V x_b = load(from), a{}, s = x_b * x_b;
      for (int64_t i = section_; i > 0; --i, ++b, to += y.stride) {
        __builtin_prefetch(from + AHEAD);
        __builtin_prefetch(to + AHEAD, 1);
        from += x.stride;
        CK_UNROLL
        for (int part = 0; part < PARTS; ++part) {
          V x_c{};
          if (part + 1 < PARTS)
            x_c = load(from - x.stride + (part + 1) * LANES);
          else if (i > 1)
            x_c = load(from);
          const V c = x_c * x_c;
          V v = x_b * power<true>(k + scale * five(a, s, c), g_.beta).direct;
          if (b == last) v = masked(lanes_below(g_.C - b * BLOCK, part), v);
          store(to + part * LANES, v);
          a = s;
          s = c;
          x_b = x_c;
        }
      }
    }
  }
}

void LrnRows::dgrad_pixels(BlockedRow<> dy, BlockedRow<> x, BlockedRow<float> dx, bool relu) const {
  const V k = splat(g_.k), scale = splat(g_.scale), coefficient = splat(g_.coefficient);
  const int64_t last = g_.C / BLOCK;
  for (int64_t w = 0; w < g_.W; ++w) {
    for (int64_t b = 0; b < g_.blocks();) {
      const float* from = x.p + b * x.stride + w * BLOCK;
      const float* gradient = dy.p + b * dy.stride + w * BLOCK;
      float* to = dx.p + b * dx.stride + w * BLOCK;
      V x_b = load(from), a{}, s = x_b * x_b;
      V term_a{}, term_b{}, direct{}, x_a{};  // of two registers ago, and of the last one
      const auto finish = [&](int64_t block, int part, float* block_dx, V term) {
        V v = direct - coefficient * x_a * five(term_a, term_b, term);
        if (relu) v = where_positive(x_a, v);
        if (block == last) v = masked(lanes_below(g_.C - block * BLOCK, part), v);
        store(block_dx + part * LANES, v);
      };
      for (int64_t i = 0; i < section_; ++i, ++b, to += dx.stride, gradient += dy.stride) {
        __builtin_prefetch(from + AHEAD);
        __builtin_prefetch(gradient + AHEAD);
        __builtin_prefetch(to + AHEAD, 1);
        from += x.stride;
        CK_UNROLL
        for (int part = 0; part < PARTS; ++part) {
          V x_c{};
          if (part + 1 < PARTS)
            x_c = load(from - x.stride + (part + 1) * LANES);
          else if (i + 1 < section_)
            x_c = load(from);
          const V c = x_c * x_c, dy_v = load(gradient + part * LANES);
          const Power p = power<true>(k + scale * five(a, s, c), g_.beta);
          V term = dy_v * x_b * p.steep;
          if (b == last) term = masked(lanes_below(g_.C - b * BLOCK, part), term);
          if (part > 0)
            finish(b, part - 1, to, term);
          else if (i > 0)
            finish(b - 1, PARTS - 1, to - dx.stride, term);
          term_a = term_b;
          term_b = term;
          direct = dy_v * p.direct;
          x_a = x_b;
          a = s;
          s = c;
          x_b = x_c;
        }
      }
      finish(b - 1, PARTS - 1, to - dx.stride, V{});
    }
  }
}

// Sum of the taps around the register at `at`, whose first lane is that channel.
V LrnRows::window(const float* at, int64_t channel, int64_t behind, int64_t ahead) const {
  V total{};
  for (int64_t o = -behind; o <= ahead; ++o) {
    V tap = load(at + o);
    if (ragged_) {
      const int64_t size = g_.C / g_.groups;
      for (int l = 0; l < LANES; ++l) {
        const int64_t c = channel + l;
        if (c + o < 0 || (c + o) / size != c / size) tap[l] = 0;
      }
    }
    total += tap;
  }
  return total;
}

template <bool ROOT>
void LrnRows::fprop_row(BlockedRow<> x, BlockedRow<float> y) const {
  const V k = splat(g_.k), scale = splat(g_.scale);
  const int64_t last = g_.C / BLOCK;
  for (int64_t w0 = 0; w0 < g_.W; w0 += chunk_) {
    const int64_t n = least(chunk_, g_.W - w0);
    squares(x, w0, n);
    each_block([&](int64_t b, int64_t at) {
      const float* from = x.p + b * x.stride + w0 * BLOCK;
      float* to = y.p + b * y.stride + w0 * BLOCK;
      for (int64_t w = 0; w < n; ++w) {
        CK_UNROLL
        for (int i = 0; i < PARTS; ++i) {
          const int64_t there = w * BLOCK + i * LANES;
          const V sum =
              window(squares_ + w * width_ + at + i * LANES, b * BLOCK + i * LANES, g_.behind, g_.ahead);
          V v = load(from + there) * power<ROOT>(k + scale * sum, g_.beta).direct;
          if (b == last) v = masked(lanes_below(g_.C - b * BLOCK, i), v);
          store(to + there, v);
        }
      }
    });
  }
}

void LrnRows::fprop(BlockedRow<> x, BlockedRow<float> y) const {
  if (usual_) return fprop_pixels(x, y);
  g_.root() ? fprop_row<true>(x, y) : fprop_row<false>(x, y);
}

template <bool ROOT>
void LrnRows::dgrad_row(BlockedRow<> dy, BlockedRow<> x, BlockedRow<float> dx, bool relu) const {
  const V k = splat(g_.k), scale = splat(g_.scale), coefficient = splat(g_.coefficient);
  const int64_t last = g_.C / BLOCK;  // the block with spare channels, if there is one
  for (int64_t w0 = 0; w0 < g_.W; w0 += chunk_) {
    const int64_t n = least(chunk_, g_.W - w0);
    squares(x, w0, n);
    each_block([&](int64_t b, int64_t at) {
      const float* gradient = dy.p + b * dy.stride + w0 * BLOCK;
      const float* from = x.p + b * x.stride + w0 * BLOCK;
      for (int64_t w = 0; w < n; ++w) {
        CK_UNROLL
        for (int i = 0; i < PARTS; ++i) {
          const int64_t here = w * width_ + at + i * LANES, there = w * BLOCK + i * LANES;
          const V sum = window(squares_ + here, b * BLOCK + i * LANES, g_.behind, g_.ahead);
          const Power p = power<ROOT>(k + scale * sum, g_.beta);
          const V dy_v = load(gradient + there);
          store(direct_ + here, dy_v * p.direct);
          V term = dy_v * load(from + there) * p.steep;
          if (b == last) term = masked(lanes_below(g_.C - b * BLOCK, i), term);
          store(terms_ + here, term);
        }
      }
    });
    each_block([&](int64_t b, int64_t at) {
      const float* from = x.p + b * x.stride + w0 * BLOCK;
      float* to = dx.p + b * dx.stride + w0 * BLOCK;
      for (int64_t w = 0; w < n; ++w) {
        CK_UNROLL
        for (int i = 0; i < PARTS; ++i) {
          const int64_t here = w * width_ + at + i * LANES, there = w * BLOCK + i * LANES;
          const V sum = window(terms_ + here, b * BLOCK + i * LANES, g_.ahead, g_.behind);
          const V x_v = load(from + there);
          V dx_v = load(direct_ + here) - coefficient * x_v * sum;
          if (relu) dx_v = where_positive(x_v, dx_v);
          if (b == last) dx_v = masked(lanes_below(g_.C - b * BLOCK, i), dx_v);
          store(to + there, dx_v);
        }
      }
    });
  }
}

void LrnRows::dgrad(BlockedRow<> dy, BlockedRow<> x, BlockedRow<float> dx, bool relu) const {
  if (usual_) return dgrad_pixels(dy, x, dx, relu);
  g_.root() ? dgrad_row<true>(dy, x, dx, relu) : dgrad_row<false>(dy, x, dx, relu);
}

void lrn_fprop_rows_blocked(const Lrn& g, const float* x, float* y, int threads) {
  const int64_t cut = bands(g.N, g.H, 4);
  parallel_for(workers(threads, 8 * g.N * g.image()), g.N * cut, [&](int64_t task) {
    LrnRows rows(g);
    rows.prepare(local_floats(rows.floats()));
    const Range band = piece(task % cut, cut, g.H);
    for (int64_t h = band.begin; h < band.end; ++h) {
      const int64_t at = task / cut * g.image() + h * g.W * BLOCK;
      rows.fprop({x + at, g.plane()}, {y + at, g.plane()});
    }
  });
}

void lrn_dgrad_rows_blocked(const Lrn& g, const float* dy, const float* x, float* dx, int threads) {
  const int64_t cut = bands(g.N, g.H, 4);
  parallel_for(workers(threads, 12 * g.N * g.image()), g.N * cut, [&](int64_t task) {
    LrnRows rows(g);
    rows.prepare(local_floats(rows.floats()));
    const Range band = piece(task % cut, cut, g.H);
    for (int64_t h = band.begin; h < band.end; ++h) {
      const int64_t at = task / cut * g.image() + h * g.W * BLOCK;
      rows.dgrad({dy + at, g.plane()}, {x + at, g.plane()}, {dx + at, g.plane()}, false);
    }
  });
}

}  // namespace convkit
