// conv2d_dgrad_implicit_gemm
//   dx[n,c,h,w] = sum_{k,r,s} dy[n,k,p,q] * w[k,c,r,s] over the taps with p*stride_h + r*dilation_h = h + pad_top and
//   q*stride_w + s*dilation_w = w + pad_left: a GEMM of gemm_m = C/groups channels, gemm_n = pixels of dx, gemm_k = the
//   taps (k, r, s) that can hit them.
//
// Status   compiled, and emulated; no GPU has run it yet. What is called predicted is a model.
// Tiling   a block makes BLOCK_M channels x BLOCK_N pixels of one group and one residue class: pixels whose padded rows
//          and columns are equal modulo the strides are hit by the same taps, r * dilation_h = row (mod stride_h), and
//          by no others. So each class is a dense convolution with stride 1 over dy, and no multiply-add meets a tap
//          that cannot hit; a class that none can hit is written as zeros. A stride of 1 has one class. BLOCK_M is 64,
//          since AlexNet's conv2 has 48 channels to a group. Few tiles are split over the taps as in fprop.
// Traffic  dy is read ceil(C/groups / BLOCK_M) * R*S / (stride_h*stride_w) times, mostly from L1 and L2, w
//          ceil(N*H*W / BLOCK_N) times from L2, dx is written once; with a stride above 1 in pieces of 4 bytes, that the
//          classes' blocks, neighbours in time, complete in L2.
// Bound    FP32 FMA. On sm_90a 1024 of the main loop's 1263 instructions are FFMA (.811: a thread of this tile gathers
//          twice as many elements as one of fprop's); 255 registers, no spills. Predicted at batch 128, in % of the
//          FP32 peak, .77 of it in a full tile: conv2 53 (48 of 64 rows are used), conv3 49 (1.3 waves of 264 blocks),
//          conv4 and conv5 74.
//
// /// kernel
// op      = "conv2d_dgrad"
// dtypes  = ["float32"]
// tile    = { BLOCK_M = 64, BLOCK_N = 256, BLOCK_K = 8, THREAD_M = 8, THREAD_N = 16, FILL = 264, DEPTH = 256 }
// tune    = { BLOCK_M = [64, 96, 128], BLOCK_N = [128, 256], BLOCK_K = [8, 16], THREAD_M = [8, 12], THREAD_N = [8, 16], FILL = [132, 264] }
// rank    = 20
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [let]
// SIZE    = "N*C*H*W"
// BLOCKS  = "ceil_div(N*ceil_div(H, stride_h)*ceil_div(W, stride_w), BLOCK_N) * ceil_div(C//groups, BLOCK_M) * groups * min(stride_h, H) * min(stride_w, W)"
// SLICES  = "max(1, min((K//groups*R*S)//DEPTH, FILL//BLOCKS))"
// [[launch]]
// entry   = "conv2d_dgrad_implicit_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["BLOCK_M*BLOCK_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "conv2d_dgrad_implicit_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056)//SLICES + 1 if SLICES > 1 else 0", "1", "SLICES"]
// block   = ["256"]
// ///

#include "gemm_tile.cuh"

using Tile = GemmTile<BLOCK_M, BLOCK_N, BLOCK_K, THREAD_M, THREAD_N>;

// One axis of a residue class: the pixels first, first + stride, ... of dx, and the taps that hit them, which are
// tap, tap + apart, ... Pixel number i of them meets tap number t at row origin + i - shift(t) of dy.
struct Axis {
  int first, count, stride;  // pixels
  int tap, apart, taps;      // taps
  int origin;                // (first + pad) / stride
  int dilation, residue;

  __device__ __forceinline__ void set(int index, int size, int step, int pad, int window, int spread) {
    first = index;
    count = (size - index + step - 1) / step;
    stride = step;
    dilation = spread;
    origin = (index + pad) / step;
    residue = (index + pad) % step;
    // The taps with r * dilation = residue modulo stride: the first two say all.
    tap = 0, apart = 1, taps = 0;
    for (int r = 0; r < window; ++r) {
      if (static_cast<long long>(r) * spread % step != residue) continue;
      if (taps == 0) tap = r;
      if (taps == 1) apart = r - tap;
      ++taps;
    }
  }
  __device__ __forceinline__ int nth(int t) const { return tap + t * apart; }
  __device__ __forceinline__ int shift(int t) const { return (nth(t) * dilation - residue) / stride; }
};

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  GemmRange range;
  int channels, filters, window;  // of one group; R * S
  long long pixels, area;         // of one image of dy, of dx
  long long first_n, first_c;
  Axis v, u;        // vertical, horizontal
  int group, rows;  // channels from first_c on that there are

  // Pixels of the residue class in one image of dx.
  __device__ __forceinline__ long long hits() const { return static_cast<long long>(v.count) * u.count; }
};

