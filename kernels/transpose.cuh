// transpose.cuh: matrices transposed on their way through shared memory, for the reorder kernels: x is rows x
// cols, y cols x rows. They may be of different types: an element is cast as it is read.
//
// transpose_tile: a block takes 64 x 64 elements. A thread reads 16 bytes of a row; where y has 16-bit elements, of
// two neighbouring rows, whose elements of a column make a word. So the tile is 64 columns of WORDS words, and a
// word holds one or two rows. Word w of a column in chunk c (of 16 bytes, as they were read) stands at
// w ^ 4 * (c % 8). A warp writes, one element of its chunks after the other, 8 chunks x 4 neighbouring words:
// bits 2 to 4 of a bank tell the chunk, bits 0 and 1 the word. It reads 4 words in a row, whose order the XOR
// keeps, and 8 lanes of a column have all banks between them. Neither has a conflict.
//
// transpose_thin: one of rows and cols is below THIN. A block takes all of the short side and `length` of the
// long one. In one of x and y that is one piece of memory, which moves 16 bytes at a time; in the other it is a
// piece of `length` elements for each of the short side's, and neighbouring lanes move neighbouring elements.
// Shared memory has the order of the first: there are up to 2-way bank conflicts in 16 bits where the short side is
// odd, and more where it is even.
#pragma once

#include "convkit.cuh"
#include "divider.cuh"
#include "storage.cuh"

// 16 bytes of elements.
template <class T>
struct Chunk {
  static constexpr int SIZE = 16 / sizeof(T);
  uint4 words;
  __device__ __forceinline__ T& operator[](int i) { return reinterpret_cast<T*>(&words)[i]; }
};

// One access where `vector` holds, which promises that all of it exists; else the first `count` elements, and
// zeros.
template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const T* from, int count, bool vector) {
  Chunk<T> chunk;
  if (vector) {
    chunk.words = *reinterpret_cast<const uint4*>(from);
    return chunk;
  }
  chunk.words = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int j = 0; j < Chunk<T>::SIZE; ++j)
    if (j < count) chunk[j] = from[j];
  return chunk;
}

template <class T>
__device__ __forceinline__ void store_chunk(T* to, int count, bool vector, Chunk<T> chunk) {
  if (vector) {
    *reinterpret_cast<uint4*>(to) = chunk.words;
    return;
  }
#pragma unroll
  for (int j = 0; j < Chunk<T>::SIZE; ++j)
    if (j < count) to[j] = chunk[j];
}

template <class To, class From>
__device__ __forceinline__ To converted(From value) {
  if constexpr (sizeof(To) == sizeof(From))
    return value;
  else
    return from_float(value);
}

// x and y are this block's image.
template <class From, class To>
__device__ __forceinline__ void transpose_tile(const From* __restrict__ x, To* __restrict__ y, int rows,
                                               int cols, int first_row, int first_col) {
  constexpr int SIZE = Chunk<From>::SIZE, CHUNKS = TILE / SIZE;            // of x
  constexpr int SIZE_OUT = Chunk<To>::SIZE, CHUNKS_OUT = TILE / SIZE_OUT;  // of y
  constexpr int EACH = 4 / sizeof(To), WORDS = TILE / EACH;  // elements of a word; words of a column
  constexpr int ITEMS = CHUNKS * WORDS / THREADS, ITEMS_OUT = TILE * CHUNKS_OUT / THREADS;
  static_assert(TILE == 64, "8 chunks and 4 words to a warp");
  static_assert(ITEMS * THREADS == CHUNKS * WORDS && ITEMS_OUT * THREADS == TILE * CHUNKS_OUT,
                "each thread has as much to do");
  __shared__ __align__(16) unsigned tile[TILE * WORDS];

  const bool vector_x = cols % SIZE == 0 && aligned(x), vector_y = rows % SIZE_OUT == 0 && aligned(y);
  Chunk<From> read[ITEMS][EACH];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    const int item = threadIdx.x + i * THREADS, chunk = item % 8 + item / (8 * WORDS) * 8;
    const int col = first_col + chunk * SIZE, count = min(max(cols - col, 0), SIZE);
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const int row = first_row + item / 8 % WORDS * EACH + e, exist = row < rows ? count : 0;
      read[i][e] = load_chunk(x + static_cast<long long>(row) * cols + col, exist, vector_x && exist == SIZE);
    }
  }
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    const int item = threadIdx.x + i * THREADS, chunk = item % 8 + item / (8 * WORDS) * 8;
    const int word = item / 8 % WORDS ^ 4 * (item % 8);
