// Softmax and cross-entropy of rows of logits, the label's rank in a row, and what a batch's losses come to.
//
// Idea      A row is a task: its maximum, the exponentials of what lies below it, with their sum in double, and the
//           division, out of L1. exp is 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
//           The rank counts registers of comparisons: "not less" before the label, "greater" behind it.
// Traffic   Logits are read and probabilities written once: 8 bytes per float. 1000 classes by the batch: small.
// Summary   A batch has some hundred losses: one thread adds them up, in double. Loss n is part of sum n % SUMS, and the
//           sums are added pairwise, so that every instruction set gives the same bits.
// NaN       in a logit makes the row NaN: its exponential is NaN, and so is the sum. So does +infinity.
#pragma once

#include "half.hpp"

namespace convkit {

template <class S>
void softmax_xent_fprop(int64_t N, int64_t K, const S* logits, const int64_t* labels, float* loss, S* probs, int threads);
template <class S>
void softmax_xent_dgrad(int64_t N, int64_t K, const S* probs, const int64_t* labels, const float* dloss, S* dlogits,
                        int threads);
// rank[n] = K where a logit is NaN, or the label no class.
template <class S>
void label_rank(int64_t N, int64_t K, const S* logits, const int64_t* labels, int32_t* rank, int threads);
// total = sum of loss; errors[0], errors[1] = rows with rank >= 1, and with rank >= 5; finite = 1 or 0. L: float, double.
template <class L>
void loss_summary(int64_t N, const L* loss, const int32_t* rank, double* total, int64_t* errors, int32_t* finite);

}  // namespace convkit
