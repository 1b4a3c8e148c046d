// conv2d_fprop_implicit_gemm
//   y[n,k,p,q] = b[k] + sum_{c,r,s} x[n,c,h,w] * w[k,c,r,s]  (+ ReLU): a GEMM of gemm_m = K/groups filters,
//   gemm_n = N*P*Q pixels, gemm_k = C/groups*R*S taps, whose right factor is never stored.
//
// Tiling   a block makes TILE_M filters x TILE_N pixels of one group, and a thread THREAD_M x THREAD_N of them.
//          Of three tiles heuristics.py chooses one for each problem. Pixels run on across images, so that a 13
//          x 13 map fills its tiles. Blocks with the same pixels are neighbours and share them in L2. Where
//          there are fewer tiles than an H200 has places for blocks (a batch of 1), grid z splits the taps, and
//          a second launch adds up the slices in their order.
// Threads  of the first tile: 4 warps make 32 x 128 sums each. L0 to L31 are the lanes of a warp, each with
//          4 x 4 sums in a patch of 16 x 32:
//
//             n     0-3   4-7   ...  28-31  |  32-63, 64-95, 96-127
//          m  0- 3  L0    L1    ...  L7     |
//             4- 7  L8    L9    ...  L15    |  the same lanes again
//             8-11  L16   L17   ...  L23    |
//            12-15  L24   L25   ...  L31    |
//            16-31  the same lanes again: all this is warp 0
//            32-63  warp 1
//            64-95  warp 2
//           96-127  warp 3
//
//          To fetch a step's 8 taps x 128 filters, 8 lanes walk along the taps and the block takes 16 filters
//          at a time; for its 8 taps x 128 pixels, each thread takes one pixel and all 8 taps.
// Traffic  x is read ceil(K/groups / TILE_M) * R*S / (stride_h*stride_w) times, the taps of one row and of
//          the rows beside it mostly from L1, the rest from L2; w ceil(N*P*Q / TILE_N) times from L2. y is
//          written once, 128 bits at a time where its rows' alignment permits. DRAM sees little more than the
//          compulsory bytes.
// Bound    FP32 FMA. On sm_90a 1024 of the main loop's 1209 instructions are FFMA (.847; 48 are 128-bit shared
//          loads); 255 registers, no spills. From a load of global memory to its use are 1054 instructions or
//          more, so that a step hides its latency. The other tiles have thinner loops (.80), and fewer useless
//          rows: 96 are all used by conv1, and three times 64 by conv4, where 128 use three quarters.
//          docs/kernels.md has what is predicted for each layer, 58 to 74 % of the FP32 peak at a batch of 128,
//          and the model: the rest is lost at edges and in the last wave of blocks.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["float32"]
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 256 }
// tiles   = [
//     { TILE_M = 96, THREAD_M = 12, THREAD_N = 8, PER_SM = 3 },
//     { TILE_M = 64, TILE_N = 256 },
// ]
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M   = [64, 96, 128]
// TILE_N   = [128, 256]
// TILE_K   = [8, 16]
// THREAD_M = [8, 12]
// THREAD_N = [8, 16]
// PER_SM   = [1, 2, 3]
// # Places for blocks on an H200.
// [let]
// FILL    = "132*PER_SM"
// SIZE    = "N*K*P*Q"
// TILES_M = "ceil_div(K//groups, TILE_M)"
// BLOCKS  = "ceil_div(N*P*Q, TILE_N) * TILES_M * groups"
// SLICES  = "max(1, min((C//groups*R*S)//DEPTH, FILL//BLOCKS))"
// STEPS   = "ceil_div(C//groups*R*S, TILE_K*SLICES)"
// [dividers]
// by_tiles_m = "TILES_M"
// by_groups  = "groups"
// by_slices  = "SLICES"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_R       = "R"
// by_S       = "S"
// by_K       = "K"
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "gemm_tile.cuh"

// A tap (c, r, s), relative to the pixel under the corner of the filter. `row` and `column` are unsigned, so
// that what is above the image or left of it becomes a huge number, and one comparison covers both ends.
struct alignas(16) Tap {
  long long offset;  // in bytes
  unsigned row, column;
};
// A column that is in no image, whatever is added to it.
constexpr unsigned OUTSIDE = 0x80000000u;

// Taps of the table are made a chunk at a time; the table is a ring of two chunks.
constexpr unsigned CHUNK = 256, CHUNK_STEPS = CHUNK / TILE_K;

