// The transforms of Winograd's minimal filtering (Toom-Cook) F(M x M, R x R) on tiles of T = M + R - 1 pixels
// a side.
//
//     y = A^T [ (G w G^T) * (B^T x B) ] A        with *, the product of elements
//
// A tile is evaluated at the points 0, +-1, +-1/2, 2 and infinity (T = 7). Of the sets of seven small
// rationals these and their like were the most exact in a search: relative RMS 2.6e-6 with float32 throughout
// against 1e-7 of a plain sum; with the points +-1/3 or 3/2 instead, it is 1.3 to 1.6 times that.
//
// Each matrix is applied by its structure, not by its entries:
//   B^T   Its rows are the coefficients of the product of (x - p) over all other points. All but one row
//         share the factor (x - 2), pairs share x (x +- a): 20 operations for 7 values instead of 37.
//   G     Row p is 1, p, p^2, ...: the even and the odd powers, added and subtracted, for each pair. Its
//         divisors, the products of (p - q) over the other points q, are left out here, and multiplied in
//         once, in two dimensions (`divisor`): into the weights' transform, or, for the gradient of the
//         weights, into that of the result.
//   A^T   The transpose of such a matrix: pairs are added and subtracted first.
//
// B depends on the points alone. So F(5, 3) and F(3, 5) share it, and the gradient of the weights of the one
// is the other: dw = A^T [ (G dy G^T) * (B^T x B) ] A with R x R outputs of "filters" of M x M pixels of dy.
#pragma once

#include "simd.hpp"

namespace convkit {
namespace winograd {

constexpr int TILE = 7;              // pixels of a tile's side, and points
constexpr int POINTS = TILE * TILE;  // matrix products

constexpr double FINITE[TILE - 1] = {0.0, 1.0, -1.0, 0.5, -0.5, 2.0};

// 1 / (divisor of row i of G).
constexpr float inverse_divisor(int i) {
  double product = 1;
  for (int k = 0; i < TILE - 1 && k < TILE - 1; ++k)
    if (k != i) product *= FINITE[i] - FINITE[k];
  return static_cast<float>(1 / product);
}
// The factor of point (i, j).
constexpr float divisor(int i, int j) { return inverse_divisor(i) * inverse_divisor(j); }

// B^T d.
struct InputTransform {
  static constexpr int IN = TILE, OUT = TILE;

  CK_INLINE static void apply(const V* d, V* to) {
    V e[TILE - 1];  // of the factor x - 2
    CK_UNROLL
    for (int j = 0; j < TILE - 1; ++j) e[j] = d[j + 1] - 2.0f * d[j];
    const V a1 = e[3] - 0.25f * e[1], a2 = e[4] - 0.25f * e[2];
    const V b1 = 0.5f * (e[3] - e[1]), b2 = e[4] - e[2];
    to[0] = 0.25f * e[0] - 1.25f * e[2] + e[4];
    to[1] = a2 + a1;
    to[2] = a2 - a1;
    to[3] = b2 + b1;
    to[4] = b2 - b1;
    to[5] = 0.25f * d[1] - 1.25f * d[3] + d[5];
    to[6] = 0.25f * e[1] - 1.25f * e[3] + e[5];
  }
};

// G g without its divisors, for TAPS values.
template <int TAPS>
struct FilterTransform {
  static constexpr int IN = TAPS, OUT = TILE;

  CK_INLINE static void apply(const V* g, V* to) {
    V even = g[0] + g[2], odd = g[1], even_half = g[0] + 0.25f * g[2], odd_half = 0.5f * g[1];
    V two = g[0] + 2.0f * g[1] + 4.0f * g[2];
    if constexpr (TAPS > 3) {
      odd += g[3];
      odd_half += 0.125f * g[3];
      two += 8.0f * g[3];
    }
    if constexpr (TAPS > 4) {
      even += g[4];
      even_half += 0.0625f * g[4];
      two += 16.0f * g[4];
    }
    to[0] = g[0];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = even_half + odd_half;
    to[4] = even_half - odd_half;
    to[5] = two;
    to[6] = g[TAPS - 1];
  }
};

// A^T m, OUTPUTS values.
template <int OUTPUTS>
struct OutputTransform {
  static constexpr int IN = TILE, OUT = OUTPUTS;

  CK_INLINE static void apply(const V* m, V* to) {
    const V s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    to[0] = m[0] + s1 + s2 + m[5];
    to[1] = d1 + 0.5f * d2 + 2.0f * m[5];
    to[2] = s1 + 0.25f * s2 + 4.0f * m[5];
    if constexpr (OUTPUTS > 3) to[3] = d1 + 0.125f * d2 + 8.0f * m[5];
    if constexpr (OUTPUTS > 4) to[4] = s1 + 0.0625f * s2 + 16.0f * m[5];
    to[OUTPUTS - 1] += m[6];
  }
};

// In two dimensions: columns, then rows. get(i, j) reads the input, put(i, j, v) takes the result.
template <class Transform, class Get, class Put>
CK_INLINE void both_sides(const Get& get, const Put& put) {
  V half[Transform::IN][Transform::OUT];  // column j of the input, transformed
  CK_UNROLL
  for (int j = 0; j < Transform::IN; ++j) {
    V column[Transform::IN];
    CK_UNROLL
    for (int i = 0; i < Transform::IN; ++i) column[i] = get(i, j);
    Transform::apply(column, half[j]);
  }
  CK_UNROLL
  for (int i = 0; i < Transform::OUT; ++i) {
    V row[Transform::IN], result[Transform::OUT];
    CK_UNROLL
    for (int j = 0; j < Transform::IN; ++j) row[j] = half[j][i];
    Transform::apply(row, result);
    CK_UNROLL
    for (int j = 0; j < Transform::OUT; ++j) put(i, j, result[j]);
  }
}

}  // namespace winograd
}  // namespace convkit
