// conv2d_wgrad_implicit_gemm
//   dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]: a GEMM of gemm_m = K/groups filters, gemm_n =
//   C/groups*R*S taps, gemm_k = N*P*Q pixels, split among blocks.
//
// Tiling   a block makes TILE_M filters x TILE_N taps over a range of pixels, and a thread THREAD_M x THREAD_N
//          of them. Of three tiles heuristics.py chooses one for each problem. There are few tiles (3 in conv1,
//          54 in conv3) and up to 400,000 pixels: grid z cuts the pixels into slices until FILL blocks are
//          busy, none shorter than DEPTH, and a second launch adds up the slices in their order. So there are
//          no atomics, the bits are the same every time, and the rounding error grows with the slice and not
//          with the batch.
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
//          To fetch a step's 8 pixels x 128 filters of dy, and its 8 pixels x 128 taps of x, 8 lanes walk
//          along the pixels and the block takes 16 filters or taps at a time.
// Traffic  dy is read ceil(C/groups*R*S / TILE_N) times, x ceil(K/groups / TILE_M) * R*S /
//          (stride_h*stride_w) times, both in runs of 8 pixels (a sector), the repeats from L1 and L2; dw is
//          written and read once per slice, in L2.
// Bound    FP32 FMA. On sm_90a 1024 of the main loop's 1212 instructions are FFMA (.845); 215 registers, no
//          spills. From a load of global memory to its use are 1045 instructions or more, so that a step hides
//          its latency. The other tiles have thinner loops (.80), and fewer useless rows: 96 are all used by
//          conv1, and three times 64 by conv4, where 128 use three quarters. docs/kernels.md has what is
//          predicted for each layer, 64 to 72 % of the FP32 peak at a batch of 128, and the model, which does
//          not count the slices' memory.
//
// /// kernel
// op      = "conv2d_wgrad"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 256 }
// tiles   = [
//     { TILE_M = 96, THREAD_M = 12, THREAD_N = 8 },
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
// SIZE    = "K*(C//groups)*R*S"
// TILES_M = "ceil_div(K//groups, TILE_M)"
// TILES_N = "ceil_div(C//groups*R*S, TILE_N)"
// BLOCKS  = "TILES_N * TILES_M * groups"
// SLICES  = "max(1, min((N*P*Q)//DEPTH, FILL//BLOCKS))"
// STEPS   = "ceil_div(N*P*Q, TILE_K*SLICES)"
// [dividers]
// by_tiles_m = "TILES_M"
// by_tiles_n = "TILES_N"
// by_groups  = "groups"
// by_slices  = "SLICES"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_R       = "R"
// by_S       = "S"
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "gemm_tile.cuh"

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

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_wgrad_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ x,
                                    const float* __restrict__ dy, float* __restrict__ dw,
                                    float* __restrict__ workspace) {
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

  // ---- The main loop ----
  // Registers -> shared memory, barrier, global memory -> registers for the next step, multiply. One step
  // beyond the end is fetched, as zeros, so that the loop has no branch.
  float sum[THREAD_M][THREAD_N] = {};
  make_pixels(0);
  __syncthreads();
  fetch_dy(0);
  fetch_x(0);
  unsigned buffer = 0;
#pragma unroll 1
  for (unsigned step = 0, chunk = 1; step < block.range.steps; ++chunk) {
    // The half of the table that this overwrites was last read before the last step's barrier. What it
    // puts there is first read after the barrier of this chunk's last step.
    make_pixels(chunk);
    const unsigned end = block.range.steps < chunk * CHUNK_STEPS ? block.range.steps : chunk * CHUNK_STEPS;
#pragma unroll 1
    for (; step < end; ++step) {
      store_dy(shared.a[buffer]);
      store_x(shared.b[buffer]);
      __syncthreads();
      fetch_x(step + 1);
      fetch_dy(step + 1);
      multiply_step(shared.a[buffer], shared.b[buffer], sum);
      buffer ^= 1;
    }
  }

  // ---- Writing ----
  const auto place = [&](int column, long long (&offset)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) offset[e] = column + e < block.columns ? block.first_n + column + e : -1;
  };
  float* const out = slice_or_output(dw, workspace, static_cast<long long>(g.K) * block.taps);
  write_sums(out + block.first_k * block.taps, block.taps, block.rows, place, NoEpilogue(), sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ x,
                                           const float* __restrict__ dy, float* __restrict__ dw,
                                           float* __restrict__ workspace) {
  const long long size = static_cast<long long>(g.K) * (g.C / g.by_groups) * g.R * g.S;
  add_slices(workspace, dw, size, g.by_slices.divisor, [](long long, float v) { return v; });
}
