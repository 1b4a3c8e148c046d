#include "linear.hpp"
#include "pool.hpp"

namespace convkit {
namespace {

// What a task has in cache: `width` columns c, of up to `images` rows n, and `group` rows k at a time.
struct Extent {
  int64_t width, group, images;
};
constexpr Extent SQUARE{256, 96, 128};
constexpr Extent WIDE{1024, 24, 32};    // few images, memory is the bound: long stretches of w and v, few pages
constexpr Extent WIDEST{1024, 12, 32};  // few indeed: the next rows are asked for in time
constexpr int64_t SPLIT = 384;          // rows k of a task, where no sum runs over them

const Extent& extent(const LinearShape& g) {
  if (g.C < 4 * WIDE.width || g.N > WIDE.images) return SQUARE;  // else there would be few tasks
  return g.N <= 4 ? WIDEST : WIDE;
}

// Panels are PANEL wide, one behind the other.
struct Cache {
  alignas(64) float x[256 * 128];
  alignas(64) float dx[256 * 128];
  alignas(64) float w[256 * 96];
  alignas(64) float dw[256 * 96];
  alignas(64) float dy[128 * 96];
};

// Rows of a matrix, of `width` columns, into panels of `height` rows.
template <class S>
void pack(const S* from, int64_t stride, int64_t rows, int64_t width, float* panels, int64_t height) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width; c += PANEL)
      copy_row(from + r * stride + c, least(PANEL, width - c), panels + c * height + r * PANEL);
  }
}

// Asks for rows that come next, some lines at a time.
template <class S>
struct Ahead {
  const S *w, *v;
  int64_t stride, rows, lines;
  int64_t row = 0, line = 0;

  CK_INLINE void some(int64_t count) {
    for (; count > 0 && row < rows; --count) {
      const int64_t at = row * stride + line * int64_t(64 / sizeof(S));
      if (w) __builtin_prefetch(w + at, 0, 2);
      if (v) __builtin_prefetch(v + at, 0, 2);
      if (++line == lines) {
        line = 0;
        ++row;
      }
    }
  }
};

// The update rule on a row of a panel: w and the gradient from cache, v from memory.
enum class Rule { plain, nesterov, in_velocity };

template <Rule RULE>
CK_INLINE void rule(const Sgd& o, V& w, V dw, V& v) {
  const V gradient = dw + o.weight_decay * w;
  if constexpr (RULE == Rule::in_velocity) {
    v = o.momentum * v - o.lr * gradient;
    w += v;
  } else {
    v = o.momentum * v + o.undamped * gradient;
    w -= o.lr * (RULE == Rule::nesterov ? gradient + o.momentum * v : v);
  }
}

template <class S, Rule RULE>
void update_row(const Sgd& o, const float* w, const float* dw, const S* v, S* w_new, S* v_new, int64_t width) {
  int64_t c = 0;
  for (; c + LANES <= width; c += LANES) {
    V weight = load(w + c), velocity = load(v + c);
    rule<RULE>(o, weight, load(dw + c), velocity);
    store(w_new + c, weight);
    store(v_new + c, velocity);
  }
  if (c < width) {
    V weight = load(w + c), velocity = load_part(v + c, width - c);
    rule<RULE>(o, weight, load(dw + c), velocity);
    store_part(w_new + c, weight, width - c);
    store_part(v_new + c, velocity, width - c);
  }
}

template <class S>
void store_row(const float* from, S* to, int64_t width) {
  int64_t c = 0;
  for (; c + LANES <= width; c += LANES) store(to + c, load(from + c));
  if (c < width) store_part(to + c, load(from + c), width - c);
}

template <class S>
struct Task {
  const LinearBackward<S>& job;
  Range c, k, n;
  Cache& cache;
  const Extent& size;
  int64_t width = c.end - c.begin, images = n.end - n.begin;

  void run() {
    const bool update = job.w_new, gradient = update || job.dw;
    const bool resident = gradient && images <= size.images;
    if (resident) pack(job.x + n.begin * job.g.C + c.begin, job.g.C, images, width, cache.x, size.images);
    for (int64_t group = k.begin; group < k.end; group += size.group) {
      const int64_t rows = least(size.group, k.end - group);
      if (job.w) pack(job.w + group * job.g.C + c.begin, job.g.C, rows, width, cache.w, size.group);
      Ahead<S> ahead = next(group + rows, update);
      if (job.dx || resident) pack_dy(group, rows, n);
      if (job.dx) dgrad(rows, group > k.begin, ahead);
      if (resident) {
        wgrad(group, rows, images, false, true, ahead);
      } else if (gradient) {
        for (int64_t i = n.begin; i < n.end; i += size.images) {
          const Range part{i, least(n.end, i + size.images)};
          pack_dy(group, rows, part);
          pack(job.x + i * job.g.C + c.begin, job.g.C, part.end - i, width, cache.x, size.images);
          wgrad(group, rows, part.end - i, i > n.begin, part.end == n.end, ahead);
        }
      }
    }
    if (job.dx) finish_dx();
  }

