// Local response normalisation and the max pooling that follows, blocked, as one pass: what lies between is not stored.
//
// Forward   Rows of LRN's output go into a ring of as many rows as a window reaches over (AlexNet: 3, 64 KB, in L2); a
//           row of the pool is taken as soon as its last row is there.
// Backward  For each row of x, the pool's gradient is gathered from the few rows of dy and argmax whose windows reach
//           it, d is computed anew from x, and dx is written, with the gradient of the ReLU before it where that is wanted.
// Tasks     A band of rows of an image: the whole image from 16 images on. A band of outputs computes the rows that it
//           shares with the next one a second time: 2012's first layer has 6 bands for one image, 8 % more work.
// Traffic   forward reads x and writes y and argmax, 4 HW + 5 PQ bytes of a channel; backward reads those of dy and
//           argmax, and x, and writes dx, 8 HW + 5 PQ.
// Bound     Arithmetic, with memory close behind: 16 elements take 23 + 9 cycles forward (LRN, pool) and 41 + 7
//           backward, where memory would give 10 and 19 to one thread at 28 GB/s.
// Measured  Zen 4, AVX-512, one thread, CPU time, N = 16: 33 cycles and 55 for 16 elements, on either of AlexNet's
//           layers: 2.6 and 4.3 ms on (96, 55, 55), 1.7 and 2.8 ms on (256, 27, 27) at 3.7 GHz. Two threads on two
//           busy cores, against PyTorch's local_response_norm and max_pool2d: 50 times as fast and more, both ways.
#pragma once

#include "lrn.hpp"
#include "pool2d.hpp"

namespace convkit {

template <class Index>
void lrn_maxpool2d_fprop_blocked(const Lrn& lrn, const Pool& pool, const float* x, float* y, Index* argmax, int threads);
// With relu, dx is 0 where x is not positive.
template <class Index>
void lrn_maxpool2d_dgrad_blocked(const Lrn& lrn, const Pool& pool, const float* dy, const Index* argmax, const float* x,
                                 float* dx, bool relu, int threads);

}  // namespace convkit
