// conv2d_wgrad_implicit_gemm
//   dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]: a GEMM of gemm_m = K/groups filters, gemm_n = C/groups*R*S
//   taps, gemm_k = N*P*Q pixels, split among blocks.
//
// Status   compiled, and emulated; no GPU has run it yet. What is called predicted is a model.
// Tiling   a block makes BLOCK_M filters x BLOCK_N taps of one group over a range of pixels. There are few tiles (3 in
//          conv1, 54 in conv3) and up to 400,000 pixels: grid z cuts the pixels into slices until FILL blocks are busy,
//          none shorter than DEPTH, and a second launch adds up the slices in their order: no atomics, the same bits
//          every time, and a rounding error that grows with the slice and not with the batch.
// Traffic  dy is read ceil(C/groups*R*S / BLOCK_N) times, x ceil(K/groups / BLOCK_M) * R*S / (stride_h*stride_w) times,
//          both in runs of 8 pixels (a sector), the repeats from L1 and L2; dw is written and read once per slice, in L2.
// Bound    FP32 FMA. On sm_90a 1024 of the main loop's 1214 instructions are FFMA (.843); 224 registers, no spills.
//          Predicted at batch 128, in % of the FP32 peak, .80 of it in a full tile: conv1 57 (96 of 128 rows, 363 of
//          384 columns), conv2 74, conv3 65 (4 slices, 216 of 264 places), conv4 49 (192 of 256 rows), conv5 73.
//
// /// kernel
// op      = "conv2d_wgrad"
// dtypes  = ["float32"]
// tile    = { BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 8, THREAD_M = 8, THREAD_N = 16, FILL = 264, DEPTH = 256 }
// tune    = { BLOCK_M = [64, 96, 128], BLOCK_N = [128, 256], BLOCK_K = [8, 16], THREAD_M = [8, 12], THREAD_N = [8, 16], FILL = [132, 264] }
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [let]
// SIZE    = "K*(C//groups)*R*S"
// BLOCKS  = "ceil_div(C//groups*R*S, BLOCK_N) * ceil_div(K//groups, BLOCK_M) * groups"
// SLICES  = "max(1, min((N*P*Q)//DEPTH, FILL//BLOCKS))"
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["BLOCK_M*BLOCK_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_wgrad_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056)//SLICES + 1 if SLICES > 1 else 0", "1", "SLICES"]
// block   = ["256"]
// ///

#include "gemm_tile.cuh"

using Tile = GemmTile<BLOCK_M, BLOCK_N, BLOCK_K, THREAD_M, THREAD_N>;

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  GemmRange range;
  int channels, filters, taps;  // of one group, one filter
  long long pixels, area;       // of one image of dy, of x
  long long first_k;
  int group, first_n;
  int rows, columns;  // filters from first_k on, and taps from first_n on, that there are
};

extern "C" __launch_bounds__(Tile::THREADS, Tile::MIN_BLOCKS) __global__
    void conv2d_wgrad_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ x,
                                    const float* __restrict__ dy, float* __restrict__ dw,
                                    float* __restrict__ workspace) {
  __shared__ GemmShared<Tile> shared;
  __shared__ GemmTable<Tile> table;
  __shared__ GemmTap columns[BLOCK_N];
  __shared__ Block block;

  if (threadIdx.x == 0) {
    block.channels = g.C / g.groups;
    block.filters = g.K / g.groups;
    block.taps = block.channels * g.R * g.S;
    block.pixels = static_cast<long long>(g.P) * g.Q;
    block.area = static_cast<long long>(g.H) * g.W;
    // Filter tiles are neighbours, then taps, then groups.
    const unsigned tiles_m = (block.filters + BLOCK_M - 1) / BLOCK_M,
                   tiles_n = (block.taps + BLOCK_N - 1) / BLOCK_N;
    const unsigned first_m = blockIdx.x % tiles_m * BLOCK_M;
    block.range = gemm_range<Tile>(block.pixels * g.N);
    block.first_n = blockIdx.x / tiles_m % tiles_n * BLOCK_N;
    block.group = blockIdx.x / tiles_m / tiles_n;
    block.first_k = static_cast<long long>(block.group) * block.filters + first_m;
    block.rows = block.filters - static_cast<int>(first_m);
    block.columns = block.taps - block.first_n;
  }
  __syncthreads();

  // The taps of this tile's columns; one beyond the last reads what the last reads, and is not written.
  for (int i = threadIdx.x; i < BLOCK_N; i += Tile::THREADS) {
    const unsigned t = block.first_n + (i < block.columns ? i : block.columns - 1), of_channel = t / g.S;
    const unsigned c = of_channel / g.R;
    GemmTap tap;
    tap.row = of_channel % g.R * g.dilation_h;
    tap.column = t % g.S * g.dilation_w;
    tap.offset = 4 * (c * block.area + static_cast<long long>(tap.row) * g.W + tap.column);
    columns[i] = tap;
  }

  const auto entry = [&](long long k, GemmTap& tap, long long& linear) {
    if (k >= block.range.count) {
      tap = {0, 0, GEMM_OUTSIDE};
      linear = -1;
      return;
    }
    long long pixel, q;
    const long long n = gemm_divide(block.range.first + k, block.pixels, pixel);
    const int row = static_cast<int>(gemm_divide(pixel, g.Q, q)) * g.stride_h - g.pad_top;
    const int column = static_cast<int>(q) * g.stride_w - g.pad_left;
    tap.row = row;
    tap.column = column;
    tap.offset = 4 * (n * g.C * block.area + static_cast<long long>(row) * g.W + column);
    linear = 4 * (n * g.K * block.pixels + pixel);
  };
  const GemmFill<Tile, decltype(entry)> fill{table, entry};

  GemmTableRows<Tile> gradient(table.linear, dy + block.first_k * block.pixels, block.pixels, block.rows);
  GemmGatherTaps<Tile> image(table.gather, columns,
                             x + static_cast<long long>(block.group) * block.channels * block.area, g.H, g.W);

  float sum[THREAD_M][THREAD_N];
  gemm_sum<Tile>(shared, gradient, image, fill, block.range.steps, sum);

  const auto place = [&](int column) -> long long {
    return column < block.columns ? block.first_n + column : -1;
  };
  float* const out = gemm_target(dw, workspace, static_cast<long long>(g.K) * block.taps);
  gemm_write<Tile>(out + block.first_k * block.taps, block.taps, block.rows, place, GemmNoEpilogue(), sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_wgrad_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ x,
                                           const float* __restrict__ dy, float* __restrict__ dw,
                                           float* __restrict__ workspace) {
  const long long size = static_cast<long long>(g.K) * (g.C / g.groups) * g.R * g.S;
  gemm_reduce(workspace, dw, size, [](long long, float v) { return v; });
}
