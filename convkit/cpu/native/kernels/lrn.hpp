// Local response normalisation across channels, a row of pixels of a blocked image at a time.
//
//   d = k + alpha/n * sum of x^2 over the window,  y = x d^-beta,
//   dx = dy d^-beta - 2 alpha beta/n x * (sum of dy x d^(-beta-1) over the mirrored window)
//
// Idea      A register holds 16 neighbouring channels of a pixel. For a window of five channels, a pixel's
//           channels pass through registers, block by block: three registers of squares give the window's sum
//           by four shuffles, and backward, three of dy x d^(-beta-1) follow a block behind. Nothing is
//           stored that is not a result.
// Direct    A sum of five squares each time, not a running sum: no error builds up.
// Power     beta = 3/4: z = d^-1/4 from an estimate by the exponent's bits and one polynomial (14
//           multiplications and additions, no square root, no division, which would take twice as long); then
//           d^-3/4 = z^3 and d^-7/4 = z^7. Any other beta calls pow.
// Other     sizes take the squares of a few pixels through scratch rows of channels, with zeros between the
//           groups, so that a tap is an unaligned load. Where groups do not begin with a block of 16, each
//           tap is masked by its channel's group: slower, and rare.
// Traffic   fprop reads x and writes y; dgrad reads dy and x and writes dx: 8 and 12 bytes per element.
// Bound     Arithmetic: 16 multiplications forward and 23 backward go through one pipe, which takes one a
//           cycle.
// Measured  Zen 4, AVX-512, one thread: 16 channels of a pixel take 23 cycles forward and 41 backward; from
//           memory, N = 16, 24 and 42-60 (a copy: 10-16).
#pragma once

#include <cmath>

#include "half.hpp"
#include "local.hpp"

namespace convkit {

// A row of pixels of a blocked image: pixel w of block b is at p + b * stride + w * BLOCK.
template <class T = const float>
struct BlockedRow {
  T* p;
  int64_t stride;
};

class LrnRows {
 public:
  explicit LrnRows(const Lrn& g);

  // Floats of scratch that the passes want, and the scratch, whose zeros are set once.
  int64_t floats() const { return 3 * chunk_ * width_; }
  void prepare(float* scratch);

  void fprop(BlockedRow<> x, BlockedRow<float> y) const;

  // With relu, dx is 0 where x is not positive.
  void dgrad(BlockedRow<> dy, BlockedRow<> x, BlockedRow<float> dx, bool relu) const;

 private:
  void fprop_pixels(BlockedRow<> x, BlockedRow<float> y) const;
  void dgrad_pixels(BlockedRow<> dy, BlockedRow<> x, BlockedRow<float> dx, bool relu) const;
  template <bool ROOT>
  void fprop_row(BlockedRow<> x, BlockedRow<float> y) const;
  template <bool ROOT>
  void dgrad_row(BlockedRow<> dy, BlockedRow<> x, BlockedRow<float> dx, bool relu) const;

  void squares(BlockedRow<> x, int64_t w0, int64_t n) const;
  V window(const float* at, int64_t channel, int64_t behind, int64_t ahead) const;

  // f(b, offset of block b in a pixel's scratch row)
  template <class F>
  void each_block(const F& f) const {
    int64_t at = pad_;
    for (int64_t b = 0; b < g_.blocks();) {
      for (int64_t i = 0; i < section_; ++i, ++b, at += BLOCK) f(b, at);
      at += pad_;
    }
  }

  Lrn g_;
  bool ragged_, usual_;
  int64_t section_;      // blocks between two paddings
  int64_t pad_, width_;  // floats of a padding, and of a pixel
  int64_t chunk_;        // pixels at a time
  float *squares_ = nullptr, *terms_ = nullptr, *direct_ = nullptr;
};

// ---------------------------------------------------------------------------------------------------
// d^-1/4
// ---------------------------------------------------------------------------------------------------
// Halving the bits of a float twice halves its logarithm twice, but for the mantissa: an estimate z whose e =
// 1 - d z^4 lies within 1/8. Then d^-1/4 = z (1 - e)^-1/4, the latter to 8e-9 by a polynomial of degree 5.
// For d in [2^-100, inf]; NaN stays NaN.
CK_INLINE V inverse_fourth_root(V d) {
  const V z = reinterpret_cast<V>(0x4f580000 - (reinterpret_cast<VI>(d) >> 2));
  const V z2 = z * z;
  const V e = 1.0f - d * z2 * z2;
  V p = splat(0.08351237f);
  p = p * e + 0.09684438f;
  p = p * e + 0.11716127f;
  p = p * e + 0.15624071f;
  p = p * e + 0.25000006f;
  const V r = z + z * (e * p);
  return d > 3.40282347e38f ? V{} : r;
}

struct Power {
  V direct, steep;  // d^-beta and d^(-beta-1)
};
// With ROOT, beta is 3/4.
template <bool ROOT>
CK_INLINE Power power(V d, float beta) {
  if constexpr (ROOT) {
    const V z = inverse_fourth_root(d), z2 = z * z, z3 = z2 * z;
    return {z3, z3 * (z2 * z2)};
  }
  V direct;
  for (int l = 0; l < LANES; ++l) direct[l] = std::pow(d[l], -beta);
  return {direct, direct / d};
}

}  // namespace convkit
