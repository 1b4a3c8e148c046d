// Fully connected, forward: y[n,k] = b[k] + sum over c of x[n,c] w[k,c], and ReLU.
//
// Idea      The weights are the traffic: 151 MB in AlexNet's fc6. They are read row by row, as they lie,
//           once. What is packed is x, which is small. 16-bit storage is widened on the way, and rounded once
//           at the end.
//           Few images (24 of AVX-512, else 12): dot products along c, DOT_ROWS rows of w by DOT_IMAGES
//           images of accumulators, straight from w; a register's lanes are added up once, behind the last c.
//           More: vectors of images. x is transposed once into panels [c][PANEL_M], a block of w is copied to
//           cache, and its numbers are the scalars that are broadcast (linear.hpp).
// Tiling    Dots: a task is DOT_TASK rows, in sets of 4, which meet up to 6 images at a time: 10 loads for 24
//           FMAs. Up to 6 images, a set is read from its first c to its last; with more, all sets go through
//           DOT_CHUNK of c, so that a chunk of x serves them from cache. Panels: a task is TASK_N rows by
//           TASK_M images, TASK_K of c at a time (48 x 256 of w and 256 x 128 of x, 180 KB, in L2), tiles of
//           4 x 6 registers.
// Traffic   w once for each TASK_M images, x once for each task (from L2 or L3), y once. Rows of w are C
//           apart, often a power of two, where they would meet in one set of L1: hence the copy, in rows of
//           TASK_K + 16.
// Bound     N = 1 ... 8: memory. From 32 on: FMA. The next rows are asked for while these are worked on.
// Bits      A task depends on the shape alone, not on the number of threads.
// Measured  Zen 4, fc6: N = 1 in 4.5 ms on 2 threads, 34 GB/s; N = 16 in 19 ms and N = 128 in 100 ms on one
//           thread, 64 and 97 of 115 GFLOP/s.
#include "linear.hpp"
#include "thread_pool.hpp"

