// conv2d_dgrad.cuh: the gradient of a convolution's input as an implicit GEMM. conv2d_dgrad_implicit_gemm.cu
// has the argument, conv2d_dgrad_relu_implicit_gemm.cu takes the gradient of the ReLU below as well.
//
// A Finish makes the output of a sum: finish(i, sum) that of element i of dx; finish.quad(row, offset, v) those
// of four elements, at row + offset[e], in place. An offset of -1 is of one that does not exist.
#pragma once

#include "gemm_tile.cuh"
#include "residue_class.cuh"

// A tap (k, r, s), relative to the element of dy that the first pixel's first tap would meet. `row` and
// `column` are unsigned, so that what is above the map or left of it becomes a huge number, and one
// comparison covers both ends.
struct alignas(16) Tap {
  long long offset;  // in bytes
  unsigned row, column;
};
// A column that is in no map, whatever is added to it.
constexpr unsigned OUTSIDE = 0x80000000u;

// Taps of the table are made a chunk at a time; the table is a ring of two chunks.
constexpr unsigned CHUNK = 256, CHUNK_STEPS = CHUNK / TILE_K;

// Fetching filters: 8 lanes along the taps, THREADS / 8 channels at a time.
constexpr int OCTETS = TILE_K / 8, CHANNELS_APART = THREADS / 8, CHANNEL_PASSES = TILE_M / CHANNELS_APART;
static_assert(TILE_M % CHANNELS_APART == 0, "TILE_M: a multiple of THREADS / 8");

// Fetching pixels: a thread keeps its pixels and takes every TAPS_APART-th tap.
constexpr int PIXELS = TILE_N > THREADS ? TILE_N / THREADS : 1;
constexpr int TAPS_APART = TILE_N > THREADS ? 1 : THREADS / TILE_N, TAP_PASSES = TILE_K / TAPS_APART;
static_assert(TILE_N % THREADS == 0 || THREADS % TILE_N == 0, "TILE_N and THREADS: one divides the other");
static_assert(TILE_K % TAPS_APART == 0, "THREADS: at most TILE_K * TILE_N");

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  KRange range;
  int channels, filters, window;  // of one group; R * S
  long long pixels, area;         // of one image of dy, of dx
  long long first_n, first_c;
  Axis v, u;                       // vertical, horizontal
  Divider by_v_count, by_u_count;  // pixels of the class: rows, columns
  int group, rows;                 // channels from first_c on that there are

  // Pixels of the residue class in all images.
  __device__ __forceinline__ long long hits(int images) const {
    return static_cast<long long>(v.count) * u.count * images;
  }
};

static_assert(sizeof(GemmShared) + 2 * CHUNK * (sizeof(Tap) + 8) + sizeof(Block) <= 48 * 1024,
              "TILE_K: static shared memory ends at 48 KB");

