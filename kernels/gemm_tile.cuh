// gemm_tile.cuh: what the FFMA GEMM kernels share: the tile, the thread map, the multiply-adds of a step,
// split-K, and the writing of the sums. The main loop, and where the elements of A and B come from, are in
// each kernel's own file.
//
//   sum[m][n] = sum over k of A[m][k] * B[k][n]       gemm_m x gemm_n x gemm_k, in true fp32
//
// A block makes a TILE_M x TILE_N tile of the result and takes TILE_K of gemm_k in a step. A thread keeps
// THREAD_M x THREAD_N sums in registers. A kernel's header declares these numbers and PER_SM in its `tile`.
//
// Thread map   A warp's tile is cut into patches of 16 x 32. In a patch the lanes stand 4 (in m) by 8
//              (in n), and each has 4 x 4 sums. Patches repeat THREAD_M / 4 times down and THREAD_N / 4
//              times across, each time with the same lanes:
//
//                            n   0-3   4-7   8-11  12-15 16-19 20-23 24-27 28-31
//                   m   0- 3     L0    L1    L2    L3    L4    L5    L6    L7
//                       4- 7     L8    L9    L10   L11   L12   L13   L14   L15
//                       8-11     L16   L17   L18   L19   L20   L21   L22   L23
//                      12-15     L24   L25   L26   L27   L28   L29   L30   L31
//
// Shared       a[k][m] and b[k][n]. One 128-bit read of b by a warp touches 8 neighbouring quads of floats:
// memory       all 32 banks once. One of a touches 4 quads, which the other lanes share by broadcast. So
//              there are no conflicts. The 4 floats of padding to a row let 4 rows and 8 k's be stored at
//              once: bank 4 k + row, all different.
//
// Everything here is compiled for NVRTC, nvcc and the emulator. Offsets into tensors are 64 bits wide.
#pragma once

#include "convkit.cuh"
#include "divider.cuh"

// -----------------------------------------------------------------------------------------------------------
// The tile
// -----------------------------------------------------------------------------------------------------------
constexpr int SUMS = THREAD_M * THREAD_N;  // of a thread
constexpr int THREADS = TILE_M * TILE_N / SUMS;
constexpr int WARP_M = 4 * THREAD_M, WARP_N = 8 * THREAD_N;
constexpr int STRIDE_A = TILE_M + 4, STRIDE_B = TILE_N + 4;

static_assert(THREAD_M % 4 == 0 && THREAD_N % 4 == 0, "THREAD_M and THREAD_N: whole 128-bit reads");
static_assert(TILE_M % WARP_M == 0, "TILE_M: a multiple of a warp's 4 * THREAD_M");
static_assert(TILE_N % WARP_N == 0, "TILE_N: a multiple of a warp's 8 * THREAD_N");
static_assert(TILE_K == 8 || TILE_K == 16 || TILE_K == 32, "TILE_K: 8, 16 or 32");
static_assert(THREADS <= 1024, "at most 1024 threads");

// Occupancy. PER_SM is how many blocks an SM is to hold. It has 65536 registers, so that each thread of these
// may have 65536 / (PER_SM * THREADS), in multiples of 8 and at most 255. A thread needs one for each sum,
// THREAD_M + THREAD_N for the factors of one k, and some 50 for the next step's elements and for addresses:
// with 4 warps of 128 sums each, an SM holds two blocks; of 96 sums, three, or two where addresses take more.
static_assert(PER_SM >= 1 && PER_SM * THREADS <= 2048, "PER_SM: at most 2048 threads on an SM");

// Two buffers, so that a step needs one barrier: what a step overwrites was last read two steps ago, and the
// barrier of the step between stands behind those reads.
struct GemmShared {
  alignas(16) float a[2][TILE_K * STRIDE_A];
  alignas(16) float b[2][TILE_K * STRIDE_B];
};

// An address as a number: a base that stays in registers and an offset in bytes that is added, two
// instructions to an element. Of pointers the compiler makes more: 35 in fprop's loop of 1211 on sm_90a.
using Address = unsigned long long;

__device__ __forceinline__ Address address_of(const float* p) { return reinterpret_cast<Address>(p); }
__device__ __forceinline__ float load_at(Address at) { return __ldg(reinterpret_cast<const float*>(at)); }

// Row i of this thread's sums, and the first of four columns 4 j, as places in the tile.
__device__ __forceinline__ int tile_row(int i) {
  const int warp = threadIdx.x / 32 % (TILE_M / WARP_M), lane = threadIdx.x % 32 / 8;
  return warp * WARP_M + i / 4 * 16 + lane * 4 + i % 4;
}
__device__ __forceinline__ int tile_column(int j) {
  const int warp = threadIdx.x / 32 / (TILE_M / WARP_M), lane = threadIdx.x % 8;
  return warp * WARP_N + j * 32 + lane * 4;
}

// -----------------------------------------------------------------------------------------------------------
// One step: sum += a^T * b, for TILE_K of k. 6 shared reads of 128 bits feed 8 x 16 multiply-adds.
// -----------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void multiply_step(const float* a, const float* b,
                                              float (&sum)[THREAD_M][THREAD_N]) {
  a += tile_row(0);
  b += tile_column(0);
#pragma unroll
  for (int k = 0; k < TILE_K; ++k) {
    float4 m[THREAD_M / 4], n[THREAD_N / 4];
#pragma unroll
    for (int i = 0; i < THREAD_M / 4; ++i) m[i] = *reinterpret_cast<const float4*>(a + k * STRIDE_A + i * 16);
#pragma unroll
    for (int j = 0; j < THREAD_N / 4; ++j) n[j] = *reinterpret_cast<const float4*>(b + k * STRIDE_B + j * 32);
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i) {
      const float4 v = m[i / 4];
      const float left = i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
#pragma unroll
      for (int j = 0; j < THREAD_N / 4; ++j) {
        sum[i][4 * j + 0] += left * n[j].x;
        sum[i][4 * j + 1] += left * n[j].y;
        sum[i][4 * j + 2] += left * n[j].z;
        sum[i][4 * j + 3] += left * n[j].w;
      }
    }
  }
}

