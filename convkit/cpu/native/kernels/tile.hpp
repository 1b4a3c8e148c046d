// The register tile of every matrix product here: NJ rows of B against NV registers of A.
//
//     acc[j][v] += sum over i < count of  A[i * a_step + v * a_part] * B[i * b_step + j * b_row]
//
// A is read in whole registers, B in scalars that are broadcast, so neither needs a shuffle; where b_row is a
// constant, the rows' addresses are constants too, and no pointer per row is kept.
// Tiling    NV * NJ accumulators hide the latency of the FMA (some 4 cycles times 1 or 2 units) and make the
//           loads rare: NV + NJ of them for NV * NJ FMAs. They must fit the registers together with NV of A
//           and one of B: 2 x 14 of 32 registers, 2 x 6 of 16.
#pragma once

#include "simd.hpp"

namespace convkit {

template <int NV, int NJ>
struct Tile {
  V acc[NJ][NV];

  CK_INLINE void zero() {
    CK_UNROLL
    for (int j = 0; j < NJ; ++j) {
      CK_UNROLL
      for (int v = 0; v < NV; ++v) acc[j][v] = V{};
    }
  }

  // With b(j), the scalar of row j.
  template <class B>
  CK_INLINE void step(const float* a, int64_t a_part, const B& b) {
    V part[NV];
    CK_UNROLL
    for (int v = 0; v < NV; ++v) part[v] = load(a + v * a_part);
    CK_UNROLL
    for (int j = 0; j < NJ; ++j) {
      const V scalar = splat(b(j));
      CK_UNROLL
      for (int v = 0; v < NV; ++v) acc[j][v] += part[v] * scalar;
    }
  }

  CK_INLINE void step(const float* a, int64_t a_part, const float* b, int64_t b_row) {
    step(a, a_part, [&](int j) { return b[j * b_row]; });
  }

  CK_INLINE void run(const float* a, int64_t a_step, int64_t a_part, const float* b, int64_t b_step,
                     int64_t b_row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) step(a + i * a_step, a_part, b + i * b_step, b_row);
  }
};

// The tile of this instruction set: TILE_M numbers of A, in registers, by TILE_N rows of B at the most.
constexpr int TILE_M_REGISTERS = 2;
constexpr int TILE_M = TILE_M_REGISTERS * LANES;  // 32, 16 or 8
constexpr int TILE_N = REGISTERS == 32 ? 14 : 6;

}  // namespace convkit
