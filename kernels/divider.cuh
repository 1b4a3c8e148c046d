// divider.cuh: division by a number that the host knows before the launch, as a multiplication and a shift. A
// kernel's header names such numbers: `dividers = { by_Q = "Q" }`. They arrive as members of g: `i / g.by_Q`,
// `i % g.by_Q`.
//
// A GPU has no instruction for integer division: by a number that is known at run time only, one in 32 bits
// takes some 20 instructions, and one in 64 bits some 70. With a divider these are 3 and 12.
//
// Exact for every numerator n >= 0 of its type and every divisor d >= 1. With shift = ceil(log2 d) and
// multiplier = ceil(2^(63 + shift) / d), multiplier * d exceeds 2^(63 + shift) by e, and e < d <= 2^shift. So
// n * multiplier / 2^(63 + shift) exceeds n / d by n / 2^63 * e / 2^shift / d < 1 / d, which is too little to
// reach the next integer. The same holds with 31 in place of 63. (Granlund and Montgomery, "Division by
// invariant integers using multiplication", PLDI 1994.) convkit/cuda/header.py makes the numbers.
#pragma once

struct Divider {
  long long divisor;
  unsigned long long multiplier;  // 2^(63 + shift) / divisor, rounded up
  unsigned multiplier_32;         // 2^(31 + shift) / divisor, rounded up; 0 where the divisor is 2^31 or more
  unsigned shift;                 // log2(divisor), rounded up
};

// Numerators of 32 bits: up to 2^31 - 1, unsigned ones too.
__device__ __forceinline__ unsigned operator/(unsigned n, const Divider& by) {
  return __umulhi(2 * n, by.multiplier_32) >> (by.shift & 31);
}
__device__ __forceinline__ unsigned operator%(unsigned n, const Divider& by) {
  return n - n / by * static_cast<unsigned>(by.divisor);
}
__device__ __forceinline__ int operator/(int n, const Divider& by) {
  return static_cast<int>(static_cast<unsigned>(n) / by);
}
__device__ __forceinline__ int operator%(int n, const Divider& by) {
  return static_cast<int>(static_cast<unsigned>(n) % by);
}

// Numerators of 64 bits: up to 2^63 - 1.
__device__ __forceinline__ long long operator/(long long n, const Divider& by) {
  return static_cast<long long>(__umul64hi(2 * static_cast<unsigned long long>(n), by.multiplier) >>
                                by.shift);
}
__device__ __forceinline__ long long operator%(long long n, const Divider& by) {
  return n - n / by * by.divisor;
}
