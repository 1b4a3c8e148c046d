// conv2d_tap_rows_mma.cuh: convolutions of few channels on tensor cores, by rows of taps. In NHWC the S*C
// elements that a row of taps meets lie together in memory: so gemm_k of fprop (gemm_n of wgrad) is R rows of
// S*C elements, each filled up to whole words, whatever C is. conv2d_fprop_tap_rows_mma.cu and
// conv2d_wgrad_tap_rows_mma.cu have the arguments.
//
// A word is what is copied at once: 4 bytes, asynchronously: one element of 32 bits, or two of 16. Where
// two of an image would begin at an odd element (an odd stride, padding or row, times an odd C), elements are
// copied one by one.
#pragma once

#include "conv2d_corner.cuh"
#include "gemm_mma.cuh"

constexpr int WORD = 4 / static_cast<int>(sizeof(storage_t));  // elements

struct alignas(4) Word {
  storage_t elements[WORD];
};

// The corner of the filter at pixel j, its column in elements.
template <class Geometry>
__device__ __forceinline__ Corner corner_in_elements(const Geometry& g, long long j) {
  Corner corner = corner_of(g, j);
  corner.column *= g.C;
  return corner;
}

// A word of a row of taps, relative to the corner: the elements from j on of row r, of which `count` exist.
struct TapWord {
  long long offset;  // in elements
  unsigned down;     // rows of x
  int j, count;
};

// Number `word` of R * by_words. One beyond the last has no elements.
template <class Geometry>
__device__ __forceinline__ TapWord tap_word(const Geometry& g, int word) {
  const int r = word / g.by_words, j = word % g.by_words * WORD, left = g.S * g.C - j,
            down = r * g.dilation_h;
  return {static_cast<long long>(down) * g.W * g.C + j, static_cast<unsigned>(down), j,
          r >= g.R      ? 0
          : left < WORD ? left
                        : WORD};
}

// Whether words are aligned in memory, and wholly inside a row of the image or outside.
template <class Geometry>
__device__ __forceinline__ bool words_aligned(const Geometry& g, const storage_t* x) {
  return WORD == 1 || ((g.W * g.C | g.stride_w * g.C | g.pad_left * g.C) % WORD == 0 &&
                       reinterpret_cast<unsigned long long>(x) % 4 == 0);
}

// Copies what the word meets at the corner; what does not exist, or is outside the image, is zero. As a word,
// which arrives later; or element by element, at once.
template <class Geometry>
__device__ __forceinline__ void copy_word(const Geometry& g, storage_t* to, const storage_t* x,
                                          const Corner& corner, const TapWord& word) {
  const bool inside =
      corner.row + word.down < g.H && corner.column + word.j < static_cast<unsigned>(g.W * g.C);
  cp_async_4(to, x + corner.offset + word.offset, inside ? 4 / WORD * word.count : 0);
}
template <class Geometry>
__device__ __forceinline__ void copy_elements(const Geometry& g, storage_t* to, const storage_t* x,
                                              const Corner& corner, const TapWord& word) {
  const storage_t* const from = x + corner.offset + word.offset;
  const unsigned column = corner.column + word.j, width = g.W * g.C;
  const int count = corner.row + word.down < g.H ? word.count : 0;
  Word whole;
#pragma unroll
  for (int e = 0; e < WORD; ++e)
    whole.elements[e] = e < count && column + e < width ? from[e] : from_float(0.0f);
  *reinterpret_cast<Word*>(to) = whole;
}

// Where word number `word` of a slab's row stands.
template <class Factor>
__device__ __forceinline__ int word_at(int row, int word) {
  return Factor::at(row, word / 4) + word % 4 * WORD;
}
