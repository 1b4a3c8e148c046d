// gemm_mma.cuh: what the GEMM kernels on tensor cores share: slots of shared memory and their swizzle, the
// fragments, the products of a step, split-K, and the way out. Where the elements of both factors come from,
// the main loop and what becomes of the sums stand in each kernel.
//
//   sum[m][n] = sum over k of a[m][k] * b[k][n]       gemm_m x gemm_n x gemm_k; fp32 sums, and elements
//                                                     of 16 bits, or of 32, of which tf32 takes 19
//
// A block makes TILE_M x TILE_N sums, a warp WARP_M x WARP_N of them, in steps of TILE_K of gemm_k. A
// kernel's header declares these numbers, and STAGES and PER_SM, in its `tile`.
//
// Ring     of STAGES slots, each with a step's part of both factors. While one step is multiplied, the copies
//          of the STAGES - 1 behind it are on their way (cp.async). The loop is the same in every kernel:
//
//              for each step from 1 - STAGES on:
//                wait for the step's copies, barrier, copy step + STAGES - 1, multiply what has arrived
//
//          A step has one wait and one barrier: what it overwrites was read a step ago. Each closes a group
//          of copies, an empty one at the end, so that the groups in flight are always counted from the same
//          one. The first barrier stands before the first copy: tables in shared memory need none of their
//          own.
//
// Slab     a factor's part of a slot: rows of pieces of 16 bytes. The eight pieces that a wavefront of
//          ldmatrix takes are of eight rows, one below the other; those that eight lanes copy are neighbours
//          in a row or two. Either have to lie in different banks: piece c of a row stands at c ^ row % 8
//          among 8, or at c ^ row / 2 % 4 among 4:
//
//             banks    0-3  4-7  8-11 ...                      28-31
//             row 0,1   0    1    2    3  |  0    1    2    3
//             row 2,3   1    0    3    2  |  1    0    3    2          an even row, then an odd one
//             row 4,5   2    3    0    1  |  2    3    0    1
//             row 6,7   3    2    1    0  |  3    2    1    0
//
//          Longer rows stand in panels of 8 pieces, one behind the other. wgmma takes slabs that lie so: its
//          128-, 64- and 32-byte swizzles are these.
//
//          AlongK   a row is one of the factor's m (or n), its elements are TILE_K neighbours in k. ldmatrix
//                   takes it as it is.
//          AcrossK  a row is one k, its elements are all m (or n) of the tile. ldmatrix.trans takes it,
//                   but turns elements of 16 bits alone: those of 32 are read word by word, 4 k of 8 m at a
//                   time, so that piece c of row k stands at c ^ 2 (k % 4) among 8: 32 words in 32 banks.
//
// Sums     of a warp: PRODUCTS_M x PRODUCTS_N products of 16 x 8. Lane l has, of each of them, with g = l / 4
//          and t = 2 (l % 4), rows g and g + 8, and columns t and t + 1:
//
//                          n  0    1  |  2    3  |  4    5  |  6    7
//                     m  0    L0      |  L1      |  L2      |  L3           sum[0], sum[1]
//                        1    L4      |  L5      |  L6      |  L7
//                       ...
//                        7    L28     |  L29     |  L30     |  L31
//                        8    L0      |  L1      |  L2      |  L3           sum[2], sum[3]
//                       ...
//
//          For 16 k of 64 x 64 sums 4 ldmatrix.x4 bring a (16 x 16 elements each) and 4 bring b (16 x 16): 8
//          loads for 32 products. In tf32 the same 8 loads bring 8 k.
#pragma once

#include "convkit.cuh"
#include "divider.cuh"
#include "storage.cuh"

constexpr int WARPS_M = TILE_M / WARP_M, WARPS_N = TILE_N / WARP_N, THREADS = 32 * WARPS_M * WARPS_N;
constexpr int PRODUCTS_M = WARP_M / 16, PRODUCTS_N = WARP_N / 8;  // of a warp
constexpr int SLOT = (TILE_M + TILE_N) * TILE_K;                  // elements
constexpr int PRODUCT_K = 2 * PACK;                               // k of a product: two pieces of 16 bytes
constexpr bool IS_TF32 = sizeof(storage_t) == 4;

static_assert(TILE_M % WARP_M == 0 && TILE_N % WARP_N == 0, "a tile has whole warps' tiles");
static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp's tile has whole products, columns in pairs");
static_assert(TILE_K == 16 || TILE_K == 32 || TILE_K == 64, "TILE_K: 16, 32 or 64");
static_assert(!IS_TF32 || TILE_K <= 32, "TILE_K: 16 or 32 of 32 bits");
static_assert(STAGES >= 2 && STAGES * SLOT >= TILE_M * TILE_N, "the ring holds the tile of the result");