// What the block does whose tile the header's grid gives it.
template <class Geometry, class Finish>
__device__ __forceinline__ void conv2d_dgrad(const Geometry& g, const float* __restrict__ dy,
                                             const float* __restrict__ w, float* __restrict__ dx,
                                             float* __restrict__ workspace, const Finish& finish) {
  __shared__ GemmShared shared;
  __shared__ Tap taps_of_dy[2 * CHUNK];
  __shared__ long long taps_of_w[2 * CHUNK];  // bytes from tap (0, 0, 0) of a channel; -1 beyond the end
  __shared__ Block block;

  // ---- The tile of this block ----
  // Channel tiles are neighbours, then groups, then residue classes, then pixels.
  if (threadIdx.x == 0) {
    block.channels = g.C / g.by_groups;
    block.filters = g.K / g.by_groups;
    block.window = g.R * g.S;
    block.pixels = static_cast<long long>(g.P) * g.Q;
    block.area = static_cast<long long>(g.H) * g.W;
    const unsigned first_m = blockIdx.x % g.by_tiles_m * TILE_M;
    unsigned rest = blockIdx.x / g.by_tiles_m;
    block.group = rest % g.by_groups;
    rest = rest / g.by_groups;
    const int class_w = rest % g.by_classes_w;
    rest = rest / g.by_classes_w;
    const int class_h = rest % g.by_classes_h;
    block.first_n = static_cast<long long>(rest / g.by_classes_h) * TILE_N;
    // Class h has rows h, h + stride_h, ... below H: the most, or one less.
    const int most_rows = static_cast<int>(g.by_most_rows.divisor);
    const int most_columns = static_cast<int>(g.by_most_columns.divisor);
    const bool fewer_rows = class_h + (most_rows - 1LL) * g.stride_h >= g.H;
    const bool fewer_columns = class_w + (most_columns - 1LL) * g.stride_w >= g.W;
    block.by_v_count = fewer_rows ? g.by_fewer_rows : g.by_most_rows;
    block.by_u_count = fewer_columns ? g.by_fewer_columns : g.by_most_columns;
    block.v.set(class_h, g.pad_top, g.by_stride_h, most_rows - fewer_rows, g.R, g.dilation_h);
    block.u.set(class_w, g.pad_left, g.by_stride_w, most_columns - fewer_columns, g.S, g.dilation_w);
    block.first_c = static_cast<long long>(block.group) * block.channels + first_m;
    block.rows = block.channels - static_cast<int>(first_m);
    block.range = k_range(static_cast<long long>(block.filters) * block.v.taps * block.u.taps, g.by_slices);
  }
  __syncthreads();
  if (block.first_n >= block.hits(g.N)) return;  // a smaller class than the first: the whole block leaves

  // ---- The table: where taps are, in dy and in w ----
  // Beyond the last one they are outside. The number of taps differs between classes, so that the host has no
  // dividers for it.
  const auto make_taps = [&](unsigned chunk) {
    for (unsigned i = threadIdx.x; i < CHUNK; i += THREADS) {
      const unsigned number = chunk * CHUNK + i;
      Tap in_dy = {0, 0, OUTSIDE};
      long long in_w = -1;
      if (number < block.range.count) {
        const unsigned t = static_cast<unsigned>(block.range.first) + number, of_filter = t / block.u.taps;
        const int ts = t % block.u.taps, tr = of_filter % block.v.taps;
        const int up = block.v.shift(tr), left = block.u.shift(ts);
        const long long k = of_filter / block.v.taps;
        in_w = 4 * (k * block.channels * block.window + block.v.nth(tr) * g.S + block.u.nth(ts));
        in_dy.row = 0u - up;
        in_dy.column = 0u - left;
        in_dy.offset = 4 * (k * block.pixels - static_cast<long long>(up) * g.Q - left);
      }
      const unsigned slot = chunk % 2 * CHUNK + i;
      taps_of_dy[slot] = in_dy;
      taps_of_w[slot] = in_w;
    }
  };

  // ---- Fetching a step's weights: a[k][m] ----
  // Of channels beyond the last one, the last one is read.
  Address channels[CHANNEL_PASSES];
  float w_stage[OCTETS][CHANNEL_PASSES];
#pragma unroll
  for (int pass = 0; pass < CHANNEL_PASSES; ++pass) {
    // Filter k of the group begins k * channels * window behind its first one.
    const int m = threadIdx.x / 8 + pass * CHANNELS_APART;
    const long long first =
        block.first_c + static_cast<long long>(block.group) * (block.filters - 1) * block.channels;
    channels[pass] = address_of(w + (first + (m < block.rows ? m : block.rows - 1)) * block.window);
  }
  const auto fetch_w = [&](unsigned step) {
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet) {
      const long long offset = taps_of_w[step * TILE_K % (2 * CHUNK) + octet * 8 + threadIdx.x % 8];
#pragma unroll
      for (int pass = 0; pass < CHANNEL_PASSES; ++pass)
        w_stage[octet][pass] = offset >= 0 ? load_at(channels[pass] + offset) : 0.0f;
    }
  };
  const auto store_w = [&](float* a) {
    a += threadIdx.x % 8 * STRIDE_A + threadIdx.x / 8;
#pragma unroll
    for (int octet = 0; octet < OCTETS; ++octet)
#pragma unroll
      for (int pass = 0; pass < CHANNEL_PASSES; ++pass)
        a[octet * 8 * STRIDE_A + pass * CHANNELS_APART] = w_stage[octet][pass];
  };

  // ---- Fetching a step's elements of dy: b[k][n], what tap k meets at pixel n ----
  // Neighbouring threads have neighbouring pixels. A pixel beyond the last one reads what the last one reads,
  // and is not written.
  Address origins[PIXELS];
  unsigned row[PIXELS], column[PIXELS];
  float dy_stage[TAP_PASSES][PIXELS];
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
    const long long last = block.hits(g.N) - 1, beyond = block.first_n + threadIdx.x % TILE_N + i * THREADS;
    const long long j = beyond < last ? beyond : last, line = j / block.by_u_count,
                    n = line / block.by_v_count;
    const int p = block.v.origin + static_cast<int>(line - n * block.v.count);
    const int q = block.u.origin + static_cast<int>(j - line * block.u.count);
    row[i] = p;
    column[i] = q;
    origins[i] = address_of(dy + (n * g.K + block.group * block.filters) * block.pixels +
                            static_cast<long long>(p) * g.Q + q);
  }
  const auto fetch_dy = [&](unsigned step) {
    const Tap* const taps = taps_of_dy + step * TILE_K % (2 * CHUNK) + threadIdx.x / TILE_N;
#pragma unroll
    for (int pass = 0; pass < TAP_PASSES; ++pass) {
      const Tap tap = taps[pass * TAPS_APART];
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) {
        const bool inside = row[i] + tap.row < g.P && column[i] + tap.column < g.Q;
        dy_stage[pass][i] = inside ? load_at(origins[i] + tap.offset) : 0.0f;
      }
    }
  };
  const auto store_dy = [&](float* b) {
    b += threadIdx.x / TILE_N * STRIDE_B + threadIdx.x % TILE_N;
#pragma unroll
    for (int pass = 0; pass < TAP_PASSES; ++pass)
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) b[pass * TAPS_APART * STRIDE_B + i * THREADS] = dy_stage[pass][i];
  };

  // ---- The main loop ----
  // Registers -> shared memory, barrier, global memory -> registers for the next step, multiply. One step
  // beyond the end is fetched, as zeros, so that the loop has no branch.
  float sum[THREAD_M][THREAD_N] = {};
  make_taps(0);
  __syncthreads();
  fetch_w(0);
  fetch_dy(0);
  unsigned buffer = 0;
