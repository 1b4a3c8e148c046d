// Vectors of the instruction set that this module is compiled for; GCC's and Clang's extensions, no
// intrinsics.
//
// The sources of this folder are compiled once for each instruction set, each time into a module of its own
// (setup.py), so nothing here asks what the CPU can do: the widest registers that the compiler may use are
// used. Activations come in blocks of 16 channels whatever the registers' width: 16 lanes, 2 times 8, or 4
// times 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "integers.hpp"

#define CK_UNROLL _Pragma("GCC unroll 64")

#if defined(__AVX512F__)
#define CK_LANES 16
#elif defined(__AVX__)
#define CK_LANES 8
#else
#define CK_LANES 4
#endif

namespace convkit {

constexpr int LANES = CK_LANES;       // floats in a register
constexpr int PARTS = BLOCK / LANES;  // registers in a block
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

typedef float V __attribute__((vector_size(4 * LANES)));
typedef std::int32_t VI __attribute__((vector_size(4 * LANES)));
constexpr float INFINITE = __builtin_inff();  // INFINITY is of <cmath>, which takes long to compile

// The same at any address of a float.
typedef float VU __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

CK_INLINE V load(const float* p) { return *reinterpret_cast<const VU*>(p); }
CK_INLINE void store(float* p, V v) { *reinterpret_cast<VU*>(p) = v; }
// Keeps a value that is used several times in its register: GCC would rather load it again each time.
CK_INLINE void in_register(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#else
  (void)v;
#endif
}
CK_INLINE V splat(float a) {
  return a - V{};
}  // not V{} + a: an addition must be done, since it makes -0 a 0
// max(v, 0) that keeps a NaN, as every ReLU here does.
CK_INLINE V relu(V v) { return v <= V{} ? V{} : v; }
// a where mask > 0 or NaN, else 0: the gradient of a ReLU whose output is `mask`.
CK_INLINE V where_positive(V mask, V a) { return mask <= V{} ? V{} : a; }

// Sum of the lanes, in one fixed order.
CK_INLINE float sum(V v) {
  float lanes[LANES];
  store(lanes, v);
  CK_UNROLL
  for (int d = LANES / 2; d > 0; d /= 2) {
    CK_UNROLL
    for (int i = 0; i < d; ++i) lanes[i] += lanes[i + d];
  }
  return lanes[0];
}
}  // namespace convkit
