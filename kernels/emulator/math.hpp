// CUDA's arithmetic on the host. fast_math.hpp has the approximations (__expf, __powf, __fdividef). The `_rn`
// operations are kept from being fused into a multiply-add, as CUDA promises.
#pragma once

// C's own header, not the C++ library's, which takes longer to read than everything else in a kernel.
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <math.h>
#undef _GLIBCXX_INCLUDE_NEXT_C_HEADERS

#define CONVKIT_INLINE static inline __attribute__((always_inline, unused))

// Names without a suffix take floats, too, and then compute in float.
#define CONVKIT_UNARY(name) \
  CONVKIT_INLINE float name(float x) { return name##f(x); }
CONVKIT_UNARY(sqrt)
CONVKIT_UNARY(cbrt)
CONVKIT_UNARY(exp)
CONVKIT_UNARY(exp2)
CONVKIT_UNARY(expm1)
CONVKIT_UNARY(log)
CONVKIT_UNARY(log2)
CONVKIT_UNARY(log10)
CONVKIT_UNARY(log1p)
CONVKIT_UNARY(sin)
CONVKIT_UNARY(cos)
CONVKIT_UNARY(tan)
CONVKIT_UNARY(tanh)
CONVKIT_UNARY(erf)
CONVKIT_UNARY(erfc)
CONVKIT_UNARY(fabs)
CONVKIT_UNARY(floor)
CONVKIT_UNARY(ceil)
CONVKIT_UNARY(trunc)
CONVKIT_UNARY(round)
CONVKIT_UNARY(rint)
#undef CONVKIT_UNARY
#define CONVKIT_BINARY(name) \
  CONVKIT_INLINE float name(float x, float y) { return name##f(x, y); }
CONVKIT_BINARY(pow)
CONVKIT_BINARY(fmax)
CONVKIT_BINARY(fmin)
CONVKIT_BINARY(fmod)
CONVKIT_BINARY(copysign)
#undef CONVKIT_BINARY
CONVKIT_INLINE float fma(float a, float b, float c) { return fmaf(a, b, c); }
CONVKIT_INLINE int abs(int x) { return x < 0 ? -x : x; }
CONVKIT_INLINE long long abs(long long x) { return x < 0 ? -x : x; }
CONVKIT_INLINE float abs(float x) { return fabsf(x); }
CONVKIT_INLINE double abs(double x) { return fabs(x); }
#undef isnan
#undef isinf
#undef isfinite
#undef signbit
#define CONVKIT_CLASSIFY(T)                                           \
  CONVKIT_INLINE bool isnan(T x) { return __builtin_isnan(x); }       \
  CONVKIT_INLINE bool isinf(T x) { return __builtin_isinf(x); }       \
  CONVKIT_INLINE bool isfinite(T x) { return __builtin_isfinite(x); } \
  CONVKIT_INLINE bool signbit(T x) { return __builtin_signbit(x); }
CONVKIT_CLASSIFY(float)
#if !defined(__GLIBC__)
CONVKIT_CLASSIFY(double)
#endif
#undef CONVKIT_CLASSIFY

// Comparison of every pair of types that CUDA overloads.
#define CONVKIT_MINMAX(A, B, R)                           \
  CONVKIT_INLINE R min(A a, B b) {                        \
    const R x = static_cast<R>(a), y = static_cast<R>(b); \
    return x < y ? x : y;                                 \
  }                                                       \
  CONVKIT_INLINE R max(A a, B b) {                        \
    const R x = static_cast<R>(a), y = static_cast<R>(b); \
    return x > y ? x : y;                                 \
  }
CONVKIT_MINMAX(int, int, int)
CONVKIT_MINMAX(unsigned, unsigned, unsigned)
CONVKIT_MINMAX(int, unsigned, unsigned)
CONVKIT_MINMAX(unsigned, int, unsigned)
CONVKIT_MINMAX(long, long, long)
CONVKIT_MINMAX(unsigned long, unsigned long, unsigned long)
CONVKIT_MINMAX(long long, long long, long long)
CONVKIT_MINMAX(unsigned long long, unsigned long long, unsigned long long)
#undef CONVKIT_MINMAX
// Of a NaN and a number, the number: as fminf and CUDA have it.
CONVKIT_INLINE float min(float a, float b) { return fminf(a, b); }
CONVKIT_INLINE float max(float a, float b) { return fmaxf(a, b); }
CONVKIT_INLINE double min(double a, double b) { return fmin(a, b); }
CONVKIT_INLINE double max(double a, double b) { return fmax(a, b); }

CONVKIT_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
CONVKIT_INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
CONVKIT_INLINE float fdividef(float x, float y) { return x / y; }
CONVKIT_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

#if defined(__x86_64__)
#define CONVKIT_ROUNDED(x) asm("" : "+x"(x))
#elif defined(__aarch64__)
#define CONVKIT_ROUNDED(x) asm("" : "+w"(x))
#else
#define CONVKIT_ROUNDED(x) asm("" : "+m"(x))
#endif
#define CONVKIT_RN(name, expression)            \
  CONVKIT_INLINE float name(float a, float b) { \
    float r = expression;                       \
    CONVKIT_ROUNDED(r);                         \
    return r;                                   \
  }
CONVKIT_RN(__fadd_rn, a + b)
CONVKIT_RN(__fsub_rn, a - b)
CONVKIT_RN(__fmul_rn, a* b)
CONVKIT_RN(__fdiv_rn, a / b)
#undef CONVKIT_RN
CONVKIT_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
CONVKIT_INLINE float __frcp_rn(float x) { return __fdiv_rn(1.0f, x); }
CONVKIT_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
CONVKIT_INLINE float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }

CONVKIT_INLINE double __dadd_rn(double a, double b) { return a + b; }
CONVKIT_INLINE double __dsub_rn(double a, double b) { return a - b; }
CONVKIT_INLINE double __ddiv_rn(double a, double b) { return a / b; }
CONVKIT_INLINE double __dsqrt_rn(double x) { return sqrt(x); }
CONVKIT_INLINE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// Functions that C does not have.
CONVKIT_INLINE double sinpi(double x) { return sin(3.14159265358979323846 * remainder(x, 2.0)); }
CONVKIT_INLINE double cospi(double x) { return cos(3.14159265358979323846 * remainder(x, 2.0)); }
CONVKIT_INLINE float sinpif(float x) { return static_cast<float>(sinpi(static_cast<double>(x))); }
CONVKIT_INLINE float cospif(float x) { return static_cast<float>(cospi(static_cast<double>(x))); }
CONVKIT_INLINE void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
CONVKIT_INLINE double rcbrt(double x) { return 1.0 / cbrt(x); }
CONVKIT_INLINE float rcbrtf(float x) { return static_cast<float>(rcbrt(static_cast<double>(x))); }
CONVKIT_INLINE double normcdf(double x) { return 0.5 * erfc(x * -0.70710678118654752440); }
CONVKIT_INLINE float normcdff(float x) { return static_cast<float>(normcdf(static_cast<double>(x))); }
CONVKIT_INLINE float norm3df(float a, float b, float c) {
  const double x = a, y = b, z = c;
  return static_cast<float>(sqrt(x * x + y * y + z * z));
}

// Bits seen as another type.
template <class To, class From>
CONVKIT_INLINE To convkit_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}
CONVKIT_INLINE int __float_as_int(float x) { return convkit_bits<int>(x); }
CONVKIT_INLINE unsigned __float_as_uint(float x) { return convkit_bits<unsigned>(x); }
CONVKIT_INLINE float __int_as_float(int x) { return convkit_bits<float>(x); }
CONVKIT_INLINE float __uint_as_float(unsigned x) { return convkit_bits<float>(x); }
CONVKIT_INLINE long long __double_as_longlong(double x) { return convkit_bits<long long>(x); }
CONVKIT_INLINE double __longlong_as_double(long long x) { return convkit_bits<double>(x); }

