// Fully connected, backward: dx = dy w, dw = dy^T x, and the update of w and v by dw, which is then never
// stored.
//
// Idea      One walk over w does whatever is wanted. A task owns a block of columns c. For a group of rows k
//           it copies w's block to cache, makes its part of dx from it, makes the block of dw from x and dy,
//           and has the update rule turn w, v and dw into the new w and v at once. So w crosses the bus once
//           each way, v once each way; a framework writes dw, reads it again, and reads w twice more.
//           All products are those of linear.hpp: registers of w (for dx) or of x (for dw), along c, in
//           panels; scalars of dy, of which each group has a copy that fits L1 and L2.
// Tiling    SQUARE: 256 columns, 96 rows k, up to 128 images, 430 KB of L2, tiles of 4 x 6 registers. WIDE to
//           WIDEST, for up to 32 images and long rows: 1024 to 3072 columns, since memory is the bound there
//           and each row of w and of v is another page: 1024 were twice as fast as 256, and 2048 take 15 %
//           less again at N = 16. The next group is asked for meanwhile. More than 128 images: first dx, for
//           blocks of images; then dw, block after block added up in cache.
// Tasks     Where dx is wanted, columns and blocks of images make few tasks: then the sum over k is split
//           into pieces of at least LEAST_SPLIT rows, whose parts lie in scratch memory and are added up in
//           order. dw needs no sum over k: its tasks are blocks of SPLIT rows. All of it depends on the shape
//           alone, so do the bits.
// Traffic   w and v read once and written once: 16 bytes a weight in float32, 8 in 16 bits; x once for each
//           task, dy once for each block of columns.
// Bound     To N = 16 or so memory, then FMA: 4 N FLOP a weight.
// Measured  Zen 4, 2 threads, N = 16, forward and backward with the update (bench/results): fc6 42.8 ms, fc7
//           19.3, fc8 6.4, together 2.2 to 2.5 times as fast as PyTorch. fc6's backward alone: 18 ms at N = 1
//           (34 GB/s), 31-36 at 16 (where arithmetic, 10 ms, and traffic, 18, hardly overlap yet), at 128 on
//           one thread 73 % of the FMA probe.
#include "linear.hpp"
#include "thread_pool.hpp"

