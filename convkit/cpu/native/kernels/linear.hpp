// Fully connected layers: what the two files of kernels, and Python's side, share.
//
// x is (N, C), w (K, C), y (N, K), row by row, of one storage type S: float, BFloat16 or Float16. Weights
// stay as they are: no pass wants them in another order. The headers of linear_fprop.cpp and
// linear_backward.cpp argue the kernels.
#pragma once

#include "half.hpp"
#include "tile.hpp"

namespace convkit {

// ---------------------------------------------------------------------------------------------------
// The product that everything is made of: up to PANEL_M_REGISTERS registers of A by up to PANEL_N rows of B
// ---------------------------------------------------------------------------------------------------
// 4 x 6 of 32 registers: 10 loads for 24 FMAs (2 x 14 has 16 for 28, and rows are left over more often); 2 x
// 6 of 16.
constexpr int PANEL_M_REGISTERS = REGISTERS == 32 ? 4 : 2;
constexpr int PANEL_N = 6;
constexpr int PANEL_M = PANEL_M_REGISTERS * LANES;

// sums[j * sums_row + ...] (+)= sum over i < count of A's row i, at a + i * PANEL_M, times b[i * b_step + j *
// b_row].
using PanelProduct = void (*)(const float* a, const float* b, int64_t b_step, int64_t b_row, int64_t count,
                              float* sums, int64_t sums_row, bool add);

template <int NV, int NJ>
void panel_product(const float* a, const float* b, int64_t b_step, int64_t b_row, int64_t count, float* sums,
                   int64_t sums_row, bool add) {
  Tile<NV, NJ> tile;
  tile.zero();
  tile.run(a, PANEL_M, LANES, b, b_step, b_row, count);
  CK_UNROLL
  for (int j = 0; j < NJ; ++j) {
    CK_UNROLL
    for (int v = 0; v < NV; ++v) {
      float* p = sums + j * sums_row + v * LANES;
      store(p, add ? load(p) + tile.acc[j][v] : tile.acc[j][v]);
    }
  }
}

template <int NV>
CK_INLINE PanelProduct panel_product_of(int64_t rows) {
  static constexpr PanelProduct table[PANEL_N] = {panel_product<NV, 1>, panel_product<NV, 2>,
                                                  panel_product<NV, 3>, panel_product<NV, 4>,
                                                  panel_product<NV, 5>, panel_product<NV, 6>};
  return table[rows - 1];
}
// For 1 ... PANEL_M_REGISTERS registers, and 1 ... PANEL_N rows.
CK_INLINE PanelProduct panel_product_for(int64_t registers, int64_t rows) {
  if constexpr (PANEL_M_REGISTERS == 4) {
    if (registers == 4) return panel_product_of<PANEL_M_REGISTERS>(rows);
    if (registers == 3) return panel_product_of<PANEL_M_REGISTERS == 4 ? 3 : 1>(rows);
  }
  return registers == 2 ? panel_product_of<2>(rows) : panel_product_of<1>(rows);
}

// The width of a panel that begins `left` floats before the end of a row, in registers.
CK_INLINE int64_t panel_registers(int64_t left) { return least(PANEL_M_REGISTERS, ceil_div(left, LANES)); }

// to[0 ... round_up(count, LANES)) = from[0 ... count), and zeros behind.
template <class S>
CK_INLINE void copy_row(const S* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
  if (i < count) store(to + i, load_part(from + i, count - i));
}

// Asks for the rows of w (and of v, if any) that come next, some cache lines at a time, into L2.
template <class S>
struct Ahead {
  const S *w, *v;
  int64_t stride, rows, lines;
  int64_t share = 0;  // lines to ask for at a time
  int64_t row = 0, line = 0;

  CK_INLINE void some(int64_t count) {
    for (; count > 0 && row < rows; --count) {
      const int64_t at = row * stride + line * int64_t(64 / sizeof(S));
      __builtin_prefetch(w + at, 0, 2);
      if (v) __builtin_prefetch(v + at, 0, 2);
      if (++line == lines) {
        line = 0;
        ++row;
      }
    }
  }
};

}  // namespace convkit
