// Softmax and cross-entropy of rows of logits, the label's rank in a row, and what a batch's losses come to.
//
// Idea      A row is a task: its maximum, the exponentials of what lies below it, with their sum in double,
//           and the division, out of L1. exp is 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
//           The rank counts registers of comparisons: "not less" before the label, "greater" behind it.
// Traffic   Logits are read and probabilities written once: 8 bytes per float. 1000 classes by the batch:
//           small.
// Summary   A batch has some hundred losses: one thread adds them up, in double. Loss n is part of sum n %
//           SUMS, and the sums are added pairwise, so that every instruction set gives the same bits.
// NaN       in a logit makes the row NaN: its exponential is NaN, and so is the sum. So does +infinity.
#include <cmath>

#include "half.hpp"
#include "local.hpp"

namespace convkit {
namespace {

using D = double __attribute__((vector_size(LANES * sizeof(double))));

// exp of what is not positive; NaN stays NaN. Below 2^-126 it is 0.
CK_INLINE V exp_negative(V x) {
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the last bits
  const V shifted = x * 1.44269504f + magic;
  const V n = shifted - magic;
  const V r =
      (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, of which the first times n is exact
  V p = splat(1.38888889e-3f);
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  const V e = (p * r * r + r) + 1.0f;
  const VI exponent = (reinterpret_cast<VI>(shifted) - reinterpret_cast<VI>(magic)) << 23;
  return x < -87.33654f ? V{} : reinterpret_cast<V>(reinterpret_cast<VI>(e) + exponent);
}

template <class S>
CK_INLINE V get(const S* p, int64_t i, int64_t n, float beyond) {
  if (i + LANES <= n) return load(p + i);
  V v = load_part(p + i, n - i);
  for (int64_t l = n - i; l < LANES; ++l) v[l] = beyond;
  return v;
}
template <class S>
CK_INLINE void put(S* p, V v, int64_t i, int64_t n) {
  if (i + LANES <= n)
    store(p + i, v);
  else
    store_part(p + i, v, n - i);
}

// How many of z[0 ... n) pass the test, which takes a register or one float.
template <class S, class Test>
CK_INLINE int64_t count_if(const S* z, int64_t n, const Test& test) {
  VI passed{};  // each lane counts down
  int64_t i = 0, found = 0;
  for (; i + LANES <= n; i += LANES) passed += test(load(z + i));
  for (int l = 0; l < LANES; ++l) found -= passed[l];
  for (; i < n; ++i) found += test(load_one(z + i)) ? 1 : 0;
  return found;
}

}  // namespace

template <class S>
void softmax_xent_fprop_vectors(int64_t N, int64_t K, const S* logits, const int64_t* labels, float* loss,
                                S* probs, int threads) {
  parallel_for(workers(threads, 16 * N * K), N, [&](int64_t n) {
    const S* z = logits + n * K;
    float* row = local_floats(round_up(K, LANES));
    V highest = splat(-INFINITE);
    for (int64_t i = 0; i < K; i += LANES) {
      const V v = get(z, i, K, -INFINITE);
      highest = v > highest ? v : highest;
    }
    float top = highest[0];
    for (int l = 1; l < LANES; ++l) top = highest[l] > top ? highest[l] : top;
    D lanes{};  // a loss near zero is log(1 + what is small): float32 would lose it beside the 1
    for (int64_t i = 0; i < K; i += LANES) {
      V v = exp_negative(get(z, i, K, -INFINITE) - top);
      if (i + LANES > K)
        for (int64_t l = K - i; l < LANES; ++l) v[l] = 0;
      store(row + i, v);
      lanes += __builtin_convertvector(v, D);
    }
    double total = 0;
    for (int l = 0; l < LANES; ++l) total += lanes[l];
    loss[n] = static_cast<float>(std::log(total) - (double(load_one(z + labels[n])) - double(top)));
    const float scale = static_cast<float>(1 / total);
    for (int64_t i = 0; i < K; i += LANES) put(probs + n * K, load(row + i) * scale, i, K);
  });
}

template <class S>
void softmax_xent_dgrad_vectors(int64_t N, int64_t K, const S* probs, const int64_t* labels,
                                const float* dloss, S* dlogits, int threads) {
  parallel_for(workers(threads, 8 * N * K), N, [&](int64_t n) {
    const S* p = probs + n * K;
    S* to = dlogits + n * K;
    for (int64_t i = 0; i < K; i += LANES) put(to, get(p, i, K, 0) * dloss[n], i, K);
    const float own = (load_one(p + labels[n]) - 1) * dloss[n];
    store_part(to + labels[n], splat(own), 1);
  });
}

template <class S>
void label_rank_vectors(int64_t N, int64_t K, const S* logits, const int64_t* labels, int32_t* rank,
                        int threads) {
  parallel_for(workers(threads, 4 * N * K), N, [&](int64_t n) {
    const S* z = logits + n * K;
    const int64_t label = labels[n];
    if (label < 0 || label >= K || count_if(z, K, [](auto v) { return v != v; })) {
      rank[n] = static_cast<int32_t>(K);
      return;
    }
    const float own = load_one(z + label);
    const int64_t before = count_if(z, label, [=](auto v) { return v >= own; });
    const int64_t behind = count_if(z + label, K - label, [=](auto v) { return v > own; });
    rank[n] = static_cast<int32_t>(before + behind);
  });
}

template <class L>
void loss_summary_vectors(int64_t N, const L* loss, const int32_t* rank, double* total, int64_t* errors,
                          int32_t* finite) {
  constexpr int SUMS = 8;
  double sums[SUMS] = {};
  bool good = true;
  int64_t first = 0, fifth = 0;
  const auto add = [&](int64_t n, int s) {
    sums[s] += double(loss[n]);
    good &= loss[n] - loss[n] == 0;  // infinity - infinity is NaN
    first += rank[n] >= 1;
    fifth += rank[n] >= 5;
  };
  int64_t n = 0;
  for (; n + SUMS <= N; n += SUMS)
    for (int s = 0; s < SUMS; ++s) add(n + s, s);
  for (int s = 0; n + s < N; ++s) add(n + s, s);
  for (int step = SUMS / 2; step > 0; step /= 2)
    for (int s = 0; s < step; ++s) sums[s] += sums[s + step];
  *total = sums[0];
  errors[0] = first;
  errors[1] = fifth;
  *finite = good;
}
template void loss_summary_vectors(int64_t, const float*, const int32_t*, double*, int64_t*, int32_t*);
template void loss_summary_vectors(int64_t, const double*, const int32_t*, double*, int64_t*, int32_t*);

#define CK_SOFTMAX(S)                                                                                    \
  template void softmax_xent_fprop_vectors(int64_t, int64_t, const S*, const int64_t*, float*, S*, int); \
  template void softmax_xent_dgrad_vectors(int64_t, int64_t, const S*, const int64_t*, const float*, S*, \
                                           int);                                                         \
  template void label_rank_vectors(int64_t, int64_t, const S*, const int64_t*, int32_t*, int);
CK_SOFTMAX(float)
CK_SOFTMAX(BFloat16)
CK_SOFTMAX(Float16)
#undef CK_SOFTMAX

}  // namespace convkit