// -----------------------------------------------------------------------------------------------------------
// Split-K: blocks of different blockIdx.z sum different ranges of k, into slices of the workspace. A second
// launch adds up the slices in their order. With one slice there is no second launch, and blocks write the
// output itself.
// -----------------------------------------------------------------------------------------------------------
struct KRange {
  long long first;  // k
  long long count;
  unsigned steps;  // of TILE_K
};

// The range of this block, of `k` in all.
__device__ __forceinline__ KRange k_range(long long k, const Divider& by_slices) {
  const long long steps = (k + TILE_K - 1) / TILE_K, each = (steps + by_slices.divisor - 1) / by_slices;
  const long long first = each * blockIdx.z * TILE_K;
  const long long rest = k - first < 0 ? 0 : k - first;
  const long long count = rest < each * TILE_K ? rest : each * TILE_K;
  return {first, count, static_cast<unsigned>((count + TILE_K - 1) / TILE_K)};
}

// Where this block writes its sums: the output itself, or its slice of the workspace.
__device__ __forceinline__ float* slice_or_output(float* out, float* workspace, long long size) {
  return gridDim.z == 1 ? out : workspace + size * blockIdx.z;
}

// The second launch: adds up `slices` slices of `size` sums; use(i, sum) gets the i-th.
template <class Use>
__device__ __forceinline__ void each_sum(const float* __restrict__ workspace, long long size,
                                         long long slices, const Use& use) {
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (long long i = first; i < size; i += static_cast<long long>(gridDim.x) * blockDim.x) {
    float sum = workspace[i];
    for (long long slice = 1; slice < slices; ++slice) sum += workspace[size * slice + i];
    use(i, sum);
  }
}
// The same, where finish(i, sum) makes the output's element i of a sum.
template <class Finish>
__device__ __forceinline__ void add_slices(const float* __restrict__ workspace, float* __restrict__ out,
                                           long long size, long long slices, const Finish& finish) {
  each_sum(workspace, size, slices, [&](long long i, float sum) { out[i] = finish(i, sum); });
}

// -----------------------------------------------------------------------------------------------------------
// Writing the sums
// -----------------------------------------------------------------------------------------------------------
// A zero where a number is negative. Written so that a NaN passes: fmaxf would return the zero.
__device__ __forceinline__ float relu_of(float v) { return v < 0.0f ? 0.0f : v; }

struct NoEpilogue {
  __device__ __forceinline__ float operator()(int, int, float sum) const { return sum; }
};

// Four neighbours in n are read and written at once, in 128 bits where they lie together at such an address.
// offset[e] is where in the row the e-th one is, or -1 for one that does not exist. Offsets grow with n: the
// last one is three behind the first only if all four are neighbours.
__device__ __forceinline__ bool quad_aligned(const float* row, const long long (&offset)[4]) {
  return offset[0] >= 0 && offset[3] == offset[0] + 3 &&
         reinterpret_cast<unsigned long long>(row + offset[0]) % 16 == 0;
}
__device__ __forceinline__ void load_quad(const float* row, const long long (&offset)[4], float (&v)[4]) {
  if (quad_aligned(row, offset)) {
    const float4 four = *reinterpret_cast<const float4*>(row + offset[0]);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = offset[e] >= 0 ? row[offset[e]] : 0.0f;
  }
}
__device__ __forceinline__ void store_quad(float* row, const long long (&offset)[4], const float (&v)[4]) {
  if (quad_aligned(row, offset)) {
    *reinterpret_cast<float4*>(row + offset[0]) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (offset[e] >= 0) row[offset[e]] = v[e];
  }
}

// This thread's sums, in fours: use(i, m, n, offset, v) gets those of its row i, which is row m of the tile, and
// of columns n to n + 3 of the tile. `rows` of the tile's rows exist. place(n, offset) says where in a row these
// columns are, as above. Before the first use of some columns, fetch(i, m, offset) is called for each row: what
// it loads is then under way together, although the compiler may not move a load before a store.
template <class Place, class Fetch, class Use>
__device__ __forceinline__ void each_quad(int rows, const Place& place,
                                          const float (&sum)[THREAD_M][THREAD_N], const Fetch& fetch,
                                          const Use& use) {
#pragma unroll
  for (int j = 0; j < THREAD_N / 4; ++j) {
    long long offset[4];
    const int n = tile_column(j);
    place(n, offset);
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i)
      if (tile_row(i) < rows) fetch(i, tile_row(i), offset);
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i) {
      const int m = tile_row(i);
      if (m >= rows) continue;
      float v[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = sum[i][4 * j + e];
      use(i, m, n, offset, v);
    }
  }
}
struct NoFetch {
  __device__ __forceinline__ void operator()(int, int, const long long (&)[4]) const {}
};

// Writes them: rows of the output are `length` apart, and epilogue(m, n, sum) makes the output of a sum.
template <class Place, class Epilogue>
__device__ __forceinline__ void write_sums(float* out, long long length, int rows, const Place& place,
                                           const Epilogue& epilogue, const float (&sum)[THREAD_M][THREAD_N]) {
  each_quad(rows, place, sum, NoFetch(), [&](int, int m, int n, const long long (&offset)[4], float (&v)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = epilogue(m, n + e, v[e]);
    store_quad(out + m * length, offset, v);
  });
}
