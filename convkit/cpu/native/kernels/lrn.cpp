#include "lrn.hpp"

namespace convkit {

LrnRows::LrnRows(const Lrn& given) : g_(given.clamped()) {
  const Lrn& g = g_;
  const int64_t size = g.group();
  ragged_ = g.groups > 1 && size % BLOCK != 0;
  fast_ = !ragged_ && g.usual();
  section_ = ragged_ || g.groups == 1 ? g.blocks() : size / BLOCK;
  pad_ = round_up(most(g_.behind, g_.ahead), BLOCK);
  width_ = pad_ + (g.blocks() / section_) * (section_ * BLOCK + pad_);
  chunk_ = most(2, 1024 / (g.blocks() * BLOCK) / 2 * 2);  // even: a pool of stride 2 is gathered in pairs
}

void LrnRows::prepare(float* scratch) {
  squares_ = scratch;
  terms_ = squares_ + chunk_ * width_;
  direct_ = terms_ + chunk_ * width_;
  std::memset(scratch, 0, size_t(floats()) * sizeof(float));
}

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

template <bool FAST>
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
          const V sum = window<FAST>(squares_ + w * width_ + at + i * LANES, b * BLOCK + i * LANES, g_.behind, g_.ahead);
          V v = load(from + there) * power<FAST>(k + scale * sum, g_.beta).direct;
          if (b == last) v = masked(lanes_below(g_.C - b * BLOCK, i), v);
          store(to + there, v);
        }
      }
    });
  }
}

void LrnRows::fprop(BlockedRow<> x, BlockedRow<float> y) const {
  if (fast_) return fprop_row<true>(x, y);
  fprop_row<false>(x, y);
}

template <bool FAST>
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
          const V sum = window<FAST>(squares_ + here, b * BLOCK + i * LANES, g_.behind, g_.ahead);
          const Power p = power<FAST>(k + scale * sum, g_.beta);
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
          const V sum = window<FAST>(terms_ + here, b * BLOCK + i * LANES, g_.ahead, g_.behind);
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
  if (fast_) return dgrad_row<true>(dy, x, dx, relu);
  dgrad_row<false>(dy, x, dx, relu);
}

void lrn_fprop_blocked(const Lrn& g, const float* x, float* y, int threads) {
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

void lrn_dgrad_blocked(const Lrn& g, const float* dy, const float* x, float* dx, int threads) {
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
