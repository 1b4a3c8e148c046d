// The vector types of CUDA C++ with CUDA's alignments, which decide whether a 128-bit access is legal.
// Written for kernels on a CPU: no constructors, so that they stay plain data that one load or store moves.
#pragma once

#define CONVKIT_VECTORS(T, base, align2, align4)                            \
  struct __attribute__((aligned(align2))) base##2 { T x, y; };              \
  struct base##3 { T x, y, z; };                                            \
  struct __attribute__((aligned(align4))) base##4 { T x, y, z, w; };        \
  static inline base##2 make_##base##2(T x, T y) { return {x, y}; }         \
  static inline base##3 make_##base##3(T x, T y, T z) { return {x, y, z}; } \
  static inline base##4 make_##base##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CONVKIT_VECTORS(signed char, char, 2, 4)
CONVKIT_VECTORS(unsigned char, uchar, 2, 4)
CONVKIT_VECTORS(short, short, 4, 8)
CONVKIT_VECTORS(unsigned short, ushort, 4, 8)
CONVKIT_VECTORS(int, int, 8, 16)
CONVKIT_VECTORS(unsigned, uint, 8, 16)
CONVKIT_VECTORS(long long, longlong, 16, 16)
CONVKIT_VECTORS(unsigned long long, ulonglong, 16, 16)
CONVKIT_VECTORS(float, float, 8, 16)
CONVKIT_VECTORS(double, double, 16, 16)
#undef CONVKIT_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef long clock_t;

#if !defined(CONVKIT_EMULATOR_RUNTIME)
// What NVRTC has of the C++ library without any header (kernels/std/ has the headers).
namespace convkit_emulator {
template <class T>
struct Plain {
  using type = T;
};
template <class T>
struct Plain<T&> {
  using type = T;
};
template <class T>
struct Plain<T&&> {
  using type = T;
};
}  // namespace convkit_emulator
namespace std {
template <class T>
constexpr typename convkit_emulator::Plain<T>::type&& move(T&& value) noexcept {
  return static_cast<typename convkit_emulator::Plain<T>::type&&>(value);
}
template <class T>
constexpr T&& forward(typename convkit_emulator::Plain<T>::type& value) noexcept {
  return static_cast<T&&>(value);
}
template <class T>
constexpr T&& forward(typename convkit_emulator::Plain<T>::type&& value) noexcept {
  return static_cast<T&&>(value);
}
}  // namespace std
#endif