  Ahead<S> next(int64_t group, bool update) const {
    const int64_t at = group * job.g.C + c.begin;
    const int64_t rows = job.w ? most(0, least(size.group, k.end - group)) : 0;
    return {job.w + at, update ? job.v + at : nullptr, job.g.C, rows, ceil_div(width * int64_t(sizeof(S)), 64)};
  }

  void pack_dy(int64_t group, int64_t rows, Range part) {
    for (int64_t i = part.begin; i < part.end; ++i)
      copy_row(job.dy + i * job.g.K + group, rows, cache.dy + (i - part.begin) * size.group);
  }

  void dgrad(int64_t rows, bool add, Ahead<S>& ahead) {
    const int64_t tiles = ceil_div(images, PANEL_J);
    const int64_t share = ceil_div(ahead.rows * ahead.lines, ceil_div(width, PANEL) * tiles);
    for (int64_t at = 0; at < width; at += PANEL) {
      const int64_t registers = panel_registers(width - at);
      for (int64_t t = 0; t < tiles; ++t) {
        const Range i = piece(t, tiles, images);
        ahead.some(share);
        panel_product_for(registers, i.end - i.begin)(cache.w + at * size.group, cache.dy + i.begin * size.group, 1, size.group, rows,
                                                      cache.dx + at * size.images + i.begin * PANEL, PANEL, add);
      }
    }
  }

  void wgrad(int64_t group, int64_t rows, int64_t count, bool add, bool last, Ahead<S>& ahead) {
    const int64_t tiles = ceil_div(rows, PANEL_J);
    const int64_t share = ceil_div(ahead.rows * ahead.lines, ceil_div(width, PANEL) * tiles);
    for (int64_t at = 0; at < width; at += PANEL) {
      const int64_t registers = panel_registers(width - at);
      for (int64_t t = 0; t < tiles; ++t) {
        const Range j = piece(t, tiles, rows);
        ahead.some(share);
        panel_product_for(registers, j.end - j.begin)(cache.x + at * size.images, cache.dy + j.begin, size.group, 1, count,
                                                      cache.dw + at * size.group + j.begin * PANEL, PANEL, add);
        if (!last) continue;
        for (int64_t r = j.begin; r < j.end; ++r) finish_row(group, r, at);
      }
    }
  }

  void finish_row(int64_t group, int64_t r, int64_t at) {
    const int64_t to = (group + r) * job.g.C + c.begin + at, part = least(PANEL, width - at);
    const float *w = cache.w + at * size.group + r * PANEL, *dw = cache.dw + at * size.group + r * PANEL;
    if (job.dw) return store_row(dw, job.dw + to, part);
    const auto with = job.sgd.lr_in_velocity ? update_row<S, Rule::in_velocity>
                      : job.sgd.nesterov     ? update_row<S, Rule::nesterov>
                                             : update_row<S, Rule::plain>;
    with(job.sgd, w, dw, job.v + to, job.w_new + to, job.v_new + to, part);
  }

  void finish_dx() {
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t at = 0; at < width; at += PANEL) {
        float* row = cache.dx + at * size.images + i * PANEL;
        const int64_t to = (n.begin + i) * job.g.C + c.begin + at, part = least(PANEL, width - at);
        for (int64_t l = 0; job.relu && l < part; l += LANES)
          store(row + l, where_positive(load_part(job.x + to + l, least(LANES, part - l)), load(row + l)));
        store_row(row, job.dx + to, part);
      }
    }
  }
};

// Tasks: blocks of c; blocks of n for dx, whose sum runs over k, or of k for dw, whose sum runs over n.
template <class S>
void blocks(int threads, const LinearBackward<S>& job) {
  const LinearShape& g = job.g;
  const Extent& size = extent(g);
  const int64_t columns = ceil_div(g.C, size.width);
  const int64_t n_blocks = job.dx ? most(1, ceil_div(g.N, size.images)) : 1;
  const int64_t k_blocks = job.dx ? 1 : ceil_div(g.K, SPLIT);
  parallel_for(threads, columns * n_blocks * k_blocks, [&](int64_t task) {
    Cache cache;
    const int64_t c = task / (n_blocks * k_blocks) * size.width;
    const int64_t n = task % n_blocks * size.images, k = task % k_blocks * SPLIT;
    const Range images = job.dx ? Range{n, least(g.N, n + size.images)} : Range{0, g.N};
    const Range rows = job.dx ? Range{0, g.K} : Range{k, least(g.K, k + SPLIT)};
    Task<S>{job, {c, least(g.C, c + size.width)}, rows, images, cache, size}.run();
  });
}

}  // namespace

template <class S>
void linear_backward(int threads, const LinearBackward<S>& job) {
  if (!(job.dx && (job.dw || job.w_new)) || job.g.N <= SQUARE.images) return blocks(threads, job);
  LinearBackward<S> first = job, second = job;  // one after the other: dx wants the old w
  first.dw = first.w_new = first.v_new = nullptr;
  second.dx = nullptr;
  blocks(threads, first);
  blocks(threads, second);
}

template void linear_backward(int, const LinearBackward<float>&);
template void linear_backward(int, const LinearBackward<BFloat16>&);
template void linear_backward(int, const LinearBackward<Float16>&);

}  // namespace convkit