#pragma unroll 1
  for (unsigned step = 0, chunk = 1; step < block.range.steps; ++chunk) {
    // The half of the table that this overwrites was last read before the last step's barrier. What it
    // puts there is first read after the barrier of this chunk's last step.
    make_taps(chunk);
    const unsigned end = block.range.steps < chunk * CHUNK_STEPS ? block.range.steps : chunk * CHUNK_STEPS;
#pragma unroll 1
    for (; step < end; ++step) {
      store_w(shared.a[buffer]);
      store_dy(shared.b[buffer]);
      __syncthreads();
      fetch_dy(step + 1);
      fetch_w(step + 1);
      multiply_step(shared.a[buffer], shared.b[buffer], sum);
      buffer ^= 1;
    }
  }

  // ---- Writing: pixels of the class, which lie the strides apart ----
  const auto place = [&](int column_of_tile, long long (&offset)[4]) {
    const long long j = block.first_n + column_of_tile, line = j / block.by_u_count;
    long long n = line / block.by_v_count;
    int i = static_cast<int>(line - n * block.v.count),
        column_of_class = static_cast<int>(j - line * block.u.count);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const long long h = block.v.first + static_cast<long long>(i) * g.stride_h;
      const long long to = h * g.W + block.u.first + static_cast<long long>(column_of_class) * g.stride_w;
      offset[e] = n < g.N ? n * g.C * block.area + to : -1;
      if (++column_of_class == block.u.count) {
        column_of_class = 0;
        if (++i == block.v.count) i = 0, ++n;
      }
    }
  };
  const bool whole = gridDim.z == 1;
  float* const out = slice_or_output(dx, workspace, block.area * g.C * g.N);
  each_quad(block.rows, place, sum, NoFetch(),
            [&](int, int m, int, const long long (&offset)[4], float (&v)[4]) {
              const long long row = (block.first_c + m) * block.area;
              if (whole) finish.quad(row, offset, v);
              store_quad(out + row, offset, v);
            });
}

// The second launch: adds up the slices, if there are several.
template <class Geometry, class Finish>
__device__ __forceinline__ void conv2d_dgrad_reduce(const Geometry& g, float* __restrict__ dx,
                                                    const float* __restrict__ workspace,
                                                    const Finish& finish) {
  const long long size = static_cast<long long>(g.N) * g.C * g.H * g.W;
  add_slices(workspace, dx, size, g.by_slices.divisor, finish);
}
