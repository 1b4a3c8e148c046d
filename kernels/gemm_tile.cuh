// gemm_tile.cuh: the FFMA tile engine under the implicit-GEMM convolutions and the fully connected layers.
//
//   sum[m][n] = sum over k of A[m][k] * B[k][n]       gemm_m x gemm_n x gemm_k, in true fp32
//
// A block of THREADS threads makes an M x N tile of the result, K steps of gemm_k at a time; a thread keeps
// THREAD_M x THREAD_N sums in registers. Where an element of A or B lies in memory is a loader's business; a
// kernel file picks two loaders, says what the table below holds, and writes the sums where they belong.
//
// One step     registers -> shared memory, barrier, global -> registers for the next step, multiply. Shared memory
//              is double-buffered, so that one barrier suffices: what a step overwrites was last read two steps ago,
//              in front of the barrier between. The loads of a step have a whole step of multiply-adds to arrive.
// Shared       a[k][m] and b[k][n], rows 4 floats longer than the tile. A warp's threads stand 4 (in m) by 8 (in n):
// memory       each 128-bit read of b touches 8 neighbouring quads, all 32 banks once, and of a 4 neighbouring
//              quads, the rest of the lanes being broadcasts: no conflicts. Two such reads of each (8 x 8) feed 64
//              multiply-adds. Loaders that walk along k put 8 k's and 4 rows in a warp: bank 4 k + row, all different.
// Table        In a convolution, k is a tap (c, r, s) or a pixel (n, p, q), and finding its element takes divisions.
//              They are done once per k and block, by one thread, 256 k's ahead, into a ring of two chunks in shared
//              memory. The loop itself reads entries (a broadcast), adds and compares: no division, for any geometry,
//              so nothing is gained by compiling it for one geometry, and one build serves them all.
// Edges        Rows and columns beyond the matrix are read from its last one, or are zeros, and are not written. Beyond
//              the end of k, both factors are zeros.
//
// Everything is compiled for NVRTC, nvcc and the emulator. Pixel and tensor offsets are 64 bits wide.
#pragma once

#include "convkit.cuh"

// ------------------------------------------------------------------------------------------------------------------
// The tile
// ------------------------------------------------------------------------------------------------------------------
template <int M_, int N_, int K_, int THREAD_M_, int THREAD_N_>
struct GemmTile {
  static constexpr int M = M_, N = N_, K = K_, THREAD_M = THREAD_M_, THREAD_N = THREAD_N_;
  static constexpr int THREADS = M * N / (THREAD_M * THREAD_N);
  static constexpr int WARP_M = 4 * THREAD_M, WARP_N = 8 * THREAD_N;
  static constexpr int STRIDE_A = M + 4, STRIDE_B = N + 4;
  // Threads that an SM is to hold, which bounds their registers: 64 sums fit in 128, 96 in 168, 128 in 255. A block of
  // 128 threads fetches more elements per thread, and has 168 for 64 sums.
  static constexpr int SUMS = THREAD_M * THREAD_N;
  static constexpr int RESIDENT = SUMS <= 64 && THREADS >= 256 ? 512 : SUMS <= 96 ? 384 : 256;
  static constexpr int MIN_BLOCKS = RESIDENT < THREADS ? 1 : RESIDENT / THREADS;
  // Entries of the table that are made at a time, and the steps that they last.
  static constexpr int CHUNK = 256, CHUNK_STEPS = CHUNK / K;

  static_assert(THREAD_M % 4 == 0 && THREAD_N % 4 == 0, "THREAD_M and THREAD_N: whole 128-bit reads");
  static_assert(M % WARP_M == 0, "BLOCK_M: a multiple of a warp's 4 * THREAD_M");
  static_assert(N % WARP_N == 0, "BLOCK_N: a multiple of a warp's 8 * THREAD_N");
  static_assert(K == 8 || K == 16 || K == 32, "BLOCK_K: 8, 16 or 32");
  static_assert(THREADS <= 1024, "at most 1024 threads");
  // Both buffers; the table's entries of 24 bytes; 16 to a column in wgrad; some words about the block.
  static_assert(8 * K * (STRIDE_A + STRIDE_B) + 48 * CHUNK + 16 * N + 256 <= 48 * 1024,
                "BLOCK_K: static shared memory ends at 48 KB");
};

