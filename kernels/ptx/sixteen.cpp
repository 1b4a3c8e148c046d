// Arithmetic on 16-bit floating-point numbers, alone and in pairs.
//
// It is done in double and rounded once. Sums and products of two halves are exact there; where a sum is not,
// it is rounded to odd, which a narrower type then rounds as it would round the sum itself.
#include <cmath>

#include "sixteen.hpp"

namespace ptx {
namespace {

// a + b, rounded to odd.
f64 odd_sum(f64 a, f64 b) {
  const f64 sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const f64 part = sum - a, rest = (a - (sum - part)) + (b - part);
  if (rest == 0 || (bits_as<u64>(sum) & 1)) return sum;
  return std::nextafter(sum, rest > 0 ? HUGE_VAL : -HUGE_VAL);
}

struct Half {
  static constexpr u16 nan = 0x7fff;
  static f64 wide(u16 a) { return from_half(a); }
  static u16 narrow(f64 a) { return to_half(to_odd(a)); }
};
struct Bfloat {
  static constexpr u16 nan = 0x7fff;
  static f64 wide(u16 a) { return from_bfloat(a); }
  static u16 narrow(f64 a) { return to_bfloat(to_odd(a)); }
};

template <class S>
u16 smaller(u16 a, u16 b) {
  const f64 x = S::wide(a), y = S::wide(b);
  if (x != x || y != y) return x == x ? a : y == y ? b : S::nan;
  return x < y || (x == y && (a & 0x8000)) ? a : b;
}
template <class S>
u16 larger(u16 a, u16 b) {
  const f64 x = S::wide(a), y = S::wide(b);
  if (x != x || y != y) return x == x ? a : y == y ? b : S::nan;
  return x > y || (x == y && (b & 0x8000)) ? a : b;
}
template <class S>
bool is_nan(u16 a) {
  return S::wide(a) != S::wide(a);
}

// An operation on 16 bits, and on each half of 32.
template <class F>
void add_two(Table& t, const std::string& name, F function) {
  t.rare(name, function);
  t.rare(name + "x2", [](u32 a, u32 b) -> u32 {
    const F f{};
    return u32(f(static_cast<u16>(a >> 16), static_cast<u16>(b >> 16))) << 16 |
           f(static_cast<u16>(a), static_cast<u16>(b));
  });
}

template <class S>
void add_sixteen(Table& t, const std::string& type) {
  add_two(t, "add.rn." + type,
          [](u16 a, u16 b) -> u16 { return S::narrow(odd_sum(S::wide(a), S::wide(b))); });
  add_two(t, "sub.rn." + type,
          [](u16 a, u16 b) -> u16 { return S::narrow(odd_sum(S::wide(a), -S::wide(b))); });
  add_two(t, "mul.rn." + type, [](u16 a, u16 b) -> u16 { return S::narrow(S::wide(a) * S::wide(b)); });
  add_two(t, "min." + type, [](u16 a, u16 b) -> u16 { return smaller<S>(a, b); });
  add_two(t, "max." + type, [](u16 a, u16 b) -> u16 { return larger<S>(a, b); });
  add_two(t, "min.NaN." + type,
          [](u16 a, u16 b) -> u16 { return is_nan<S>(a) || is_nan<S>(b) ? S::nan : smaller<S>(a, b); });
  add_two(t, "max.NaN." + type,
          [](u16 a, u16 b) -> u16 { return is_nan<S>(a) || is_nan<S>(b) ? S::nan : larger<S>(a, b); });
  const auto fma = [](u16 a, u16 b, u16 c) -> u16 {
    return S::narrow(odd_sum(S::wide(a) * S::wide(b), S::wide(c)));
  };
  using Fma = decltype(fma);
  t.rare("fma.rn." + type, [](u16 a, u16 b, u16 c) -> u16 { return Fma{}(a, b, c); });
  t.rare("fma.rn." + type + "x2", [](u32 a, u32 b, u32 c) -> u32 {
    const u16 high = Fma{}(static_cast<u16>(a >> 16), static_cast<u16>(b >> 16), static_cast<u16>(c >> 16));
    return u32(high) << 16 | Fma{}(static_cast<u16>(a), static_cast<u16>(b), static_cast<u16>(c));
  });
  t.rare("neg." + type, [](u16 a) -> u16 { return a ^ 0x8000; });
  t.rare("abs." + type, [](u16 a) -> u16 { return a & 0x7fff; });
  t.rare("neg." + type + "x2", [](u32 a) -> u32 { return a ^ 0x80008000u; });
  t.rare("abs." + type + "x2", [](u32 a) -> u32 { return a & 0x7fff7fffu; });

  const auto compare = [&](const std::string& name, auto function) {
    t.rare("setp." + name + "." + type, function);
  };
  compare("eq", [](u16 a, u16 b) -> bool { return S::wide(a) == S::wide(b); });
  compare("ne", [](u16 a, u16 b) -> bool { return S::wide(a) < S::wide(b) || S::wide(a) > S::wide(b); });
  compare("lt", [](u16 a, u16 b) -> bool { return S::wide(a) < S::wide(b); });
  compare("le", [](u16 a, u16 b) -> bool { return S::wide(a) <= S::wide(b); });
  compare("gt", [](u16 a, u16 b) -> bool { return S::wide(a) > S::wide(b); });
  compare("ge", [](u16 a, u16 b) -> bool { return S::wide(a) >= S::wide(b); });
  compare("equ", [](u16 a, u16 b) -> bool { return !(S::wide(a) < S::wide(b) || S::wide(a) > S::wide(b)); });
  compare("neu", [](u16 a, u16 b) -> bool { return !(S::wide(a) == S::wide(b)); });
  compare("ltu", [](u16 a, u16 b) -> bool { return !(S::wide(a) >= S::wide(b)); });
  compare("leu", [](u16 a, u16 b) -> bool { return !(S::wide(a) > S::wide(b)); });
  compare("gtu", [](u16 a, u16 b) -> bool { return !(S::wide(a) <= S::wide(b)); });
  compare("geu", [](u16 a, u16 b) -> bool { return !(S::wide(a) < S::wide(b)); });
  compare("num", [](u16 a, u16 b) -> bool { return !is_nan<S>(a) && !is_nan<S>(b); });
  compare("nan", [](u16 a, u16 b) -> bool { return is_nan<S>(a) || is_nan<S>(b); });
}

}  // namespace

void add_sixteen(Table& t) {
  add_sixteen<Half>(t, "f16");
  add_sixteen<Bfloat>(t, "bf16");
}

}  // namespace ptx
