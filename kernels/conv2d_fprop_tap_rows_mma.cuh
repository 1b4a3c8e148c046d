// conv2d_fprop_tap_rows_mma.cuh: a convolution of few channels on tensor cores. conv2d_fprop_tap_rows_mma.cu
// has the argument; conv2d_fprop_tap_rows_tf32.cu takes elements of 32 bits.
#pragma once

#include "conv2d_tap_rows_mma.cuh"

using A = AlongK<TILE_M>;  // pixels
using B = AlongK<TILE_N>;  // filters

// A thread copies one word of every ROWS_APART-th pixel.
constexpr int WORDS = TILE_K / WORD, ROWS_APART = THREADS / WORDS;
static_assert(THREADS % WORDS == 0 && TILE_M % ROWS_APART == 0,
              "TILE_M: a multiple of THREADS / (words of TILE_K)");

// The first launch: w with its rows of taps filled up to whole words, and each filter to whole steps.
template <class Geometry>
__device__ __forceinline__ void fill_up_weights(const Geometry& g, const storage_t* __restrict__ w,
                                                storage_t* __restrict__ filled) {
  const long long i = WORD * (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x);
  if (i >= g.by_pitch.divisor * g.K) return;
  const long long k = i / g.by_pitch;
  const int word = static_cast<int>(i % g.by_pitch) / WORD, row = g.S * g.C;
  const int r = word / g.by_words, j = word % g.by_words * WORD, left = r < g.R ? row - j : 0;
  const storage_t* const from = w + (k * g.R + r) * row + j;
#pragma unroll
  for (int e = 0; e < WORD; ++e) filled[i + e] = e < left ? from[e] : from_float(0.0f);
}

// The second.
template <class Geometry>
__device__ __forceinline__ void conv2d_fprop(const Geometry& g, const storage_t* __restrict__ x,
                                             const storage_t* __restrict__ filled,
                                             const storage_t* __restrict__ b, storage_t* __restrict__ y,
                                             const int with_relu) {
  DYN_SMEM(storage_t, ring);
  __shared__ Corner corners[TILE_M];

  // ---- The tile of this block: filter tiles are neighbours, then pixels ----
  const int first_n = static_cast<int>(blockIdx.x % g.by_tiles_n) * TILE_N;
  const long long first_m = static_cast<long long>(blockIdx.x / g.by_tiles_n) * TILE_M;
  const long long pixels = g.by_pixels.divisor * g.N;
  const int steps = static_cast<int>(g.by_pitch.divisor) / TILE_K;
  for (int i = threadIdx.x; i < TILE_M; i += THREADS) corners[i] = corner_in_elements(g, first_m + i);

  // ---- Copying a step: words of what the taps meet at each pixel, pieces of each filter ----
  const bool whole_words = words_aligned(g, x);
  const int word = threadIdx.x % WORDS, row = threadIdx.x / WORDS;
  const storage_t* const filter = filled + (first_n + B::row(0)) * g.by_pitch.divisor + B::chunk(0) * PACK;
  const auto copy_step = [&](storage_t* slot, int step) {
    const TapWord taps = tap_word(g, step * WORDS + word);
    if (whole_words) {
#pragma unroll
      for (int m = row; m < row + TILE_M; m += ROWS_APART)
        copy_word(g, slot + word_at<A>(m, word), x, corners[m], taps);
    } else {
#pragma unroll 1
      for (int m = row; m < TILE_M; m += ROWS_APART)
        copy_elements(g, slot + word_at<A>(m, word), x, corners[m], taps);
    }
#pragma unroll
    for (int i = 0; i < B::COPIES; ++i) {
      const bool exists = first_n + B::row(i) < g.K;
      cp_async_16(slot + A::SIZE + B::place(i),
                  filter + (B::row(i) - B::row(0)) * g.by_pitch.divisor + step * TILE_K, exists ? 16 : 0);
    }
  };

  // ---- The main loop ----
  Sums sum = {};
#pragma unroll 1
  for (int step = 1 - STAGES, read = 0, write = 0; step < steps; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) copy_step(ring + write * SLOT, step + STAGES - 1);
    cp_async_commit();
    write = next_slot(write);
    if (step < 0) continue;  // nothing has arrived yet
    multiply_step<A, B>(ring + read * SLOT, sum);
    read = next_slot(read);
  }

  // ---- Writing: bias, ReLU, and y ----
  if (b) add_to_columns(sum, [&](int n) { return first_n + n < g.K ? to_float(b[first_n + n]) : 0.0f; });
  if (with_relu) relu(sum);
  const bool whole = g.K % PACK == 0 && aligned(y);
  write_tile(ring, sum, [&](int m, int n, Pack pack) {
    if (first_m + m >= pixels || first_n + n >= g.K) return;
    const long long first = (first_m + m) * g.K;
    store_pack(y, first + first_n + n, first + g.K, whole, pack);
  });
}
