// Included by cuda_fp16.h and cuda_bf16.h, which define
//   CONVKIT_T, CONVKIT_T2       the type, and the pair of them
//   CONVKIT_RAW, CONVKIT_RAW2   their bits as plain structs
//   CONVKIT_NAME(a, b)          a##half##b or a##bfloat16##b
// before it, and CONVKIT_NAME(, _to_float)(bits), CONVKIT_NAME(, _from_float)(float) of unsigned short.
// Constructors, conversions and functions are those of CUDA's headers, so that what is ambiguous there is
// ambiguous here.

struct __attribute__((aligned(2))) CONVKIT_RAW {
  unsigned short x;
};
struct __attribute__((aligned(4))) CONVKIT_RAW2 {
  unsigned short x, y;
};

struct __attribute__((aligned(2))) CONVKIT_T {
  unsigned short __x;

  CONVKIT_T() = default;
  constexpr CONVKIT_CLASS CONVKIT_T(const CONVKIT_RAW& raw) : __x(raw.x) {}
  CONVKIT_CLASS CONVKIT_T(float v) : __x(CONVKIT_NAME(convkit_, _from_float)(v)) {}
  CONVKIT_CLASS CONVKIT_T(double v) : __x(CONVKIT_NAME(convkit_, _from_float)(convkit_odd(v))) {}
#define CONVKIT_INTEGER(I, Wide)                                                                          \
  CONVKIT_CLASS CONVKIT_T(I v) : __x(CONVKIT_NAME(convkit_, _from_float)(convkit_odd<Wide>(v))) {}        \
  CONVKIT_CLASS operator I() const { return convkit_integer<I>(CONVKIT_NAME(convkit_, _to_float)(__x)); } \
  CONVKIT_CLASS CONVKIT_T& operator=(I v) { return *this = CONVKIT_T(v); }
  CONVKIT_INTEGER(short, double)
  CONVKIT_INTEGER(unsigned short, double)
  CONVKIT_INTEGER(int, double)
  CONVKIT_INTEGER(unsigned, double)
  CONVKIT_INTEGER(long, long double)
  CONVKIT_INTEGER(unsigned long, long double)
  CONVKIT_INTEGER(long long, long double)
  CONVKIT_INTEGER(unsigned long long, long double)
#undef CONVKIT_INTEGER
  CONVKIT_CLASS operator char() const { return convkit_integer<char>(float(*this)); }
  CONVKIT_CLASS operator signed char() const { return convkit_integer<signed char>(float(*this)); }
  CONVKIT_CLASS operator unsigned char() const { return convkit_integer<unsigned char>(float(*this)); }
  CONVKIT_CLASS operator bool() const { return (__x & 0x7fffu) != 0; }
  CONVKIT_CLASS operator float() const { return CONVKIT_NAME(convkit_, _to_float)(__x); }
  CONVKIT_CLASS operator CONVKIT_RAW() const { return {__x}; }
  CONVKIT_CLASS CONVKIT_T& operator=(const CONVKIT_RAW& raw) { return *this = CONVKIT_T(raw); }
  CONVKIT_CLASS CONVKIT_T& operator=(float v) { return *this = CONVKIT_T(v); }
  CONVKIT_CLASS CONVKIT_T& operator=(double v) { return *this = CONVKIT_T(v); }
};

struct __attribute__((aligned(4))) CONVKIT_T2 {
  CONVKIT_T x, y;

  CONVKIT_T2() = default;
  CONVKIT_CLASS CONVKIT_T2(const CONVKIT_T& a, const CONVKIT_T& b) : x(a), y(b) {}
  CONVKIT_CLASS CONVKIT_T2(const CONVKIT_RAW2& raw) : x(CONVKIT_RAW{raw.x}), y(CONVKIT_RAW{raw.y}) {}
  CONVKIT_CLASS operator CONVKIT_RAW2() const { return {x.__x, y.__x}; }
};