template <class Tile>
struct GemmShared {
  alignas(16) float a[2][Tile::K * Tile::STRIDE_A];
  alignas(16) float b[2][Tile::K * Tile::STRIDE_B];
};

// Row i and the first of four columns 4 j of the tile, of the sums of this thread.
template <class Tile>
__device__ __forceinline__ int gemm_row(int i) {
  const int warp = threadIdx.x / 32 % (Tile::M / Tile::WARP_M), lane = threadIdx.x % 32 / 8;
  return warp * Tile::WARP_M + i / 4 * 16 + lane * 4 + i % 4;
}
template <class Tile>
__device__ __forceinline__ int gemm_column(int j) {
  const int warp = threadIdx.x / 32 / (Tile::M / Tile::WARP_M), lane = threadIdx.x % 8;
  return warp * Tile::WARP_N + j * 32 + lane * 4;
}

// ------------------------------------------------------------------------------------------------------------------
// The table
// ------------------------------------------------------------------------------------------------------------------
// A tap or a pixel: where it is, relative to the pixel or tap that it meets; unsigned, so that what is left of the
// image or above it is a huge number, and one comparison covers both ends. Some element of an image is at
// pixel.offset + tap.offset, and inside if pixel.row + tap.row < height and pixel.column + tap.column < width.
struct alignas(16) GemmTap {
  long long offset;  // in bytes
  unsigned row, column;
};
// A column that is in no image, whatever is added to it.
static constexpr unsigned GEMM_OUTSIDE = 0x80000000u;

template <class Tile>
struct GemmTable {
  alignas(16) GemmTap gather[2 * Tile::CHUNK];
  alignas(16) long long linear[2 * Tile::CHUNK];  // bytes into the other, unpadded factor; -1 beyond the end

  static __device__ __forceinline__ unsigned at(unsigned step) { return step * Tile::K % (2 * Tile::CHUNK); }
};

// Fills chunks of the table: `Entry` is called as entry(k, tap, linear) for each k of this block's range.
template <class Tile, class Entry>
struct GemmFill {
  GemmTable<Tile>& table;
  const Entry& entry;

  __device__ __forceinline__ void operator()(unsigned chunk) const {
    for (unsigned i = threadIdx.x; i < Tile::CHUNK; i += Tile::THREADS) {
      const unsigned slot = (chunk % 2) * Tile::CHUNK + i;
      GemmTap tap;
      long long linear;
      entry(static_cast<long long>(chunk) * Tile::CHUNK + i, tap, linear);
      table.gather[slot] = tap;
      table.linear[slot] = linear;
    }
  }
};
struct GemmNoTable {
  __device__ __forceinline__ void operator()(unsigned) const {}
};

// Whether `fill` writes to shared memory, so that the block must wait for it.
template <class Fill>
struct GemmFills {
  static constexpr bool VALUE = true;
};
template <>
struct GemmFills<GemmNoTable> {
  static constexpr bool VALUE = false;
};

// ------------------------------------------------------------------------------------------------------------------
// Loaders: fetch(step), called for each step in turn, reads global memory into registers, store(to) puts them into a[k][m] or b[k][n].
// ------------------------------------------------------------------------------------------------------------------
// An address as a number: a base that is kept and an offset that is added, two instructions to an element. As a pointer
// the compiler takes it apart again, and spends five.
using GemmAddress = unsigned long long;

__device__ __forceinline__ GemmAddress gemm_address(const float* p) {
  return reinterpret_cast<GemmAddress>(p);
}
__device__ __forceinline__ float gemm_load(GemmAddress at) {
  return __ldg(reinterpret_cast<const float*>(at));
}

// Whether rows of `length` floats that begin at `p` can be read four at a time.
__device__ __forceinline__ bool gemm_aligned(const float* p, long long length) {
  return length % 4 == 0 && reinterpret_cast<unsigned long long>(p) % 16 == 0;
}

