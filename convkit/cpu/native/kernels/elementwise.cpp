// Ops that treat each element alone: ReLU, dropout, the update rule. One pass each, in the storage type; in
// place too.
//
// Idea      A register at a time: all that it reads is read before it is written, so that an output may be an
//           input.
// Dropout   Philox4x32-10 on 64 counters at once, for 256 elements; the words are those of philox.py, bit for
//           bit, and never stored. Its 20 multiplications of 32 by 32 bits are what bounds it.
// Traffic   relu 8 bytes per float, relu_dgrad 12, dropout 8, sgd 20: memory bounds all but dropout.
// Measured  Zen 4, AVX-512, two threads: relu 26-40 GB/s, relu_dgrad 24-46, sgd 50, dropout 0.8 ns per
//           element on one.
#include <type_traits>

#include "half.hpp"
#include "local.hpp"

namespace convkit {
namespace {

constexpr int64_t ELEMENTS = 16384;  // of a task; a multiple of what dropout does at once

// step(i, count) for each register's worth of elements [i, i + count).
template <class Step>
void each_register(int64_t size, int64_t bytes, int threads, const Step& step) {
  parallel_for(workers(threads, bytes), ceil_div(size, ELEMENTS), [&](int64_t task) {
    const int64_t end = least(size, (task + 1) * ELEMENTS);
    int64_t i = task * ELEMENTS;
    for (; i + LANES <= end; i += LANES) step(i, std::integral_constant<int, LANES>());
    if (i < end) step(i, end - i);
  });
}

using Whole = std::integral_constant<int, LANES>;
template <class S>
CK_INLINE V get(const S* p, Whole) {
  return load(p);
}
template <class S>
CK_INLINE V get(const S* p, int64_t count) {
  return load_part(p, count);
}
template <class S>
CK_INLINE void put(S* p, V v, Whole) {
  store(p, v);
}
template <class S>
CK_INLINE void put(S* p, V v, int64_t count) {
  store_part(p, v, count);
}

}  // namespace

template <class S>
void relu_fprop_vectors(int64_t size, const S* x, S* y, int threads) {
  each_register(size, 2 * size * int64_t(sizeof(S)), threads,
                [=](int64_t i, auto count) { put(y + i, relu(get(x + i, count)), count); });
}

template <class S>
void relu_dgrad_vectors(int64_t size, const S* dy, const S* y, S* dx, int threads) {
  each_register(size, 3 * size * int64_t(sizeof(S)), threads, [=](int64_t i, auto count) {
    put(dx + i, where_positive(get(y + i, count), get(dy + i, count)), count);
  });
}

template <class S>
void sgd_momentum_vectors(const Sgd& o, int64_t size, const S* w, const S* dw, const S* v, S* w_new, S* v_new,
                          int threads) {
  const auto run = [&](auto in_velocity, auto nesterov) {
    each_register(size, 5 * size * int64_t(sizeof(S)), threads, [=](int64_t i, auto count) {
      V weight = get(w + i, count), velocity = get(v + i, count);
      const V gradient = get(dw + i, count) + o.weight_decay * weight;
      if constexpr (in_velocity) {
        velocity = o.momentum * velocity - o.lr * gradient;
        weight += velocity;
      } else {
        velocity = o.momentum * velocity + o.undamped * gradient;
        weight -= o.lr * (nesterov ? gradient + o.momentum * velocity : velocity);
      }
      put(w_new + i, weight, count);
      put(v_new + i, velocity, count);
    });
  };
  if (o.lr_in_velocity) return run(std::true_type(), std::false_type());
  if (o.nesterov) return run(std::false_type(), std::true_type());
  run(std::false_type(), std::false_type());
}

// ---------------------------------------------------------------------------------------------------
// Dropout
// ---------------------------------------------------------------------------------------------------
namespace {

constexpr int COUNTERS = 64;  // at once; each makes the words of four elements

// words[4 i + j] = word j of counter + i. A loop that compilers make vectors of, as long as they do not
// unroll it.
__attribute__((noinline)) void philox(std::uint64_t seed, std::uint64_t counter, std::uint32_t* words) {
  std::uint32_t c[4][COUNTERS];
  for (int i = 0; i < COUNTERS; ++i) {
    const std::uint64_t at = counter + static_cast<std::uint64_t>(i);
    c[0][i] = static_cast<std::uint32_t>(at);
    c[1][i] = static_cast<std::uint32_t>(at >> 32);
    c[2][i] = c[3][i] = 0;
  }
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    for (int i = 0; i < COUNTERS; ++i) {
      const std::uint64_t a = std::uint64_t(c[0][i]) * 0xD2511F53u, b = std::uint64_t(c[2][i]) * 0xCD9E8D57u;
      c[0][i] = static_cast<std::uint32_t>(b >> 32) ^ c[1][i] ^ k0;
      c[1][i] = static_cast<std::uint32_t>(b);
      c[2][i] = static_cast<std::uint32_t>(a >> 32) ^ c[3][i] ^ k1;
      c[3][i] = static_cast<std::uint32_t>(a);
    }
  }
  for (int i = 0; i < COUNTERS; ++i)
    for (int j = 0; j < 4; ++j) words[4 * i + j] = c[j][i];
}

}  // namespace

template <class S>
void dropout_fprop_vectors(const Dropout& o, int64_t size, const S* x, S* y, int threads) {
  constexpr int64_t AT_ONCE = 4 * COUNTERS;
  const bool drops = o.limit > 0;
  const std::uint32_t highest = static_cast<std::uint32_t>(o.limit - 1);  // of the words that are dropped
  // 16 bytes' worth of time for each element: the words take longer than the memory.
  parallel_for(workers(threads, 16 * size), ceil_div(size, ELEMENTS), [&](int64_t task) {
    const int64_t end = least(size, (task + 1) * ELEMENTS);
    for (int64_t i = task * ELEMENTS; i < end; i += AT_ONCE) {
      std::uint32_t words[AT_ONCE];
      philox(o.seed, o.offset + static_cast<std::uint64_t>(i / 4), words);
      for (int64_t j = 0; j < AT_ONCE && i + j < end; j += LANES) {
        VB word;
        std::memcpy(&word, words + j, sizeof word);
        const auto apply = [&](auto count) {
          const V scaled = get(x + i + j, count) * o.scale;
          put(y + i + j, drops ? (word <= highest ? V{} : scaled) : scaled, count);
        };
        if (i + j + LANES <= end)
          apply(Whole());
        else
          apply(end - i - j);
      }
    }
  });
}

#define CK_ELEMENTWISE(S)                                                          \
  template void relu_fprop_vectors(int64_t, const S*, S*, int);                    \
  template void relu_dgrad_vectors(int64_t, const S*, const S*, S*, int);          \
  template void dropout_fprop_vectors(const Dropout&, int64_t, const S*, S*, int); \
  template void sgd_momentum_vectors(const Sgd&, int64_t, const S*, const S*, const S*, S*, S*, int);
CK_ELEMENTWISE(float)
CK_ELEMENTWISE(BFloat16)
CK_ELEMENTWISE(Float16)
#undef CK_ELEMENTWISE

}  // namespace convkit
