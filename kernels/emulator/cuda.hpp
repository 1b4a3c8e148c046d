// CUDA C++ for a host compiler: included in front of a kernel's translation unit (g++ -include), so that the
// text NVRTC compiles for a GPU compiles here unchanged.
//
// Qualifiers vanish, but for __shared__: every OS thread runs one block at a time, so what a block shares
// is what an OS thread owns, `static __thread`. As in CUDA it takes no initialiser. `extern __shared__` has
// no host equivalent: emulator.py rewrites such a declaration. No header of the host's C++ library may be
// included after this one, since names such as __noinline__ are attributes there: those in kernels/std/ are
// found first. What the emulator does not have, and can tell, becomes a name `convkit_unsupported_...`, which
// the compiler then does not know (host_compiler.py).
#pragma once

#define CONVKIT_EMULATOR 1

#include "api.hpp"
#include "fast_math.hpp"
#include "math.hpp"
#include "warp.hpp"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __managed__
#define __shared__ static __thread
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __builtin_assume(condition) ((void)0)

static constexpr int warpSize = 32;

#undef assert
#define assert(condition) \
  ((condition) ? (void)0 : ckemu_fail("assertion", "assert(" #condition ")", __FILE__, __LINE__))
#define __trap() ckemu_fail("trap", "__trap() was called", __FILE__, __LINE__)

template <class... A>
CONVKIT_INLINE int printf(const char* format, A... values) {
  return ckemu_printf(format, values...);
}

CONVKIT_INLINE clock_t clock() { return static_cast<clock_t>(ckemu_clock(0)); }
CONVKIT_INLINE long long clock64() { return static_cast<long long>(ckemu_clock(0)); }
CONVKIT_INLINE void __nanosleep(unsigned nanoseconds) { ckemu_clock(nanoseconds); }

// Byte by byte, so that check mode sees every access; the compiler makes a move of it where it can.
CONVKIT_INLINE void* memcpy(void* to, const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    static_cast<unsigned char*>(to)[i] = static_cast<const unsigned char*>(from)[i];
  return to;
}
CONVKIT_INLINE void* memset(void* to, int value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(to)[i] = static_cast<unsigned char>(value);
  return to;
}

// How the runtime calls a kernel, and what it may ask about its parameters. The executor appends one line
// with CONVKIT_ENTRY(name). Arguments arrive as CUDA packs them, an array of pointers, and are read with
// memcpy: NumPy's scalars are not aligned for it.
namespace convkit_emulator {
template <class T>
struct Value {
  alignas(T) unsigned char bytes[sizeof(T)];
  __attribute__((no_sanitize("thread"), always_inline)) explicit Value(const void* from) {
    __builtin_memcpy(bytes, from, sizeof(T));
  }
  const T& get() const { return *reinterpret_cast<const T*>(bytes); }
};
template <class T>
struct IsPointer {
  static constexpr int value = 0;
};
template <class T>
struct IsPointer<T*> {
  static constexpr int value = 1;
};
template <class T>
struct IsPointer<const T*> {
  static constexpr int value = 2;
};
template <int...>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <class... A, int... I>
__attribute__((no_sanitize("thread"), always_inline)) inline void call(void (*kernel)(A...), void** arguments,
                                                                       Indices<I...>) {
  kernel(Value<A>(arguments[I]).get()...);
}
template <class... A>
__attribute__((no_sanitize("thread"), always_inline)) inline void call(void (*kernel)(A...),
                                                                       void** arguments) {
  call(kernel, arguments, typename MakeIndices<sizeof...(A)>::type());
}
// Size in bytes of parameter i and whether it is a pointer (1; 2 to const), or -1 past the last one.
template <class... A>
inline int parameter(void (*)(A...), int i, int* pointer) {
  const int sizes[] = {static_cast<int>(sizeof(A))..., -1};
  const int pointers[] = {IsPointer<A>::value..., 0};
  if (i < 0 || i >= static_cast<int>(sizeof...(A))) return -1;
  *pointer = pointers[i];
  return sizes[i];
}
// Every other thread-local of this module is a __shared__ variable; this one makes sure that there is a
// block.
static __thread char anchor;
}  // namespace convkit_emulator

// Its own names are such as no kernel has: a kernel may be called `a` or `i`.
#define CONVKIT_ENTRY(kernel)                                                                              \
  extern "C" __attribute__((visibility("default"), no_sanitize("thread"))) void convkit_entry(             \
      void** convkit_a) {                                                                                  \
    convkit_emulator::call(kernel, convkit_a);                                                             \
  }                                                                                                        \
  extern "C" __attribute__((visibility("default"))) int convkit_parameter(int convkit_i, int* convkit_p) { \
    return convkit_emulator::parameter(kernel, convkit_i, convkit_p);                                      \
  }                                                                                                        \
  extern "C" __attribute__((visibility("default"))) void* convkit_anchor() {                               \
    return &convkit_emulator::anchor;                                                                      \
  }

#define asm convkit_unsupported_inline_ptx
#define __asm convkit_unsupported_inline_ptx
#define __asm__ convkit_unsupported_inline_ptx
#define __cluster_dims__(...) __attribute__((aligned(convkit_unsupported_cluster_dims)))