// B[k][n]: the element that tap k of the table meets at the pixel n. Neighbouring lanes have neighbouring pixels.
template <class Tile>
struct GemmGatherPixels {
  static constexpr int COLUMNS = Tile::N > Tile::THREADS ? Tile::N / Tile::THREADS : 1;
  static constexpr int APART = Tile::N > Tile::THREADS ? 1 : Tile::THREADS / Tile::N;  // k's of one pass
  static constexpr int PASSES = Tile::K / APART;
  static_assert(Tile::N % Tile::THREADS == 0 || Tile::THREADS % Tile::N == 0,
                "BLOCK_N and THREADS: one divides the other");
  static_assert(Tile::K % APART == 0, "THREADS: at most BLOCK_K * BLOCK_N");

  const GemmTap* taps;
  unsigned height, width;
  GemmAddress at[COLUMNS];
  unsigned row[COLUMNS], column[COLUMNS];
  float stage[PASSES][COLUMNS];

  // Column of the tile whose pixel is this thread's number `i`.
  static __device__ __forceinline__ int pixel(int i) { return threadIdx.x % Tile::N + i * Tile::THREADS; }

  __device__ __forceinline__ void fetch(unsigned step) {
    const GemmTap* const entry = taps + GemmTable<Tile>::at(step) + threadIdx.x / Tile::N;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const GemmTap tap = entry[pass * APART];
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i) {
        const bool inside = row[i] + tap.row < height && column[i] + tap.column < width;
        stage[pass][i] = inside ? gemm_load(at[i] + tap.offset) : 0.0f;
      }
    }
  }
  __device__ __forceinline__ void store(float* to) const {
    float* const first = to + threadIdx.x / Tile::N * Tile::STRIDE_B + threadIdx.x % Tile::N;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        first[pass * APART * Tile::STRIDE_B + i * Tile::THREADS] = stage[pass][i];
  }
};

// Lanes along k: 8 k's of 4 rows to a warp. What the loaders below share.
template <class Tile, int ROWS, int STRIDE>
struct GemmAlongK {
  static constexpr int APART = Tile::THREADS / 8, PASSES = ROWS / APART, OCTETS = Tile::K / 8;
  static_assert(ROWS % APART == 0, "BLOCK_M and BLOCK_N: multiples of THREADS / 8");

  float stage[OCTETS][PASSES];

  static __device__ __forceinline__ int k() { return threadIdx.x % 8; }
  static __device__ __forceinline__ int row(int pass) { return threadIdx.x / 8 + pass * APART; }
  __device__ __forceinline__ void store(float* to) const {
    float* const first = to + k() * STRIDE + row(0);
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < PASSES; ++pass) first[octet * 8 * STRIDE + pass * APART] = stage[octet][pass];
  }
};

// A[m][k]: row m begins at at[...], and the table says where in it k is.
template <class Tile>
struct GemmTableRows : GemmAlongK<Tile, Tile::M, Tile::STRIDE_A> {
  using Base = GemmAlongK<Tile, Tile::M, Tile::STRIDE_A>;
  const long long* offsets;
  GemmAddress at[Base::PASSES];

  __device__ __forceinline__ GemmTableRows(const long long* table, const float* first, long long length,
                                           int rows)
      : offsets(table) {
#pragma unroll
    for (int pass = 0; pass < Base::PASSES; ++pass) {
      const int m = Base::row(pass);
      at[pass] = gemm_address(first + (m < rows ? m : rows - 1) * length);
    }
  }
  __device__ __forceinline__ void fetch(unsigned step) {
#pragma unroll
    for (int octet = 0; octet < Base::OCTETS; ++octet) {
      const long long offset = offsets[GemmTable<Tile>::at(step) + octet * 8 + Base::k()];
#pragma unroll
      for (int pass = 0; pass < Base::PASSES; ++pass)
        this->stage[octet][pass] = offset >= 0 ? gemm_load(at[pass] + offset) : 0.0f;
    }
  }
};

// B[k][n]: the element that the tap of column n meets at pixel k of the table; `taps` has one for each column.
template <class Tile>
struct GemmGatherTaps : GemmAlongK<Tile, Tile::N, Tile::STRIDE_B> {
  using Base = GemmAlongK<Tile, Tile::N, Tile::STRIDE_B>;
  const GemmTap *pixels, *taps;
  GemmAddress image;
  unsigned height, width;