// ---------------------------------------------------------------------------------------------------
// Conversions
// ---------------------------------------------------------------------------------------------------
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__ushort_as_, )(unsigned short bits) {
  return CONVKIT_T(CONVKIT_RAW{bits});
}
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__short_as_, )(short bits) {
  return CONVKIT_T(CONVKIT_RAW{static_cast<unsigned short>(bits)});
}
CONVKIT_INLINE unsigned short CONVKIT_NAME(__, _as_ushort)(CONVKIT_T h) { return h.__x; }
CONVKIT_INLINE short CONVKIT_NAME(__, _as_short)(CONVKIT_T h) { return static_cast<short>(h.__x); }

CONVKIT_INLINE float CONVKIT_NAME(__, 2float)(CONVKIT_T h) {
  return CONVKIT_NAME(convkit_, _to_float)(h.__x);
}
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__float2, _rn)(float f) {
  return CONVKIT_T(CONVKIT_RAW{CONVKIT_NAME(convkit_, _from_float)(f)});
}
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__float2, )(float f) { return CONVKIT_NAME(__float2, _rn)(f); }
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__double2, )(double d) {
  return CONVKIT_NAME(__float2, _rn)(convkit_odd(d));
}
// Rounded to nearest, then a step towards or away from zero where that went the wrong way.
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__float2, _rz)(float f) {
  const CONVKIT_T h = CONVKIT_NAME(__float2, _rn)(f);
  const bool beyond = fabsf(CONVKIT_NAME(__, 2float)(h)) > fabsf(f);
  return CONVKIT_NAME(__ushort_as_, )(static_cast<unsigned short>(h.__x - beyond));
}
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__float2, _ru)(float f) {
  const CONVKIT_T h = CONVKIT_NAME(__float2, _rz)(f);
  const bool below = CONVKIT_NAME(__, 2float)(h) < f;
  return CONVKIT_NAME(__ushort_as_, )(static_cast<unsigned short>(h.__x + below));
}
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__float2, _rd)(float f) {
  const CONVKIT_T h = CONVKIT_NAME(__float2, _rz)(f);
  const bool above = CONVKIT_NAME(__, 2float)(h) > f;
  return CONVKIT_NAME(__ushort_as_, )(static_cast<unsigned short>(h.__x + above));
}
#define CONVKIT_INTEGER(name, I)                                                                        \
  CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__##name##2, _rn)(I v) { return CONVKIT_T(v); }                 \
  CONVKIT_INLINE I CONVKIT_NAME(__, 2##name##_rz)(CONVKIT_T h) { return convkit_integer<I>(float(h)); } \
  CONVKIT_INLINE I CONVKIT_NAME(__, 2##name##_rn)(CONVKIT_T h) {                                        \
    return convkit_integer<I>(rint(float(h)));                                                          \
  }                                                                                                     \
  CONVKIT_INLINE I CONVKIT_NAME(__, 2##name##_rd)(CONVKIT_T h) {                                        \
    return convkit_integer<I>(floor(float(h)));                                                         \
  }                                                                                                     \
  CONVKIT_INLINE I CONVKIT_NAME(__, 2##name##_ru)(CONVKIT_T h) { return convkit_integer<I>(ceil(float(h))); }
CONVKIT_INTEGER(short, short)
CONVKIT_INTEGER(ushort, unsigned short)
CONVKIT_INTEGER(int, int)
CONVKIT_INTEGER(uint, unsigned)
CONVKIT_INTEGER(ll, long long)
CONVKIT_INTEGER(ull, unsigned long long)
#undef CONVKIT_INTEGER

CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(make_, 2)(CONVKIT_T a, CONVKIT_T b) { return {a, b}; }
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__halves2, 2)(CONVKIT_T a, CONVKIT_T b) { return {a, b}; }
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__low2, )(CONVKIT_T2 h) { return h.x; }
CONVKIT_INLINE CONVKIT_T CONVKIT_NAME(__high2, )(CONVKIT_T2 h) { return h.y; }
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__low2, 2)(CONVKIT_T2 h) { return {h.x, h.x}; }
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__high2, 2)(CONVKIT_T2 h) { return {h.y, h.y}; }
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__lows2, 2)(CONVKIT_T2 a, CONVKIT_T2 b) { return {a.x, b.x}; }
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__highs2, 2)(CONVKIT_T2 a, CONVKIT_T2 b) { return {a.y, b.y}; }
CONVKIT_INLINE CONVKIT_T2 __lowhigh2highlow(CONVKIT_T2 h) { return {h.y, h.x}; }
CONVKIT_INLINE float __low2float(CONVKIT_T2 h) { return float(h.x); }
CONVKIT_INLINE float __high2float(CONVKIT_T2 h) { return float(h.y); }
CONVKIT_INLINE float2 CONVKIT_NAME(__, 22float2)(CONVKIT_T2 h) { return {float(h.x), float(h.y)}; }
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__floats2, 2_rn)(float a, float b) {
  return {CONVKIT_NAME(__float2, _rn)(a), CONVKIT_NAME(__float2, _rn)(b)};
}
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__float2, 2_rn)(float a) {
  return CONVKIT_NAME(__floats2, 2_rn)(a, a);
}
CONVKIT_INLINE CONVKIT_T2 CONVKIT_NAME(__float22, 2_rn)(float2 f) {
  return CONVKIT_NAME(__floats2, 2_rn)(f.x, f.y);
}

