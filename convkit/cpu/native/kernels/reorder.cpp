// Activations from NCHW to nChw16c and back; a range of images at a time. The rows are pack.hpp's.
//
// Idea      LANES pixels of LANES channels are transposed in registers (transpose.hpp).
// Tasks     A block of 16 channels of an image, and a piece of its pixels where maps are large: 16 streams of
//           NCHW.
// Bound     Memory: each element is read and written once, 8 bytes. No image needs scratch.
// Measured  Zen 4, AVX-512, two threads, N = 16: 25-33 GB/s, where np.copyto reaches 25-32.
#include "local.hpp"
#include "pack.hpp"

namespace convkit {
namespace {

// row(NCHW offset, blocked offset, channels, pixels) for every task.
template <class Row>
void each_piece(int64_t N, int64_t C, int64_t pixels, int threads, const Row& row) {
  const int64_t blocks = ceil_div(C, BLOCK), pieces = ceil_div(pixels, 1024);
  parallel_for(workers(threads, 8 * N * C * pixels), N * blocks * pieces, [&](int64_t task) {
    const int64_t plane = task / pieces, n = plane / blocks, c = plane % blocks * BLOCK;
    const Range piece{task % pieces * 1024, least(pixels, (task % pieces + 1) * 1024)};
    row((n * C + c) * pixels + piece.begin, (plane * pixels + piece.begin) * BLOCK, least(BLOCK, C - c),
        piece.end - piece.begin);
  });
}

}  // namespace

void reorder_transpose_block(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads) {
  each_piece(N, C, pixels, threads, [&](int64_t flat, int64_t blocked, int64_t channels, int64_t count) {
    block_row(x + flat, pixels, channels, count, y + blocked);
  });
}

void reorder_transpose_unblock(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads) {
  each_piece(N, C, pixels, threads, [&](int64_t flat, int64_t blocked, int64_t channels, int64_t count) {
    unblock_row(x + blocked, pixels, channels, count, y + flat);
  });
}

}  // namespace convkit