  __device__ __forceinline__ GemmGatherTaps(const GemmTap* table, const GemmTap* columns, const float* x,
                                            int h, int w)
      : pixels(table), taps(columns), image(gemm_address(x)), height(h), width(w) {}
  __device__ __forceinline__ void fetch(unsigned step) {
#pragma unroll
    for (int octet = 0; octet < Base::OCTETS; ++octet) {
      const GemmTap pixel = pixels[GemmTable<Tile>::at(step) + octet * 8 + Base::k()];
      const GemmAddress from = image + pixel.offset;
#pragma unroll
      for (int pass = 0; pass < Base::PASSES; ++pass) {
        const GemmTap tap = taps[Base::row(pass)];
        const bool inside = pixel.row + tap.row < height && pixel.column + tap.column < width;
        this->stage[octet][pass] = inside ? gemm_load(from + tap.offset) : 0.0f;
      }
    }
  }
};

// A[m][k] or B[k][n] from a matrix whose rows (m or n) run along k, VECTOR floats at a time.
template <class Tile, int ROWS, int STRIDE, int VECTOR>
struct GemmMatrixAlongK {
  static constexpr int LANES = 8 / VECTOR, APART = Tile::THREADS / LANES, OCTETS = Tile::K / 8;
  static constexpr int PASSES = ROWS / APART;
  static_assert(ROWS % APART == 0, "BLOCK_M and BLOCK_N: multiples of THREADS / 2");

  const float* at;
  long long apart;   // from the row of one pass to the next one's
  int left, left_k;  // rows and k's from this thread's first one on
  float stage[OCTETS][PASSES][VECTOR];

  // `first` is the tile's first element; `rows` are left from there on, `length` floats apart.
  __device__ __forceinline__ GemmMatrixAlongK(const float* first, long long length, int rows, int ks)
      : apart(APART * length),
        left(rows - static_cast<int>(threadIdx.x / LANES)),
        left_k(ks - static_cast<int>(threadIdx.x % LANES * VECTOR)) {
    at = first + threadIdx.x / LANES * length + threadIdx.x % LANES * VECTOR;
  }
  __device__ __forceinline__ void fetch(unsigned) {
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet) {
      const bool in_row = octet * 8 < left_k;
#pragma unroll
      for (int pass = 0; pass < PASSES; ++pass) {
        const bool inside = in_row && pass * APART < left;
        const float* const from = at + pass * apart + octet * 8;
        float* const to = stage[octet][pass];
        if (VECTOR == 4) {
          const float4 v = inside ? *reinterpret_cast<const float4*>(from) : make_float4(0, 0, 0, 0);
          to[0] = v.x, to[1 % VECTOR] = v.y, to[2 % VECTOR] = v.z, to[3 % VECTOR] = v.w;
        } else {
          to[0] = inside ? *from : 0.0f;
        }
      }
    }
    at += Tile::K;
    left_k -= Tile::K;
  }
  __device__ __forceinline__ void store(float* to) const {
    float* const first = to + threadIdx.x % LANES * VECTOR * STRIDE + threadIdx.x / LANES;
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
          first[(octet * 8 + i) * STRIDE + pass * APART] = stage[octet][pass][i];
  }
};

// A[m][k] or B[k][n] from a matrix whose rows are the k's: lanes run along m or n, VECTOR floats at a time.
template <class Tile, int COLUMNS, int STRIDE, int VECTOR>
struct GemmMatrixAcrossK {
  static constexpr int LANES = COLUMNS / VECTOR, APART = Tile::THREADS / LANES, PASSES = Tile::K / APART;
  static_assert(Tile::THREADS % LANES == 0, "THREADS: a multiple of BLOCK_M and BLOCK_N");
  static_assert(PASSES >= 1 && Tile::K % APART == 0, "THREADS: at most BLOCK_K / 4 of BLOCK_M and BLOCK_N");

  const float* at;
  long long length;  // of a row
  int left_k;        // k's from this thread's first one on
  float stage[PASSES][VECTOR];

