// CUDA's approximations, which a GPU makes of a few instructions: __expf, __powf, __fdividef and their like.
//
// No host has these instructions. What is modelled is how CUDA puts the functions together (__expf(x) is 2 to
// the power of x * log2 e, rounded, and so loses accuracy as x grows), and for each instruction an error within
// the bounds that CUDA's programming guide documents. It is drawn from the bits of the argument, so that the
// same argument always gives the same result. It is not the error that a GPU makes: a kernel that passes here
// by a hair may fail there.
//
// Exact are the powers of two and their logarithms, sine and cosine of 0, and quotients by powers of two.
#pragma once

#include "math.hpp"

// From -1 to 1.
CONVKIT_INLINE double convkit_draw(float x, unsigned salt) {
  unsigned h = (__float_as_uint(x) ^ salt) * 0x9e3779b1u;
  h = (h ^ h >> 15) * 0x85ebca77u;
  h = (h ^ h >> 13) * 0xc2b2ae3du;
  return static_cast<double>(static_cast<int>(h ^ h >> 16)) * 0x1p-31;
}
// A result with a relative error of at most `ulps` units in the last place, or an absolute one.
CONVKIT_INLINE float convkit_off_relative(double exact, double ulps, float x, unsigned salt) {
  return static_cast<float>(exact * (1 + convkit_draw(x, salt) * (ulps - 0.5) * 0x1p-24));
}
CONVKIT_INLINE float convkit_off_absolute(double exact, double error, float x, unsigned salt) {
  return static_cast<float>(exact + convkit_draw(x, salt) * error);
}

CONVKIT_INLINE float convkit_fast_exp2(float x) {
  const double exact = exp2(static_cast<double>(x));
  return x == truncf(x) || !isfinite(x) ? static_cast<float>(exact) : convkit_off_relative(exact, 1, x, 1);
}
CONVKIT_INLINE float convkit_fast_log2(float x) {
  const double exact = log2(static_cast<double>(x));
  if (!(x > 0) || !isfinite(x) || exact == trunc(exact)) return static_cast<float>(exact);
  if (x > 0.5f && x < 2.0f) return convkit_off_absolute(exact, 0x1.8p-24, x, 2);
  return convkit_off_relative(exact, 1, x, 2);
}
CONVKIT_INLINE float convkit_fast_exp(float x) { return convkit_fast_exp2(__fmul_rn(x, 1.44269504f)); }
CONVKIT_INLINE float convkit_fast_exp10(float x) { return convkit_fast_exp2(__fmul_rn(x, 3.32192809f)); }
CONVKIT_INLINE float convkit_fast_log(float x) { return __fmul_rn(convkit_fast_log2(x), 0.693147181f); }
CONVKIT_INLINE float convkit_fast_log10(float x) { return __fmul_rn(convkit_fast_log2(x), 0.301029996f); }
CONVKIT_INLINE float convkit_fast_pow(float x, float y) {
  return convkit_fast_exp2(__fmul_rn(y, convkit_fast_log2(x)));
}
// Beyond pi the error grows with the argument, which is reduced in float.
CONVKIT_INLINE float convkit_fast_sin(float x) {
  if (!isfinite(x) || x == 0) return sinf(x);
  const double turns = fabs(static_cast<double>(x)) / 3.14159265358979323846;
  return convkit_off_absolute(sin(static_cast<double>(x)), (turns > 1 ? turns : 1) * 0x1p-22, x, 3);
}
CONVKIT_INLINE float convkit_fast_cos(float x) {
  if (!isfinite(x) || x == 0) return cosf(x);
  const double turns = fabs(static_cast<double>(x)) / 3.14159265358979323846;
  return convkit_off_absolute(cos(static_cast<double>(x)), (turns > 1 ? turns : 1) * 0x1p-22, x, 4);
}
CONVKIT_INLINE float convkit_fast_divide(float x, float y) {
  const double exact = static_cast<double>(x) / static_cast<double>(y);
  const unsigned fraction = __float_as_uint(y) & 0x7fffffu;
  if (!isfinite(y) || !isfinite(x) || y == 0) return x / y;
  if (fabsf(y) > 0x1p126f) return copysignf(0.0f, x) * copysignf(1.0f, y);
  return fraction ? convkit_off_relative(exact, 2, y, __float_as_uint(x) * 5 + 5) : static_cast<float>(exact);
}
CONVKIT_INLINE void convkit_fast_sincos(float x, float* s, float* c) {
  *s = convkit_fast_sin(x), *c = convkit_fast_cos(x);
}

// Macros, since glibc declares functions of these names for itself.
#define __expf(x) convkit_fast_exp(x)
#define __exp10f(x) convkit_fast_exp10(x)
#define __logf(x) convkit_fast_log(x)
#define __log2f(x) convkit_fast_log2(x)
#define __log10f(x) convkit_fast_log10(x)
#define __powf(x, y) convkit_fast_pow(x, y)
#define __sinf(x) convkit_fast_sin(x)
#define __cosf(x) convkit_fast_cos(x)
#define __tanf(x) convkit_fast_divide(convkit_fast_sin(x), convkit_fast_cos(x))
#define __sincosf(x, s, c) convkit_fast_sincos(x, s, c)
#define __fdividef(x, y) convkit_fast_divide(x, y)