// Fetching filters: 8 lanes along the taps, THREADS / 8 filters at a time.
constexpr int OCTETS = TILE_K / 8, FILTERS_APART = THREADS / 8, FILTER_PASSES = TILE_M / FILTERS_APART;
static_assert(TILE_M % FILTERS_APART == 0, "TILE_M: a multiple of THREADS / 8");

// Fetching pixels: a thread keeps its pixels and takes every TAPS_APART-th tap.
constexpr int PIXELS = TILE_N > THREADS ? TILE_N / THREADS : 1;
constexpr int TAPS_APART = TILE_N > THREADS ? 1 : THREADS / TILE_N, TAP_PASSES = TILE_K / TAPS_APART;
static_assert(TILE_N % THREADS == 0 || THREADS % TILE_N == 0, "TILE_N and THREADS: one divides the other");
static_assert(TILE_K % TAPS_APART == 0, "THREADS: at most TILE_K * TILE_N");

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  KRange range;
  int channels, filters, taps;  // of one group, one filter
  long long area;               // of one image of x
  long long first_n, first_k;
  int group, rows;  // filters from first_k on that there are
};

static_assert(sizeof(GemmShared) + 2 * CHUNK * sizeof(Tap) + 2 * CHUNK * 8 + sizeof(Block) <= 48 * 1024,
              "TILE_K: static shared memory ends at 48 KB");

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_fprop_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ x,
                                    const float* __restrict__ w, const float* __restrict__ b,
                                    float* __restrict__ y, float* __restrict__ workspace, const int relu) {
  __shared__ GemmShared shared;
  __shared__ Tap table[2 * CHUNK];
  __shared__ Block block;

  // ---- The tile of this block ----
  // Filter tiles are neighbours, then groups, then pixels.
  if (threadIdx.x == 0) {
    block.channels = g.C / g.by_groups;
    block.filters = g.K / g.by_groups;
    block.taps = block.channels * g.R * g.S;
    block.area = static_cast<long long>(g.H) * g.W;
    const unsigned first_m = blockIdx.x % g.by_tiles_m * TILE_M, rest = blockIdx.x / g.by_tiles_m;
    block.range = k_range(block.taps, g.by_slices);
    block.group = rest % g.by_groups;
    block.first_n = static_cast<long long>(rest / g.by_groups) * TILE_N;
    block.first_k = static_cast<long long>(block.group) * block.filters + first_m;
    block.rows = block.filters - static_cast<int>(first_m);
  }
  __syncthreads();

  // ---- The table: where taps are ----
  // Beyond the last one they are outside.
  const auto make_taps = [&](unsigned chunk) {
    for (unsigned i = threadIdx.x; i < CHUNK; i += THREADS) {
      const unsigned k = chunk * CHUNK + i;
      Tap tap = {0, 0, OUTSIDE};
      if (k < block.range.count) {
        const unsigned t = static_cast<unsigned>(block.range.first) + k;
        const unsigned c = t / g.by_S / g.by_R, r = t / g.by_S % g.by_R, s = t % g.by_S;
        tap.row = r * g.dilation_h;
        tap.column = s * g.dilation_w;
        tap.offset = 4 * (c * block.area + static_cast<long long>(tap.row) * g.W + tap.column);
      }
      table[chunk % 2 * CHUNK + i] = tap;
    }
  };

  // ---- Fetching a step's filters: a[k][m] ----
  // Of filters beyond the last one, the last one is read.
  Address filters[FILTER_PASSES];
  int taps_left = static_cast<int>(block.range.count) - static_cast<int>(threadIdx.x % 8);
  float filter_stage[OCTETS][FILTER_PASSES];
#pragma unroll
  for (int pass = 0; pass < FILTER_PASSES; ++pass) {
    const int m = threadIdx.x / 8 + pass * FILTERS_APART;
    const long long row = block.first_k + (m < block.rows ? m : block.rows - 1);
    filters[pass] = address_of(w + row * block.taps + block.range.first + threadIdx.x % 8);
  }
  const auto fetch_filters = [&](unsigned step) {
    const long long at = 4ll * TILE_K * step;
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet) {
      const int k = step * TILE_K + octet * 8;
#pragma unroll
      for (int pass = 0; pass < FILTER_PASSES; ++pass)
        filter_stage[octet][pass] = k < taps_left ? load_at(filters[pass] + at + octet * 32) : 0.0f;
    }
  };
  const auto store_filters = [&](float* a) {
    a += threadIdx.x % 8 * STRIDE_A + threadIdx.x / 8;
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < FILTER_PASSES; ++pass)
        a[octet * 8 * STRIDE_A + pass * FILTERS_APART] = filter_stage[octet][pass];
  };

  // ---- Fetching a step's elements of x: b[k][n], what tap k meets at pixel n ----
  // Neighbouring threads have neighbouring pixels. A pixel beyond the last one reads what the last one reads,
  // and is not written.
  Address corners[PIXELS];
  unsigned top[PIXELS], left[PIXELS];
  float pixel_stage[TAP_PASSES][PIXELS];
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
    const long long pixels = g.by_pixels.divisor, last = pixels * g.N - 1;
    const long long beyond = block.first_n + threadIdx.x % TILE_N + i * THREADS,
                    j = beyond < last ? beyond : last;
    const long long n = j / g.by_pixels, pixel = j - n * pixels, p = pixel / g.by_Q, q = pixel - p * g.Q;
    const int h = static_cast<int>(p) * g.stride_h - g.pad_top,
              column = static_cast<int>(q) * g.stride_w - g.pad_left;
    top[i] = h;
    left[i] = column;
    corners[i] = address_of(x + (n * g.C + block.group * block.channels) * block.area +
                            static_cast<long long>(h) * g.W + column);
  }
  const auto fetch_pixels = [&](unsigned step) {
    const Tap* const taps = table + step * TILE_K % (2 * CHUNK) + threadIdx.x / TILE_N;
#pragma unroll
    for (int pass = 0; pass < TAP_PASSES; ++pass) {
      const Tap tap = taps[pass * TAPS_APART];
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) {
        const bool inside = top[i] + tap.row < g.H && left[i] + tap.column < g.W;
        pixel_stage[pass][i] = inside ? load_at(corners[i] + tap.offset) : 0.0f;
      }
    }
  };
  const auto store_pixels = [&](float* to) {
    to += threadIdx.x / TILE_N * STRIDE_B + threadIdx.x % TILE_N;
#pragma unroll
    for (int pass = 0; pass < TAP_PASSES; ++pass)
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) to[pass * TAPS_APART * STRIDE_B + i * THREADS] = pixel_stage[pass][i];
  };

  // ---- The main loop ----
  // Registers -> shared memory, barrier, global memory -> registers for the next step, multiply. One step
  // beyond the end is fetched, as zeros, so that the loop has no branch.
  float sum[THREAD_M][THREAD_N] = {};
  make_taps(0);
  __syncthreads();
  fetch_filters(0);
  fetch_pixels(0);
  unsigned buffer = 0;