  __device__ __forceinline__ GemmMatrixAcrossK(const float* first, long long row_length, int columns, int ks)
      : length(row_length), left_k(ks - static_cast<int>(threadIdx.x / LANES)) {
    const int column = threadIdx.x % LANES * VECTOR;
    at = first + (column < columns ? column : columns - VECTOR) + threadIdx.x / LANES * row_length;
  }
  __device__ __forceinline__ void fetch(unsigned) {
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const float* const from = at + pass * APART * length;
      const bool inside = pass * APART < left_k;
      float* const to = stage[pass];
      if (VECTOR == 4) {
        const float4 v = inside ? *reinterpret_cast<const float4*>(from) : make_float4(0, 0, 0, 0);
        to[0] = v.x, to[1 % VECTOR] = v.y, to[2 % VECTOR] = v.z, to[3 % VECTOR] = v.w;
      } else {
        to[0] = inside ? *from : 0.0f;
      }
    }
    at += Tile::K * length;
    left_k -= Tile::K;
  }
  __device__ __forceinline__ void store(float* to) const {
    float* const first = to + threadIdx.x / LANES * STRIDE + threadIdx.x % LANES * VECTOR;
#pragma unroll
    for (int pass = 0; pass < PASSES; ++pass) {
      const float* const v = stage[pass];
      float* const place = first + pass * APART * STRIDE;
      if (VECTOR == 4) {
        *reinterpret_cast<float4*>(place) = make_float4(v[0], v[1 % VECTOR], v[2 % VECTOR], v[3 % VECTOR]);
      } else {
        place[0] = v[0];
      }
    }
  }
};

// ------------------------------------------------------------------------------------------------------------------
// The loop
// ------------------------------------------------------------------------------------------------------------------
template <class Tile>
__device__ __forceinline__ void gemm_multiply(const float* a, const float* b,
                                              float (&sum)[Tile::THREAD_M][Tile::THREAD_N]) {
  a += gemm_row<Tile>(0);
  b += gemm_column<Tile>(0);
#pragma unroll
  for (int k = 0; k < Tile::K; ++k) {
    float4 m[Tile::THREAD_M / 4], n[Tile::THREAD_N / 4];
#pragma unroll
    for (int i = 0; i < Tile::THREAD_M / 4; ++i)
      m[i] = *reinterpret_cast<const float4*>(a + k * Tile::STRIDE_A + i * 16);
#pragma unroll
    for (int j = 0; j < Tile::THREAD_N / 4; ++j)
      n[j] = *reinterpret_cast<const float4*>(b + k * Tile::STRIDE_B + j * 32);
#pragma unroll
    for (int i = 0; i < Tile::THREAD_M; ++i) {
      const float4 v = m[i / 4];
      const float left = i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
#pragma unroll
      for (int j = 0; j < Tile::THREAD_N / 4; ++j) {
        sum[i][4 * j + 0] += left * n[j].x;
        sum[i][4 * j + 1] += left * n[j].y;
        sum[i][4 * j + 2] += left * n[j].z;
        sum[i][4 * j + 3] += left * n[j].w;
      }
    }
  }
}

// Sums `steps` steps of Tile::K. Every thread of the block must call it; `fill` makes the table, if there is one.
template <class Tile, class LoadA, class LoadB, class Fill>
__device__ __forceinline__ void gemm_sum(GemmShared<Tile>& shared, LoadA& a, LoadB& b, const Fill& fill,
                                         unsigned steps, float (&sum)[Tile::THREAD_M][Tile::THREAD_N]) {
#pragma unroll
  for (int i = 0; i < Tile::THREAD_M; ++i)
#pragma unroll
    for (int j = 0; j < Tile::THREAD_N; ++j) sum[i][j] = 0.0f;

  fill(0);
  if constexpr (GemmFills<Fill>::VALUE) {
    __syncthreads();
  }
  a.fetch(0);
  b.fetch(0);
  unsigned buffer = 0;
#pragma unroll 1
  for (unsigned step = 0, chunk = 1; step < steps; ++chunk) {
    // The half of the ring that this overwrites was last read in front of the last step's barrier, and what
    // it puts there is first read behind the barrier of the chunk's last step. One step beyond the end is
    // fetched, as zeros, so that the loop has no branch.
    fill(chunk);
    const unsigned end = steps < chunk * Tile::CHUNK_STEPS ? steps : chunk * Tile::CHUNK_STEPS;
#pragma unroll 1
    for (; step < end; ++step) {
      a.store(shared.a[buffer]);
      b.store(shared.b[buffer]);
      __syncthreads();
      a.fetch(step + 1);
      b.fetch(step + 1);
      gemm_multiply<Tile>(shared.a[buffer], shared.b[buffer], sum);
      buffer ^= 1;
    }
  }
}

