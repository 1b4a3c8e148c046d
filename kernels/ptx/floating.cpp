// Floating-point instructions.
//
// Rounded to nearest, they are the host's; the other roundings are the host's too, with its mode changed
// around them. No product is fused with a sum here unless the instruction says so (-ffp-contract=off).
//
// `approx` promises an error bound, and exact values of a few operands. So these are off by as much as the
// manual allows, by an amount that is a fixed function of the operand's bits, and exact where it says so:
// what relies on more than the promise comes out wrong. Flushing to zero (.ftz) and clamping (.sat) are
// instructions of their own, which convkit/cuda/ptx/assemble.py puts around the others.
#include <cfenv>
#include <cmath>
#include <limits>

#include "machine.hpp"

namespace ptx {
namespace {

const f32 kNan32 = bits_as<f32>(0x7fffffffu);

// A function of the operands under a rounding mode. Through volatile memory, so that it is computed there.
template <int Mode, auto F, class T, class... A>
__attribute__((noinline)) T directed(A... operands) {
  volatile std::common_type_t<A...> in[] = {operands...};
  const int before = std::fegetround();
  std::fesetround(Mode);
  volatile T out;
  if constexpr (sizeof...(A) == 1) out = F(in[0]);
  if constexpr (sizeof...(A) == 2) out = F(in[0], in[1]);
  if constexpr (sizeof...(A) == 3) out = F(in[0], in[1], in[2]);
  std::fesetround(before);
  return out;
}

// A result, and of the NaNs always the same. Which one the host makes depends on the instruction that its
// compiler has chosen for one lane or for several. A GPU makes this one in f32; in f64 the manual leaves it open.
template <class T>
inline T one_nan(T value) {
  if constexpr (sizeof(T) == 4) return value != value ? bits_as<T>(0x7fffffffu) : value;
  return value != value ? std::numeric_limits<T>::quiet_NaN() : value;
}

template <class T>
struct Plain {
  static constexpr auto add = [](T a, T b) -> T { return one_nan<T>(a + b); };
  static constexpr auto sub = [](T a, T b) -> T { return one_nan<T>(a - b); };
  static constexpr auto mul = [](T a, T b) -> T { return one_nan<T>(a * b); };
  static constexpr auto div = [](T a, T b) -> T { return one_nan<T>(a / b); };
  static constexpr auto fma = [](T a, T b, T c) -> T { return one_nan<T>(std::fma(a, b, c)); };
  static constexpr auto rcp = [](T a) -> T { return one_nan<T>(1 / a); };
  static constexpr auto sqrt = [](T a) -> T { return one_nan<T>(std::sqrt(a)); };
};

template <class T, int Mode>
void add_rounding(Table& t, const std::string& rounding, const std::string& type) {
  using P = Plain<T>;
  const std::string tail = "." + rounding + "." + type;
  if constexpr (Mode == FE_TONEAREST) {
    t.lane("add" + tail, P::add);
    t.lane("sub" + tail, P::sub);
    t.lane("mul" + tail, P::mul);
    t.lane("div" + tail, P::div);
    t.lane("fma" + tail, P::fma);
    t.lane("rcp" + tail, P::rcp);
    t.lane("sqrt" + tail, P::sqrt);
  } else {
    t.rare("add" + tail, [](T a, T b) -> T { return directed<Mode, P::add, T>(a, b); });
    t.rare("sub" + tail, [](T a, T b) -> T { return directed<Mode, P::sub, T>(a, b); });
    t.rare("mul" + tail, [](T a, T b) -> T { return directed<Mode, P::mul, T>(a, b); });
    t.rare("div" + tail, [](T a, T b) -> T { return directed<Mode, P::div, T>(a, b); });
    t.rare("fma" + tail, [](T a, T b, T c) -> T { return directed<Mode, P::fma, T>(a, b, c); });
    t.rare("rcp" + tail, [](T a) -> T { return directed<Mode, P::rcp, T>(a); });
    t.rare("sqrt" + tail, [](T a) -> T { return directed<Mode, P::sqrt, T>(a); });
  }
}

template <class T>
void add_common(Table& t, const std::string& type) {
  using W = std::conditional_t<sizeof(T) == 4, u32, u64>;
  constexpr W sign = W(1) << (8 * sizeof(T) - 1);
  add_rounding<T, FE_TONEAREST>(t, "rn", type);
  add_rounding<T, FE_TOWARDZERO>(t, "rz", type);
  add_rounding<T, FE_DOWNWARD>(t, "rm", type);
  add_rounding<T, FE_UPWARD>(t, "rp", type);
  t.lane("abs." + type, [](T a) -> T { return bits_as<T>(static_cast<W>(bits_as<W>(a) & ~sign)); });
  t.lane("neg." + type, [](T a) -> T { return bits_as<T>(static_cast<W>(bits_as<W>(a) ^ sign)); });
  // d has the sign of a and the magnitude of b.
  t.lane("copysign." + type, [](T a, T b) -> T {
    return bits_as<T>(static_cast<W>((bits_as<W>(a) & sign) | (bits_as<W>(b) & ~sign)));
  });
  // Of a NaN and a number, the number; -0 is less than +0.
  t.lane("min." + type, [](T a, T b) -> T {
    if (a != a && b != b) return sizeof(T) == 4 ? static_cast<T>(kNan32) : a;
    if (a != a) return b;
    if (b != b) return a;
    return a < b || (a == b && (bits_as<W>(a) & sign)) ? a : b;
  });
  t.lane("max." + type, [](T a, T b) -> T {
    if (a != a && b != b) return sizeof(T) == 4 ? static_cast<T>(kNan32) : a;
    if (a != a) return b;
    if (b != b) return a;
    return a > b || (a == b && (bits_as<W>(b) & sign)) ? a : b;
  });

  // Ordered comparisons are false where an operand is a NaN, unordered ones true.
  t.lane("setp.eq." + type, [](T a, T b) -> bool { return a == b; });
  t.lane("setp.ne." + type, [](T a, T b) -> bool { return a < b || a > b; });
  t.lane("setp.lt." + type, [](T a, T b) -> bool { return a < b; });
  t.lane("setp.le." + type, [](T a, T b) -> bool { return a <= b; });
  t.lane("setp.gt." + type, [](T a, T b) -> bool { return a > b; });
  t.lane("setp.ge." + type, [](T a, T b) -> bool { return a >= b; });
  t.lane("setp.equ." + type, [](T a, T b) -> bool { return !(a < b || a > b); });
  t.lane("setp.neu." + type, [](T a, T b) -> bool { return !(a == b); });
  t.lane("setp.ltu." + type, [](T a, T b) -> bool { return !(a >= b); });
  t.lane("setp.leu." + type, [](T a, T b) -> bool { return !(a > b); });
  t.lane("setp.gtu." + type, [](T a, T b) -> bool { return !(a <= b); });
  t.lane("setp.geu." + type, [](T a, T b) -> bool { return !(a < b); });
  t.lane("setp.num." + type, [](T a, T b) -> bool { return a == a && b == b; });
  t.lane("setp.nan." + type, [](T a, T b) -> bool { return a != a || b != b; });

  constexpr T most = std::numeric_limits<T>::infinity(), least = std::numeric_limits<T>::min();
  t.rare("testp.finite." + type, [](T a) -> bool { return std::fabs(a) < most; });
  t.rare("testp.infinite." + type, [](T a) -> bool { return std::fabs(a) == most; });
  t.rare("testp.number." + type, [](T a) -> bool { return a == a; });
  t.rare("testp.notanumber." + type, [](T a) -> bool { return a != a; });
  t.rare("testp.normal." + type, [](T a) -> bool { return std::fabs(a) >= least && std::fabs(a) < most; });
  t.rare("testp.subnormal." + type, [](T a) -> bool { return std::fabs(a) > 0 && std::fabs(a) < least; });
}

// ---------------------------------------------------------------------------------------------------
// approx
// ---------------------------------------------------------------------------------------------------
// A number from -1 to 1 that depends on the operand alone; half of the time it is one of the two ends.
f64 nudge(f32 operand) {
  u32 h = bits_as<u32>(operand) * 0x9e3779b1u;
  h = (h ^ h >> 15) * 0x85ebca77u;
  h = (h ^ h >> 13) * 0xc2b2ae3du;
  const f64 all = static_cast<f64>(h >> 8) / (1 << 22) - 2;  // -2 to 2
  return all < -1 ? -1 : all > 1 ? 1 : all;
}

// The value as a float, off by at most so many units in the last place.
f32 off_by_ulps(f64 value, f64 most, f32 operand) {
  if (!std::isfinite(value) || value == 0) return static_cast<f32>(value);
  int exponent;
  std::frexp(value, &exponent);
  const f64 ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
  return static_cast<f32>(value + nudge(operand) * (most - 0.5) * ulp);  // rounding takes the other half
}

// The value as a float, off by at most that part of it.
f32 off_by_part(f64 value, f64 most, f32 operand) {
  return static_cast<f32>(value * (1 + nudge(operand) * (most - 0x1p-24)));
}

// The value as a float, off by at most that.
f32 off_by(f64 value, f64 most, f32 operand) {
  return static_cast<f32>(value + nudge(operand) * (most - std::fabs(value) * 0x1p-24));
}

f32 rcp_approx(f32 a) {
  if (a == 0 || std::isinf(a)) return 1 / a;
  return off_by_ulps(1.0 / a, 1, a);
}

f32 ex2_approx(f32 a) {
  if (std::fabs(a) < 0x1p-126f) return 1;
  return off_by_ulps(std::exp2(static_cast<f64>(a)), 2, a);
}

f32 lg2_approx(f32 a) {
  const f64 value = std::log2(static_cast<f64>(a));
  if (!std::isfinite(value)) return a < 0 ? kNan32 : static_cast<f32>(value);
  return a > 0.5f && a < 2 ? off_by(value, 0x1p-22, a) : off_by_part(value, 0x1p-22, a);
}

f32 trigonometric(f32 a, f64 value) {
  if (std::isinf(a)) return kNan32;
  const f64 turns = std::fabs(a) / 6.283185307179586;
  // The manual bounds the error up to 100 pi; beyond, nothing is promised.
  const f64 most = turns <= 1 ? 0x1p-20 * 0.7071067811865476 : turns <= 50 ? 0x1p-15 * 1.2311444133449163 : 1;
  return off_by(value, most, a);
}

void add_approximate(Table& t) {
  t.rare("rcp.approx.f32", [](f32 a) -> f32 { return rcp_approx(a); });
  t.rare("sqrt.approx.f32", [](f32 a) -> f32 {
    if (!(a > 0) || std::isinf(a)) return std::sqrt(a);
    return off_by_part(std::sqrt(static_cast<f64>(a)), 0x1p-23, a);
  });
  t.rare("rsqrt.approx.f32", [](f32 a) -> f32 {
    if (!(a > 0) || std::isinf(a)) return 1 / std::sqrt(a);  // -0 gives the negative infinity
    return off_by_part(1 / std::sqrt(static_cast<f64>(a)), 0x1p-23 * 1.0717734625362931, a);
  });
  t.rare("ex2.approx.f32", [](f32 a) -> f32 { return ex2_approx(a); });
  t.rare("lg2.approx.f32", [](f32 a) -> f32 { return lg2_approx(a); });
  t.rare("sin.approx.f32",
         [](f32 a) -> f32 { return a == 0 ? a : trigonometric(a, std::sin(static_cast<f64>(a))); });
  t.rare("cos.approx.f32",
         [](f32 a) -> f32 { return a == 0 ? 1 : trigonometric(a, std::cos(static_cast<f64>(a))); });
  t.rare("tanh.approx.f32", [](f32 a) -> f32 {
    if (a == 0 || std::isinf(a)) return std::tanh(a);
    return off_by_part(std::tanh(static_cast<f64>(a)), 0x1p-11, a);
  });
  // Within 2 ulp up to 2^126; beyond it 1 / b is flushed to zero.
  t.rare("div.approx.f32", [](f32 a, f32 b) -> f32 {
    if (std::fabs(b) > 0x1p126f && !std::isinf(b))
      return a == a && !std::isinf(a) ? std::copysign(0.0f, a) * b : kNan32;
    const f64 value = static_cast<f64>(a) / b;
    return std::isfinite(value) ? off_by_ulps(value, 2, a) : static_cast<f32>(value);
  });
  t.rare("div.full.f32", [](f32 a, f32 b) -> f32 {
    const f64 value = static_cast<f64>(a) / b;
    return std::isfinite(value) ? off_by_ulps(value, 2, a) : static_cast<f32>(value);
  });
}

}  // namespace

void add_floating(Table& t) {
  add_common<f32>(t, "f32");
  add_common<f64>(t, "f64");
  t.lane("min.NaN.f32", [](f32 a, f32 b) -> f32 {
    if (a != a || b != b) return kNan32;
    return a < b || (a == b && (bits_as<u32>(a) >> 31)) ? a : b;
  });
  t.lane("max.NaN.f32", [](f32 a, f32 b) -> f32 {
    if (a != a || b != b) return kNan32;
    return a > b || (a == b && (bits_as<u32>(b) >> 31)) ? a : b;
  });
  // A subnormal number becomes a zero of its sign; a NaN, clamped, becomes 0.
  t.lane("ftz.f32", [](f32 a) -> f32 {
    const u32 b = bits_as<u32>(a);
    return bits_as<f32>(b & 0x7f800000u ? b : b & 0x80000000u);
  });
  t.lane("sat.f32", [](f32 a) -> f32 { return a > 0 ? (a < 1 ? a : 1) : 0; });
  add_approximate(t);
}

}  // namespace ptx