namespace convkit {
namespace {

// ---------------------------------------------------------------------------------------------------
// Few images: dot products along c
// ---------------------------------------------------------------------------------------------------
constexpr int DOT_ROWS = 4;
constexpr int DOT_IMAGES = REGISTERS == 32 ? 6 : 2;
constexpr int64_t DOT_N = REGISTERS == 32 ? 24 : 12;  // up to so many images
constexpr int64_t DOT_CHUNK =
    384;  // of c, where the images are more than one group: 5 % faster than 256 or 512 at N = 8 and 16
constexpr int64_t NEAR = 512;     // bytes of a row that are asked for early, where they are not
constexpr int64_t DOT_TASK = 16;  // rows of w

int64_t dot_stride(int64_t C) { return round_up(C, 16) + 16; }

// The rows of w that are worked on, and AHEAD of those that come next, which are asked for meanwhile: a line
// for each step, since a burst would fill the buffers of misses and hold up everything behind it.
template <class S>
struct Rows {
  const S* now[DOT_ROWS];
  const S* next[DOT_ROWS];
};

// sums[m * DOT_ROWS + r] += row r of w, times image m, over a chunk of c.
template <class S, int M, int AHEAD>
void dot_chunk(const Rows<S>& w, const float* x, int64_t x_row, int64_t count, V* sums) {
  V acc[DOT_ROWS][M];
  CK_UNROLL
  for (int r = 0; r < DOT_ROWS; ++r) {
    CK_UNROLL
    for (int m = 0; m < M; ++m) acc[r][m] = sums[m * DOT_ROWS + r];
  }
  const auto step = [&](int64_t c, const V(&rows)[DOT_ROWS]) {
    CK_UNROLL
    for (int m = 0; m < M; ++m) {
      const V image = load(x + m * x_row + c);
      CK_UNROLL
      for (int r = 0; r < DOT_ROWS; ++r) acc[r][m] += rows[r] * image;
    }
  };
  int64_t c = 0;
  V rows[DOT_ROWS];
  for (; c + LANES <= count; c += LANES) {
    CK_UNROLL
    for (int r = 0; r < AHEAD; ++r) __builtin_prefetch(w.next[r] + c);
    CK_UNROLL
    for (int r = 0; r < DOT_ROWS; ++r) rows[r] = load(w.now[r] + c);
    step(c, rows);
  }
  if (c < count) {
    for (int r = 0; r < DOT_ROWS; ++r) rows[r] = load_part(w.now[r] + c, count - c);
    step(c, rows);
  }
  CK_UNROLL
  for (int r = 0; r < DOT_ROWS; ++r) {
    CK_UNROLL
    for (int m = 0; m < M; ++m) sums[m * DOT_ROWS + r] = acc[r][m];
  }
}

template <class S>
using DotChunk = void (*)(const Rows<S>&, const float*, int64_t, int64_t, V*);

// For so many images; `alone` where the chunk has no other group of images to share the asking with.
template <class S>
DotChunk<S> dot_chunk_for(int64_t images, bool alone) {
#if CK_LANES == 16 || defined(__aarch64__)
  static constexpr DotChunk<S> one[] = {dot_chunk<S, 1, 4>, dot_chunk<S, 2, 4>, dot_chunk<S, 3, 4>,
                                        dot_chunk<S, 4, 4>, dot_chunk<S, 5, 4>, dot_chunk<S, 6, 4>};
  static constexpr DotChunk<S> several[] = {dot_chunk<S, 3, 2>, dot_chunk<S, 4, 2>, dot_chunk<S, 5, 2>,
                                            dot_chunk<S, 6, 2>};
  return alone ? one[images - 1] : several[images - 3];
#else
  static constexpr DotChunk<S> one[] = {dot_chunk<S, 1, 4>, dot_chunk<S, 2, 4>};
  static constexpr DotChunk<S> several[] = {dot_chunk<S, 1, 2>, dot_chunk<S, 2, 2>};
  return (alone ? one : several)[images - 1];
#endif
}

// Sum of the lanes, in one fixed order.
float total(const V& v) {
  typedef float Quarter __attribute__((vector_size(16)));
  const auto* parts = reinterpret_cast<const Quarter*>(&v);
  Quarter q = parts[0];
  CK_UNROLL
  for (int i = 1; i < LANES / 4; ++i) q += parts[i];
  return (q[0] + q[2]) + (q[1] + q[3]);
}

// Rows [k0, k0 + DOT_TASK) of w, with every image: sums[n * DOT_TASK + r]. Chunk by chunk of c, so that a
// chunk of x serves all the rows from cache.
template <class S>
void dot_rows(const LinearShape& g, const float* x, const S* w, int64_t k0, float* sums) {
  constexpr int64_t SETS = DOT_TASK / DOT_ROWS;
  const int64_t stride = dot_stride(g.C), groups = ceil_div(g.N, DOT_IMAGES);
  V acc[SETS][DOT_N * DOT_ROWS];
  for (auto& set : acc) {
    for (int64_t i = 0; i < g.N * DOT_ROWS; ++i) set[i] = V{};
  }
  const auto row = [&](int64_t r, int64_t c) { return w + least(k0 + r, g.K - 1) * g.C + c; };
  // One group of images reads w as fast as memory gives it: whole rows, so that it is read in order.
  const int64_t chunk = groups == 1 ? g.C : DOT_CHUNK;
  for (int64_t c = 0; c < g.C; c += chunk) {
    const int64_t after = c + chunk < g.C ? c + chunk : 0, count = least(chunk, g.C - c);
    for (int64_t set = 0; set < SETS; ++set) {
      Rows<S> rows;
      for (int r = 0; r < DOT_ROWS; ++r) rows.now[r] = row(set * DOT_ROWS + r, c);
      for (int64_t i = 0; i < groups; ++i) {
        const Range n = piece(i, groups, g.N), asked = piece(i, groups, DOT_ROWS);
        for (int64_t r = 0; r < DOT_ROWS; ++r) {
          const int64_t ahead = least(asked.begin + r, most(asked.begin, asked.end - 1));
          rows.next[r] = set + 1 < SETS ? row((set + 1) * DOT_ROWS + ahead, c) : row(ahead, after);
          if (groups == 1) rows.next[r] = rows.now[r] + NEAR / sizeof(S);
        }
        const auto dots = dot_chunk_for<S>(n.end - n.begin, groups == 1);
        dots(rows, x + n.begin * stride + c, stride, count, acc[set] + n.begin * DOT_ROWS);
      }
    }
  }
  for (int64_t n = 0; n < g.N; ++n) {
    for (int64_t r = 0; r < DOT_TASK; ++r)
      sums[n * DOT_TASK + r] = total(acc[r / DOT_ROWS][n * DOT_ROWS + r % DOT_ROWS]);
  }
}

// y[0 ... height) from its sums.
template <class S>
void finish(const float* sums, const S* b, S* y, int64_t height, bool relu) {
  for (int64_t k = 0; k < height; k += LANES) {
    const int64_t count = least(LANES, height - k);
    V v = load_part(sums + k, count);
    if (b) v += load_part(b + k, count);
    store_part(y + k, relu ? convkit::relu(v) : v, count);
  }
}

template <class S>
void fprop_dot(int threads, const LinearShape& g, const S* x, const S* w, const S* b, S* y, bool relu,
               float* scratch) {
  parallel_for(g.N > 1 ? threads : 1, g.N,
               [&](int64_t n) { copy_row(x + n * g.C, g.C, scratch + n * dot_stride(g.C)); });
  parallel_for(threads, ceil_div(g.K, DOT_TASK), [&](int64_t task) {
    float sums[DOT_N * DOT_TASK];
    const int64_t k = task * DOT_TASK, height = least(DOT_TASK, g.K - k);
    dot_rows(g, scratch, w, k, sums);
    for (int64_t n = 0; n < g.N; ++n)
      finish(sums + n * DOT_TASK, b ? b + k : nullptr, y + n * g.K + k, height, relu);
  });
}

// ---------------------------------------------------------------------------------------------------
// Many images: panels of images
// ---------------------------------------------------------------------------------------------------
// What a task has in cache: TASK_M images by TASK_N rows of w, TASK_K of c at a time.
constexpr int64_t TASK_K = 256;
constexpr int64_t ROW = TASK_K + 16;  // in cache: rows a power of two apart would meet in one set
constexpr int64_t TASK_N = 8 * PANEL_N;
constexpr int64_t TASK_M = 128;

// Panel p of x, transposed: for each c, PANEL_M images (zeros behind the last).
template <class S>
void transpose_panel(const LinearShape& g, const S* x, int64_t p, int64_t c0, float* panels) {
  float row[TASK_K];
  const int64_t count = least(TASK_K, g.C - c0), images = least(PANEL_M, g.N - p * PANEL_M);
  float* to = panels + p * PANEL_M * g.C + c0 * PANEL_M;
  for (int64_t n = 0; n < panel_registers(images) * LANES; ++n) {
    if (n < images) {
      copy_row(x + (p * PANEL_M + n) * g.C + c0, count, row);
    } else if (n == images) {
      std::memset(row, 0, sizeof row);
    }
    for (int64_t c = 0; c < count; ++c) to[c * PANEL_M + n] = row[c];
  }
}

template <class S>
void panel_block(const LinearShape& g, const float* panels, const S* w, const S* b, S* y, bool relu, Range k,
                 Range n) {
  alignas(64) float sums[TASK_N * TASK_M];
  alignas(64) float rows[TASK_N * ROW];
  const int64_t height = k.end - k.begin, tiles = ceil_div(height, PANEL_N);
  const int64_t widths = ceil_div(n.end - n.begin, PANEL_M);
  for (int64_t c = 0; c < g.C; c += TASK_K) {
    const int64_t count = least(TASK_K, g.C - c), next = least(TASK_K, g.C - c - count);
    for (int64_t r = 0; r < height; ++r) copy_row(w + (k.begin + r) * g.C + c, count, rows + r * ROW);
    const S* after = w + k.begin * g.C + c + count;
    Ahead<S> ahead{after, nullptr, g.C, next ? height : 0, ceil_div(next * int64_t(sizeof(S)), 64)};
    const int64_t share = ceil_div(height * ahead.lines, tiles * widths);
    for (int64_t p = 0; p < widths; ++p) {
      const float* a = panels + (n.begin + p * PANEL_M) * g.C + c * PANEL_M;
      const int64_t registers = panel_registers(n.end - n.begin - p * PANEL_M);
      for (int64_t t = 0; t < tiles; ++t) {
        const Range j = piece(t, tiles, height);
        ahead.some(share);
        panel_product_for(registers, j.end - j.begin)(a, rows + j.begin * ROW, 1, ROW, count,
                                                      sums + j.begin * TASK_M + p * PANEL_M, TASK_M, c > 0);
      }
    }
  }
  for (int64_t i = n.begin; i < n.end; ++i) {
    float row[TASK_N];
    for (int64_t r = 0; r < height; ++r) row[r] = sums[r * TASK_M + i - n.begin];
    finish(row, b ? b + k.begin : nullptr, y + i * g.K + k.begin, height, relu);
  }
}

template <class S>
void fprop_panels(int threads, const LinearShape& g, const S* x, const S* w, const S* b, S* y, bool relu,
                  float* scratch) {
  const int64_t chunks = ceil_div(g.C, TASK_K), blocks = ceil_div(g.N, TASK_M), tasks = ceil_div(g.K, TASK_N);
  parallel_for(threads, chunks * ceil_div(g.N, PANEL_M),
               [&](int64_t task) { transpose_panel(g, x, task / chunks, task % chunks * TASK_K, scratch); });
  parallel_for(threads, tasks * blocks, [&](int64_t task) {
    const int64_t n = task % blocks * TASK_M;
    panel_block(g, scratch, w, b, y, relu, piece(task / blocks, tasks, g.K), {n, least(n + TASK_M, g.N)});
  });
}

}  // namespace

int64_t linear_fprop_panels_floats(const LinearShape& g) {
  return g.N <= DOT_N ? g.N * dot_stride(g.C) : round_up(g.N, PANEL_M) * g.C;
}

template <class S>
void linear_fprop_panels(const LinearShape& g, const S* x, const S* w, const S* b, S* y, bool relu,
                         float* scratch, int threads) {
  (g.N <= DOT_N ? fprop_dot<S> : fprop_panels<S>)(threads, g, x, w, b, y, relu, scratch);
}

template void linear_fprop_panels(const LinearShape&, const float*, const float*, const float*, float*, bool,
                                  float*, int);
template void linear_fprop_panels(const LinearShape&, const BFloat16*, const BFloat16*, const BFloat16*,
                                  BFloat16*, bool, float*, int);
template void linear_fprop_panels(const LinearShape&, const Float16*, const Float16*, const Float16*,
                                  Float16*, bool, float*, int);

}  // namespace convkit
