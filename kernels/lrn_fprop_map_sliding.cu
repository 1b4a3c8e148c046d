// lrn_fprop_map_sliding
//   y[n,h,w,c] = x[n,h,w,c] * d^-0.75,  d = k + alpha/size^2 * sum of x[n,i,j,c]^2 over the pixels (i, j) of a
//   window of size x size around (h, w), as far as they are in the map (region "within_channel"); in NHWC
//
// Tiling   a block walks down SEGMENT rows of up to COLUMNS columns, with as many runs of 8 channels as make
//          some THREADS threads. A window's rows are added up in registers, its columns by way of shared memory
//          (map_sliding.cuh): 10 additions to a number where the window has 25 pixels. One barrier to a row, since
//          rows take turns in two buffers.
// Traffic  x once, 16 bytes to a lane and access (32 in fp32), and of it again size-1 rows for each further segment,
//          size-1 columns for each further strip; y once: 4 bytes for each element in 16 bits, 8 in fp32.
// Bound    issue in 16 bits: for size 5 some 30 instructions for each element (counted in the code for sm_90a, of the
//          path of whole packs), against 26 that fit into its time; in fp32, with 24, DRAM bandwidth. The next row is
//          under way while one is made. Predicted: 65 % of the copy rate in 16 bits, 80 % in fp32.
//
// /// kernel
// op     = "lrn_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// layout = "NHWC"
// tile   = { THREADS = 256, COLUMNS = 32, SEGMENT = 32, CHANNELS = 8 }
// tune   = { COLUMNS = [16, 32], SEGMENT = [16, 32, 64] }
// grid   = ["N*segments*strips*parts"]
// block  = ["THREADS"]
// when   = "within == 1 and (size == 3 or size == 5) and 4*beta == 3 and k >= 1 and N*segments*strips*parts < 2147483648"
// rank   = 20
// [let]
// runs     = "ceil_div(C, CHANNELS)"
// columns  = "min(W, COLUMNS)"
// strips   = "1 if W <= COLUMNS else ceil_div(W, COLUMNS - (size-1))"
// parts    = "ceil_div(runs, THREADS//columns)"
// each     = "ceil_div(runs, parts)"
// segments = "ceil_div(H, SEGMENT)"
// [dividers]
// by_each     = "each"
// by_parts    = "parts"
// by_columns  = "columns"
// by_strips   = "strips"
// by_segments = "segments"
// ///

#include "map_sliding.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 128.
constexpr int RESIDENT = 512;

template <int SIZE, class Geometry>
__device__ __forceinline__ void normalise(const Geometry& g, Exchange (&shared)[2],
                                          const storage_t* __restrict__ x, storage_t* __restrict__ y) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  const Strip strip = strip_of_thread<SIZE / 2>(g);
  const bool vector_x = vectored(g.C, x), vector_y = vectored(g.C, y);
  const float scale = g.alpha / g.taps;
  Run rows[SIZE];  // a ring: a row is in slot u of the turn that read it
#pragma unroll
  for (int j = 0; j < SIZE; ++j) rows[j] = {};
  Run next = load_row(g, strip, x, strip.first - BEHIND, vector_x);  // under way while a row is made
  put_zeros(shared[0]);
  put_zeros(shared[1]);

  for (int start = strip.first - BEHIND; start < strip.last + AHEAD; start += SIZE) {
#pragma unroll
    for (int u = 0; u < SIZE; ++u) {
      const int newest = start + u, row = newest - AHEAD;
      rows[u] = next;
      if (newest + 1 < strip.last + AHEAD) next = load_row(g, strip, x, newest + 1, vector_x);
      if (row < strip.first || row >= strip.last) continue;  // the same for all threads of the block
      float sums[CHANNELS];
      add_rows(rows, u + 1, sums);
      put(shared[row % 2], sums);
      __syncthreads();
      add_columns<BEHIND, AHEAD>(g, shared[row % 2], strip, sums, sums);
      Run& run = rows[(u - AHEAD + SIZE) % SIZE];
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c)
        sums[c] = run.value(c) * powers_of<true>(fmaf(scale, sums[c], g.k), 0.75f).of_d;
      if (strip.makes)
        store_run(y + strip.base + static_cast<long long>(row) * g.W * g.C, strip.count, vector_y, sums);
    }
  }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_fprop_map_sliding(GEOMETRY(LRN), const storage_t* __restrict__ x, storage_t* __restrict__ y) {
  __shared__ Exchange shared[2];
  if (g.size == 3) normalise<3>(g, shared, x, y);
  if (g.size == 5) normalise<5>(g, shared, x, y);
}
