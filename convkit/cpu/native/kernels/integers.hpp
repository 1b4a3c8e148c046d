// Integers, and how work is cut. Nothing here depends on the instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#define CK_INLINE inline __attribute__((always_inline))
// For a loop that many instantiations of a template call, and that depends on none of their types.
#define CK_NOINLINE __attribute__((noinline))

namespace convkit {

using std::int64_t;
using std::size_t;

constexpr int BLOCK = 16;     // channels in a block of nChw16c
constexpr int64_t LINE = 16;  // floats of a cache line

CK_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CK_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
CK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CK_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Piece i of `parts` even pieces of [0, total).
struct Range {
  int64_t begin, end;
};
CK_INLINE Range piece(int64_t i, int64_t parts, int64_t total) {
  return {i * total / parts, (i + 1) * total / parts};
}

}  // namespace convkit