// -----------------------------------------------------------------------------------------------------------
// Slabs. Places are in elements.
// -----------------------------------------------------------------------------------------------------------
template <int ROWS_, int CHUNKS_, bool BY_WORDS = false>
struct Slab {
  static constexpr int ROWS = ROWS_, CHUNKS = CHUNKS_;  // pieces of a row
  static constexpr int SIZE = ROWS * CHUNKS * PACK;
  static constexpr int PANEL = CHUNKS % 8 == 0 ? 8 : CHUNKS;
  static constexpr int SPREAD = PANEL % 8 == 0 ? 8 : PANEL % 4 == 0 ? 4 : PANEL % 2 == 0 ? 2 : 1;
  static_assert(!BY_WORDS || PANEL == 8, "what is read by words has rows of 32 of them");

  // Where piece c of a row stands.
  static __device__ __forceinline__ int at(int row, int c) {
    const int swap = BY_WORDS ? row % 4 * 2 : row / (8 / SPREAD) % SPREAD;
    return ((c / PANEL * ROWS + row) * PANEL + (c % PANEL ^ swap)) * PACK;
  }

  // A thread copies COPIES pieces: the i-th is chunk(i) of row(i), which may be one too many.
  static constexpr int COPIES = (ROWS * CHUNKS + THREADS - 1) / THREADS;
  static __device__ __forceinline__ int row(int i) {
    if constexpr (THREADS % CHUNKS == 0) return threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
    return (threadIdx.x + i * THREADS) / CHUNKS;
  }
  static __device__ __forceinline__ int chunk(int i) {
    if constexpr (THREADS % CHUNKS == 0) return threadIdx.x % CHUNKS;
    return (threadIdx.x + i * THREADS) % CHUNKS;
  }
  static __device__ __forceinline__ bool has(int i) { return ROWS * CHUNKS % THREADS == 0 || row(i) < ROWS; }
  // Where it stands. Eight rows on the permutation is the same, or four: then the i-th is a constant behind
  // the first.
  static __device__ __forceinline__ int place(int i) {
    if constexpr (THREADS % CHUNKS == 0 && THREADS / CHUNKS % (BY_WORDS ? 4 : 8) == 0)
      return at(row(0), chunk(0)) + i * (THREADS / CHUNKS) * PANEL * PACK;
    return at(row(i), chunk(i));
  }
};

// LENGTH of m or n. load_a: the registers of a for m to m + 15 and PRODUCT_K k; load_b: those of b for n to n
// + 15, b0 and b1 of the first 8, then of the others. m and n are multiples of 16, k of PRODUCT_K; what
// depends on the lane is the same for all of them, or for all k.
template <int LENGTH>
struct AlongK : Slab<LENGTH, TILE_K / PACK> {
  using Slab<LENGTH, TILE_K / PACK>::at;
  static __device__ __forceinline__ void load_a(unsigned (&a)[4], const storage_t* slab, int m, int k) {
    const int lane = threadIdx.x % 32;
    ldmatrix(a, slab + at(lane % 16, k / PACK + lane / 16) + m * TILE_K);
  }
  static __device__ __forceinline__ void load_b(unsigned (&b)[4], const storage_t* slab, int n, int k) {
    const int lane = threadIdx.x % 32;
    ldmatrix(b, slab + at(lane / 16 * 8 + lane % 8, k / PACK + lane / 8 % 2) + n * TILE_K);
  }
};
template <int LENGTH>
struct AcrossK : Slab<TILE_K, LENGTH / PACK, IS_TF32> {
  using Base = Slab<TILE_K, LENGTH / PACK, IS_TF32>;
  static __device__ __forceinline__ void load_a(unsigned (&a)[4], const storage_t* slab, int m, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (IS_TF32) {
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = word(slab, k + e / 2 * 4, m + e % 2 * 8);
      return;
    }
    ldmatrix_trans(
        a, slab + Base::at(lane / 16 * 8 + lane % 8, m / PACK + lane / 8 % 2) + k * Base::PANEL * PACK);
  }
  static __device__ __forceinline__ void load_b(unsigned (&b)[4], const storage_t* slab, int n, int k) {
    const int lane = threadIdx.x % 32;
    if constexpr (IS_TF32) {
#pragma unroll
      for (int e = 0; e < 4; ++e) b[e] = word(slab, k + e % 2 * 4, n + e / 2 * 8);
      return;
    }
    ldmatrix_trans(b, slab + Base::at(lane % 16, n / PACK + lane / 16) + k * Base::PANEL * PACK);
  }
  // Element (row + lane % 4, column + lane / 4), where row is a multiple of 4 and column one of 8. at() would
  // say the same; here the part that differs between lanes has four values in all, which stay in registers.
  static __device__ __forceinline__ unsigned word(const storage_t* slab, int row, int column) {
    const int lane = threadIdx.x % 32, in_panel = (column / 8 % 4 ^ lane % 4) * 8 + lane / 4;
    const int panel = (column / 32 * TILE_K + row + lane % 4) * 32;
    return *reinterpret_cast<const unsigned*>(slab + panel + in_panel);
  }
};

