// Gradient of a bias: dy summed over images and pixels.
//
// Idea      Four registers of partial sums run along a map (NCHW: the pixels of a channel; blocked: a register is a
//           part of a block, a pixel each), and each map's sum is then added up in double, image by image: the error
//           is that of some 50 additions, and does not grow with the batch.
// Rows      (N, K), of a linear layer: 32 rows in float, then those sums in double, for as many columns as a task has.
// Traffic   dy is read once; that is the bound.
// Measured  Zen 4, two threads: 45-60 GB/s on what fits into L3.
#pragma once

#include "half.hpp"

namespace convkit {

template <class S>
void channel_sums(int64_t N, int64_t K, int64_t pixels, const S* dy, S* db, int threads);
void channel_sums_blocked(int64_t N, int64_t K, int64_t pixels, const float* dy, float* db, int threads);
template <class S>
void column_sums(int64_t N, int64_t K, const S* dy, S* db, int threads);

}  // namespace convkit
