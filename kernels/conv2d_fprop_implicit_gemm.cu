// conv2d_fprop_implicit_gemm
//   y[n,k,p,q] = b[k] + sum_{c,r,s} x[n,c,h,w] * w[k,c,r,s]  (+ ReLU): a GEMM of gemm_m = K/groups filters,
//   gemm_n = N*P*Q pixels, gemm_k = C/groups*R*S taps, whose right factor is never stored.
//
// Status   compiled, and emulated; no GPU has run it yet. What is called predicted is a model.
// Tiling   a block makes BLOCK_M filters x BLOCK_N pixels of one group, a thread 8 x 16 of them (gemm_tile.cuh). Pixels
//          run on across images, so that a 13 x 13 map fills its tiles. Blocks with the same pixels are neighbours and
//          share them in L2. Where there are fewer tiles than an H200 has places for blocks (a batch of 1), grid z
//          splits the taps, and a second launch adds up the slices in their order.
// Traffic  x is read ceil(K/groups / BLOCK_M) * R*S / (stride_h*stride_w) times, the taps of one row and of the rows
//          beside it mostly from L1, the rest from L2; w ceil(N*P*Q / BLOCK_N) times from L2; y is written once, 128
//          bits at a time where its rows' alignment permits. DRAM sees little more than the compulsory bytes.
// Bound    FP32 FMA. On sm_90a 1024 of the main loop's 1212 instructions are FFMA (.845; 48 are 128-bit shared loads);
//          245 registers, no spills. Predicted at batch 128, in % of the FP32 peak, .80 of it in a full tile, the rest
//          lost at edges and in the last wave of 264 blocks: conv1 56 (96 of 128 rows are used; BLOCK_M = 96, THREAD_M
//          = 12, THREAD_N = 8 lifts it to 74), conv2 74, conv3 77, conv4 68, conv5 51 (1.3 waves).
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["float32"]
// options = { relu = "int" }
// tile    = { BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 8, THREAD_M = 8, THREAD_N = 16, FILL = 264, DEPTH = 256 }
// tune    = { BLOCK_M = [64, 96, 128], BLOCK_N = [128, 256], BLOCK_K = [8, 16], THREAD_M = [8, 12], THREAD_N = [8, 16], FILL = [132, 264] }
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [let]
// SIZE    = "N*K*P*Q"
// BLOCKS  = "ceil_div(N*P*Q, BLOCK_N) * ceil_div(K//groups, BLOCK_M) * groups"
// SLICES  = "max(1, min((C//groups*R*S)//DEPTH, FILL//BLOCKS))"
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["BLOCK_M*BLOCK_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056)//SLICES + 1 if SLICES > 1 else 0", "1", "SLICES"]
// block   = ["256"]
// ///

#include "gemm_tile.cuh"

using Tile = GemmTile<BLOCK_M, BLOCK_N, BLOCK_K, THREAD_M, THREAD_N>;

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  GemmRange range;
  int channels, filters, taps;  // of one group, one filter
  long long pixels, area;       // of one image of y, of x
  long long first_n, first_k;
  int group, rows;  // filters from first_k on that there are
};

extern "C" __launch_bounds__(Tile::THREADS, Tile::MIN_BLOCKS) __global__
    void conv2d_fprop_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ x,
                                    const float* __restrict__ w, const float* __restrict__ b,
                                    float* __restrict__ y, float* __restrict__ workspace, const int relu) {
  __shared__ GemmShared<Tile> shared;
  __shared__ GemmTable<Tile> table;
  __shared__ Block block;

  if (threadIdx.x == 0) {
    block.channels = g.C / g.groups;
    block.filters = g.K / g.groups;
    block.taps = block.channels * g.R * g.S;
    block.pixels = static_cast<long long>(g.P) * g.Q;
    block.area = static_cast<long long>(g.H) * g.W;
    // Filter tiles are neighbours, then groups, then pixels.
    const unsigned tiles_m = (block.filters + BLOCK_M - 1) / BLOCK_M,
                   first_m = blockIdx.x % tiles_m * BLOCK_M;
    block.range = gemm_range<Tile>(block.taps);
    block.group = blockIdx.x / tiles_m % g.groups;
    block.first_n = static_cast<long long>(blockIdx.x / tiles_m / g.groups) * BLOCK_N;
    block.first_k = static_cast<long long>(block.group) * block.filters + first_m;
    block.rows = block.filters - static_cast<int>(first_m);
  }
  __syncthreads();

  const auto entry = [&](long long k, GemmTap& tap, long long& linear) {
    if (k >= block.range.count) {
      tap = {0, 0, GEMM_OUTSIDE};
      linear = -1;
      return;
    }
    const unsigned t = static_cast<unsigned>(block.range.first + k), of_channel = t / g.S, s = t % g.S;
    const unsigned c = of_channel / g.R, r = of_channel % g.R;
    tap.row = r * g.dilation_h;
    tap.column = s * g.dilation_w;
    tap.offset = 4 * (c * block.area + static_cast<long long>(tap.row) * g.W + tap.column);
    linear = 4ll * t;
  };
  const GemmFill<Tile, decltype(entry)> fill{table, entry};

  GemmTableRows<Tile> filter(table.linear, w + block.first_k * block.taps, block.taps, block.rows);
  GemmGatherPixels<Tile> image;
  image.taps = table.gather;
  image.height = g.H;
  image.width = g.W;
#pragma unroll
  for (int i = 0; i < image.COLUMNS; ++i) {
    // A pixel beyond the last one reads what the last one reads, and is not written.
    const long long j = block.first_n + image.pixel(i), last = block.pixels * g.N - 1;
    long long pixel, q;
    const long long n = gemm_divide(j < last ? j : last, block.pixels, pixel);
    const int top = static_cast<int>(gemm_divide(pixel, g.Q, q)) * g.stride_h - g.pad_top;
    const int left = static_cast<int>(q) * g.stride_w - g.pad_left;
    image.row[i] = top;
    image.column[i] = left;
    image.at[i] = gemm_address(x + ((n * g.C + block.group * block.channels) * block.area +
                                    static_cast<long long>(top) * g.W + left));
  }

  float sum[THREAD_M][THREAD_N];
  gemm_sum<Tile>(shared, filter, image, fill, block.range.steps, sum);

  const auto place = [&](int column) -> long long {
    long long pixel;
    const long long j = block.first_n + column, n = gemm_divide(j, block.pixels, pixel);
    return n < g.N ? n * g.K * block.pixels + pixel : -1;
  };
  const bool whole = gridDim.z == 1;
  const auto epilogue = [&](int m, int, float v) {
    if (!whole) return v;
    if (b) v += b[block.first_k + m];
    return relu ? gemm_relu(v) : v;
  };
  float* const out = gemm_target(y, workspace, block.pixels * g.K * g.N);
  gemm_write<Tile>(out + block.first_k * block.pixels, block.pixels, block.rows, place, epilogue, sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_fprop_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ x,
                                           const float* __restrict__ w, const float* __restrict__ b,
                                           float* __restrict__ y, float* __restrict__ workspace,
                                           const int relu) {
  const long long pixels = static_cast<long long>(g.P) * g.Q;
  gemm_reduce(workspace, y, pixels * g.K * g.N, [&](long long i, float v) {
    if (b) v += b[i / pixels % g.K];
    return relu ? gemm_relu(v) : v;
  });
}