// How a kernel copies a piece, of which the first `valid` elements exist and the others are zeros.
struct Async {  // 16 bytes that arrive later, all of them or none
  __device__ __forceinline__ void operator()(storage_t* to, const storage_t* from, int valid) const {
    cp_async_16(to, from, valid > 0 ? 16 : 0);
  }
};
struct Elements {  // one by one, at once
  __device__ __forceinline__ void operator()(storage_t* to, const storage_t* from, int valid) const {
    Pack pack;
#pragma unroll
    for (int i = 0; i < PACK; ++i) pack[i] = i < valid ? from[i] : from_float(0.0f);
    *reinterpret_cast<uint4*>(to) = pack.words;
  }
};

// -----------------------------------------------------------------------------------------------------------
// One step: sum += a b, for TILE_K of k
// -----------------------------------------------------------------------------------------------------------
using Sums = float[PRODUCTS_M][PRODUCTS_N][4];

// The first m and n of this warp in the tile.
__device__ __forceinline__ int warp_m() { return threadIdx.x / 32 % WARPS_M * WARP_M; }
__device__ __forceinline__ int warp_n() { return threadIdx.x / 32 / WARPS_M * WARP_N; }

__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(CONVKIT_STORAGE_bfloat16)
  mma_m16n8k16_bf16(sum, a, b0, b1);
#elif defined(CONVKIT_STORAGE_float16)
  mma_m16n8k16_f16(sum, a, b0, b1);
#else
  mma_m16n8k8_tf32(sum, a, b0, b1);
#endif
}

// What tf32 takes of the elements in a fragment.
__device__ __forceinline__ void round_fragment(unsigned (&words)[4]) {
  if constexpr (IS_TF32) {
#pragma unroll
    for (int e = 0; e < 4; ++e) words[e] = to_tf32(__uint_as_float(words[e]));
  }
}

