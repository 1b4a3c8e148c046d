// Maps in frames of zeros, whose rows are cut into phases; and the sums that wgrad takes from them.
//
// Idea      With a stride of 2, the columns that a tap sees are every second one. A frame holds them as
//           neighbours: columns 0, 2, 4, ..., then 1, 3, 5, ... So for any stride, dilation and padding each
//           tap is a contiguous load.
#pragma once

#include <vector>

#include "conv.hpp"
#include "half.hpp"
#include "local.hpp"
#include "transpose.hpp"

namespace convkit {

// The last register of a row overlaps the one before it.
CK_INLINE void copy_floats(const float* from, int64_t count, float* to) {
  if (count < LANES) return copy_part(from, count, to);
  for (int64_t i = 0; i + LANES < count; i += LANES) store(to + i, load(from + i));
  store(to + count - LANES, load(from + count - LANES));
}

// even[i], odd[i] = from[2 i], from[2 i + 1].
CK_INLINE void split_pairs(const float* from, int64_t count, float* even, float* odd) {
  if (count < LANES) {
    for (int64_t i = 0; i < count; ++i) even[i] = from[2 * i], odd[i] = from[2 * i + 1];
    return;
  }
  for (int64_t i = 0;; i = least(i + LANES, count - LANES)) {
    V a = load(from + 2 * i), b = load(from + 2 * i + LANES);
    split(a, b);
    store(even + i, a);
    store(odd + i, b);
    if (i + LANES >= count) return;
  }
}

// The way back.
CK_INLINE void merge_pairs(const float* even, const float* odd, int64_t count, float* to) {
  if (count < LANES) {
    for (int64_t i = 0; i < count; ++i) to[2 * i] = even[i], to[2 * i + 1] = odd[i];
    return;
  }
  for (int64_t i = 0;; i = least(i + LANES, count - LANES)) {
    V a = load(even + i), b = load(odd + i);
    merge(a, b);
    store(to + 2 * i, a);
    store(to + 2 * i + LANES, b);
    if (i + LANES >= count) return;
  }
}

// One map between zeros: row i of the frame is row i - top of the map, column j is column j - left. A row is
// `phases` parts of `width` floats: `margin`, then columns 0, phases, 2 phases, ...; then those of 1, phases
// + 1, ... The margin lets the map itself begin at a cache line.
struct Frame {
  int64_t H, W, top, left, rows, phases, width, margin;

  // Room for `columns` of a phase.
  Frame(int64_t H, int64_t W, int64_t top, int64_t left, int64_t rows, int64_t phases, int64_t columns)
      : H(H), W(W), top(top), left(left), rows(rows), phases(phases) {
    margin = round_up(ceil_div(most(0, left), phases), LINE) - ceil_div(most(0, left), phases);
    width = round_up(margin + columns, LINE);
  }

  int64_t pitch() const { return phases * width; }
  int64_t floats() const { return rows * pitch(); }
  int64_t at(int64_t row, int64_t column) const {
    return row * pitch() + column % phases * width + margin + column / phases;
  }

  // The map into its place; what is around it is not touched.
  void fill(const float* map, float* frame) const {
    const int64_t first = most(0, top);
    const float* from = map + (first - top) * W;
    float* to = frame + first * pitch() + margin;
    const int64_t count = least(rows, top + H) - first;
    if (phases == 1) return fill_rows(from, to, count);
    if (phases == 2) return fill_pairs(from, to, count);
    for (int64_t i = 0; i < count; ++i, from += W, to += pitch())
      for (int64_t phase = 0; phase < phases; ++phase) {
        const int64_t offset = phase - left, begin = offset < 0 ? ceil_div(-offset, phases) : 0;
        const int64_t end = least(width - margin, begin + ceil_div(W - begin * phases - offset, phases));
        for (int64_t j = begin; j < end; ++j) to[phase * width + j] = from[j * phases + offset];
      }
  }

 private:
  void fill_rows(const float* from, float* to, int64_t count) const {
    const int64_t begin = most(0, left), columns = least(width - margin, left + W) - begin, step = pitch();
    if (columns <= 0) return;
    from += begin - left, to += begin;
    for (int64_t i = 0; i < count; ++i, from += W, to += step) copy_floats(from, columns, to);
  }