// ---------------------------------------------------------------------------------------------------
// Arithmetic
// ---------------------------------------------------------------------------------------------------
CONVKIT_INLINE CONVKIT_T __hneg(CONVKIT_T a) {
  return CONVKIT_T(CONVKIT_RAW{static_cast<unsigned short>(a.__x ^ 0x8000u)});
}
CONVKIT_INLINE CONVKIT_T __habs(CONVKIT_T a) {
  return CONVKIT_T(CONVKIT_RAW{static_cast<unsigned short>(a.__x & 0x7fffu)});
}
CONVKIT_INLINE bool __hisnan(CONVKIT_T a) { return float(a) != float(a); }
CONVKIT_INLINE int __hisinf(CONVKIT_T a) { return isinf(float(a)) ? (a.__x & 0x8000u ? -1 : 1) : 0; }
CONVKIT_INLINE CONVKIT_T convkit_saturated(CONVKIT_T a) { return CONVKIT_T(__saturatef(float(a))); }

#define CONVKIT_EXACT(name, expression)                                                                      \
  CONVKIT_INLINE CONVKIT_T name(CONVKIT_T a, CONVKIT_T b) {                                                  \
    const double x = float(a), y = float(b);                                                                 \
    return CONVKIT_T(expression);                                                                            \
  }                                                                                                          \
  CONVKIT_INLINE CONVKIT_T name##_rn(CONVKIT_T a, CONVKIT_T b) { return name(a, b); }                        \
  CONVKIT_INLINE CONVKIT_T name##_sat(CONVKIT_T a, CONVKIT_T b) { return convkit_saturated(name(a, b)); }    \
  CONVKIT_INLINE CONVKIT_T2 name##2(CONVKIT_T2 a, CONVKIT_T2 b) { return {name(a.x, b.x), name(a.y, b.y)}; } \
  CONVKIT_INLINE CONVKIT_T2 name##2_rn(CONVKIT_T2 a, CONVKIT_T2 b) { return name##2(a, b); }                 \
  CONVKIT_INLINE CONVKIT_T2 name##2_sat(CONVKIT_T2 a, CONVKIT_T2 b) {                                        \
    return {name##_sat(a.x, b.x), name##_sat(a.y, b.y)};                                                     \
  }
