// lrn_dgrad_map_sliding
//   dx[i] = dy[i] * d[i]^-0.75 - 1.5*alpha/size^2 * x[i] * sum of t[j] over the mirrored window of i
//   t[j] = dy[j] * x[j] * d[j]^-1.75,  d[j] = k + alpha/size^2 * sum of x^2 over the window of j: size x size
//   pixels of its map (region "within_channel"); in NHWC
//
// Tiling   as lrn_fprop_map_sliding: a block walks down SEGMENT rows, size-1 of them twice for a further segment.
//          For each row it adds up the squares, first the rows of a window in registers, then the columns by way of
//          shared memory; makes t; adds up t, first the columns, then the last `size` rows of these sums, which wait
//          in registers. dy * d^-0.75 waits in shared memory. Two barriers to a row. No t is made twice, and nothing is kept in
//          memory: t in a workspace would be 26 bytes for each element in 16 bits.
// Traffic  dy and x once, dx once: 6 bytes for each element in 16 bits, 12 in fp32; besides them what segments and
//          strips share.
// Bound    issue and shared memory in 16 bits: for size 5 some 52 instructions for each element (counted in the code
//          for sm_90a, of the path of whole packs), 9 wavefronts to a lane's 8 elements, where 38 and 10 fit into its
//          time. Predicted: 50 % of the copy rate in 16 bits, 60 % in fp32, whose registers leave room for 8 warps.
//
// /// kernel
// op     = "lrn_dgrad"
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
// strips   = "1 if W <= COLUMNS else ceil_div(W, COLUMNS - 2*(size-1))"
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
constexpr int RESIDENT = sizeof(storage_t) == 2 ? 512 : 256;

template <int SIZE, class Geometry>
__device__ __forceinline__ void differentiate(const Geometry& g, Exchange (&shared)[2], Exchange (&firsts)[3],
                                              const storage_t* __restrict__ dy,
                                              const storage_t* __restrict__ x, storage_t* __restrict__ dx) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  const Strip strip = strip_of_thread<SIZE - 1>(g);
  const bool vector_dy = vectored(g.C, dy), vector_x = vectored(g.C, x), vector_dx = vectored(g.C, dx);
  const float scale = g.alpha / g.taps, factor = 1.5f * scale;
  // Rings. In slot u: x of the newest row; the sums of t over the columns, of the row AHEAD above it.
  Run rows[SIZE];
  float terms[SIZE][CHANNELS];
#pragma unroll
  for (int j = 0; j < SIZE; ++j) rows[j] = {};
  put_zeros(shared[0]);
  put_zeros(shared[1]);

  const int end = strip.last + BEHIND + AHEAD;
  for (int start = strip.first - AHEAD - BEHIND; start < end; start += SIZE) {
#pragma unroll
    for (int u = 0; u < SIZE; ++u) {
      // The newest row completes the windows of x around `row`; its t completes those of t around `made`.
      const int newest = start + u, row = newest - AHEAD, made = row - BEHIND;
      if (newest < end) rows[u] = load_row(g, strip, x, newest, vector_x);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) terms[u][c] = 0.0f;
      if (row < strip.first - AHEAD || newest >= end) continue;  // the same for all threads of the block
      if (row >= 0 && row < g.H) {
        Run gradients = load_row(g, strip, dy, row, vector_dy);
        float sums[CHANNELS], values[CHANNELS];
        add_rows(rows, u + 1, sums);
        put(shared[0], sums);
        __syncthreads();
        add_columns<BEHIND, AHEAD>(g, shared[0], strip, sums, sums);
        Run& run = rows[(u - AHEAD + SIZE) % SIZE];
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
          const Powers power = powers_of<true>(fmaf(scale, sums[c], g.k), 0.75f);
          // Beside the map this is 0, or NaN where x is NaN so near that every dx which adds it is NaN anyway.
          sums[c] = gradients.value(c) * run.value(c) * power.over_d;
          values[c] = gradients.value(c) * power.of_d;
        }
        put(firsts[row % (BEHIND + 1)], values);
        put(shared[1], sums);
        __syncthreads();
        add_columns<AHEAD, BEHIND>(g, shared[1], strip, sums, terms[u]);  // the mirrored window
      }
      if (made < strip.first) continue;
      Run& run = rows[(u + 1) % SIZE];
      float values[CHANNELS];
      take(firsts[made % (BEHIND + 1)], values);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        float total = terms[(u + 1) % SIZE][c];
#pragma unroll
        for (int j = 2; j <= SIZE; ++j) total += terms[(u + j) % SIZE][c];
        values[c] = fmaf(-factor * run.value(c), total, values[c]);
      }
      if (strip.makes)
        store_run(dx + strip.base + static_cast<long long>(made) * g.W * g.C, strip.count, vector_dx, values);
    }
  }
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_dgrad_map_sliding(GEOMETRY(LRN), const storage_t* __restrict__ dy,
                               const storage_t* __restrict__ x, storage_t* __restrict__ dx) {
  __shared__ Exchange shared[2], firsts[3];
  if (g.size == 3) differentiate<3>(g, shared, firsts, dy, x, dx);
  if (g.size == 5) differentiate<5>(g, shared, firsts, dy, x, dx);
}
