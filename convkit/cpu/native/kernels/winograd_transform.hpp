// The transforms of Winograd's minimal filtering (Toom-Cook) F(M x M, R x R) on tiles of T = M + R - 1 pixels a side.
//
//     y = A^T [ (G w G^T) * (B^T x B) ] A        with *, the product of elements
//
// A tile is evaluated at the points 0, +-1, +-1/2, 2 and infinity (T = 7). Of the sets of seven small rationals these
// and their like were the most exact in a search: relative RMS 2.6e-6 with float32 throughout against 1e-7 of a plain
// sum; with the points +-1/3 or 3/2 instead, it is 1.3 to 1.6 times that. Rows of B^T are scaled by powers of two so
// that their largest entry is near 1, and G by the inverse, which costs nothing and keeps the intermediate values alike.
//
// B depends on the points alone. So F(5, 3) and F(3, 5) share it, and the gradient of the weights of the one is the
// other: dw = A^T [ (G dy G^T) * (B^T x B) ] A with R x R outputs of "filters" of M x M pixels of dy.
#pragma once

#include "simd.hpp"

namespace convkit {
namespace winograd {

constexpr int TILE = 7;             // pixels of a tile's side
constexpr int POINTS = TILE * TILE; // matrix products

constexpr double FINITE[TILE - 1] = {0.0, 1.0, -1.0, 0.5, -0.5, 2.0};

struct Coefficients {
  double bt[TILE][TILE];  // B^T
  double row_scale[TILE]; // what B's rows were multiplied by
};

constexpr double magnitude(double a) { return a < 0 ? -a : a; }

constexpr Coefficients make_coefficients() {
  Coefficients c{};
  for (int i = 0; i < TILE; ++i) {
    // The product of (x - p) over all finite points p but the i-th; over all of them for the point at infinity.
    double poly[TILE + 1] = {1.0};
    int degree = 0;
    for (int k = 0; k < TILE - 1; ++k) {
      if (k == i) continue;
      for (int j = degree + 1; j > 0; --j) poly[j] = poly[j - 1] - FINITE[k] * poly[j];
      poly[0] = -FINITE[k] * poly[0];
      ++degree;
    }
    double largest = 0;
    for (int j = 0; j < TILE; ++j) largest = magnitude(poly[j]) > largest ? magnitude(poly[j]) : largest;
    double scale = 1;
    while (largest * scale > 1.42) scale /= 2;
    while (largest * scale < 0.71) scale *= 2;
    for (int j = 0; j < TILE; ++j) c.bt[i][j] = poly[j] * scale;
    c.row_scale[i] = scale;
  }
  return c;
}

constexpr Coefficients COEFFICIENTS = make_coefficients();

constexpr double power(double p, int j) {
  double v = 1;
  for (int i = 0; i < j; ++i) v *= p;
  return v;
}

// A[i][j] for M outputs: point i's j-th power.
template <int M>
constexpr double a_entry(int i, int j) {
  return i < TILE - 1 ? power(FINITE[i], j) : (j == M - 1 ? 1.0 : 0.0);
}

// G[i][j] for a filter of R taps.
template <int R>
constexpr double g_entry(int i, int j) {
  const double unscale = 1 / COEFFICIENTS.row_scale[i];
  if (i == TILE - 1) return j == R - 1 ? unscale : 0.0;
  double divisor = 1;
  for (int k = 0; k < TILE - 1; ++k)
    if (k != i) divisor *= FINITE[i] - FINITE[k];
  return power(FINITE[i], j) / divisor * unscale;
}

// Matrices as tables that the compiler folds into the unrolled code: zeros and ones cost nothing.
template <int ROWS, int COLUMNS>
struct Matrix {
  float v[ROWS][COLUMNS];
};

constexpr Matrix<TILE, TILE> input_matrix() {
  Matrix<TILE, TILE> m{};
  for (int i = 0; i < TILE; ++i)
    for (int j = 0; j < TILE; ++j) m.v[i][j] = static_cast<float>(COEFFICIENTS.bt[i][j]);
  return m;
}
template <int R>
constexpr Matrix<TILE, R> filter_matrix() {
  Matrix<TILE, R> m{};
  for (int i = 0; i < TILE; ++i)
    for (int j = 0; j < R; ++j) m.v[i][j] = static_cast<float>(g_entry<R>(i, j));
  return m;
}
template <int M>
constexpr Matrix<M, TILE> output_matrix() {
  Matrix<M, TILE> m{};
  for (int i = 0; i < TILE; ++i)
    for (int j = 0; j < M; ++j) m.v[j][i] = static_cast<float>(a_entry<M>(i, j));
  return m;
}

// to[i] = sum over j of m[i][j] from[j].
template <int ROWS, int COLUMNS>
CK_INLINE void multiply(const Matrix<ROWS, COLUMNS>& m, const V* from, V* to) {
  CK_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    V total = V{};
    bool begun = false;
    CK_UNROLL
    for (int j = 0; j < COLUMNS; ++j) {
      const float c = m.v[i][j];
      if (c == 0.0f) continue;
      if (!begun)
        total = c == 1.0f ? from[j] : from[j] * c;
      else if (c == 1.0f)
        total = total + from[j];
      else if (c == -1.0f)
        total = total - from[j];
      else
        total = total + from[j] * c;
      begun = true;
    }
    to[i] = total;
  }
}

// to (ROWS x ROWS) = m from m^T, where from is COLUMNS x COLUMNS: get(i, j) reads it, put(i, j, v) takes the result.
template <int ROWS, int COLUMNS, class Get, class Put>
CK_INLINE void both_sides(const Matrix<ROWS, COLUMNS>& m, const Get& get, const Put& put) {
  V half[COLUMNS][ROWS];  // column j of the input, transformed
  CK_UNROLL
  for (int j = 0; j < COLUMNS; ++j) {
    V column[COLUMNS];
    CK_UNROLL
    for (int i = 0; i < COLUMNS; ++i) column[i] = get(i, j);
    multiply(m, column, half[j]);
  }
  CK_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    V row[COLUMNS], result[ROWS];
    CK_UNROLL
    for (int j = 0; j < COLUMNS; ++j) row[j] = half[j][i];
    multiply(m, row, result);
    CK_UNROLL
    for (int j = 0; j < ROWS; ++j) put(i, j, result[j]);
  }
}

}  // namespace winograd
}  // namespace convkit