// The slot holds the slab A, then the slab B. A main loop of wgmma would take the place of this.
template <class A, class B>
__device__ __forceinline__ void multiply_step(const storage_t* slot, Sums& sum) {
#pragma unroll
  for (int k = 0; k < TILE_K; k += PRODUCT_K) {
    unsigned a[PRODUCTS_M][4], b[PRODUCTS_N / 2][4];
#pragma unroll
    for (int i = 0; i < PRODUCTS_M; ++i) {
      A::load_a(a[i], slot, warp_m() + i * 16, k);
      round_fragment(a[i]);
    }
#pragma unroll
    for (int j = 0; j < PRODUCTS_N / 2; ++j) {
      B::load_b(b[j], slot + A::SIZE, warp_n() + j * 16, k);
      round_fragment(b[j]);
    }
#pragma unroll
    for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
      for (int j = 0; j < PRODUCTS_N; ++j)
        multiply(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

// The slot behind this one in the ring.
__device__ __forceinline__ int next_slot(int slot) { return slot + 1 == STAGES ? 0 : slot + 1; }

// -----------------------------------------------------------------------------------------------------------
// Split-K: blocks of different blockIdx.z take different steps, and leave their sums in slices of the
// workspace, as rows of `pitch` floats. A launch behind them adds up the slices in their order: no atomics,
// and the same bits every time.
// -----------------------------------------------------------------------------------------------------------
struct Steps {
  int first, count;
};

// Those of this block, of `steps` in all.
__device__ __forceinline__ Steps steps_of_slice(int steps, const Divider& by_slices) {
  const int each = (steps + static_cast<int>(by_slices.divisor) - 1) / by_slices;
  const int first = each * static_cast<int>(blockIdx.z), rest = steps - first;
  return {first, rest < 0 ? 0 : rest < each ? rest : each};
}

// Of `columns` columns a row has, filled up to whole pieces.
__device__ __forceinline__ long long filled_up(int columns) {
  return (static_cast<long long>(columns) + PACK - 1) / PACK * PACK;
}

// Whether two floats may be moved at once.
__device__ __forceinline__ bool pair_at(const float* p) {
  return reinterpret_cast<unsigned long long>(p) % sizeof(float2) == 0;
}

// Writes the sums as they are: row_of(m) is where row m of the tile begins, or null where there is none. Of
// its columns, `columns` exist. In `pairs` where that number is even, and each row begins at a multiple of 8
// bytes.
template <class RowOf>
__device__ __forceinline__ void write_floats(const Sums& sum, long long columns, bool pairs,
                                             const RowOf& row_of) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const row = row_of(warp_m() + i * 16 + half * 8 + lane / 4);
      if (!row) continue;
#pragma unroll
      for (int j = 0; j < PRODUCTS_N; ++j) {
        const int n = warp_n() + j * 8 + lane % 4 * 2;
        if (n >= columns) continue;
        if (pairs) {
          *reinterpret_cast<float2*>(row + n) = make_float2(sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
        } else {
          row[n] = sum[i][j][half * 2];
          if (n + 1 < columns) row[n + 1] = sum[i][j][half * 2 + 1];
        }
      }
    }
}

// The same into a slice, whose rows have whole pieces.
template <class RowOf>
__device__ __forceinline__ void write_slice(const Sums& sum, long long columns, const RowOf& row_of) {
  write_floats(sum, columns, true, row_of);
}

// The launch behind: use(row, column, v) gets the sums of four columns from `column` on, a multiple of 4.
template <class Use>
__device__ __forceinline__ void add_slices(const float* __restrict__ workspace, long long rows,
                                           const Divider& by_quads, const Divider& by_slices,
                                           const Use& use) {
  const long long quads = rows * by_quads.divisor;
  const float4* const slices = reinterpret_cast<const float4*>(workspace);
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (long long i = first; i < quads; i += static_cast<long long>(gridDim.x) * blockDim.x) {
    float4 v = slices[i];
#pragma unroll 2
    for (long long slice = 1; slice < by_slices.divisor; ++slice) {
      const float4 other = slices[quads * slice + i];
      v.x += other.x, v.y += other.y, v.z += other.z, v.w += other.w;
    }
    const float of[4] = {v.x, v.y, v.z, v.w};
    use(i / by_quads, i % by_quads * 4, of);
  }
}

// -----------------------------------------------------------------------------------------------------------
// The way out: the sums, rounded, go through the ring, so that a lane has 16 bytes of a row of the output
// -----------------------------------------------------------------------------------------------------------
// Where elements have 32 bits, half a warp writes two neighbouring pieces of each of four rows: the swizzle
// for words has these eight in different banks.
using WayOut = Slab<TILE_M, TILE_N / PACK, IS_TF32>;

struct alignas(2 * sizeof(storage_t)) Pair {
  storage_t first, second;
};

// A zero where a number is negative. Written so that a NaN passes.
__device__ __forceinline__ float relu_of(float v) { return v < 0.0f ? 0.0f : v; }

// Adds value_of(n) to the sums of column n of the tile.
template <class ValueOf>
__device__ __forceinline__ void add_to_columns(Sums& sum, const ValueOf& value_of) {
#pragma unroll
  for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float value = value_of(warp_n() + j * 8 + threadIdx.x % 4 * 2 + e);
#pragma unroll
      for (int i = 0; i < PRODUCTS_M; ++i) sum[i][j][e] += value, sum[i][j][2 + e] += value;
    }
}
__device__ __forceinline__ void relu(Sums& sum) {
#pragma unroll
  for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
    for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][j][e] = relu_of(sum[i][j][e]);
}

// Rounds the tile into the ring: use(m, n, pack) then gets the pack of columns from n on of its row m, once
// each. Nothing may be on its way into the ring.
template <class Use>
__device__ __forceinline__ void write_tile(storage_t* ring, const Sums& sum, const Use& use) {
  const int lane = threadIdx.x % 32;
  __syncthreads();  // every warp has read its last step
#pragma unroll
  for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
    for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = warp_m() + i * 16 + half * 8 + lane / 4, n = warp_n() + j * 8 + lane % 4 * 2;
        *reinterpret_cast<Pair*>(ring + WayOut::at(m, n / PACK) + n % PACK) = {
            from_float(sum[i][j][half * 2]), from_float(sum[i][j][half * 2 + 1])};
      }
  __syncthreads();
#pragma unroll 4
  for (int i = 0; i < WayOut::COPIES; ++i) {
    const int m = WayOut::row(i), c = WayOut::chunk(i);
    if (!WayOut::has(i)) break;
    Pack pack;
    pack.words = *reinterpret_cast<const uint4*>(ring + WayOut::at(m, c));
    use(m, c * PACK, pack);
  }
}