CONVKIT_EXACT(__hadd, x + y)
CONVKIT_EXACT(__hsub, x - y)
CONVKIT_EXACT(__hmul, x* y)
#undef CONVKIT_EXACT
CONVKIT_INLINE CONVKIT_T __hdiv(CONVKIT_T a, CONVKIT_T b) {
  return CONVKIT_T(static_cast<double>(float(a)) / static_cast<double>(float(b)));
}
CONVKIT_INLINE CONVKIT_T2 __h2div(CONVKIT_T2 a, CONVKIT_T2 b) { return {__hdiv(a.x, b.x), __hdiv(a.y, b.y)}; }
CONVKIT_INLINE CONVKIT_T __hfma(CONVKIT_T a, CONVKIT_T b, CONVKIT_T c) {
  return CONVKIT_T(convkit_fma_odd(float(a), float(b), float(c)));
}
CONVKIT_INLINE CONVKIT_T __hfma_sat(CONVKIT_T a, CONVKIT_T b, CONVKIT_T c) {
  return convkit_saturated(__hfma(a, b, c));
}
CONVKIT_INLINE CONVKIT_T __hfma_relu(CONVKIT_T a, CONVKIT_T b, CONVKIT_T c) {
  const CONVKIT_T r = __hfma(a, b, c);
  return float(r) < 0 ? CONVKIT_T(0.0f) : r;
}
#define CONVKIT_THREE(name)                                                     \
  CONVKIT_INLINE CONVKIT_T2 name##2(CONVKIT_T2 a, CONVKIT_T2 b, CONVKIT_T2 c) { \
    return {name(a.x, b.x, c.x), name(a.y, b.y, c.y)};                          \
  }
CONVKIT_THREE(__hfma)
#undef CONVKIT_THREE
CONVKIT_INLINE CONVKIT_T2 __hfma2_sat(CONVKIT_T2 a, CONVKIT_T2 b, CONVKIT_T2 c) {
  return {__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y)};
}
CONVKIT_INLINE CONVKIT_T2 __hfma2_relu(CONVKIT_T2 a, CONVKIT_T2 b, CONVKIT_T2 c) {
  return {__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y)};
}

