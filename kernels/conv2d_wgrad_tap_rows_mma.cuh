// conv2d_wgrad_tap_rows_mma.cuh: the gradient of weights of few channels on tensor cores.
// conv2d_wgrad_tap_rows_mma.cu has the argument; conv2d_wgrad_bgrad_tap_rows_mma.cu makes the gradient of the
// bias as well: WITH_DB. Those named _tf32 take elements of 32 bits.
#pragma once

#include "conv2d_tap_rows_mma.cuh"

using A = AcrossK<TILE_M>;  // pixels, each with its filters in dy
using B = AcrossK<TILE_N>;  // pixels, each with what the words of taps meet in x

// Corners of pixels are made a chunk at a time; the table is a ring of two chunks.
constexpr int CHUNK = 256, CHUNK_STEPS = CHUNK / TILE_K;
static_assert(STAGES <= CHUNK_STEPS,
              "the copies ahead are in the chunk that is being read, or in the next one");

// A thread copies words threadIdx.x, threadIdx.x + THREADS, ... of a step. After COMMON of them the word is
// the same again, ROWS_APART rows on.
__host__ __device__ constexpr int common_divisor(int a, int b) {
  return b == 0 ? a : common_divisor(b, a % b);
}
constexpr int WORDS = TILE_N / WORD, COMMON = WORDS / common_divisor(THREADS, WORDS);
constexpr int ROWS_APART = THREADS * COMMON / WORDS;
static_assert(TILE_K % ROWS_APART == 0, "TILE_N: a thread copies whole columns of words");

template <bool WITH_DB, class Geometry>
__device__ __forceinline__ void conv2d_wgrad(const Geometry& g, const storage_t* __restrict__ x,
                                             const storage_t* __restrict__ dy,
                                             float* __restrict__ workspace) {
  DYN_SMEM(storage_t, ring);
  __shared__ Corner corners[2 * CHUNK];
  __shared__ TapWord taps[WORDS];

  // ---- The tile of this block: filter tiles are neighbours, then taps ----
  const int first_m = static_cast<int>(blockIdx.x % g.by_tiles_m) * TILE_M;
  const int first_n = static_cast<int>(blockIdx.x / g.by_tiles_m) * TILE_N;
  const long long pixels = g.by_pixels.divisor * g.N;
  const Steps range = steps_of_slice(static_cast<int>((pixels + TILE_K - 1) / TILE_K), g.by_slices);
  const long long first_pixel = static_cast<long long>(range.first) * TILE_K;
  const auto make_corners = [&](int number) {
    for (int i = threadIdx.x; i < CHUNK; i += THREADS)
      corners[number % 2 * CHUNK + i] =
          corner_in_elements(g, first_pixel + static_cast<long long>(number) * CHUNK + i);
  };

  // ---- The taps of the tile's words ----
  // What is of no tap gets its zeros here, or the ones of db, in every slot; no copy overwrites them. Beyond
  // the last pixel these are ones too, and dy is zero.
  for (int column = threadIdx.x; column < WORDS; column += THREADS) {
    const int number = first_n / WORD + column;
    taps[column] = tap_word(g, number);
    if (taps[column].count) continue;
    const bool ones = WITH_DB && number == g.R * static_cast<int>(g.by_words.divisor);
    Word word;
#pragma unroll
    for (int e = 0; e < WORD; ++e) word.elements[e] = from_float(ones && e == 0 ? 1.0f : 0.0f);
    for (int slot = 0; slot < STAGES; ++slot)
      for (int row = 0; row < TILE_K; ++row)
        *reinterpret_cast<Word*>(ring + slot * SLOT + A::SIZE + word_at<B>(row, column)) = word;
  }

  // ---- Copying a step: TILE_K pixels ----
  const bool whole_words = words_aligned(g, x), vector = g.K % PACK == 0 && aligned(dy);
  const auto copy_step = [&](storage_t* slot, int step) {
    const long long from = first_pixel + static_cast<long long>(step) * TILE_K;
    const Corner* const table = corners + step % (2 * CHUNK_STEPS) * TILE_K;
#pragma unroll
    for (int i = 0; i < A::COPIES; ++i) {
      if (!A::has(i)) break;
      const long long j = from + A::row(i);
      const int k = first_m + A::chunk(i) * PACK;
      const storage_t* const from_dy = dy + j * g.K + k;
      const int left = j < pixels ? g.K - k : 0;
      if (vector)
        Async()(slot + A::place(i), from_dy, left);
      else
        Elements()(slot + A::place(i), from_dy, left);
    }
#pragma unroll 1
    for (int number = threadIdx.x; number < COMMON * THREADS; number += THREADS) {
      const int column = number % WORDS, row = number / WORDS;
      const TapWord word = taps[column];
      if (!word.count) continue;
      storage_t* const to = slot + A::SIZE;
      if (whole_words) {
#pragma unroll
        for (int k = row; k < row + TILE_K; k += ROWS_APART)
          copy_word(g, to + word_at<B>(k, column), x, table[k], word);
      } else {
#pragma unroll 1
        for (int k = row; k < TILE_K; k += ROWS_APART)
          copy_elements(g, to + word_at<B>(k, column), x, table[k], word);
      }
    }
  };

  // ---- The main loop ----
  Sums sum = {};
  make_corners(0);
#pragma unroll 1
  for (int step = 1 - STAGES, read = 0, write = 0; step < range.count; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    // The half of the table that this overwrites was last read before this barrier, and what it writes is
    // first read behind the next one.
    const int ahead = step + STAGES - 1;
    if (ahead % CHUNK_STEPS == CHUNK_STEPS - 1) make_corners(ahead / CHUNK_STEPS + 1);
    if (ahead < range.count) copy_step(ring + write * SLOT, ahead);
    cp_async_commit();
    write = next_slot(write);
    if (step < 0) continue;  // nothing has arrived yet
    multiply_step<A, B>(ring + read * SLOT, sum);
    read = next_slot(read);
  }

  // ---- Writing: a slice ----
  const long long pitch = 4 * g.by_quads.divisor;
  float* const slice = workspace + (static_cast<long long>(blockIdx.z) * g.K + first_m) * pitch + first_n;
  write_slice(sum, pitch - first_n, [&](int m) { return first_m + m < g.K ? slice + m * pitch : nullptr; });
}

// The second launch: adds up the slices, and writes dw, KCRS, and db.
template <bool WITH_DB, class Geometry>
__device__ __forceinline__ void conv2d_wgrad_reduce(const Geometry& g, param_t* __restrict__ dw,
                                                    param_t* __restrict__ db,
                                                    const float* __restrict__ workspace) {
  add_slices(workspace, g.K, g.by_quads, g.by_slices,
             [&](long long k, long long column, const float (&v)[4]) {
#pragma unroll
               for (int e = 0; e < 4; ++e) {
                 const int number = static_cast<int>(column) + e, r = number / WORD / g.by_words;
                 const int j = number / WORD % g.by_words * WORD + number % WORD;
                 if (r < g.R && j < g.S * g.C)
                   dw[((k * g.C + j % g.by_C) * g.R + r) * g.S + j / g.by_C] = to_param(v[e]);
                 else if (WITH_DB && r == g.R && j == 0)
                   db[k] = to_param(v[e]);
               }
             });
}
