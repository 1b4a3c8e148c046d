// CUDA's <cuda_fp16.h> for a kernel on the CPU: found in front of CUDA's own.
#pragma once
#include "../sixteen.hpp"

CONVKIT_INLINE float convkit_half_to_float(unsigned short bits) {
  const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023u;
  if (exponent == 31) return __uint_as_float(sign | (fraction ? 0x7fffffffu : 0x7f800000u));
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;  // exact: a subnormal is a multiple of 2^-24
  return sign ? -tiny : tiny;
}

CONVKIT_INLINE unsigned short convkit_half_from_float(float f) {
  const unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);  // 65520 and beyond
  // Adding 0.5 puts a result below 2^-14 into the last bits of the sum, rounded by the adder itself.
  if (magnitude < 0x38800000u) {
    const float sum = __uint_as_float(magnitude) + 0.5f;
    return static_cast<unsigned short>(sign | (__float_as_uint(sum) - 0x3f000000u));
  }
  const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return static_cast<unsigned short>(sign | ((rounded >> 13) - (112u << 10)));
}

#define CONVKIT_T __half
#define CONVKIT_T2 __half2
#define CONVKIT_RAW __half_raw
#define CONVKIT_RAW2 __half2_raw
#define CONVKIT_NAME(a, b) a##half##b
#include "../sixteen.inl"
#undef CONVKIT_T
#undef CONVKIT_T2
#undef CONVKIT_RAW
#undef CONVKIT_RAW2
#undef CONVKIT_NAME

using half = __half;
using half2 = __half2;
CONVKIT_INLINE __half2 __half2half2(__half a) { return {a, a}; }
