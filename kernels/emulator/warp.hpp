// Barriers, warp-wide operations and atomics, as thin faces of the runtime's rendezvous (api.hpp). Each
// takes its place in the source as a default argument, so that reports name the user's line in either mode.
#pragma once

#include "api.hpp"
#include "math.hpp"

CONVKIT_INLINE void __syncthreads(CONVKIT_SITE) { ckemu_barrier(CKEMU_SYNC, 0, file, line); }
CONVKIT_INLINE int __syncthreads_count(int predicate, CONVKIT_SITE) {
  return ckemu_barrier(CKEMU_COUNT, predicate, file, line);
}
CONVKIT_INLINE int __syncthreads_and(int predicate, CONVKIT_SITE) {
  return ckemu_barrier(CKEMU_AND, predicate, file, line);
}
CONVKIT_INLINE int __syncthreads_or(int predicate, CONVKIT_SITE) {
  return ckemu_barrier(CKEMU_OR, predicate, file, line);
}
CONVKIT_INLINE void __syncwarp(unsigned mask = 0xffffffffu, CONVKIT_SITE) {
  ckemu_warp(CKEMU_SYNCWARP, mask, nullptr, 0, 0, 32, file, line);
}

// The types that CUDA has shuffles for; cuda_fp16.h and cuda_bf16.h add theirs.
namespace convkit_emulator {
template <class T>
struct Shuffled {
  static constexpr bool value = false;
};
#define CONVKIT_SHUFFLED(T)             \
  template <>                           \
  struct Shuffled<T> {                  \
    static constexpr bool value = true; \
  };
CONVKIT_SHUFFLED(bool)
CONVKIT_SHUFFLED(char)
CONVKIT_SHUFFLED(signed char)
CONVKIT_SHUFFLED(unsigned char)
CONVKIT_SHUFFLED(short)
CONVKIT_SHUFFLED(unsigned short)
CONVKIT_SHUFFLED(int)
CONVKIT_SHUFFLED(unsigned)
CONVKIT_SHUFFLED(long)
CONVKIT_SHUFFLED(unsigned long)
CONVKIT_SHUFFLED(long long)
CONVKIT_SHUFFLED(unsigned long long)
CONVKIT_SHUFFLED(float)
CONVKIT_SHUFFLED(double)

// Of any type up to 16 bytes, as cooperative groups have it.
template <class T>
CONVKIT_INLINE T shuffle(int op, unsigned mask, T value, int operand, int width, const char* file, int line) {
  static_assert(sizeof(T) <= 16, "a shuffle moves at most 16 bytes");
  ckemu_warp(op, mask, &value, sizeof(T), operand, width, file, line);
  return value;
}

// The twins of mma.sync and ldmatrix (ptx.cuh).
CONVKIT_INLINE void multiply(int op, float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                             const char* file, int line) {
  CkemuProduct lane = {{sum[0], sum[1], sum[2], sum[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  ckemu_matrix(op, 0, &lane, file, line);
  for (int i = 0; i < 4; ++i) sum[i] = lane.sum[i];
}
template <int COUNT>
CONVKIT_INLINE void load_matrices(int op, unsigned (&to)[COUNT], const void* row, const char* file,
                                  int line) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "ldmatrix loads 1, 2 or 4 matrices");
  CkemuMatrices lane = {row, {}};
  ckemu_matrix(op, COUNT, &lane, file, line);
  for (int i = 0; i < COUNT; ++i) to[i] = lane.to[i];
}
}  // namespace convkit_emulator

#define CONVKIT_SHUFFLE(name, op, operand_type)                                                        \
  template <class T>                                                                                   \
  CONVKIT_INLINE T name(unsigned mask, T value, operand_type operand, int width = 32, CONVKIT_SITE) {  \
    static_assert(convkit_emulator::Shuffled<T>::value, "a shuffle takes numbers of 2, 4 or 8 bytes"); \
    return convkit_emulator::shuffle(op, mask, value, static_cast<int>(operand), width, file, line);   \
  }
CONVKIT_SHUFFLE(__shfl_sync, CKEMU_SHFL_IDX, int)
CONVKIT_SHUFFLE(__shfl_up_sync, CKEMU_SHFL_UP, unsigned)
CONVKIT_SHUFFLE(__shfl_down_sync, CKEMU_SHFL_DOWN, unsigned)
CONVKIT_SHUFFLE(__shfl_xor_sync, CKEMU_SHFL_XOR, int)
#undef CONVKIT_SHUFFLE

CONVKIT_INLINE unsigned __activemask() { return ckemu_activemask(); }
CONVKIT_INLINE unsigned __ballot_sync(unsigned mask, int predicate, CONVKIT_SITE) {
  unsigned value = predicate != 0;
  ckemu_warp(CKEMU_BALLOT, mask, &value, 4, 0, 32, file, line);
  return value;
}
CONVKIT_INLINE int __any_sync(unsigned mask, int predicate, CONVKIT_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
CONVKIT_INLINE int __all_sync(unsigned mask, int predicate, CONVKIT_SITE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
template <class T>
CONVKIT_INLINE unsigned __match_any_sync(unsigned mask, T value, CONVKIT_SITE) {
  unsigned char slot[16] = {};
  static_assert(sizeof(T) <= 8, "a match compares at most 8 bytes");
  __builtin_memcpy(slot, &value, sizeof(T));
  ckemu_warp(CKEMU_MATCH_ANY, mask, slot, 8, 0, 32, file, line);
  return *reinterpret_cast<unsigned*>(slot);
}

template <class T>
CONVKIT_INLINE unsigned __match_all_sync(unsigned mask, T value, int* same, CONVKIT_SITE) {
  const unsigned alike = __match_any_sync(mask, value, file, line);
  *same = __all_sync(mask, alike == mask, file, line);
  return *same ? mask : 0;
}

#define CONVKIT_REDUCE(name, T, op)                             \
  CONVKIT_INLINE T name(unsigned mask, T value, CONVKIT_SITE) { \
    ckemu_warp(op, mask, &value, 4, 0, 32, file, line);         \
    return value;                                               \
  }
CONVKIT_REDUCE(__reduce_add_sync, int, CKEMU_ADD)
CONVKIT_REDUCE(__reduce_add_sync, unsigned, CKEMU_ADD)
CONVKIT_REDUCE(__reduce_min_sync, int, CKEMU_MIN_S)
CONVKIT_REDUCE(__reduce_min_sync, unsigned, CKEMU_MIN_U)
CONVKIT_REDUCE(__reduce_max_sync, int, CKEMU_MAX_S)
CONVKIT_REDUCE(__reduce_max_sync, unsigned, CKEMU_MAX_U)
CONVKIT_REDUCE(__reduce_and_sync, unsigned, CKEMU_RAND)
CONVKIT_REDUCE(__reduce_or_sync, unsigned, CKEMU_ROR)
CONVKIT_REDUCE(__reduce_xor_sync, unsigned, CKEMU_RXOR)
#undef CONVKIT_REDUCE

// Atomics: one compare-and-swap loop for all of them, since blocks run on several OS threads at once. Told
// to the runtime first, kept out of the sanitizer's sight after.
namespace convkit_emulator {
template <class T, class F>
__attribute__((noinline, no_sanitize("thread"))) T update(T* at, F next, const char* file, int line) {
  ckemu_atomic(at, sizeof(T), file, line);
  T old;
  __atomic_load(at, &old, __ATOMIC_RELAXED);
  for (;;) {
    T wanted = next(old);
    if (__atomic_compare_exchange(at, &old, &wanted, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return old;
  }
}
template <class T>
struct Same {
  using type = T;
};
}  // namespace convkit_emulator

#define CONVKIT_ATOMIC_OF(name, expression)                                                    \
  template <class T>                                                                           \
  CONVKIT_INLINE T name(T* at, typename convkit_emulator::Same<T>::type value, CONVKIT_SITE) { \
    return convkit_emulator::update(                                                           \
        at,                                                                                    \
        [value](T old) {                                                                       \
          (void)old;                                                                           \
          return static_cast<T>(expression);                                                   \
        },                                                                                     \
        file, line);                                                                           \
  }
#define CONVKIT_ATOMIC(name, expression)      \
  CONVKIT_ATOMIC_OF(name, expression)         \
  CONVKIT_ATOMIC_OF(name##_block, expression) \
  CONVKIT_ATOMIC_OF(name##_system, expression)
CONVKIT_ATOMIC(atomicAdd, old + value)
CONVKIT_ATOMIC(atomicSub, old - value)
CONVKIT_ATOMIC(atomicMin, value < old ? value : old)
CONVKIT_ATOMIC(atomicMax, value > old ? value : old)
CONVKIT_ATOMIC(atomicAnd, old& value)
CONVKIT_ATOMIC(atomicOr, old | value)
CONVKIT_ATOMIC(atomicXor, old ^ value)
CONVKIT_ATOMIC(atomicExch, value)
CONVKIT_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
CONVKIT_ATOMIC(atomicDec, old == T(0) || old > value ? value : old - 1)
#undef CONVKIT_ATOMIC
#undef CONVKIT_ATOMIC_OF
template <class T>
CONVKIT_INLINE T atomicCAS(T* at, typename convkit_emulator::Same<T>::type expected,
                           typename convkit_emulator::Same<T>::type value, CONVKIT_SITE) {
  return convkit_emulator::update(at, [=](T old) { return old == expected ? value : old; }, file, line);
}
