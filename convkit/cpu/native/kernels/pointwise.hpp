// Ops that treat each element alone: ReLU, dropout, the update rule. One pass each, in the storage type; in place too.
//
// Idea      A register at a time: all that it reads is read before it is written, so that an output may be an input.
// Dropout   Philox4x32-10 on 64 counters at once, for 256 elements; the words are those of philox.py, bit for bit, and
//           never stored. Its 20 multiplications of 32 by 32 bits are what bounds it.
// Traffic   relu 8 bytes per float, relu_dgrad 12, dropout 8, sgd 20: memory bounds all but dropout.
// Measured  Zen 4, AVX-512, two threads: relu 26-40 GB/s, relu_dgrad 24-46, sgd 50, dropout 0.8 ns per element on one.
#pragma once

#include "half.hpp"
#include "linear.hpp"  // Sgd

namespace convkit {

template <class S>
void relu_fprop(int64_t size, const S* x, S* y, int threads);
template <class S>
void relu_dgrad(int64_t size, const S* dy, const S* y, S* dx, int threads);

struct Dropout {
  std::uint64_t seed, offset, limit;  // words below the limit are dropped: at most 2^32
  float scale;
};
template <class S>
void dropout(const Dropout& o, int64_t size, const S* x, S* y, int threads);

template <class S>
void sgd_momentum(const Sgd& o, int64_t size, const S* w, const S* dw, const S* v, S* w_new, S* v_new, int threads);

}  // namespace convkit
