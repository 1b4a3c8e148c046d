// conv2d_fprop_implicit_gemm_mma
//   y[n,p,q,k] = b[k] + sum_{r,s,c} x[n,h,w,c] * w[k,r,s,c]  (+ ReLU) on tensor cores, in NHWC: a GEMM of gemm_m =
//   N*P*Q pixels, gemm_n = K/groups filters, gemm_k = R*S*C/groups, whose left factor is never stored. 16-bit
//   elements, fp32 sums, rounded once.
//
// Tiling   a block makes TILE_M pixels x TILE_N filters of one group, a warp WARP_M x WARP_N of them, in steps of
//          TILE_K channels of one tap (r, s). Channels lie together in x and in w, so that both factors' rows
//          come in pieces of 16 bytes, and are what ldmatrix takes, without transposition. Blocks with the same
//          pixels are neighbours and share them in L2.
// Ring     of STAGES slots in shared memory: while one step is multiplied, the copies of the STAGES - 1 behind it
//          are on their way (cp.async). A step has one wait and one barrier: what it overwrites was read a step
//          ago. Taps outside the image and channels beyond the last one arrive as zeros.
// Swizzle  a slot has rows of CHUNKS pieces of 16 bytes: TILE_M pixels, then TILE_N filters. Eight rows' pieces
//          c, which a wavefront of ldmatrix takes, have to lie in different banks; and so have the pieces of
//          neighbouring rows that eight lanes copy. Piece c of a row stands at c ^ (row / 2) % 4, for CHUNKS = 4:
//
//             banks    0-3  4-7  8-11 ...                      28-31
//             row 0,1   0    1    2    3  |  0    1    2    3
//             row 2,3   1    0    3    2  |  1    0    3    2          an even row, then an odd one
//             row 4,5   2    3    0    1  |  2    3    0    1
//             row 6,7   3    2    1    0  |  3    2    1    0
//
// Warps    2 x 2 of them, 64 pixels x 64 filters each: 4 x 8 products of 16 x 8. Lane l has, of each of them, with
//          g = l / 4 and t = 2 (l % 4), the sums of pixels g and g + 8 and of filters t and t + 1:
//
//                        filter  0    1  |  2    3  |  4    5  |  6    7
//               pixel 0          L0      |  L1      |  L2      |  L3           sum[0], sum[1]
//                     1          L4      |  L5      |  L6      |  L7
//                    ...
//                     7          L28     |  L29     |  L30     |  L31
//                     8          L0      |  L1      |  L2      |  L3           sum[2], sum[3]
//                    ...
//
//          For 16 channels 4 ldmatrix.x4 bring 64 pixels (a[0..3]: pixels g and g + 8, channels t and t + 8), and 4
//          bring 64 filters (2 x 8 filters each, b0 and b1 of both): 8 loads for 32 products.
// Traffic  x is read ceil(K/groups / TILE_N) * R*S / (stride_h*stride_w) times, mostly from L2, w ceil(N*P*Q /
//          TILE_M) times from L2. y is written once, by way of the ring, 16 bytes to a lane.
// Bound    tensor cores. A step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp, as counted for sm_80: 242 registers,
//          no spills; so that two blocks of 4 warps fit on an SM that has 128 KB for their rings. Nothing is
//          predicted here yet.
// Lacking  C/groups that is no multiple of 8, and arrays that are not aligned to 16 bytes, are fetched element by
//          element, which is slow; C = 3 wastes most of a step. A batch of 1 leaves SMs idle: no split-K.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["bfloat16", "float16"]
// layout  = "NHWC, KRSC"
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4 }
// grid    = ["TILES_N * groups * ceil_div(N*P*Q, TILE_M)"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// rank    = 20
// truncates = true
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// [let]
// TILES_N = "ceil_div(K//groups, TILE_N)"
// [dividers]
// by_tiles_n = "TILES_N"
// by_groups  = "groups"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// ///

#include "convkit.cuh"
#include "divider.cuh"
#include "storage.cuh"

