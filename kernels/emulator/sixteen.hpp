// float16 and bfloat16 as storage: kernels load them, compute in float and round once on the way out. Hence
// conversions only, written in integers so that every host rounds alike: to nearest, ties to even, with
// subnormals, infinities and NaNs (whose payload becomes CUDA's canonical one). No header of CUDA is needed.
#pragma once

#include "math.hpp"

struct __attribute__((aligned(2))) __half {
  unsigned short bits;
};
struct __attribute__((aligned(2))) __nv_bfloat16 {
  unsigned short bits;
};
struct __attribute__((aligned(4))) __half2 {
  __half x, y;
};
struct __attribute__((aligned(4))) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

CONVKIT_INLINE float __half2float(__half h) {
  const unsigned sign = (h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 31, fraction = h.bits & 1023u;
  if (exponent == 31) return __uint_as_float(sign | (fraction ? 0x7fffffffu : 0x7f800000u));
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;  // exact: a subnormal is a multiple of 2^-24
  return sign ? -tiny : tiny;
}

CONVKIT_INLINE __half __float2half_rn(float f) {
  const unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<unsigned short>(sign | 0x7c00u)};  // 65520 and beyond
  // Adding 0.5 puts a result below 2^-14 into the last bits of the sum, rounded by the adder itself.
  if (magnitude < 0x38800000u) {
    const float sum = __uint_as_float(magnitude) + 0.5f;
    return {static_cast<unsigned short>(sign | (__float_as_uint(sum) - 0x3f000000u))};
  }
  const unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return {static_cast<unsigned short>(sign | ((rounded >> 13) - (112u << 10)))};
}

CONVKIT_INLINE float __bfloat162float(__nv_bfloat16 b) {
  return __uint_as_float(static_cast<unsigned>(b.bits) << 16);
}

CONVKIT_INLINE __nv_bfloat16 __float2bfloat16_rn(float f) {
  const unsigned bits = __float_as_uint(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

CONVKIT_INLINE __half __float2half(float f) { return __float2half_rn(f); }
CONVKIT_INLINE __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }
CONVKIT_INLINE float __low2float(__half2 h) { return __half2float(h.x); }
CONVKIT_INLINE float __high2float(__half2 h) { return __half2float(h.y); }
CONVKIT_INLINE float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
CONVKIT_INLINE __half2 __floats2half2_rn(float a, float b) {
  return {__float2half_rn(a), __float2half_rn(b)};
}
CONVKIT_INLINE __half2 __float22half2_rn(float2 f) { return __floats2half2_rn(f.x, f.y); }
CONVKIT_INLINE float2 __bfloat1622float2(__nv_bfloat162 b) {
  return {__bfloat162float(b.x), __bfloat162float(b.y)};
}
CONVKIT_INLINE __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
}
CONVKIT_INLINE unsigned short __half_as_ushort(__half h) { return h.bits; }
CONVKIT_INLINE __half __ushort_as_half(unsigned short bits) { return {bits}; }
CONVKIT_INLINE unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
CONVKIT_INLINE __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
