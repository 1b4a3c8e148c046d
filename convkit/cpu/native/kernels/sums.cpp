// Gradient of a bias: dy summed over images and pixels.
//
// Idea      Four registers of partial sums run along a map (NCHW: the pixels of a channel; blocked: a
//           register is a part of a block, a pixel each), and each map's sum is then added up in double,
//           image by image: the error is that of some 50 additions, and does not grow with the batch.
// Rows      (N, K), of a linear layer: 32 rows in float, then those sums in double, for as many columns as a
//           task has.
// Traffic   dy is read once; that is the bound.
// Measured  Zen 4, two threads: 45-60 GB/s on what fits into L3.
#include "half.hpp"
#include "local.hpp"

namespace convkit {
namespace {

template <class S>
void put(S* p, double value) {
  store_part(p, splat(static_cast<float>(value)), 1);
}

template <class S>
double map_sum(const S* p, int64_t count) {
  V sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES) {
    CK_UNROLL
    for (int j = 0; j < 4; ++j) sums[j] += load(p + i + j * LANES);
  }
  for (; i + LANES <= count; i += LANES) sums[0] += load(p + i);
  if (i < count) sums[1] += load_part(p + i, count - i);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace

template <class S>
void conv2d_bgrad_registers(int64_t N, int64_t K, int64_t pixels, const S* dy, S* db, int threads) {
  parallel_for(workers(threads, N * K * pixels * int64_t(sizeof(S))), K, [&](int64_t k) {
    double total = 0;
    for (int64_t n = 0; n < N; ++n) total += map_sum(dy + (n * K + k) * pixels, pixels);
    put(db + k, total);
  });
}

void conv2d_bgrad_registers_blocked(int64_t N, int64_t K, int64_t pixels, const float* dy, float* db,
                                    int threads) {
  const int64_t blocks = ceil_div(K, BLOCK);
  parallel_for(workers(threads, N * K * pixels * 4), blocks, [&](int64_t b) {
    double totals[BLOCK] = {};
    for (int64_t n = 0; n < N; ++n) {
      const float* p = dy + (n * blocks + b) * pixels * BLOCK;
      V sums[4][PARTS] = {};
      int64_t i = 0;
      for (; i + 4 <= pixels; i += 4) {
        CK_UNROLL
        for (int j = 0; j < 4 * PARTS; ++j) sums[j / PARTS][j % PARTS] += load(p + i * BLOCK + j * LANES);
      }
      for (; i < pixels; ++i) {
        CK_UNROLL
        for (int j = 0; j < PARTS; ++j) sums[0][j] += load(p + i * BLOCK + j * LANES);
      }
      float map[BLOCK];
      for (int j = 0; j < PARTS; ++j)
        store(map + j * LANES, (sums[0][j] + sums[1][j]) + (sums[2][j] + sums[3][j]));
      for (int l = 0; l < BLOCK; ++l) totals[l] += map[l];
    }
    for (int64_t l = 0; l < least(BLOCK, K - b * BLOCK); ++l)
      db[b * BLOCK + l] = static_cast<float>(totals[l]);
  });
}

template <class S>
void linear_bgrad_registers(int64_t N, int64_t K, const S* dy, S* db, int threads) {
  constexpr int64_t COLUMNS = 256 / sizeof(S), ROWS = 32;  // four cache lines of a row
  parallel_for(workers(threads, N * K * int64_t(sizeof(S))), ceil_div(K, COLUMNS), [&](int64_t task) {
    const int64_t k = task * COLUMNS, count = least(COLUMNS, K - k);
    double totals[COLUMNS] = {};
    for (int64_t n0 = 0; n0 < N; n0 += ROWS) {
      alignas(64) float partial[COLUMNS] = {};
      for (int64_t n = n0; n < least(N, n0 + ROWS); ++n) {
        const S* row = dy + n * K + k;
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) store(partial + i, load(partial + i) + load(row + i));
        if (i < count) store(partial + i, load(partial + i) + load_part(row + i, count - i));
      }
      for (int64_t i = 0; i < COLUMNS; ++i) totals[i] += partial[i];
    }
    for (int64_t i = 0; i < count; ++i) put(db + k + i, totals[i]);
  });
}

#define CK_SUMS(S)                                                                    \
  template void conv2d_bgrad_registers(int64_t, int64_t, int64_t, const S*, S*, int); \
  template void linear_bgrad_registers(int64_t, int64_t, const S*, S*, int);
CK_SUMS(float)
CK_SUMS(BFloat16)
CK_SUMS(Float16)
#undef CK_SUMS

}  // namespace convkit