constexpr int WARPS_M = TILE_M / WARP_M, WARPS_N = TILE_N / WARP_N, THREADS = 32 * WARPS_M * WARPS_N;
constexpr int PRODUCTS_M = WARP_M / 16, PRODUCTS_N = WARP_N / 8;  // of a warp
constexpr int CHUNKS = TILE_K / PACK;                             // of 16 bytes, to a row of a slot
constexpr int SLOT = (TILE_M + TILE_N) * TILE_K;                  // elements of a slot
constexpr int ROWS_APART = THREADS / CHUNKS;                      // rows that the block copies at once
constexpr int PIXELS = TILE_M / ROWS_APART, FILTERS = TILE_N / ROWS_APART;  // that a thread copies

static_assert(TILE_M % WARP_M == 0 && TILE_N % WARP_N == 0, "a tile has whole warps' tiles");
static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp's tile has whole products, filters in pairs");
static_assert(TILE_K == 16 || TILE_K == 32 || TILE_K == 64, "TILE_K: 16, 32 or 64");
static_assert(TILE_M % ROWS_APART == 0 && TILE_N % ROWS_APART == 0, "a thread copies whole rows' pieces");
static_assert(TILE_N % 64 == 0, "TILE_N: 8 pieces to permute on the way out");
static_assert(STAGES >= 2 && STAGES * SLOT >= TILE_M * TILE_N, "the ring holds the tile of the result");

// A row that is in no image, whatever is added to it.
constexpr unsigned OUTSIDE = 0x80000000u;

// Where chunk c of a row stands in its slot; and chunk c of a pixel's filters on the way out. In elements.
__device__ __forceinline__ int in_slot(int row, int c) {
  return (row * CHUNKS + (c ^ row / (8 / CHUNKS) % CHUNKS)) * PACK;
}
__device__ __forceinline__ int on_way_out(int row, int c) {
  return (row * (TILE_N / PACK) + (c ^ row % 8)) * PACK;
}

__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(CONVKIT_STORAGE_bfloat16)
  mma_m16n8k16_bf16(sum, a, b0, b1);
#else
  mma_m16n8k16_f16(sum, a, b0, b1);
#endif
}

// Copies a chunk, of which the first `valid` elements exist and the others are zeros: 16 bytes that arrive
// later; or else element by element, at once.
__device__ __forceinline__ void copy_chunk(storage_t* to, const storage_t* from, int valid, bool vector) {
  if (vector) {
    cp_async_16(to, from, valid > 0 ? 16 : 0);
    return;
  }
  Pack pack;
#pragma unroll
  for (int i = 0; i < PACK; ++i) pack[i] = i < valid ? from[i] : from_float(0.0f);
  *reinterpret_cast<uint4*>(to) = pack.words;
}

struct alignas(4) Pair {
  storage_t first, second;
};

extern "C" __launch_bounds__(THREADS) __global__
    void conv2d_fprop_implicit_gemm_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                        const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                        storage_t* __restrict__ y, const int relu) {
  DYN_SMEM(storage_t, ring);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % WARPS_M * WARP_M, warp_n = warp / WARPS_M * WARP_N;

  // ---- The tile of this block ----
  // Filter tiles are neighbours, then groups, then pixels.
  const int channels = g.C / g.by_groups, filters = g.K / g.by_groups;
  const unsigned rest = blockIdx.x / g.by_tiles_n;
  const int group = static_cast<int>(rest % g.by_groups);
  const long long first_k = static_cast<long long>(group) * filters;  // of this group
  const int first_n = static_cast<int>(blockIdx.x % g.by_tiles_n) * TILE_N;
  const long long first_m = static_cast<long long>(rest / g.by_groups) * TILE_M;
  const long long pixels = g.by_pixels.divisor * g.N;
  const bool vector = channels % PACK == 0 && aligned(x) && aligned(w);

  // ---- Copying a step: pixels and filters, CHUNKS lanes to a row ----
  const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
  long long corners[PIXELS];  // of the filter at this pixel, in x
  unsigned top[PIXELS], left[PIXELS];
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
    const long long m = first_m + row + i * ROWS_APART, n = m / g.by_pixels, pixel = m % g.by_pixels;
    const int p = static_cast<int>(pixel / g.by_Q), q = static_cast<int>(pixel % g.by_Q);
    const int h = p * g.stride_h - g.pad_top, column = q * g.stride_w - g.pad_left;
    corners[i] = ((n * g.H + h) * g.W + column) * g.C + group * channels;
    top[i] = m < pixels ? static_cast<unsigned>(h) : OUTSIDE;
    left[i] = static_cast<unsigned>(column);
  }
  const long long taps = static_cast<long long>(g.R) * g.S * channels;  // of a filter
  const storage_t* const first_filter = w + (first_k + first_n + row) * taps;

  int r = 0, s = 0, c = 0;  // of the step that is copied next
  const auto copy_step = [&](storage_t* slot) {
    const int channel = c + chunk * PACK, valid = channels - channel;
    const unsigned down = r * g.dilation_h, across = s * g.dilation_w;
    const storage_t* const tap = x + (static_cast<long long>(down) * g.W + across) * g.C + channel;
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const bool inside = top[i] + down < g.H && left[i] + across < g.W;
      copy_chunk(slot + in_slot(row + i * ROWS_APART, chunk), tap + corners[i], inside ? valid : 0, vector);
    }
    const storage_t* const filter = first_filter + (static_cast<long long>(r) * g.S + s) * channels + channel;