#pragma unroll 1
  for (unsigned step = 0, chunk = 1; step < block.range.steps; ++chunk) {
    // The half of the table that this overwrites was last read before the last step's barrier. What it
    // puts there is first read after the barrier of this chunk's last step.
    make_taps(chunk);
    const unsigned end = block.range.steps < chunk * CHUNK_STEPS ? block.range.steps : chunk * CHUNK_STEPS;
#pragma unroll 1
    for (; step < end; ++step) {
      store_filters(shared.a[buffer]);
      store_pixels(shared.b[buffer]);
      __syncthreads();
      fetch_filters(step + 1);
      fetch_pixels(step + 1);
      multiply_step(shared.a[buffer], shared.b[buffer], sum);
      buffer ^= 1;
    }
  }

  // ---- Writing: bias and ReLU, unless there are slices to add first ----
  const long long pixels = g.by_pixels.divisor;
  const auto place = [&](int column, long long (&offset)[4]) {
    const long long j = block.first_n + column;
    long long n = j / g.by_pixels, pixel = j - n * pixels;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      offset[e] = n < g.N ? n * g.K * pixels + pixel : -1;
      if (++pixel == pixels) pixel = 0, ++n;
    }
  };
  const bool whole = gridDim.z == 1;
  const auto epilogue = [&](int m, int, float v) {
    if (!whole) return v;
    if (b) v += b[block.first_k + m];
    return relu ? relu_of(v) : v;
  };
  float* const out = slice_or_output(y, workspace, pixels * g.K * g.N);
  write_sums(out + block.first_k * pixels, pixels, block.rows, place, epilogue, sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_fprop_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ x,
                                           const float* __restrict__ w, const float* __restrict__ b,
                                           float* __restrict__ y, float* __restrict__ workspace,
                                           const int relu) {
  const long long size = g.by_pixels.divisor * g.K * g.N;
  add_slices(workspace, y, size, g.by_slices.divisor, [&](long long i, float v) {
    if (b) v += b[i / g.by_pixels % g.by_K];
    return relu ? relu_of(v) : v;
  });
}
