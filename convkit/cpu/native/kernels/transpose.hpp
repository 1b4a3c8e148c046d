// LANES x LANES transposition in registers: log2(LANES) rounds, each swaps halves of pairs of registers.
#pragma once

#include <utility>

#include "simd.hpp"

namespace convkit {

namespace detail {
// Round D: lane l of the first result is b[l - D] where bit D of l is set, else a[l]; the second has what is
// left.
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

namespace detail {
template <int... L>
CK_INLINE void split(V& a, V& b, std::integer_sequence<int, L...>) {
  const V even = __builtin_shufflevector(a, b, (2 * L)...),
          odd = __builtin_shufflevector(a, b, (2 * L + 1)...);
  a = even;
  b = odd;
}
template <int... L>
CK_INLINE void merge(V& a, V& b, std::integer_sequence<int, L...>) {
  const V low = __builtin_shufflevector(a, b, (L / 2 + L % 2 * LANES)...);
  const V high = __builtin_shufflevector(a, b, (L / 2 + LANES / 2 + L % 2 * LANES)...);
  a = low;
  b = high;
}
}  // namespace detail

// a, b, one behind the other, into their even and their odd lanes; and the way back.
CK_INLINE void split(V& a, V& b) { detail::split(a, b, std::make_integer_sequence<int, LANES>()); }
CK_INLINE void merge(V& a, V& b) { detail::merge(a, b, std::make_integer_sequence<int, LANES>()); }

CK_INLINE void transpose(V (&r)[LANES]) { detail::rounds<LANES / 2>(r); }

// A matrix whose rows are the lanes (channels, `step` floats apart) and whose columns are neighbours in
// memory, as registers of lanes: emit(e, v) for each column e < columns. Lanes from `lanes` on are zeros.
// Nothing at or beyond `end` is read.
template <class Emit>
CK_INLINE void columns_as_lanes(const float* from, int64_t step, int64_t lanes, int64_t columns,
                                const float* end, const Emit& emit) {
  for (int64_t e = 0; e < columns; e += LANES) {
    const int64_t count = least(LANES, columns - e);
    V r[LANES];
    if (lanes >= LANES && from + (LANES - 1) * step + e + LANES <= end) {
      CK_UNROLL
      for (int l = 0; l < LANES; ++l) r[l] = load(from + l * step + e);
    } else {
      for (int l = 0; l < LANES; ++l) {
        r[l] = V{};
        if (l < lanes) std::memcpy(&r[l], from + l * step + e, static_cast<size_t>(count) * sizeof(float));
      }
    }
    transpose(r);
    if (count == LANES) {
      CK_UNROLL
      for (int l = 0; l < LANES; ++l) emit(e + l, r[l]);
    } else {
      for (int64_t l = 0; l < count; ++l) emit(e + l, r[l]);
    }
  }
}

// The way back: get(e) is column e as a register of lanes.
template <class Get>
CK_INLINE void lanes_as_columns(const Get& get, int64_t lanes, int64_t columns, float* to, int64_t step) {
  for (int64_t e = 0; e < columns; e += LANES) {
    const int64_t count = least(LANES, columns - e);
    V r[LANES];
    for (int l = 0; l < LANES; ++l) r[l] = l < count ? get(e + l) : V{};
    transpose(r);
    for (int64_t l = 0; l < least(LANES, lanes); ++l) {
      if (count == LANES)
        store(to + l * step + e, r[l]);
      else
        std::memcpy(to + l * step + e, &r[l], static_cast<size_t>(count) * sizeof(float));
    }
  }
}

}  // namespace convkit
