// lrn_maxpool2d_fprop_band
//   z = x * d^-beta, as lrn_fprop has it (either region); y and argmax = the maximum of z over each window
//   and where it is, as maxpool2d_fprop has them. z is not stored.
//
// Tiling   a block makes up to ROWS rows of outputs of a plane, and of so many planes as its threads suffice
//          for. It normalises the rows of pixels that these windows see into shared memory, each pixel once,
//          and pools from there. Any region, size and beta, any pooling window, as long as the rows that one
//          of them sees fit into 48 KB.
// Traffic  x is read once from DRAM, and for each tap of the LRN's window from L1 or L2. Rows that two bands
//          see are normalised twice: for 3 x 3 at stride 2, 1 of 16. y and argmax are written once.
// Bound    issue: the divisions of an index, and a load for each tap: some 150 instructions for each pixel,
//          against 33 that fit into its time. Predicted: 20 % of the copy rate for windows of 5 channels. It
//          takes what lrn_maxpool2d_fprop_sliding does not, and is for saving z's memory: where
//          lrn_fprop_sliding fits, that and maxpool2d_fprop_window, one after the other, should be faster.
//
// /// kernel
// op     = "lrn_maxpool2d_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ROWS = 8 }
// tune   = { THREADS = [128, 256], ROWS = [2, 4, 8, 16] }
// grid   = ["ceil_div(N*C, planes) * ceil_div(P, rows)"]
// block  = ["THREADS"]
// shared = "4 * planes * pixels"
// when   = """4 * pixels <= 49152 and ceil_div(N*C, planes) * ceil_div(P, rows) < 2147483648 \
//          and planes * rows * Q < 2147483648"""
// rank   = 10
//
// [let]
// deep   = "49152 // (4 * W)"
// span   = "(R-1) * dilation_h + 1"
// rows   = "ROWS if H <= deep else max(1, min(ROWS, (deep - span) // stride_h + 1))"
// pixels = "min(H, (rows-1) * stride_h + span) * W"
// planes = "max(1, THREADS // pixels)"
// [dividers]
// by_rows     = "rows"
// by_planes   = "planes"
// by_bands    = "ceil_div(P, rows)"
// by_channels = "C // groups"
// by_C        = "C"
// by_W        = "W"
// by_Q        = "Q"
// ///

#include "convkit.cuh"
#include "lrn.cuh"
#include "maxpool2d.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 64. Without a figure the
// compiler uses fewer, and spills.
constexpr int RESIDENT = 1024;

// First tap of a window that begins at `start` to lie at or behind 0.
__device__ __forceinline__ int first_inside(long long start, int dilation) {
  return start >= 0 ? 0 : static_cast<int>(ceil_div(-start, static_cast<long long>(dilation)));
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_maxpool2d_fprop_band(GEOMETRY(LrnMaxPool2d), const storage_t* __restrict__ x,
                                  storage_t* __restrict__ y, void* __restrict__ argmax) {
  DYN_SMEM(float, normal);
  // From the header: rows of outputs of a block, how many rows of pixels they see, and planes of a block.
  const int rows = static_cast<int>(g.by_rows.divisor), planes = static_cast<int>(g.by_planes.divisor);
  const long long span = (rows - 1LL) * g.stride_h + (g.R - 1LL) * g.dilation_h + 1;
  const int band = static_cast<int>(blockIdx.x % g.by_bands);
  const long long plane = static_cast<long long>(blockIdx.x / g.by_bands) * planes;
  const int made =
      static_cast<int>(min(static_cast<long long>(planes), static_cast<long long>(g.N) * g.C - plane));

  // Rows of pixels: those in the image of [start, start + span).
  const long long start = static_cast<long long>(band) * rows * g.stride_h - g.pad_top;
  const int top = static_cast<int>(max(start, 0LL));
  const int pixels = static_cast<int>(max(min(start + span, static_cast<long long>(g.H)) - top, 0LL)) * g.W;
  const unsigned channel = static_cast<unsigned>(plane % g.by_C);
  for (int i = threadIdx.x; i < made * pixels; i += THREADS) {
    const int m = i / pixels, pixel = i - m * pixels, h = top + pixel / g.by_W, w = pixel % g.by_W;
    const long long element = ((plane + m) * g.H + h) * g.W + w;
    const int c = static_cast<int>((channel + m) % g.by_C);
    const float sum = window_sum_at(g, element, c, h, w, g.behind, g.ahead, [&](long long j) {
      const float value = to_float(x[j]);
      return value * value;
    });
    normal[i] = to_float(x[element]) * powers(fmaf(g.alpha / g.taps, sum, g.k), g.beta).of_d;
  }
  __syncthreads();

  const int outputs = min(rows, g.P - band * rows) * g.Q;
  for (int i = threadIdx.x; i < made * outputs; i += THREADS) {
    const int m = i / outputs, place = i - m * outputs, p = band * rows + place / g.by_Q, q = place % g.by_Q;
    const long long h = static_cast<long long>(p) * g.stride_h - g.pad_top;
    const long long w = static_cast<long long>(q) * g.stride_w - g.pad_left;
    const int s_first = first_inside(w, g.dilation_w);
    float best = -__int_as_float(0x7f800000);
    unsigned winner = 0;
    bool seen = false;
    for (int r = first_inside(h, g.dilation_h); r < g.R; ++r) {
      const long long row = h + static_cast<long long>(r) * g.dilation_h;
      if (row >= g.H) break;
      for (int s = s_first; s < g.S; ++s) {
        const long long column = w + static_cast<long long>(s) * g.dilation_w;
        if (column >= g.W) break;
        const float value = normal[m * pixels + static_cast<int>(row - top) * g.W + static_cast<int>(column)];
        // The first one, greater, or the first NaN.
        if (!seen || (!(value <= best) && best == best)) {
          best = value;
          winner = static_cast<unsigned>(r) * g.S + s;
          seen = true;
        }
      }
    }
    const long long output = ((plane + m) * g.P + p) * g.Q + q;
    y[output] = from_float(best);
    store_argmax(g, argmax, output, winner);
  }
}
