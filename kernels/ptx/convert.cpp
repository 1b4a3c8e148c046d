// Conversions (cvt).
//
// From a floating-point number to an integer what lies outside is clamped. A NaN gives 0, unless either type
// has 64 bits: then it gives the integer whose highest bit alone is set.
#include <cfenv>
#include <cmath>
#include <limits>

#include "machine.hpp"
#include "sixteen.hpp"

namespace ptx {
namespace {

template <class D, class A>
void add_integers(Table& t, const std::string& to, const std::string& from) {
  constexpr bool often = sizeof(D) >= 4 && sizeof(A) >= 4;
  t.lane<often>("cvt." + to + "." + from, [](A a) -> D { return static_cast<D>(a); });
  t.rare("cvt.sat." + to + "." + from, [](A a) -> D {
    using Whole = std::numeric_limits<D>;
    const s128 value = a;
    return static_cast<D>(value < s128(Whole::min())   ? s128(Whole::min())
                          : value > s128(Whole::max()) ? s128(Whole::max())
                                                       : value);
  });
}

template <class A>
void add_integers_from(Table& t, const std::string& from) {
  add_integers<u8, A>(t, "u8", from);
  add_integers<s8, A>(t, "s8", from);
  add_integers<u16, A>(t, "u16", from);
  add_integers<s16, A>(t, "s16", from);
  add_integers<u32, A>(t, "u32", from);
  add_integers<s32, A>(t, "s32", from);
  add_integers<u64, A>(t, "u64", from);
  add_integers<s64, A>(t, "s64", from);
}

enum class To { kNearest, kZero, kDown, kUp };

// To a whole number, as a floating-point number.
template <To R, class T>
inline T whole(T a) {
  return R == To::kNearest ? std::nearbyint(a)
         : R == To::kZero  ? std::trunc(a)
         : R == To::kDown  ? std::floor(a)
                           : std::ceil(a);
}

template <class D, class A, To R>
inline D to_integer(A a) {
  using Whole = std::numeric_limits<D>;
  using W = std::make_unsigned_t<D>;
  if (a != a) return sizeof(D) == 8 || sizeof(A) == 8 ? static_cast<D>(W(1) << (8 * sizeof(D) - 1)) : D(0);
  const A value = whole<R>(a);
  // 2^31 and the like are exact where the largest integer itself is not.
  const A end = std::ldexp(A(1), Whole::digits);
  if (value >= end) return Whole::max();
  if (value < (std::is_signed_v<D> ? -end : A(0))) return Whole::min();
  return static_cast<D>(value);
}

template <int Mode, class D, class A>
__attribute__((noinline)) D directed(A a) {  // through volatile memory, so that it is computed in this mode
  volatile A in = a;
  const int before = std::fegetround();
  std::fesetround(Mode);
  volatile D out = static_cast<D>(in);
  std::fesetround(before);
  return out;
}

template <class I, class F>
void add_between(Table& t, const std::string& integer, const std::string& floating) {
  const std::string to = "." + integer + "." + floating, back = "." + floating + "." + integer;
  t.rare("cvt.rni" + to, [](F a) -> I { return to_integer<I, F, To::kNearest>(a); });
  t.rare("cvt.rzi" + to, [](F a) -> I { return to_integer<I, F, To::kZero>(a); });
  t.rare("cvt.rmi" + to, [](F a) -> I { return to_integer<I, F, To::kDown>(a); });
  t.rare("cvt.rpi" + to, [](F a) -> I { return to_integer<I, F, To::kUp>(a); });
  t.rare("cvt.rn" + back, [](I a) -> F { return static_cast<F>(a); });
  t.rare("cvt.rz" + back, [](I a) -> F { return directed<FE_TOWARDZERO, F>(a); });
  t.rare("cvt.rm" + back, [](I a) -> F { return directed<FE_DOWNWARD, F>(a); });
  t.rare("cvt.rp" + back, [](I a) -> F { return directed<FE_UPWARD, F>(a); });
}

template <class F>
void add_between_all(Table& t, const std::string& floating) {
  add_between<u8, F>(t, "u8", floating);
  add_between<s8, F>(t, "s8", floating);
  add_between<u16, F>(t, "u16", floating);
  add_between<s16, F>(t, "s16", floating);
  add_between<u32, F>(t, "u32", floating);
  add_between<s32, F>(t, "s32", floating);
  add_between<u64, F>(t, "u64", floating);
  add_between<s64, F>(t, "s64", floating);
  t.rare("cvt.rni." + floating + "." + floating, [](F a) -> F { return whole<To::kNearest>(a); });
  t.rare("cvt.rzi." + floating + "." + floating, [](F a) -> F { return whole<To::kZero>(a); });
  t.rare("cvt.rmi." + floating + "." + floating, [](F a) -> F { return whole<To::kDown>(a); });
  t.rare("cvt.rpi." + floating + "." + floating, [](F a) -> F { return whole<To::kUp>(a); });
}

template <auto Nearest, auto Zero>
void add_pair(Table& t, const std::string& type) {
  t.lane("cvt.rn." + type + ".f32", [](f32 a) -> u16 { return Nearest(a); });
  t.lane("cvt.rz." + type + ".f32", [](f32 a) -> u16 { return Zero(a); });
  t.lane("cvt.rn." + type + "x2.f32",
         [](f32 high, f32 low) -> u32 { return u32(Nearest(high)) << 16 | Nearest(low); });
  t.lane("cvt.rz." + type + "x2.f32",
         [](f32 high, f32 low) -> u32 { return u32(Zero(high)) << 16 | Zero(low); });
}

// A double holds each of these integers, and each half.
template <class I>
void add_whole_halves(Table& t, const std::string& integer) {
  t.rare("cvt.rn.f16." + integer, [](I a) -> u16 { return to_half(to_odd(a)); });
  t.rare("cvt.rni." + integer + ".f16",
         [](u16 a) -> I { return to_integer<I, f32, To::kNearest>(from_half(a)); });
  t.rare("cvt.rzi." + integer + ".f16",
         [](u16 a) -> I { return to_integer<I, f32, To::kZero>(from_half(a)); });
  t.rare("cvt.rmi." + integer + ".f16",
         [](u16 a) -> I { return to_integer<I, f32, To::kDown>(from_half(a)); });
  t.rare("cvt.rpi." + integer + ".f16", [](u16 a) -> I { return to_integer<I, f32, To::kUp>(from_half(a)); });
}

// To 10 bits of mantissa and the exponents of f32, the nearest one; of two as near the larger magnitude.
u32 to_tf32(f32 a) {
  if (a != a) return 0x7fffffffu;
  if (std::isinf(a) || a == 0) return bits_as<u32>(a);
  const int exponent = std::max(std::ilogb(a), -126);
  const f64 unit = std::ldexp(1.0, exponent - 10), size = std::fabs(static_cast<f64>(a));
  return bits_as<u32>(std::copysign(static_cast<f32>(std::floor(size / unit + 0.5) * unit), a));
}

}  // namespace

void add_convert(Table& t) {
  add_integers_from<u8>(t, "u8");
  add_integers_from<s8>(t, "s8");
  add_integers_from<u16>(t, "u16");
  add_integers_from<s16>(t, "s16");
  add_integers_from<u32>(t, "u32");
  add_integers_from<s32>(t, "s32");
  add_integers_from<u64>(t, "u64");
  add_integers_from<s64>(t, "s64");
  add_between_all<f32>(t, "f32");
  add_between_all<f64>(t, "f64");

  t.lane("cvt.f32.f32", [](f32 a) -> f32 { return a; });
  t.lane("cvt.f64.f32", [](f32 a) -> f64 { return a; });
  t.lane("cvt.rn.f32.f64", [](f64 a) -> f32 { return static_cast<f32>(a); });
  t.lane("cvt.rz.f32.f64", [](f64 a) -> f32 { return directed<FE_TOWARDZERO, f32>(a); });
  t.lane("cvt.rm.f32.f64", [](f64 a) -> f32 { return directed<FE_DOWNWARD, f32>(a); });
  t.lane("cvt.rp.f32.f64", [](f64 a) -> f32 { return directed<FE_UPWARD, f32>(a); });

  t.lane("cvt.rna.tf32.f32", [](f32 a) -> u32 { return to_tf32(a); });
  t.lane("cvt.f32.f16", [](u16 a) -> f32 { return from_half(a); });
  t.lane("cvt.f64.f16", [](u16 a) -> f64 { return from_half(a); });
  t.lane("cvt.rn.f16.f64", [](f64 a) -> u16 { return to_half(to_odd(a)); });
  t.lane("cvt.f32.bf16", [](u16 a) -> f32 { return from_bfloat(a); });
  add_whole_halves<u16>(t, "u16");
  add_whole_halves<s16>(t, "s16");
  add_whole_halves<u32>(t, "u32");
  add_whole_halves<s32>(t, "s32");
  add_pair<to_half, to_half_toward_zero>(t, "f16");
  add_pair<to_bfloat, to_bfloat_toward_zero>(t, "bf16");
}

}  // namespace ptx
