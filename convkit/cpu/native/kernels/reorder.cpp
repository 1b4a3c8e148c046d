// reorder.hpp argues the kernels.
#include "reorder.hpp"

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

void reorder_block(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads) {
  each_piece(N, C, pixels, threads, [&](int64_t flat, int64_t blocked, int64_t channels, int64_t count) {
    block_row(x + flat, pixels, channels, count, y + blocked);
  });
}

void reorder_unblock(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads) {
  each_piece(N, C, pixels, threads, [&](int64_t flat, int64_t blocked, int64_t channels, int64_t count) {
    unblock_row(x + blocked, pixels, channels, count, y + flat);
  });
}

}  // namespace convkit
