// The register tile over blocked operands: NJ rows of B, which lie b_row floats apart, against one tile of A.
//
//     out[j][v] = sum over c of  A[c][v] * B[j][c]
//
// As a GEMM: M are output channels, N pixels (or Winograd's tiles), K input channels c. A is packed,
// [c][width], and read once from front to back; B comes in blocks of 16 channels, so that the rows of a tile
// lie at constant distances. Tiles of A are TILE_M channels wide, the last one of a 16-channel block perhaps
// less. Sums run over c in order: the bits depend on nothing else.
#pragma once

#include "tile.hpp"

namespace convkit {

// Registers of a tile that only half as many channels are left for. Where a block holds a tile or more, there
// is none.
constexpr int NARROW_M_REGISTERS = TILE_M > BLOCK ? 1 : TILE_M_REGISTERS;

// Output channels are padded to whole blocks; a tile is as wide as fits.
CK_INLINE int64_t tiles_of(int64_t k) { return ceil_div(round_up(k, BLOCK), TILE_M); }
CK_INLINE int64_t tile_width(int64_t tile, int64_t k) {
  return least(TILE_M, round_up(k, BLOCK) - tile * TILE_M);
}

}  // namespace convkit