// Of a NaN and a number the number, but for `_nan`; of two zeros the one that the name asks for.
CONVKIT_INLINE CONVKIT_T __hmax(CONVKIT_T a, CONVKIT_T b) {
  const float x = float(a), y = float(b);
  if (x != x || y != y) return x == x ? a : y == y ? b : CONVKIT_T(x);
  return x > y || (x == y && !(a.__x & 0x8000u)) ? a : b;
}
CONVKIT_INLINE CONVKIT_T __hmin(CONVKIT_T a, CONVKIT_T b) {
  const float x = float(a), y = float(b);
  if (x != x || y != y) return x == x ? a : y == y ? b : CONVKIT_T(x);
  return x < y || (x == y && a.__x & 0x8000u) ? a : b;
}
CONVKIT_INLINE CONVKIT_T __hmax_nan(CONVKIT_T a, CONVKIT_T b) {
  return __hisnan(a) || __hisnan(b) ? CONVKIT_T(__uint_as_float(0x7fffffffu)) : __hmax(a, b);
}
CONVKIT_INLINE CONVKIT_T __hmin_nan(CONVKIT_T a, CONVKIT_T b) {
  return __hisnan(a) || __hisnan(b) ? CONVKIT_T(__uint_as_float(0x7fffffffu)) : __hmin(a, b);
}
CONVKIT_INLINE CONVKIT_T2 __hmax2(CONVKIT_T2 a, CONVKIT_T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
CONVKIT_INLINE CONVKIT_T2 __hmin2(CONVKIT_T2 a, CONVKIT_T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
CONVKIT_INLINE CONVKIT_T2 __hmax2_nan(CONVKIT_T2 a, CONVKIT_T2 b) {
  return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
}
CONVKIT_INLINE CONVKIT_T2 __hmin2_nan(CONVKIT_T2 a, CONVKIT_T2 b) {
  return {__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)};
}
CONVKIT_INLINE CONVKIT_T2 __hneg2(CONVKIT_T2 a) { return {__hneg(a.x), __hneg(a.y)}; }
CONVKIT_INLINE CONVKIT_T2 __habs2(CONVKIT_T2 a) { return {__habs(a.x), __habs(a.y)}; }
CONVKIT_INLINE CONVKIT_T2 __hisnan2(CONVKIT_T2 a) {
  return {CONVKIT_T(__hisnan(a.x) ? 1.0f : 0.0f), CONVKIT_T(__hisnan(a.y) ? 1.0f : 0.0f)};
}

// Comparisons are false with a NaN; those that end in u are true then.
#define CONVKIT_BOTH(f, a, b) \
  (CONVKIT_T2{CONVKIT_T(f(a.x, b.x) ? 1.0f : 0.0f), CONVKIT_T(f(a.y, b.y) ? 1.0f : 0.0f)})
#define CONVKIT_COMPARE(name, expression)                               \
  CONVKIT_INLINE bool __h##name(CONVKIT_T a, CONVKIT_T b) {             \
    const float x = float(a), y = float(b);                             \
    return expression;                                                  \
  }                                                                     \
  CONVKIT_INLINE bool __h##name##u(CONVKIT_T a, CONVKIT_T b) {          \
    return __hisnan(a) || __hisnan(b) || __h##name(a, b);               \
  }                                                                     \
  CONVKIT_INLINE CONVKIT_T2 __h##name##2(CONVKIT_T2 a, CONVKIT_T2 b) {  \
    return CONVKIT_BOTH(__h##name, a, b);                               \
  }                                                                     \
  CONVKIT_INLINE CONVKIT_T2 __h##name##u2(CONVKIT_T2 a, CONVKIT_T2 b) { \
    return CONVKIT_BOTH(__h##name##u, a, b);                            \
  }                                                                     \
  CONVKIT_INLINE bool __hb##name##2(CONVKIT_T2 a, CONVKIT_T2 b) {       \
    return __h##name(a.x, b.x) && __h##name(a.y, b.y);                  \
  }                                                                     \
  CONVKIT_INLINE bool __hb##name##u2(CONVKIT_T2 a, CONVKIT_T2 b) {      \
    return __h##name##u(a.x, b.x) && __h##name##u(a.y, b.y);            \
  }
CONVKIT_COMPARE(eq, x == y)
CONVKIT_COMPARE(ne, x<y || x> y)
CONVKIT_COMPARE(lt, x < y)
CONVKIT_COMPARE(le, x <= y)
CONVKIT_COMPARE(gt, x > y)
CONVKIT_COMPARE(ge, x >= y)
#undef CONVKIT_COMPARE
#undef CONVKIT_BOTH

// Functions: as accurate as the type, where a GPU may be off by one more unit in the last place.
#define CONVKIT_FUNCTION(name, name2, expression)      \
  CONVKIT_INLINE CONVKIT_T name(CONVKIT_T a) {         \
    const double x = float(a);                         \
    return CONVKIT_T(static_cast<double>(expression)); \
  }                                                    \
  CONVKIT_INLINE CONVKIT_T2 name2(CONVKIT_T2 a) { return {name(a.x), name(a.y)}; }
CONVKIT_FUNCTION(hsqrt, h2sqrt, sqrt(x))
CONVKIT_FUNCTION(hrsqrt, h2rsqrt, 1.0 / sqrt(x))
CONVKIT_FUNCTION(hrcp, h2rcp, 1.0 / x)
CONVKIT_FUNCTION(hexp, h2exp, exp(x))
CONVKIT_FUNCTION(hexp2, h2exp2, exp2(x))
CONVKIT_FUNCTION(hexp10, h2exp10, pow(10.0, x))
CONVKIT_FUNCTION(hlog, h2log, log(x))
CONVKIT_FUNCTION(hlog2, h2log2, log2(x))
CONVKIT_FUNCTION(hlog10, h2log10, log10(x))
CONVKIT_FUNCTION(hsin, h2sin, sin(x))
CONVKIT_FUNCTION(hcos, h2cos, cos(x))
CONVKIT_FUNCTION(htanh, h2tanh, tanh(x))
CONVKIT_FUNCTION(hfloor, h2floor, floor(x))
CONVKIT_FUNCTION(hceil, h2ceil, ceil(x))
CONVKIT_FUNCTION(htrunc, h2trunc, trunc(x))
CONVKIT_FUNCTION(hrint, h2rint, rint(x))
#undef CONVKIT_FUNCTION

