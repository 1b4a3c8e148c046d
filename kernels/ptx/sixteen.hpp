// 16-bit floating point: registers hold its bits.
#pragma once

#include <cmath>

#include "machine.hpp"

namespace ptx {

inline f32 from_half(u16 h) {
  const u32 sign = u32(h & 0x8000u) << 16, rest = h & 0x7fffu;
  // Ten bits of mantissa moved to where a float has them; the exponent's bias differs by 112.
  const f32 finite = bits_as<f32>(rest << 13) * 0x1p112f;
  return bits_as<f32>((rest >= 0x7c00u ? 0x7f800000u | rest << 13 : bits_as<u32>(finite)) | sign);
}

inline u16 to_half(f32 a) {
  const u32 all = bits_as<u32>(a), sign = all >> 16 & 0x8000u, b = all & 0x7fffffffu;
  // From 2^-14 on, thirteen bits of the mantissa are rounded away, ties to even.
  const u32 normal = (b + 0xfffu + (b >> 13 & 1) - (112u << 23)) >> 13;
  // Below it the result counts 2^-24: so does a float between 1/2 and 1.
  const u32 small = bits_as<u32>(bits_as<f32>(b) + 0.5f) - 0x3f000000u;
  u32 h = b < 0x38800000u ? small : normal;
  h = b >= 0x477ff000u ? 0x7c00u : h;  // 65520 and more
  return static_cast<u16>(b > 0x7f800000u ? 0x7fffu : h | sign);
}

inline u16 to_half_toward_zero(f32 a) {
  const u16 near = to_half(a);
  const bool beyond = std::fabs(from_half(near)) > std::fabs(a) && a == a;
  return beyond ? static_cast<u16>(near - 1) : near;  // of an infinity, the largest number
}

inline f32 from_bfloat(u16 h) { return bits_as<f32>(u32(h) << 16); }

inline u16 to_bfloat(f32 a) {
  const u32 b = bits_as<u32>(a);
  const u32 rounded = (b + 0x7fffu + (b >> 16 & 1)) >> 16;
  return static_cast<u16>((b & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded);
}

inline u16 to_bfloat_toward_zero(f32 a) { return a == a ? static_cast<u16>(bits_as<u32>(a) >> 16) : 0x7fff; }

// A double rounded to odd: a float that any narrower type rounds as it would round the double.
inline f32 to_odd(f64 a) {
  const f32 near = static_cast<f32>(a);
  if (static_cast<f64>(near) == a || a != a) return near;
  const f32 inner = std::fabs(static_cast<f64>(near)) > std::fabs(a) ? std::nextafter(near, 0.0f) : near;
  return bits_as<f32>(bits_as<u32>(inner) | 1);
}

}  // namespace ptx
