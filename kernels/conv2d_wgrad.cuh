// conv2d_wgrad.cuh: the gradient of a convolution's weights as an implicit GEMM. conv2d_wgrad_implicit_gemm.cu
// has the argument, conv2d_wgrad_bgrad_implicit_gemm.cu makes the gradient of the bias as well: WITH_DB.
#pragma once

#include "gemm_tile.cuh"
#include "reduce.cuh"

// A pixel of dy, as the pixel of x under the corner of its filter; or a tap (c, r, s), relative to that
// corner. The sum of the two is an element of x, inside the image if row < H and column < W. `row` and
// `column` are unsigned, so that what is above the image or left of it becomes a huge number, and one
// comparison covers both ends.
struct alignas(16) Place {
  long long offset;  // in bytes
  unsigned row, column;
};
// A column that is in no image, whatever is added to it.
constexpr unsigned OUTSIDE = 0x80000000u;

// Pixels of the table are made a chunk at a time; the table is a ring of two chunks.
constexpr unsigned CHUNK = 256, CHUNK_STEPS = CHUNK / TILE_K;

// Fetching: 8 lanes along the pixels, APART = THREADS / 8 filters or taps at a time.
constexpr int OCTETS = TILE_K / 8, APART = THREADS / 8;
constexpr int FILTER_PASSES = TILE_M / APART, TAP_PASSES = TILE_N / APART;
static_assert(TILE_M % APART == 0 && TILE_N % APART == 0, "TILE_M and TILE_N: multiples of THREADS / 8");

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  KRange range;
  int channels, filters, taps;  // of one group, one filter
  long long area;               // of one image of x
  long long first_k;
  int group, first_n;
  int rows, columns;  // filters from first_k on, and taps from first_n on, that there are
};

static_assert(sizeof(GemmShared) + 2 * CHUNK * (sizeof(Place) + 8) + TILE_N * sizeof(Place) + sizeof(Block) <=
                  48 * 1024,
              "TILE_K: static shared memory ends at 48 KB");

// Sums of one slice: those of dw, and of db behind them.
template <bool WITH_DB, class Geometry>
__device__ __forceinline__ long long sums_of(const Geometry& g) {
  return static_cast<long long>(g.K) * (g.C / g.by_groups) * g.R * g.S + (WITH_DB ? g.K : 0);
}