// ---------------------------------------------------------------------------------------------------
// Operators, of numbers and of pairs
// ---------------------------------------------------------------------------------------------------
#define CONVKIT_OPERATOR(T, sign, function)                                         \
  CONVKIT_INLINE T operator sign(const T& a, const T& b) { return function(a, b); } \
  CONVKIT_INLINE T& operator sign## = (T & a, const T& b) { return a = function(a, b); }
#define CONVKIT_OPERATORS(T, add, sub, mul, div, neg, one, compare)               \
  CONVKIT_OPERATOR(T, +, add)                                                     \
  CONVKIT_OPERATOR(T, -, sub)                                                     \
  CONVKIT_OPERATOR(T, *, mul)                                                     \
  CONVKIT_OPERATOR(T, /, div)                                                     \
  CONVKIT_INLINE T operator+(const T& a) { return a; }                            \
  CONVKIT_INLINE T operator-(const T& a) { return neg(a); }                       \
  CONVKIT_INLINE T& operator++(T& a) { return a = add(a, one); }                  \
  CONVKIT_INLINE T& operator--(T& a) { return a = sub(a, one); }                  \
  CONVKIT_INLINE T operator++(T& a, int) {                                        \
    const T old = a;                                                              \
    a = add(a, one);                                                              \
    return old;                                                                   \
  }                                                                               \
  CONVKIT_INLINE T operator--(T& a, int) {                                        \
    const T old = a;                                                              \
    a = sub(a, one);                                                              \
    return old;                                                                   \
  }                                                                               \
  CONVKIT_INLINE bool operator==(const T& a, const T& b) { return compare(eq); }  \
  CONVKIT_INLINE bool operator!=(const T& a, const T& b) { return compare(neu); } \
  CONVKIT_INLINE bool operator<(const T& a, const T& b) { return compare(lt); }   \
  CONVKIT_INLINE bool operator<=(const T& a, const T& b) { return compare(le); }  \
  CONVKIT_INLINE bool operator>(const T& a, const T& b) { return compare(gt); }   \
  CONVKIT_INLINE bool operator>=(const T& a, const T& b) { return compare(ge); }
#define CONVKIT_ONE CONVKIT_T(1.0f)
#define CONVKIT_ONE2 (CONVKIT_T2{CONVKIT_T(1.0f), CONVKIT_T(1.0f)})
#define CONVKIT_OF_NUMBERS(name) __h##name(a, b)
#define CONVKIT_OF_PAIRS(name) __hb##name##2(a, b)
CONVKIT_OPERATORS(CONVKIT_T, __hadd, __hsub, __hmul, __hdiv, __hneg, CONVKIT_ONE, CONVKIT_OF_NUMBERS)
CONVKIT_OPERATORS(CONVKIT_T2, __hadd2, __hsub2, __hmul2, __h2div, __hneg2, CONVKIT_ONE2, CONVKIT_OF_PAIRS)
#undef CONVKIT_OPERATOR
#undef CONVKIT_OPERATORS
#undef CONVKIT_ONE
#undef CONVKIT_ONE2
#undef CONVKIT_OF_NUMBERS
#undef CONVKIT_OF_PAIRS

namespace convkit_emulator {
CONVKIT_SHUFFLED(CONVKIT_T)
CONVKIT_SHUFFLED(CONVKIT_T2)
}  // namespace convkit_emulator
