// LANES x LANES transposition in registers: log2(LANES) rounds, each swaps halves of pairs of registers.
#pragma once

#include <utility>

#include "simd.hpp"

namespace convkit {

namespace detail {
// Round D: lane l of the first result is b[l - D] where bit D of l is set, else a[l]; the second has what is left.
template <int D, int... L>
CK_INLINE void exchange(V& a, V& b, std::integer_sequence<int, L...>) {
  const V low = __builtin_shufflevector(a, b, ((L & D) ? LANES + L - D : L)...);
  const V high = __builtin_shufflevector(a, b, ((L & D) ? LANES + L : L + D)...);
  a = low;
  b = high;
}

template <int D>
CK_INLINE void rounds(V (&r)[LANES]) {
  if constexpr (D > 0) {
    CK_UNROLL
    for (int i = 0; i < LANES; ++i)
      if (!(i & D)) exchange<D>(r[i], r[i + D], std::make_integer_sequence<int, LANES>());
    rounds<D / 2>(r);
  }
}
}  // namespace detail

CK_INLINE void transpose(V (&r)[LANES]) { detail::rounds<LANES / 2>(r); }

}  // namespace convkit