extern "C" __launch_bounds__(Tile::THREADS, Tile::MIN_BLOCKS) __global__
    void conv2d_dgrad_implicit_gemm(GEOMETRY(Conv2d), const float* __restrict__ dy,
                                    const float* __restrict__ w, float* __restrict__ dx,
                                    float* __restrict__ workspace) {
  __shared__ GemmShared<Tile> shared;
  __shared__ GemmTable<Tile> table;
  __shared__ Block block;

  if (threadIdx.x == 0) {
    block.channels = g.C / g.groups;
    block.filters = g.K / g.groups;
    block.window = g.R * g.S;
    block.pixels = static_cast<long long>(g.P) * g.Q;
    block.area = static_cast<long long>(g.H) * g.W;
    // Channel tiles are neighbours, then groups, then residue classes, then pixels.
    const unsigned tiles_m = (block.channels + BLOCK_M - 1) / BLOCK_M,
                   first_m = blockIdx.x % tiles_m * BLOCK_M;
    const unsigned classes_h = g.stride_h < g.H ? g.stride_h : g.H;
    const unsigned classes_w = g.stride_w < g.W ? g.stride_w : g.W;
    unsigned rest = blockIdx.x / tiles_m;
    block.group = rest % g.groups;
    rest /= g.groups;
    block.u.set(rest % classes_w, g.W, g.stride_w, g.pad_left, g.S, g.dilation_w);
    rest /= classes_w;
    block.v.set(rest % classes_h, g.H, g.stride_h, g.pad_top, g.R, g.dilation_h);
    block.first_n = static_cast<long long>(rest / classes_h) * BLOCK_N;
    block.first_c = static_cast<long long>(block.group) * block.channels + first_m;
    block.rows = block.channels - static_cast<int>(first_m);
    block.range = gemm_range<Tile>(static_cast<long long>(block.filters) * block.v.taps * block.u.taps);
  }
  __syncthreads();
  if (block.first_n >= block.hits() * g.N) return;  // a smaller class than the first: the whole block leaves

  const auto entry = [&](long long i, GemmTap& tap, long long& linear) {
    if (i >= block.range.count) {
      tap = {0, 0, GEMM_OUTSIDE};
      linear = -1;
      return;
    }
    const unsigned t = static_cast<unsigned>(block.range.first + i), of_filter = t / block.u.taps;
    const int ts = t % block.u.taps, tr = of_filter % block.v.taps;
    const int up = block.v.shift(tr), left = block.u.shift(ts);
    const long long k = of_filter / block.v.taps;
    linear = 4 * (k * block.channels * block.window + block.v.nth(tr) * g.S + block.u.nth(ts));
    tap.row = 0u - up;
    tap.column = 0u - left;
    tap.offset = 4 * (k * block.pixels - static_cast<long long>(up) * g.Q - left);
  };
  const GemmFill<Tile, decltype(entry)> fill{table, entry};

  // Filter k of the group begins k * channels * window behind its first one.
  const float* const first_filter =
      w + (block.first_c + static_cast<long long>(block.group) * (block.filters - 1) * block.channels) *
              block.window;
  GemmTableRows<Tile> filter(table.linear, first_filter, block.window, block.rows);
  GemmGatherPixels<Tile> image;
  image.taps = table.gather;
  image.height = g.P;
  image.width = g.Q;
#pragma unroll
  for (int i = 0; i < image.COLUMNS; ++i) {
    // A pixel beyond the last one reads what the last one reads, and is not written.
    const long long all = block.hits() * g.N, j = block.first_n + image.pixel(i);
    long long pixel, column;
    const long long n = gemm_divide(j < all ? j : all - 1, block.hits(), pixel);
    const int row = block.v.origin + static_cast<int>(gemm_divide(pixel, block.u.count, column));
    const int q = block.u.origin + static_cast<int>(column);
    image.row[i] = row;
    image.column[i] = q;
    image.at[i] = gemm_address(dy + ((n * g.K + block.group * block.filters) * block.pixels +
                                     static_cast<long long>(row) * g.Q + q));
  }

  float sum[THREAD_M][THREAD_N];
  gemm_sum<Tile>(shared, filter, image, fill, block.range.steps, sum);

  const auto place = [&](int column) -> long long {
    long long pixel, j;
    const long long n = gemm_divide(block.first_n + column, block.hits(), pixel);
    const long long i = gemm_divide(pixel, block.u.count, j);
    if (n >= g.N) return -1;
    return n * g.C * block.area + (block.v.first + i * g.stride_h) * g.W + block.u.first + j * g.stride_w;
  };
  float* const out = gemm_target(dx, workspace, block.area * g.C * g.N);
  gemm_write<Tile>(out + block.first_c * block.area, block.area, block.rows, place, GemmNoEpilogue(), sum);
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_dgrad_implicit_gemm_reduce(GEOMETRY(Conv2d), const float* __restrict__ dy,
                                           const float* __restrict__ w, float* __restrict__ dx,
                                           float* __restrict__ workspace) {
  const long long size = static_cast<long long>(g.N) * g.C * g.H * g.W;
  gemm_reduce(workspace, dx, size, [](long long, float v) { return v; });
}