CONVKIT_INLINE int __double2hiint(double x) { return static_cast<int>(__double_as_longlong(x) >> 32); }
CONVKIT_INLINE int __double2loint(double x) { return static_cast<int>(__double_as_longlong(x)); }
CONVKIT_INLINE double __hiloint2double(int high, int low) {
  return __longlong_as_double(static_cast<long long>(static_cast<unsigned long long>(high) << 32) |
                              static_cast<unsigned>(low));
}

// Conversions: a GPU saturates where C++ says nothing, and turns NaN into zero.
template <class I>
CONVKIT_INLINE I convkit_saturate(double x) {
  constexpr I least = I(-1) < I(0) ? I(1u << 31) : I(0);
  constexpr I most = I(-1) < I(0) ? I(0x7fffffff) : I(0xffffffffu);
  if (x != x) return 0;
  return x <= static_cast<double>(least) ? least : x >= static_cast<double>(most) ? most : static_cast<I>(x);
}
CONVKIT_INLINE int __float2int_rz(float x) { return convkit_saturate<int>(trunc(x)); }
CONVKIT_INLINE int __float2int_rn(float x) { return convkit_saturate<int>(rint(x)); }
CONVKIT_INLINE int __float2int_rd(float x) { return convkit_saturate<int>(floor(x)); }
CONVKIT_INLINE int __float2int_ru(float x) { return convkit_saturate<int>(ceil(x)); }
CONVKIT_INLINE unsigned __float2uint_rz(float x) { return convkit_saturate<unsigned>(trunc(x)); }
CONVKIT_INLINE unsigned __float2uint_rn(float x) { return convkit_saturate<unsigned>(rint(x)); }
CONVKIT_INLINE float __int2float_rn(int x) { return static_cast<float>(x); }
CONVKIT_INLINE float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
CONVKIT_INLINE float __double2float_rn(double x) { return static_cast<float>(x); }
CONVKIT_INLINE float __ll2float_rn(long long x) { return static_cast<float>(x); }
CONVKIT_INLINE float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
CONVKIT_INLINE double __int2double_rn(int x) { return x; }
CONVKIT_INLINE double __uint2double_rn(unsigned x) { return x; }
CONVKIT_INLINE int __double2int_rz(double x) { return convkit_saturate<int>(trunc(x)); }
CONVKIT_INLINE int __double2int_rn(double x) { return convkit_saturate<int>(rint(x)); }

