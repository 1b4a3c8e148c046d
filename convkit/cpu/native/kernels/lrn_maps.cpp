// Local response normalisation across channels of NCHW arrays.
//
// Idea      A register holds neighbouring pixels of one channel. A task is a piece of the pixels of a group
//           of channels, and goes down them: the squares of the last `size` of them are kept in a ring of
//           rows, so that a window's sum is `size` aligned loads out of L1, and nothing is read twice from
//           memory. Backward, a second ring holds dy x d^(-beta-1), and a third dy d^-beta, until the
//           channels that a window reaches are there.
// Traffic   fprop reads x and writes y; dgrad reads dy and x and writes dx: 8 and 12 bytes per float.
// Power     as in lrn.hpp.
// Measured  Zen 4, AVX-512, one thread: 16 elements take 30 cycles forward and 45 backward; from memory, N =
//           16, 41-45 and 70-78.
#include "lrn.hpp"

namespace convkit {
namespace {

// The rows of a ring, and what to add up where a window ends at its group's edge.
struct Rings {
  int64_t rows, width;
  float* memory;

  float* ring(int64_t which, int64_t line) const { return memory + (which * rows + line % rows) * width; }
  float* zeros() const { return memory + 3 * rows * width; }
  static int64_t floats(int64_t rows, int64_t width) { return (3 * rows + 1) * width; }
};

// f(i, sum of lines [first, last] of a ring that exist) for each register i of the row.
template <bool FIVE, class F>
CK_INLINE void windows(const Rings& r, int64_t which, int64_t first, int64_t last, int64_t lines, int64_t n,
                       const F& f) {
  if constexpr (FIVE) {
    const float* row[5];
    for (int64_t o = 0; o < 5; ++o) {
      const int64_t line = first + o;
      row[o] = line >= 0 && line < lines ? r.ring(which, line) : r.zeros();
    }
    for (int64_t i = 0; i < n; i += LANES)
      f(i,
        ((load(row[0] + i) + load(row[1] + i)) + (load(row[3] + i) + load(row[4] + i))) + load(row[2] + i));
  } else {
    for (int64_t i = 0; i < n; i += LANES) {
      V total{};
      for (int64_t line = most(0, first); line <= least(lines - 1, last); ++line)
        total += load(r.ring(which, line) + i);
      f(i, total);
    }
  }
}

// A register of a row of n elements, of which the last one may be short.
template <class S>
CK_INLINE V get(const S* p, int64_t i, int64_t n) {
  return i + LANES <= n ? load(p + i) : load_part(p + i, n - i);
}
template <class S>
CK_INLINE void put(S* p, V v, int64_t i, int64_t n) {
  if (i + LANES <= n)
    store(p + i, v);
  else
    store_part(p + i, v, n - i);
}

template <bool FIVE, bool ROOT, class S>
void fprop_piece(const Lrn& g, const Rings& r, int64_t n, const S* x, S* y) {
  const int64_t lines = g.group(), pitch = g.H * g.W;
  const V k = splat(g.k), scale = splat(g.scale);
  for (int64_t line = 0; line < lines + g.ahead; ++line) {
    if (line < lines) {
      const S* from = x + line * pitch;
      float* to = r.ring(0, line);
      for (int64_t i = 0; i < n; i += LANES) {
        __builtin_prefetch(from + pitch + i);  // each row is a new stream to the hardware
        const V v = get(from, i, n);
        store(to + i, v * v);
      }
    }
    const int64_t c = line - g.ahead;
    if (c < 0) continue;
    windows<FIVE>(r, 0, c - g.behind, c + g.ahead, lines, n, [&](int64_t i, V sum) {
      __builtin_prefetch(y + (c + 1) * pitch + i, 1);
      put(y + c * pitch, get(x + c * pitch, i, n) * power<ROOT>(k + scale * sum, g.beta).direct, i, n);
    });
  }
}

template <bool FIVE, bool ROOT, class S>
void dgrad_piece(const Lrn& g, const Rings& r, int64_t n, const S* dy, const S* x, S* dx) {
  const int64_t lines = g.group(), pitch = g.H * g.W;
  const V k = splat(g.k), scale = splat(g.scale), coefficient = splat(g.coefficient);
  for (int64_t line = 0; line < lines + g.ahead + g.behind; ++line) {
    if (line < lines) {
      const S* from = x + line * pitch;
      float* to = r.ring(0, line);
      for (int64_t i = 0; i < n; i += LANES) {
        __builtin_prefetch(from + pitch + i);  // each row is a new stream to the hardware
        const V v = get(from, i, n);
        store(to + i, v * v);
      }
    }
    const int64_t middle = line - g.ahead;
    if (middle >= 0 && middle < lines) {
      float *terms = r.ring(1, middle), *direct = r.ring(2, middle);
      windows<FIVE>(r, 0, middle - g.behind, middle + g.ahead, lines, n, [&](int64_t i, V sum) {
        const Power p = power<ROOT>(k + scale * sum, g.beta);
        __builtin_prefetch(dy + (middle + 1) * pitch + i);
        const V dy_v = get(dy + middle * pitch, i, n), x_v = get(x + middle * pitch, i, n);
        store(direct + i, dy_v * p.direct);
        store(terms + i, dy_v * x_v * p.steep);
      });
    }
    const int64_t c = middle - g.behind;
    if (c < 0) continue;
    const float* direct = r.ring(2, c);
    windows<FIVE>(r, 1, c - g.ahead, c + g.behind, lines, n, [&](int64_t i, V sum) {
      __builtin_prefetch(dx + (c + 1) * pitch + i, 1);
      put(dx + c * pitch, load(direct + i) - coefficient * get(x + c * pitch, i, n) * sum, i, n);
    });
  }
}

// piece(rings, first element, pixels) for every task.
template <class Piece>
void each_piece(const Lrn& g, int64_t bytes, int threads, const Piece& piece) {
  const int64_t pixels = g.H * g.W;
  // 2 KB of a row at a time; less where there would be fewer than 16 tasks.
  const int64_t width = g.N * g.groups * ceil_div(pixels, 512) < 16 ? 192 : 512;
  const int64_t pieces = ceil_div(pixels, width), rows = least(g.group(), g.behind + g.ahead + 1);
  parallel_for(workers(threads, bytes), g.N * g.groups * pieces, [&](int64_t task) {
    float* memory = local_floats(Rings::floats(rows, width));
    const Rings r{rows, width, memory};
    std::memset(r.zeros(), 0, size_t(width) * sizeof(float));
    const int64_t i = task % pieces * width;
    piece(r, task / pieces * g.group() * pixels + i, least(width, pixels - i));
  });
}

}  // namespace

template <class S>
void lrn_fprop_rows(const Lrn& given, const S* x, S* y, int threads) {
  const Lrn g = given.clamped();
  each_piece(g, 2 * g.N * g.C * g.H * g.W * int64_t(sizeof(S)), threads,
             [&](const Rings& r, int64_t at, int64_t n) {
               const auto piece = !g.root()  ? fprop_piece<false, false, S>
                                  : g.five() ? fprop_piece<true, true, S>
                                             : fprop_piece<false, true, S>;
               piece(g, r, n, x + at, y + at);
             });
}

template <class S>
void lrn_dgrad_rows(const Lrn& given, const S* dy, const S* x, S* dx, int threads) {
  const Lrn g = given.clamped();
  each_piece(g, 3 * g.N * g.C * g.H * g.W * int64_t(sizeof(S)), threads,
             [&](const Rings& r, int64_t at, int64_t n) {
               const auto piece = !g.root()  ? dgrad_piece<false, false, S>
                                  : g.five() ? dgrad_piece<true, true, S>
                                             : dgrad_piece<false, true, S>;
               piece(g, r, n, dy + at, x + at, dx + at);
             });
}

#define CK_LRN(S)                                              \
  template void lrn_fprop_rows(const Lrn&, const S*, S*, int); \
  template void lrn_dgrad_rows(const Lrn&, const S*, const S*, S*, int);
CK_LRN(float)
CK_LRN(BFloat16)
CK_LRN(Float16)
#undef CK_LRN

}  // namespace convkit