#pragma unroll
    for (int j = 0; j < SIZE; ++j) {
      unsigned bits;
#pragma unroll
      for (int e = 0; e < EACH; ++e) reinterpret_cast<To*>(&bits)[e] = converted<To>(read[i][e][j]);
      tile[(chunk * SIZE + j) * WORDS + word] = bits;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ITEMS_OUT; ++i) {
    const int item = threadIdx.x + i * THREADS, chunk = item % CHUNKS_OUT, col = item / CHUNKS_OUT;
    Chunk<To> made;
    made.words = *reinterpret_cast<const uint4*>(tile + col * WORDS + (4 * chunk ^ 4 * (col / SIZE % 8)));
    const int row = first_row + chunk * SIZE_OUT, count = min(rows - row, SIZE_OUT);
    if (first_col + col < cols && count > 0)
      store_chunk(y + static_cast<long long>(first_col + col) * rows + row, count,
                  vector_y && count == SIZE_OUT, made);
  }
}

// `thin` is the short side; `count` elements of the long side, which has `all`, begin at `first`. x and y are this
// block's image. ROWS: the rows are the short side, so that y is the one piece of memory.
template <bool ROWS, class Geometry, class From, class To>
__device__ __forceinline__ void transpose_thin(const Geometry& g, const From* __restrict__ x,
                                               To* __restrict__ y, int thin, long long all, long long first,
                                               int count, To* memory) {
  constexpr int SIZE = Chunk<To>::SIZE, UNROLL = 8;
  const int length = static_cast<int>(g.by_length.divisor), elements = thin * length, whole = thin * count;
  To* const piece = memory;  // shared
  // Element (s, l) of the short and the long side is piece[l * thin + s].
  if constexpr (ROWS) {
    for (int start = threadIdx.x; start < elements; start += UNROLL * THREADS) {
      From read[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const int e = start + u * THREADS, s = e / g.by_length, l = e % g.by_length;
        if (e < elements && l < count) read[u] = x[s * all + first + l];
      }
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const int e = start + u * THREADS, s = e / g.by_length, l = e % g.by_length;
        if (e < elements && l < count) piece[l * thin + s] = converted<To>(read[u]);
      }
    }
    __syncthreads();
    y += first * thin;
    const bool vector = aligned(y);
    for (int e = threadIdx.x * SIZE; e < whole; e += THREADS * SIZE)
      store_chunk(y + e, whole - e, vector && e + SIZE <= whole,
                  load_chunk(piece + e, whole - e, e + SIZE <= whole));
  } else {
    x += first * thin;
    constexpr int SIZE_IN = Chunk<From>::SIZE;
    const bool vector = aligned(x);
    for (int e = threadIdx.x * SIZE_IN; e < whole; e += THREADS * SIZE_IN) {
      Chunk<From> read = load_chunk(x + e, whole - e, vector && e + SIZE_IN <= whole);
      if constexpr (SIZE_IN == SIZE) {
        store_chunk(piece + e, SIZE, true, read);
      } else {
#pragma unroll
        for (int j = 0; j < SIZE_IN; ++j) piece[e + j] = converted<To>(read[j]);
      }
    }
    __syncthreads();
    for (int start = threadIdx.x; start < elements; start += UNROLL * THREADS) {
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const int e = start + u * THREADS, s = e / g.by_length, l = e % g.by_length;
        if (e < elements && l < count) y[s * all + first + l] = piece[l * thin + s];
      }
    }
  }
}

// The block's piece of images of rows x cols. Where nothing changes its place (`thin` is 1) all images are one
// row.
template <class Geometry, class From, class To>
__device__ __forceinline__ void transpose_piece(const Geometry& g, const From* __restrict__ x,
                                                To* __restrict__ y, int rows, int cols) {
  DYN_SMEM(To, piece);
  const int thin = static_cast<int>(g.by_thin.divisor);
  const long long elements = static_cast<long long>(rows) * cols;
  const long long all = thin == 1 ? elements * g.N : max(rows, cols);
  const long long image = static_cast<long long>(blockIdx.x / g.by_pieces) * elements;
  const long long first = static_cast<long long>(blockIdx.x % g.by_pieces) * g.by_length.divisor;
  const int count = static_cast<int>(min(g.by_length.divisor, all - first));
  if (rows <= cols)
    transpose_thin<true>(g, x + image, y + image, thin, all, first, count, piece);
  else
    transpose_thin<false>(g, x + image, y + image, thin, all, first, count, piece);
}