// Integers.
CONVKIT_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
CONVKIT_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
CONVKIT_INLINE int __ffs(int x) { return __builtin_ffs(x); }
CONVKIT_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
CONVKIT_INLINE int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
CONVKIT_INLINE int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
CONVKIT_INLINE unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
CONVKIT_INLINE unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
CONVKIT_INLINE unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
CONVKIT_INLINE int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
CONVKIT_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
CONVKIT_INLINE unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
  return n & 31 ? hi << (n & 31) | lo >> (32 - (n & 31)) : hi;
}
CONVKIT_INLINE unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
  return n & 31 ? lo >> (n & 31) | hi << (32 - (n & 31)) : lo;
}
CONVKIT_INLINE unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned n) {
  return n >= 32 ? lo : __funnelshift_l(lo, hi, n);
}
CONVKIT_INLINE unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned n) {
  return n >= 32 ? hi : __funnelshift_r(lo, hi, n);
}
CONVKIT_INLINE unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
CONVKIT_INLINE unsigned umax(unsigned a, unsigned b) { return a > b ? a : b; }
CONVKIT_INLINE long labs(long x) { return x < 0 ? -x : x; }
CONVKIT_INLINE long long llabs(long long x) { return x < 0 ? -x : x; }
CONVKIT_INLINE unsigned __sad(int a, int b, unsigned c) {
  return c + (a > b ? static_cast<unsigned>(a) - static_cast<unsigned>(b)
                    : static_cast<unsigned>(b) - static_cast<unsigned>(a));
}
CONVKIT_INLINE unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a > b ? a - b : b - a); }
CONVKIT_INLINE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
CONVKIT_INLINE int __mul24(int a, int b) {
  const long long x = ((a & 0xffffff) ^ 0x800000) - 0x800000, y = ((b & 0xffffff) ^ 0x800000) - 0x800000;
  return static_cast<int>(x * y);
}
CONVKIT_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (s & 7)) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}

// Loads and stores with a cache hint: plain ones here.
#define CONVKIT_LOAD(name)               \
  template <class T>                     \
  CONVKIT_INLINE T name(const T* from) { \
    return *from;                        \
  }
#define CONVKIT_STORE(name)                  \
  template <class T>                         \
  CONVKIT_INLINE void name(T* to, T value) { \
    *to = value;                             \
  }
CONVKIT_LOAD(__ldg)
CONVKIT_LOAD(__ldca)
CONVKIT_LOAD(__ldcg)
CONVKIT_LOAD(__ldcs)
CONVKIT_LOAD(__ldlu)
CONVKIT_LOAD(__ldcv)
CONVKIT_STORE(__stwb)
CONVKIT_STORE(__stcg)
CONVKIT_STORE(__stcs)
CONVKIT_STORE(__stwt)
#undef CONVKIT_LOAD
#undef CONVKIT_STORE

// Order between OS threads; a fiber sees its block's memory in program order anyway.
CONVKIT_INLINE void __threadfence_block() { __asm__ volatile("" ::: "memory"); }
CONVKIT_INLINE void __threadfence() { __asm__ volatile("" ::: "memory"); }
CONVKIT_INLINE void __threadfence_system() { __asm__ volatile("" ::: "memory"); }
