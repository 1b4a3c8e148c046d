// Storage types: float as it is, bfloat16 and float16 as 16-bit words that widen on load and round on store.
//
// Idea      Integers alone (and one float addition for float16's subnormals), so that every instruction set
//           has vectors of them and no conversion instruction is needed. Rounding is to nearest even; NaN
//           stays NaN, what lies beyond the largest number becomes infinity, subnormals are kept.
// Cost      A vector: bfloat16 2 instructions to load, some 6 to store; float16 some 9 and 13. Where memory
//           is the bound, half the bytes are nearly half the time; elsewhere a block is widened once as it is
//           packed.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace convkit {

typedef std::uint32_t VB __attribute__((vector_size(4 * LANES)));
typedef std::uint16_t VH __attribute__((vector_size(2 * LANES)));
typedef std::uint16_t VHU __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

CK_INLINE VB bits_of(V v) { return reinterpret_cast<VB>(v); }
CK_INLINE V of_bits(VB b) { return reinterpret_cast<V>(b); }

CK_INLINE V load(const BFloat16* p) {
  const VH h = *reinterpret_cast<const VHU*>(p);
  return of_bits(__builtin_convertvector(h, VB) << 16);
}

CK_INLINE void store(BFloat16* p, V v) {
  const VB b = bits_of(v);
  const VB rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const VB nan = (b >> 16) | 0x40u;
  const VB result = (b & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
  *reinterpret_cast<VHU*>(p) = __builtin_convertvector(result, VH);
}

CK_INLINE V load(const Float16* p) {
  const VB h = __builtin_convertvector(*reinterpret_cast<const VHU*>(p), VB);
  const VB magnitude = (h & 0x7fffu) << 13;             // exponent and mantissa, in their places
  VB b = magnitude + (112u << 23);                      // the other bias: 127 - 15
  b = magnitude >= (31u << 23) ? b + (112u << 23) : b;  // infinity and NaN
  const V least = splat(0x1p-14f);                      // subnormal: the mantissa counts 2^-24
  const V subnormal = of_bits(magnitude + (113u << 23)) - least;
  b = magnitude < (1u << 23) ? bits_of(subnormal) : b;
  return of_bits(b | ((h & 0x8000u) << 16));
}

CK_INLINE void store(Float16* p, V v) {
  const VB sign = (bits_of(v) >> 16) & 0x8000u;
  const VB b = bits_of(v) & 0x7fffffffu;
  VB h = (b - (112u << 23) + 0xfffu + ((b >> 13) & 1u)) >> 13;
  const VB subnormal = bits_of(of_bits(b) + splat(0.5f)) - (126u << 23);  // the addition rounds at 2^-24
  h = b < (113u << 23) ? subnormal : h;
  h = b >= (143u << 23) ? VB{} + 0x7c00u : h;
  h = b > 0x7f800000u ? VB{} + 0x7e00u : h;
  *reinterpret_cast<VHU*>(p) = __builtin_convertvector(h | sign, VH);
}

// Up to a register's worth, in pieces of constant sizes: a memcpy of `count` would be a call.
template <class S>
CK_INLINE void copy_part(const S* from, int64_t count, S* to) {
  CK_UNROLL
  for (int part = LANES; part > 0; part /= 2) {
    if (count & part) {
      std::memcpy(to, from, sizeof(S) * size_t(part));
      from += part, to += part;
    }
  }
}

// The first `count` lanes, and zeros behind them; the memory behind them is not touched.
template <class S>
CK_INLINE V load_part(const S* p, int64_t count) {
  S lanes[LANES] = {};
  copy_part(p, count, lanes);
  return load(lanes);
}
template <class S>
CK_INLINE void store_part(S* p, V v, int64_t count) {
  S lanes[LANES];
  store(lanes, v);
  copy_part(lanes, count, p);
}

template <class S>
CK_INLINE float load_one(const S* p) {
  if constexpr (sizeof(S) == sizeof(float)) return *p;
  return load_part(p, 1)[0];
}

}  // namespace convkit