namespace convkit {
namespace {

// What a task has in cache: `width` columns c, of up to `images` rows n, and `group` rows k at a time.
struct Extent {
  int64_t width, group, images;
};
constexpr Extent SQUARE{256, 96, 128};
// Few images, memory is the bound: long stretches of w and v. The fewer the images, the longer: as much as
// fits.
constexpr Extent WIDE{1024, 24, 32}, WIDER{2048, 12, 16}, WIDEST{3072, 8, 8};
constexpr int64_t SPLIT = 384;        // rows k of a task, where no sum runs over them
constexpr int64_t ENOUGH = 32;        // tasks: with fewer, the sum over k is split as well, and then added up
constexpr int64_t LEAST_SPLIT = 256;  // rows k at the least

const Extent& extent(const LinearShape& g) {
  if (g.C < 4 * WIDE.width || g.N > WIDE.images) return SQUARE;  // else there would be few tasks
  return g.N <= WIDEST.images ? WIDEST : g.N <= WIDER.images ? WIDER : WIDE;
}

// Pieces of the sum over k that makes dx.
int64_t dx_splits(const LinearShape& g) {
  const Extent& size = extent(g);
  const int64_t tasks = ceil_div(g.C, size.width) * most(1, ceil_div(g.N, size.images));
  return most(1, least(ENOUGH / tasks, g.K / LEAST_SPLIT));
}

// Panels are PANEL_M wide, one behind the other.
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
    for (int64_t c = 0; c < width; c += PANEL_M)
      copy_row(from + r * stride + c, least(PANEL_M, width - c), panels + c * height + r * PANEL_M);
  }
}

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
void update_row(const Sgd& o, const float* w, const float* dw, const S* v, S* w_new, S* v_new,
                int64_t width) {
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

// A stretch of dx from its sums, which are overwritten.
template <class S>
void finish_dx(const LinearBackward<S>& job, float* sums, int64_t to, int64_t width) {
  for (int64_t c = 0; job.relu && c < width; c += LANES)
    store(sums + c, where_positive(load_part(job.x + to + c, least(LANES, width - c)), load(sums + c)));
  store_row(sums, job.dx + to, width);
}

template <class S>
struct Task {
  const LinearBackward<S>& job;
  Range c, k, n;
  Cache& cache;
  const Extent& size;
  float* partial;  // where this task's part of dx goes, if it is not dx itself
  int64_t width = c.end - c.begin, images = n.end - n.begin;

  void run() {
    const bool update = job.w_new, gradient = update || job.dw;
    const bool resident = gradient && images <= size.images;
    if (resident) pack(job.x + n.begin * job.g.C + c.begin, job.g.C, images, width, cache.x, size.images);
    for (int64_t group = k.begin; group < k.end; group += size.group) {
      const int64_t rows = least(size.group, k.end - group);
      if (job.w) pack(job.w + group * job.g.C + c.begin, job.g.C, rows, width, cache.w, size.group);
      Ahead<S> ahead = next(group + rows, update, products(rows, gradient));
      if (job.dx || resident) pack_dy(group, rows, n);
      if (job.dx && images) dgrad(rows, group > k.begin, ahead);
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
    if (job.dx) put_dx();
  }

  // Register tiles that are computed while one group of rows is in cache.
  int64_t products(int64_t rows, bool gradient) const {
    const int64_t parts = gradient ? most(1, ceil_div(images, size.images)) : 0;
    return ceil_div(width, PANEL_M) *
           ((job.dx ? ceil_div(images, PANEL_N) : 0) + parts * ceil_div(rows, PANEL_N));
  }

  // Asks for the next group evenly over them: in bursts, the lines would wait for each other, and the tiles
  // for them.
  Ahead<S> next(int64_t group, bool update, int64_t products) const {
    const int64_t at = group * job.g.C + c.begin;
    const int64_t rows = job.w ? most(0, least(size.group, k.end - group)) : 0;
    const int64_t lines = ceil_div(width * int64_t(sizeof(S)), 64);
    return {job.w + at, update ? job.v + at : nullptr,
            job.g.C,    rows,
            lines,      ceil_div(rows * lines, most(1, products))};
  }

  void pack_dy(int64_t group, int64_t rows, Range part) {
    for (int64_t i = part.begin; i < part.end; ++i)
      copy_row(job.dy + i * job.g.K + group, rows, cache.dy + (i - part.begin) * size.group);
  }

  void dgrad(int64_t rows, bool add, Ahead<S>& ahead) {
    const int64_t tiles = ceil_div(images, PANEL_N);
    for (int64_t at = 0; at < width; at += PANEL_M) {
      const int64_t registers = panel_registers(width - at);
      for (int64_t t = 0; t < tiles; ++t) {
        const Range i = piece(t, tiles, images);
        ahead.some(ahead.share);
        const auto product = panel_product_for(registers, i.end - i.begin);
        product(cache.w + at * size.group, cache.dy + i.begin * size.group, 1, size.group, rows,
                cache.dx + at * size.images + i.begin * PANEL_M, PANEL_M, add);
      }
    }
  }

  void wgrad(int64_t group, int64_t rows, int64_t count, bool add, bool last, Ahead<S>& ahead) {
    const int64_t tiles = ceil_div(rows, PANEL_N);
    for (int64_t at = 0; at < width; at += PANEL_M) {
      const int64_t registers = panel_registers(width - at);
      for (int64_t t = 0; t < tiles; ++t) {
        const Range j = piece(t, tiles, rows);
        ahead.some(ahead.share);
        const auto product = panel_product_for(registers, j.end - j.begin);
        product(cache.x + at * size.images, cache.dy + j.begin, size.group, 1, count,
                cache.dw + at * size.group + j.begin * PANEL_M, PANEL_M, add);
        if (!last) continue;
        for (int64_t r = j.begin; r < j.end; ++r) finish_row(group, r, at);
      }
    }
  }

  void finish_row(int64_t group, int64_t r, int64_t at) {
    const int64_t to = (group + r) * job.g.C + c.begin + at, part = least(PANEL_M, width - at);
    const float *w = cache.w + at * size.group + r * PANEL_M, *dw = cache.dw + at * size.group + r * PANEL_M;
    if (job.dw) return store_row(dw, job.dw + to, part);
    const auto with = job.sgd.lr_in_velocity ? update_row<S, Rule::in_velocity>
                      : job.sgd.nesterov     ? update_row<S, Rule::nesterov>
                                             : update_row<S, Rule::plain>;
    with(job.sgd, w, dw, job.v + to, job.w_new + to, job.v_new + to, part);
  }

  void put_dx() {
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t at = 0; at < width; at += PANEL_M) {
        float* row = cache.dx + at * size.images + i * PANEL_M;
        const int64_t to = (n.begin + i) * job.g.C + c.begin + at, part = least(PANEL_M, width - at);
        if (partial)
          store_row(row, partial + to, part);
        else
          finish_dx(job, row, to, part);
      }
    }
  }
};