#pragma unroll
    for (int i = 0; i < FILTERS; ++i) {
      const bool exists = first_n + row + i * ROWS_APART < filters;
      copy_chunk(slot + in_slot(TILE_M + row + i * ROWS_APART, chunk), filter + i * ROWS_APART * taps,
                 exists ? valid : 0, vector);
    }
    c += TILE_K;
    if (c < channels) return;
    c = 0;
    if (++s < g.S) return;
    s = 0;
    ++r;
  };

  // ---- The main loop ----
  float sum[PRODUCTS_M][PRODUCTS_N][4] = {};
  const int steps = g.R * g.S * ceil_div(channels, TILE_K);
  // Each step closes a group of copies, an empty one at the end: so the groups in flight are always counted
  // from the same one.
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < steps) copy_step(ring + step * SLOT);
    cp_async_commit();
  }
#pragma unroll 1
  for (int step = 0, read = 0, write = STAGES - 1; step < steps; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) copy_step(ring + write * SLOT);
    cp_async_commit();
    const storage_t* const slot = ring + read * SLOT;
#pragma unroll
    for (int k = 0; k < CHUNKS; k += 2) {  // 16 channels
      unsigned a[PRODUCTS_M][4], of_b[PRODUCTS_N / 2][4];
#pragma unroll
      for (int i = 0; i < PRODUCTS_M; ++i)
        ldmatrix(a[i], slot + in_slot(warp_m + i * 16 + lane % 16, k + lane / 16));
#pragma unroll
      for (int j = 0; j < PRODUCTS_N / 2; ++j)
        ldmatrix(of_b[j],
                 slot + in_slot(TILE_M + warp_n + j * 16 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
        for (int j = 0; j < PRODUCTS_N; ++j)
          multiply(sum[i][j], a[i], of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]);
    }
    read = read + 1 == STAGES ? 0 : read + 1;
    write = write + 1 == STAGES ? 0 : write + 1;
  }

  // ---- Writing: bias, ReLU, rounding; then through the ring, so that a lane has 16 bytes of a pixel ----
  __syncthreads();
#pragma unroll
  for (int j = 0; j < PRODUCTS_N; ++j) {
    const int column = warp_n + j * 8 + lane % 4 * 2;
    float bias[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int n = first_n + column + e;
      bias[e] = b && n < filters ? to_float(b[first_k + n]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          v[e] = sum[i][j][half * 2 + e] + bias[e];
          if (relu) v[e] = v[e] < 0.0f ? 0.0f : v[e];  // a NaN passes
        }
        const int at = on_way_out(warp_m + i * 16 + half * 8 + lane / 4, column / PACK) + column % PACK;
        *reinterpret_cast<Pair*>(ring + at) = {from_float(v[0]), from_float(v[1])};
      }
  }
  __syncthreads();
  const bool whole = filters % PACK == 0 && aligned(y);
#pragma unroll 4
  for (int i = threadIdx.x; i < TILE_M * TILE_N / PACK; i += THREADS) {
    const int m = i / (TILE_N / PACK), c_out = i % (TILE_N / PACK), n = first_n + c_out * PACK;
    if (first_m + m >= pixels || n >= filters) continue;
    Pack pack;
    pack.words = *reinterpret_cast<const uint4*>(ring + on_way_out(m, c_out));
    const long long first = (first_m + m) * g.K + first_k;
    store_pack(y, first + n, first + filters, whole, pack);
  }
}