// What the block does whose tile the header's grid gives it. `db` counts where WITH_DB.
template <bool WITH_DB, class Geometry>
__device__ __forceinline__ void conv2d_wgrad(const Geometry& g, const float* __restrict__ x,
                                             const float* __restrict__ dy, float* __restrict__ dw,
                                             float* __restrict__ db, float* __restrict__ workspace) {
  __shared__ GemmShared shared;
  __shared__ Place pixels_of_x[2 * CHUNK];
  __shared__ long long pixels_of_dy[2 * CHUNK];  // bytes from pixel 0 of image 0; -1 beyond the end
  __shared__ Place taps[TILE_N];
  __shared__ Block block;

  // ---- The tile of this block ----
  // Filter tiles are neighbours, then taps, then groups.
  if (threadIdx.x == 0) {
    block.channels = g.C / g.by_groups;
    block.filters = g.K / g.by_groups;
    block.taps = block.channels * g.R * g.S;
    block.area = static_cast<long long>(g.H) * g.W;
    const unsigned first_m = blockIdx.x % g.by_tiles_m * TILE_M, rest = blockIdx.x / g.by_tiles_m;
    block.range = k_range(g.by_pixels.divisor * g.N, g.by_slices);
    block.first_n = rest % g.by_tiles_n * TILE_N;
    block.group = rest / g.by_tiles_n;
    block.first_k = static_cast<long long>(block.group) * block.filters + first_m;
    block.rows = block.filters - static_cast<int>(first_m);
    block.columns = block.taps - block.first_n;
  }
  __syncthreads();

  // ---- The taps of the tile's columns ----
  // One beyond the last reads what the last reads, and is not written.
  for (int i = threadIdx.x; i < TILE_N; i += THREADS) {
    const unsigned t = block.first_n + (i < block.columns ? i : block.columns - 1);
    const unsigned c = t / g.by_S / g.by_R, r = t / g.by_S % g.by_R, s = t % g.by_S;
    Place tap;
    tap.row = r * g.dilation_h;
    tap.column = s * g.dilation_w;
    tap.offset = 4 * (c * block.area + static_cast<long long>(tap.row) * g.W + tap.column);
    taps[i] = tap;
  }

  // ---- The table: where pixels are, in x and in dy ----
  // Beyond the last one they are outside.
  const auto make_pixels = [&](unsigned chunk) {
    const long long pixels = g.by_pixels.divisor;
    for (unsigned i = threadIdx.x; i < CHUNK; i += THREADS) {
      const long long k = static_cast<long long>(chunk) * CHUNK + i;
      Place in_x = {0, 0, OUTSIDE};
      long long in_dy = -1;
      if (k < block.range.count) {
        const long long j = block.range.first + k, n = j / g.by_pixels, pixel = j - n * pixels;
        const long long p = pixel / g.by_Q, q = pixel - p * g.Q;
        const int row = static_cast<int>(p) * g.stride_h - g.pad_top;
        const int column = static_cast<int>(q) * g.stride_w - g.pad_left;
        in_x.row = row;
        in_x.column = column;
        in_x.offset = 4 * (n * g.C * block.area + static_cast<long long>(row) * g.W + column);
        in_dy = 4 * (n * g.K * pixels + pixel);
      }
      const unsigned slot = chunk % 2 * CHUNK + i;
      pixels_of_x[slot] = in_x;
      pixels_of_dy[slot] = in_dy;
    }
  };

  // ---- Fetching a step's gradients: a[k][m] ----
  // Of filters beyond the last one, the last one is read.
  Address maps[FILTER_PASSES];
  float dy_stage[OCTETS][FILTER_PASSES];
#pragma unroll
  for (int pass = 0; pass < FILTER_PASSES; ++pass) {
    const int m = threadIdx.x / 8 + pass * APART;
    const long long row = block.first_k + (m < block.rows ? m : block.rows - 1);
    maps[pass] = address_of(dy + row * g.by_pixels.divisor);
  }
  const auto fetch_dy = [&](unsigned step) {
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet) {
      const long long offset = pixels_of_dy[step * TILE_K % (2 * CHUNK) + octet * 8 + threadIdx.x % 8];
#pragma unroll
      for (int pass = 0; pass < FILTER_PASSES; ++pass)
        dy_stage[octet][pass] = offset >= 0 ? load_at(maps[pass] + offset) : 0.0f;
    }
  };
  const auto store_dy = [&](float* a) {
    a += threadIdx.x % 8 * STRIDE_A + threadIdx.x / 8;
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < FILTER_PASSES; ++pass)
        a[octet * 8 * STRIDE_A + pass * APART] = dy_stage[octet][pass];
  };

  // ---- Fetching a step's elements of x: b[k][n], what the tap of column n meets at pixel k ----
  const Address first_map = address_of(x + static_cast<long long>(block.group) * block.channels * block.area);
  float x_stage[OCTETS][TAP_PASSES];
  const auto fetch_x = [&](unsigned step) {
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet) {
      const Place pixel = pixels_of_x[step * TILE_K % (2 * CHUNK) + octet * 8 + threadIdx.x % 8];
      const Address from = first_map + pixel.offset;
#pragma unroll
      for (int pass = 0; pass < TAP_PASSES; ++pass) {
        const Place tap = taps[threadIdx.x / 8 + pass * APART];
        const bool inside = pixel.row + tap.row < g.H && pixel.column + tap.column < g.W;
        x_stage[octet][pass] = inside ? load_at(from + tap.offset) : 0.0f;
      }
    }
  };
  const auto store_x = [&](float* b) {
    b += threadIdx.x % 8 * STRIDE_B + threadIdx.x / 8;
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < TAP_PASSES; ++pass)
        b[octet * 8 * STRIDE_B + pass * APART] = x_stage[octet][pass];
  };

  // ---- The gradient of the bias ----
  // Of the blocks that read the same filters of dy, the one with the first taps adds them up, as it stores them.
  const bool adds = WITH_DB && block.first_n == 0;
  float db_sum[FILTER_PASSES] = {};

  // ---- The main loop ----
  // Registers -> shared memory, barrier, global memory -> registers for the next step, multiply. One step
  // beyond the end is fetched, as zeros, so that the loop has no branch.
  float sum[THREAD_M][THREAD_N] = {};
  make_pixels(0);
  __syncthreads();
  fetch_dy(0);
  fetch_x(0);
  unsigned buffer = 0;
  const auto take_steps = [&](unsigned step, unsigned end, auto add_dy) {
#pragma unroll 1
    for (; step < end; ++step) {
      store_dy(shared.a[buffer]);
      store_x(shared.b[buffer]);
      add_dy();
      __syncthreads();
      fetch_x(step + 1);
      fetch_dy(step + 1);
      multiply_step(shared.a[buffer], shared.b[buffer], sum);
      buffer ^= 1;
    }
  };
#pragma unroll 1
  for (unsigned step = 0, chunk = 1; step < block.range.steps; ++chunk) {
    // The half of the table that this overwrites was last read before the last step's barrier. What it
    // puts there is first read after the barrier of this chunk's last step.
    make_pixels(chunk);
    const unsigned end = block.range.steps < chunk * CHUNK_STEPS ? block.range.steps : chunk * CHUNK_STEPS;
    // Two loops: in one, the blocks that do not add would pass over the additions at their full price.
    if (adds) {
      take_steps(step, end, [&] {
#pragma unroll
        for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
          for (int pass = 0; pass < FILTER_PASSES; ++pass) db_sum[pass] += dy_stage[octet][pass];
      });
    } else {
      take_steps(step, end, [] {});
    }
    step = end;
  }

  // ---- Writing ----
  const auto place = [&](int column, long long (&offset)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) offset[e] = column + e < block.columns ? block.first_n + column + e : -1;
  };
  const long long size = sums_of<WITH_DB>(g);
  float* const out = slice_or_output(dw, workspace, size);
  write_sums(out + block.first_k * block.taps, block.taps, block.rows, place, NoEpilogue(), sum);
  if (!adds) return;
  float* const out_db = slice_or_output(db, workspace + (size - g.K), size);
#pragma unroll
  for (int pass = 0; pass < FILTER_PASSES; ++pass) {
    const float whole = warp_sum<8>(db_sum[pass]);
    const int m = threadIdx.x / 8 + pass * APART;
    if (threadIdx.x % 8 == 0 && m < block.rows) out_db[block.first_k + m] = whole;
  }
}
