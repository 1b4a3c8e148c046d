// Integer and logic instructions, and what moves data between registers.
//
// What PTX leaves undefined (a division by zero) gives poison.
#include "machine.hpp"

namespace ptx {
namespace {

template <class T>
constexpr u32 kBits = 8 * sizeof(T);

// The type of twice the width.
template <class T>
struct Wider;
template <>
struct Wider<u16> {
  using type = u32;
};
template <>
struct Wider<s16> {
  using type = s32;
};
template <>
struct Wider<u32> {
  using type = u64;
};
template <>
struct Wider<s32> {
  using type = s64;
};
template <>
struct Wider<u64> {
  using type = u128;
};
template <>
struct Wider<s64> {
  using type = s128;
};
template <class T>
using wide = typename Wider<T>::type;

// Sums and products wrap around: they are taken without a sign.
template <class T, class W = std::make_unsigned_t<T>>
void add_arithmetic(Table& t, const std::string& type) {
  t.lane("add." + type, [](T a, T b) -> T { return static_cast<T>(W(a) + W(b)); });
  t.lane("sub." + type, [](T a, T b) -> T { return static_cast<T>(W(a) - W(b)); });
  t.lane("mul.lo." + type,
         [](T a, T b) -> T { return static_cast<T>(static_cast<W>(wide<W>(W(a)) * W(b))); });
  t.lane("mul.hi." + type, [](T a, T b) -> T { return static_cast<T>((wide<T>(a) * b) >> kBits<T>); });
  t.lane("mad.lo." + type,
         [](T a, T b, T c) -> T { return static_cast<T>(static_cast<W>(wide<W>(W(a)) * W(b) + W(c))); });
  t.lane("mad.hi." + type,
         [](T a, T b, T c) -> T { return static_cast<T>(W((wide<T>(a) * b) >> kBits<T>) + W(c)); });
  t.lane("min." + type, [](T a, T b) -> T { return a < b ? a : b; });
  t.lane("max." + type, [](T a, T b) -> T { return a > b ? a : b; });
  t.lane("div." + type, [](T a, T b) -> T {
    if (b == 0) return static_cast<T>(0xffc1ffc1ffc1ffc1ull);
    return b == static_cast<T>(-1) && std::is_signed_v<T> ? static_cast<T>(W(0) - W(a))
                                                          : static_cast<T>(a / b);
  });
  t.lane("rem." + type, [](T a, T b) -> T {
    if (b == 0) return static_cast<T>(0xffc1ffc1ffc1ffc1ull);
    return b == static_cast<T>(-1) && std::is_signed_v<T> ? T(0) : static_cast<T>(a % b);
  });
  // A shift by the width or more leaves nothing but the sign.
  t.lane("shr." + type, [](T a, u32 n) -> T {
    return static_cast<T>(n < kBits<T> ? a >> n : a < 0 ? -1 : 0);
  });
  t.lane("setp.eq." + type, [](T a, T b) -> bool { return a == b; });
  t.lane("setp.ne." + type, [](T a, T b) -> bool { return a != b; });
  t.lane("setp.lt." + type, [](T a, T b) -> bool { return a < b; });
  t.lane("setp.le." + type, [](T a, T b) -> bool { return a <= b; });
  t.lane("setp.gt." + type, [](T a, T b) -> bool { return a > b; });
  t.lane("setp.ge." + type, [](T a, T b) -> bool { return a >= b; });
}

template <class T>
void add_signed(Table& t, const std::string& type) {
  using W = std::make_unsigned_t<T>;
  t.lane("neg." + type, [](T a) -> T { return static_cast<T>(W(0) - W(a)); });
  t.lane("abs." + type, [](T a) -> T { return a < 0 ? static_cast<T>(W(0) - W(a)) : a; });
}

template <class T>
void add_wide(Table& t, const std::string& type) {
  using D = wide<T>;
  using W = std::make_unsigned_t<D>;
  t.lane("mul.wide." + type, [](T a, T b) -> D { return D(a) * D(b); });
  t.lane("mad.wide." + type, [](T a, T b, D c) -> D { return static_cast<D>(W(D(a) * D(b)) + W(c)); });
}

template <class T>
void add_bits(Table& t, const std::string& type) {
  t.lane("and." + type, [](T a, T b) -> T { return a & b; });
  t.lane("or." + type, [](T a, T b) -> T { return a | b; });
  t.lane("xor." + type, [](T a, T b) -> T { return a ^ b; });
  t.lane("not." + type, [](T a) -> T { return static_cast<T>(~a); });
  t.rare("cnot." + type, [](T a) -> T { return a == 0; });
  t.lane("shl." + type, [](T a, u32 n) -> T { return static_cast<T>(n < kBits<T> ? a << n : 0); });
  t.lane("mov." + type, [](T a) -> T { return a; });
  t.lane("selp." + type, [](T a, T b, bool c) -> T { return c ? a : b; });
}

// Instructions on 32 and 64 bits alone.
template <class T>
void add_fields(Table& t, const std::string& width) {
  using S = std::make_signed_t<T>;
  t.lane("popc.b" + width, [](T a) -> u32 { return static_cast<u32>(__builtin_popcountll(a)); });
  t.lane("clz.b" + width,
         [](T a) -> u32 { return a ? static_cast<u32>(__builtin_clzll(a)) - (64 - kBits<T>) : kBits<T>; });
  t.rare("brev.b" + width, [](T a) -> T {
    T d = 0;
    for (u32 k = 0; k < kBits<T>; ++k) d |= (a >> k & 1) << (kBits<T> - 1 - k);
    return d;
  });
  // Position and length are their lowest eight bits.
  t.rare("bfe.u" + width, [](T a, u32 position, u32 length) -> T {
    position &= 255, length &= 255;
    const T moved = position < kBits<T> ? a >> position : 0;
    return length < kBits<T> ? moved & ((T(1) << length) - 1) : moved;
  });
  // The sign is that of the field's highest bit, or of the operand's where the field goes beyond it.
  t.rare("bfe.s" + width, [](S a, u32 position, u32 length) -> S {
    position &= 255, length &= 255;
    if (length == 0) return 0;
    const u32 highest = position + length - 1 < kBits<T> ? position + length - 1 : kBits<T> - 1;
    const bool negative = T(a) >> highest & 1;
    T d = 0;
    for (u32 k = 0; k < kBits<T>; ++k) {
      const bool inside = k < length && position + k < kBits<T>;
      d |= T(inside ? T(a) >> (position + k) & 1 : negative) << k;
    }
    return static_cast<S>(d);
  });
  t.rare("bfi.b" + width, [](T a, T b, u32 position, u32 length) -> T {
    position &= 255, length &= 255;
    for (u32 k = 0; k < length && position + k < kBits<T>; ++k) {
      const T bit = T(1) << (position + k);
      b = (b & ~bit) | ((a >> k & 1) << (position + k));
    }
    return b;
  });
}

template <class T>
void add_packs(Table& t, const std::string& name) {  // T of two halves, and the halves of a T
  using H = std::conditional_t<sizeof(T) == 8, u32, u16>;
  t.lane("pack2." + name, [](H low, H high) -> T { return static_cast<T>(T(high) << kBits<H> | low); });
  t.lane("low." + name, [](T a) -> H { return static_cast<H>(a); });
  t.lane("high." + name, [](T a) -> H { return static_cast<H>(a >> kBits<H>); });
}

}  // namespace

void add_integer(Table& t) {
  add_arithmetic<u16>(t, "u16");
  add_arithmetic<s16>(t, "s16");
  add_arithmetic<u32>(t, "u32");
  add_arithmetic<s32>(t, "s32");
  add_arithmetic<u64>(t, "u64");
  add_arithmetic<s64>(t, "s64");
  add_signed<s16>(t, "s16");
  add_signed<s32>(t, "s32");
  add_signed<s64>(t, "s64");
  add_wide<u16>(t, "u16");
  add_wide<s16>(t, "s16");
  add_wide<u32>(t, "u32");
  add_wide<s32>(t, "s32");
  add_bits<u16>(t, "b16");
  add_bits<u32>(t, "b32");
  add_bits<u64>(t, "b64");
  add_fields<u32>(t, "32");
  add_fields<u64>(t, "64");
  add_packs<u32>(t, "b32");
  add_packs<u64>(t, "b64");

  t.lane("and.pred", [](bool a, bool b) -> bool { return a && b; });
  t.lane("or.pred", [](bool a, bool b) -> bool { return a || b; });
  t.lane("xor.pred", [](bool a, bool b) -> bool { return a != b; });
  t.lane("not.pred", [](bool a) -> bool { return !a; });
  t.lane("mov.pred", [](bool a) -> bool { return a; });

  t.rare("shf.l.wrap.b32", [](u32 low, u32 high, u32 n) -> u32 {
    return static_cast<u32>(((u64(high) << 32 | low) << (n & 31)) >> 32);
  });
  t.rare("shf.l.clamp.b32", [](u32 low, u32 high, u32 n) -> u32 {
    return n < 32 ? static_cast<u32>(((u64(high) << 32 | low) << n) >> 32) : low;
  });
  t.rare("shf.r.wrap.b32", [](u32 low, u32 high, u32 n) -> u32 {
    return static_cast<u32>((u64(high) << 32 | low) >> (n & 31));
  });
  t.rare("shf.r.clamp.b32", [](u32 low, u32 high, u32 n) -> u32 {
    return n < 32 ? static_cast<u32>((u64(high) << 32 | low) >> n) : high;
  });
  // Any function of three bits: bit abc of the table is its value.
  t.rare("lop3.b32", [](u32 a, u32 b, u32 c, u32 table) -> u32 {
    u32 d = 0;
    for (u32 k = 0; k < 8; ++k)
      if (table >> k & 1) d |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
    return d;
  });
  // Each four bits of c choose one of the eight bytes of a and b; their highest bit asks for its sign alone.
  t.rare("prmt.b32", [](u32 a, u32 b, u32 c) -> u32 {
    const u64 both = u64(b) << 32 | a;
    u32 d = 0;
    for (u32 k = 0; k < 4; ++k) {
      const u32 select = c >> 4 * k & 15, byte = both >> 8 * (select & 7) & 255;
      d |= (select & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * k;
    }
    return d;
  });
}

}  // namespace ptx