// ------------------------------------------------------------------------------------------------------------------
// Split-K: blocks of different blockIdx.z sum different ranges of k, into slices of a workspace that a second kernel
// adds up in their order. gridDim.z is the number of slices, in both launches. With one, there is no second kernel.
// ------------------------------------------------------------------------------------------------------------------
struct GemmRange {
  long long first;  // k of this block's range
  long long count;  // of its k's
  unsigned steps;
};
template <class Tile>
__device__ __forceinline__ GemmRange gemm_range(long long k) {
  const long long steps = (k + Tile::K - 1) / Tile::K, each = (steps + gridDim.z - 1) / gridDim.z;
  const long long first = each * blockIdx.z * Tile::K;
  const long long rest = k - first < 0 ? 0 : k - first;
  const long long count = rest < each * Tile::K ? rest : each * Tile::K;
  return {first, count, static_cast<unsigned>((count + Tile::K - 1) / Tile::K)};
}

// Where this block writes its sums: the output itself, or its slice.
__device__ __forceinline__ float* gemm_target(float* out, float* workspace, long long size) {
  return gridDim.z == 1 ? out : workspace + size * blockIdx.z;
}

// The second kernel. `finish(i, sum)` makes an output of a sum.
template <class Finish>
__device__ __forceinline__ void gemm_reduce(const float* __restrict__ workspace, float* __restrict__ out,
                                            long long size, const Finish& finish) {
  const long long threads = static_cast<long long>(gridDim.x) * gridDim.z * blockDim.x;
  const long long first =
      (static_cast<long long>(blockIdx.z) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  for (long long i = first; i < size; i += threads) {
    float sum = workspace[i];
    for (unsigned slice = 1; slice < gridDim.z; ++slice) sum += workspace[size * slice + i];
    out[i] = finish(i, sum);
  }
}

// ------------------------------------------------------------------------------------------------------------------
// Writing
// ------------------------------------------------------------------------------------------------------------------
// A zero where a number is negative. Written so that a NaN passes: fmaxf would return the zero.
__device__ __forceinline__ float gemm_relu(float v) { return v < 0.0f ? 0.0f : v; }

struct GemmNoEpilogue {
  __device__ __forceinline__ float operator()(int, int, float sum) const { return sum; }
};

// Writes the sums: place(n, e) says where, from `out` on, element e of the four from column n of the tile on is, or
// -1; rows are `length` apart. Of the tile's rows `rows` exist. Four neighbours are written at once where `out` permits.
template <class Tile, class Place, class Epilogue>
__device__ __forceinline__ void gemm_write(float* out, long long length, int rows, const Place& place,
                                           const Epilogue& epilogue,
                                           const float (&sum)[Tile::THREAD_M][Tile::THREAD_N]) {
#pragma unroll
  for (int j = 0; j < Tile::THREAD_N / 4; ++j) {
    const int n = gemm_column<Tile>(j);
    long long offset[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) offset[e] = place(n + e);
    // Offsets grow with n: the last is three behind the first if all four are neighbours.
    const bool together = offset[0] >= 0 && offset[3] == offset[0] + 3;
#pragma unroll
    for (int i = 0; i < Tile::THREAD_M; ++i) {
      const int m = gemm_row<Tile>(i);
      if (m >= rows) continue;
      float v[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = epilogue(m, n + e, sum[i][4 * j + e]);
      float* const row = out + m * length;
      if (together && reinterpret_cast<unsigned long long>(row + offset[0]) % 16 == 0) {
        *reinterpret_cast<float4*>(row + offset[0]) = make_float4(v[0], v[1], v[2], v[3]);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (offset[e] >= 0) row[offset[e]] = v[e];
      }
    }
  }
}

// Quotient and remainder, in 32 bits wherever they suffice.
__device__ __forceinline__ long long gemm_divide(long long a, long long b, long long& remainder) {
  if (((a | b) >> 32) == 0) {
    const unsigned quotient = static_cast<unsigned>(a) / static_cast<unsigned>(b);
    remainder = static_cast<unsigned>(a) - quotient * static_cast<unsigned>(b);
    return quotient;
  }
  const long long quotient = a / b;
  remainder = a - quotient * b;
  return quotient;
}
