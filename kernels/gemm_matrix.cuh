// gemm_matrix.cuh: how the fully connected kernels fetch a step of a matrix, and put it into a[k][m] or
// b[k][n].
//
// A row of the matrix runs along gemm_k (AlongK) or across it, along m or n (AcrossK). A thread fetches
// VECTOR floats at a time: 4 where every row begins at a multiple of 16 bytes, else 1. Both give the same
// sums, bit by bit. Elements beyond the end of k are zeros. Rows and columns beyond the matrix are zeros or
// repeat its last ones, and are not written.
//
//   fetch()      global memory -> registers, and on to the next step
//   store(to)    registers -> shared memory
#pragma once

#include "gemm_tile.cuh"

// Whether all rows of `length` floats can be read four at a time.
__device__ __forceinline__ bool rows_aligned(const float* p, long long length) {
  return length % 4 == 0 && reinterpret_cast<unsigned long long>(p) % 16 == 0;
}

// Reads VECTOR floats, or zeros.
template <int VECTOR>
__device__ __forceinline__ void read_floats(const float* from, bool inside, float (&to)[VECTOR]) {
  if (VECTOR == 4) {
    const float4 v = inside ? *reinterpret_cast<const float4*>(from) : make_float4(0, 0, 0, 0);
    to[0] = v.x, to[1 % VECTOR] = v.y, to[2 % VECTOR] = v.z, to[3 % VECTOR] = v.w;
  } else {
    to[0] = inside ? *from : 0.0f;
  }
}

// ROWS rows (m or n), each TILE_K long: 8 / VECTOR lanes walk along k.
template <int ROWS, int STRIDE, int VECTOR>
struct AlongK {
  static constexpr int LANES = 8 / VECTOR, APART = THREADS / LANES, OCTETS = TILE_K / 8,
                       PASSES = ROWS / APART;
  static_assert(ROWS % APART == 0, "TILE_M and TILE_N: multiples of THREADS / 2");

  const float* at;
  long long apart;   // from the row of one pass to the next one's
  int left, left_k;  // rows and k's from this thread's first one on
  float stage[OCTETS][PASSES][VECTOR];

  // `first` is the tile's first element; `rows` and `ks` are left from there on, and rows are `length` apart.
  __device__ __forceinline__ AlongK(const float* first, long long length, int rows, int ks)
      : at(first + threadIdx.x / LANES * length + threadIdx.x % LANES * VECTOR),
        apart(APART * length),
        left(rows - static_cast<int>(threadIdx.x / LANES)),
        left_k(ks - static_cast<int>(threadIdx.x % LANES * VECTOR)) {}
  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < PASSES; ++pass)
        read_floats<VECTOR>(at + pass * apart + octet * 8, octet * 8 < left_k && pass * APART < left,
                            stage[octet][pass]);
    at += TILE_K;
    left_k -= TILE_K;
  }
  __device__ __forceinline__ void store(float* to) const {
    to += threadIdx.x % LANES * VECTOR * STRIDE + threadIdx.x / LANES;
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) to[(octet * 8 + i) * STRIDE + pass * APART] = stage[octet][pass][i];
  }
};

// TILE_K rows (k), each COLUMNS long: lanes run along m or n.
template <int COLUMNS, int STRIDE, int VECTOR>
struct AcrossK {
  static constexpr int LANES = COLUMNS / VECTOR, APART = THREADS / LANES, PASSES = TILE_K / APART;
  static_assert(THREADS % LANES == 0, "THREADS: a multiple of TILE_M and TILE_N");
  static_assert(PASSES >= 1 && TILE_K % APART == 0, "THREADS: at most TILE_K / 4 of TILE_M and TILE_N");

  const float* at;
  long long length;  // of a row
  int left_k;        // k's from this thread's first one on
  float stage[PASSES][VECTOR];

  __device__ __forceinline__ AcrossK(const float* first, long long row_length, int columns, int ks)
      : length(row_length), left_k(ks - static_cast<int>(threadIdx.x / LANES)) {
    const int column = threadIdx.x % LANES * VECTOR;
    at = first + (column < columns ? column : columns - VECTOR) + threadIdx.x / LANES * row_length;
  }
  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass)
      read_floats<VECTOR>(at + pass * APART * length, pass * APART < left_k, stage[pass]);
    at += TILE_K * length;
    left_k -= TILE_K;
  }
  __device__ __forceinline__ void store(float* to) const {
    to += threadIdx.x / LANES * STRIDE + threadIdx.x % LANES * VECTOR;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const float* const v = stage[pass];
      float* const place = to + pass * APART * STRIDE;
      if (VECTOR == 4) {
        *reinterpret_cast<float4*>(place) = make_float4(v[0], v[1 % VECTOR], v[2 % VECTOR], v[3 % VECTOR]);
      } else {
        place[0] = v[0];
      }
    }
  }
};

// The main loop: registers -> shared memory, barrier, global memory -> registers for the next step, multiply.
// One step beyond the end is fetched, as zeros, so that the loop has no branch.
template <class Left, class Right>
__device__ __forceinline__ void multiply(Left left, Right right, unsigned steps, GemmShared& shared,
                                         float (&sum)[THREAD_M][THREAD_N]) {
  left.fetch();
  right.fetch();
  unsigned buffer = 0;
  // Two loops where one would do: of a single one ptxas makes up to 7 instructions more for each step, and 36
  // registers.
#pragma unroll 1
  for (unsigned step = 0; step < steps;) {
    const unsigned end = steps < step + 32 ? steps : step + 32;
#pragma unroll 1
    for (; step < end; ++step) {
      left.store(shared.a[buffer]);
      right.store(shared.b[buffer]);
      __syncthreads();
      left.fetch();
      right.fetch();
      multiply_step(shared.a[buffer], shared.b[buffer], sum);
      buffer ^= 1;
    }
  }
}
