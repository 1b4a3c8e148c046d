// What <cuda_fp16.h> and <cuda_bf16.h> have in common: arithmetic on 16-bit numbers. No header of CUDA is
// needed. Those two files define the types and their conversions from and to float; sixteen.inl is included
// once for each.
//
// Every operation computes in double and rounds once, to nearest, ties to even, as the instructions of sm_80
// and later do; a NaN becomes CUDA's canonical one. Sums, products and quotients of 16-bit numbers are so
// far from halfway between two others, or exactly there, that double decides alike. A multiply-add may
// miss that by the bits that double drops: `convkit_odd` keeps them as one sticky bit.
//
// A GPU may fuse a product of `*` or __hmul with a sum of `+` or __hadd into one multiply-add; here they stay
// two operations, as __hmul_rn and __hadd_rn are there.
#pragma once

#include "math.hpp"
#include "warp.hpp"

#define CONVKIT_CLASS __attribute__((always_inline))

// To float by rounding to odd: of the two neighbours of an inexact value the one whose last bit is set. A
// second rounding, to fewer bits, is then as good as one.
template <class Wide>
CONVKIT_INLINE float convkit_odd(Wide x) {
  const float near = static_cast<float>(x);
  if (static_cast<Wide>(near) == x || x != x || __float_as_uint(near) & 1) return near;
  const bool away = (static_cast<Wide>(near) < x) == (x > 0);
  return __uint_as_float(__float_as_uint(near) + (away ? 1u : ~0u));
}

// a * b + c, where a * b is exact, to odd.
CONVKIT_INLINE float convkit_fma_odd(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  const double part = sum - product, error = (product - (sum - part)) + (c - part);
  if (error == 0 || error != error || __double_as_longlong(sum) & 1) return convkit_odd(sum);
  const bool away = (error > 0) == (sum > 0);
  return convkit_odd(__longlong_as_double(__double_as_longlong(sum) + (away ? 1 : -1)));
}

// To an integer, towards zero: a GPU saturates, and makes zero of a NaN.
template <class I>
CONVKIT_INLINE I convkit_integer(double x) {
  constexpr bool is_signed = I(-1) < I(0);
  constexpr I least = is_signed ? static_cast<I>(1ull << (8 * sizeof(I) - 1)) : I(0);
  constexpr I most = static_cast<I>(~least);
  if (x != x) return 0;
  return x <= static_cast<double>(least) ? least : x >= static_cast<double>(most) ? most : static_cast<I>(x);
}
