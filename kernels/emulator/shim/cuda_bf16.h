// CUDA's <cuda_bf16.h> for a kernel on the CPU: found in front of CUDA's own, which includes <cuda_fp16.h>, too.
#pragma once
#include "cuda_fp16.h"

CONVKIT_INLINE float convkit_bfloat16_to_float(unsigned short bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

CONVKIT_INLINE unsigned short convkit_bfloat16_from_float(float f) {
  const unsigned bits = __float_as_uint(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

#define CONVKIT_T __nv_bfloat16
#define CONVKIT_T2 __nv_bfloat162
#define CONVKIT_RAW __nv_bfloat16_raw
#define CONVKIT_RAW2 __nv_bfloat162_raw
#define CONVKIT_NAME(a, b) a##bfloat16##b
#include "../sixteen.inl"
#undef CONVKIT_T
#undef CONVKIT_T2
#undef CONVKIT_RAW
#undef CONVKIT_RAW2
#undef CONVKIT_NAME

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
CONVKIT_INLINE __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