  // Pairs of columns that lie wholly in the map, then what is left at either end.
  void fill_pairs(const float* from, float* to, int64_t count) const {
    const int64_t room = width - margin, step = pitch(), odd = width;
    const int64_t begin = least(room, ceil_div(most(0, left), 2)),
                  end = most(begin, least(room, (W + left) / 2));
    const int64_t before = 2 * begin - 1 - left, behind = 2 * end - left;  // columns of the map
    const bool has_before = begin > 0 && before >= 0 && before < W,
               has_behind = end < room && behind >= 0 && behind < W;
    for (int64_t i = 0; i < count; ++i, from += W, to += step) {
      if (end > begin) split_pairs(from + 2 * begin - left, end - begin, to + begin, to + odd + begin);
      if (has_before) to[odd + begin - 1] = from[before];
      if (has_behind) to[end] = from[behind];
    }
  }
};

// The frame in which each tap of each output lies.
inline Frame frame_of_x(const Conv& g) {
  const int64_t rows = (g.P - 1) * g.stride_h + (g.R - 1) * g.dilation_h + 1;
  const int64_t columns = round_up(g.Q, LANES) + (g.S - 1) * g.dilation_w / g.stride_w;
  return {g.H, g.W, g.pad_top, g.pad_left, rows, g.stride_w, columns};
}

// Where each tap of output (0, 0) lies in that frame.
inline std::vector<int64_t> taps_of_x(const Conv& g, const Frame& f) {
  std::vector<int64_t> at;
  for (int64_t t = 0; t < g.R * g.S; ++t) at.push_back(f.at(t / g.S * g.dilation_h, t % g.S * g.dilation_w));
  return at;
}

constexpr int TAPS = 9;                           // sums that wgrad holds in registers at a time, for each
constexpr int WGRAD_K = REGISTERS == 32 ? 2 : 1;  // of so many filters

// What is read next, which memory is asked for meanwhile, row by row: maps of x and dy, or none. The next
// image's maps lie a whole image further on, where no prefetcher of the hardware looks.
struct Soon {
  const float *x = nullptr, *dy = nullptr;
  int64_t x_row = 0;  // floats of x for a row of dy

  CK_INLINE void fetch(int64_t p, int64_t Q) const {
    if (!x) return;
    for (int64_t i = 0; i < x_row; i += LINE) __builtin_prefetch(x + p * x_row + i, 0, 2);
    for (int64_t i = 0; i < Q; i += LINE) __builtin_prefetch(dy + p * Q + i, 0, 2);
  }
};

// Adds the products of rows [from, to) of `KS` maps of dy, one behind the other, with the taps [first, first
// + TAPS) of the frame to sums, [filter][tap], a register of partial sums each. Taps beyond the last are the
// last again.
template <int KS>
void correlate(const Conv& g, const std::vector<int64_t>& taps, int64_t step, const float* dy,
               const float* frame, int64_t from, int64_t to, int64_t first, const Soon& soon, float* sums) {
  const int64_t last = g.R * g.S - 1, tail = g.Q % LANES, map = g.P * g.Q;
  const VI keep = lanes_below(tail);
  const float* at[TAPS];
  for (int64_t i = 0; i < TAPS; ++i)
    at[i] = frame + taps[static_cast<size_t>(least(first + i, last))] + from * step;
  V total[KS][TAPS];
  CK_UNROLL
  for (int i = 0; i < KS * TAPS; ++i) total[i / TAPS][i % TAPS] = V{};
  for (int64_t p = from; p < to; ++p) {
    const float* row = dy + p * g.Q;
    soon.fetch(p, g.Q);
    int64_t q = 0;
    for (; q + LANES <= g.Q; q += LANES) {
      V d[KS];
      CK_UNROLL
      for (int k = 0; k < KS; ++k) d[k] = load(row + k * map + q);
      CK_UNROLL
      for (int i = 0; i < TAPS; ++i) {
        V x = load(at[i] + q);
        if (KS > 1) in_register(x);
        CK_UNROLL
        for (int k = 0; k < KS; ++k) total[k][i] += d[k] * x;
      }
    }
    if (tail) {
      const bool at_end = (p + 1) * g.Q + LANES - tail > map;
      V d[KS];
      CK_UNROLL
      for (int k = 0; k < KS; ++k)
        d[k] = at_end ? load_part(row + k * map + q, tail) : masked(keep, load(row + k * map + q));
      // What lies beside the row may be infinite, and zero times that is NaN.
      CK_UNROLL
      for (int i = 0; i < TAPS; ++i) {
        const V x = masked(keep, load(at[i] + q));
        CK_UNROLL
        for (int k = 0; k < KS; ++k) total[k][i] += d[k] * x;
      }
    }
    CK_UNROLL
    for (int i = 0; i < TAPS; ++i) at[i] += step;
  }
  CK_UNROLL
  for (int i = 0; i < KS * TAPS; ++i)
    store(sums + i * LANES, load(sums + i * LANES) + total[i / TAPS][i % TAPS]);
}

}  // namespace convkit