// Adds up the parts of dx, in their order.
template <class S>
void add_parts(int threads, const LinearBackward<S>& job, int64_t splits) {
  constexpr int64_t STRETCH = 1024;
  const int64_t size = job.g.N * job.g.C;
  parallel_for(threads, ceil_div(size, STRETCH), [&](int64_t task) {
    float sums[STRETCH];
    const int64_t at = task * STRETCH, count = least(STRETCH, size - at);
    copy_row(job.scratch + at, count, sums);
    for (int64_t i = 1; i < splits; ++i) {
      const float* part = job.scratch + i * size + at;
      int64_t c = 0;
      for (; c + LANES <= count; c += LANES) store(sums + c, load(sums + c) + load(part + c));
      for (; c < count; ++c) sums[c] += part[c];
    }
    finish_dx(job, sums, at, count);
  });
}

// Tasks: blocks of c; of n, for dx, whose sum runs over k, of which pieces are added up where tasks are few;
// of k for dw, whose sum runs over n.
template <class S>
void blocks(int threads, const LinearBackward<S>& job) {
  const LinearShape& g = job.g;
  const Extent& size = extent(g);
  const int64_t columns = ceil_div(g.C, size.width);
  const int64_t n_blocks = job.dx ? most(1, ceil_div(g.N, size.images)) : 1;
  const int64_t k_blocks = job.dx ? dx_splits(g) : ceil_div(g.K, SPLIT);
  parallel_for(threads, columns * n_blocks * k_blocks, [&](int64_t task) {
    Cache cache;
    const int64_t k = task % k_blocks, n = task / k_blocks % n_blocks * size.images;
    const int64_t c = task / (k_blocks * n_blocks) * size.width;
    const Range images = job.dx ? Range{n, least(g.N, n + size.images)} : Range{0, g.N};
    float* partial = job.dx && k_blocks > 1 ? job.scratch + k * g.N * g.C : nullptr;
    Task<S>{job, {c, least(g.C, c + size.width)}, piece(k, k_blocks, g.K), images, cache, size, partial}
        .run();
  });
  if (job.dx && k_blocks > 1) add_parts(threads, job, k_blocks);
}

}  // namespace

int64_t linear_backward_panels_floats(const LinearShape& g) {
  const int64_t splits = dx_splits(g);
  return splits > 1 ? splits * g.N * g.C : 0;
}

template <class S>
void linear_backward_panels(const LinearBackward<S>& job, int threads) {
  if (!(job.dx && (job.dw || job.w_new)) || job.g.N <= SQUARE.images) return blocks(threads, job);
  LinearBackward<S> first = job, second = job;  // one after the other: dx wants the old w
  first.dw = first.w_new = first.v_new = nullptr;
  second.dx = nullptr;
  blocks(threads, first);
  blocks(threads, second);
}

template void linear_backward_panels(const LinearBackward<float>&, int);
template void linear_backward_panels(const LinearBackward<BFloat16>&, int);
template void linear_backward_panels(const LinearBackward<Float16>&, int);

}  // namespace convkit
