// reorder_deinterleave
//   y in NCHW = x in NHWC: the pixels of a channel are put together
//
// Tiling   of each image, pixels x channels are transposed by way of shared memory, in one of two ways
//          (transpose.cuh). Where both extents are THIN or more, a block takes 64 x 64 elements, in words
//          that are swizzled: no bank conflict. Else, as for images of 3 channels, weights of 3 x 3 taps or
//          maps of 6 x 6 pixels, it takes all of the short side and a piece of the long one: on one of both
//          sides that is one piece of memory. Where an extent is 1 nothing changes its place, and all images
//          are one copy.
// Traffic  x once, y once: 4 bytes for each element of 16 bits, 8 of float32, 6 where float32 is cast to 16
//          bits. 128-bit accesses where they are aligned; else each lane moves an element, so that a warp's
//          access is 64 or 128 bytes.
// Bound    memory. A block of 64 x 64 moves 16 KB in 16 bits, all of which it reads before its one barrier
//          and writes behind it; other blocks on the SM read meanwhile. Predicted: 80 % of the copy rate
//          where both sides have whole packs, 55 % in 16 bits where they have not.
//
// /// kernel
// op     = "reorder"
// dtypes = ["float32", "float16", "bfloat16", "float16/float32", "bfloat16/float32"]
// layout = "NHWC>NCHW"
// tile   = { THREADS = 256, TILE = 64, THIN = 64, PIECE = 4096 }
// tune   = { PIECE = [2048, 4096, 8192] }
// when   = "H*W < 2147483648 and tiles < 2147483648 and N*pieces < 2147483648"
// rank   = 10
//
// [let]
// copy   = "C == 1 or H*W == 1"
// tiled  = "not copy and min(C, H*W) >= THIN"
// tiles  = "N * ceil_div(C, TILE) * ceil_div(H*W, TILE)"
// images = "1 if copy else N"
// thin   = "1 if copy else min(C, H*W)"
// long   = "N*C*H*W if copy else max(C, H*W)"
// length = "max(1, min(long, max(8, PIECE // thin // 8 * 8)))"
// pieces = "ceil_div(long, length)"
// [dividers]
// by_down   = "ceil_div(H*W, TILE)"
// by_across = "ceil_div(C, TILE)"
// by_length = "length"
// by_pieces = "max(1, pieces)"
// by_thin   = "thin"
//
// [[launch]]
// entry = "reorder_deinterleave"
// grid  = ["tiles if tiled else 0"]
// block = ["THREADS"]
//
// [[launch]]
// entry  = "reorder_deinterleave_thin"
// grid   = ["0 if tiled else images * pieces"]
// block  = ["THREADS"]
// shared = "4 * (thin * length + 8)"
// ///

#include "transpose.cuh"

extern "C" __launch_bounds__(THREADS) __global__
    void reorder_deinterleave(GEOMETRY(Reorder), const param_t* __restrict__ x, storage_t* __restrict__ y) {
  const int across = static_cast<int>(blockIdx.x % g.by_across);
  const unsigned rest = blockIdx.x / g.by_across;
  const int down = static_cast<int>(rest % g.by_down);
  const long long image = static_cast<long long>(rest / g.by_down) * g.C * g.H * g.W;
  transpose_tile(x + image, y + image, g.H * g.W, g.C, down * TILE, across * TILE);
}

extern "C" __launch_bounds__(THREADS) __global__
    void reorder_deinterleave_thin(GEOMETRY(Reorder), const param_t* __restrict__ x,
                                   storage_t* __restrict__ y) {
  transpose_piece(g, x, y, g.H * g.W, g.C);
}
