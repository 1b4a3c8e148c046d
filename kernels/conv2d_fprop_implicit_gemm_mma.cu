// conv2d_fprop_implicit_gemm_mma
//   y[n,p,q,k] = b[k] + sum_{r,s,c} x[n,h,w,c] * w[k,r,s,c]  (+ ReLU) on tensor cores, in NHWC: a GEMM of
//   gemm_m = N*P*Q pixels, gemm_n = K/groups filters, gemm_k = R*S*C/groups, whose left factor is never
//   stored. 16-bit elements, fp32 sums, rounded once.
//
// Tiling   a block makes TILE_M pixels x TILE_N filters of one group, a warp WARP_M x WARP_N of them, in
//          steps of TILE_K. gemm_mma.cuh has the ring of copies, the swizzle and the lanes' map. Of two tiles
//          heuristics.py chooses one for each problem: 96 columns for groups of 96 or 192 filters. Blocks
//          with the same pixels are neighbours and share them in L2.
// Pieces   channels lie together in x and in w, so that both factors come in pieces of 16 bytes, eight
//          channels of one tap (r, s), and are what ldmatrix takes, without transposition. Each thread keeps
//          its own tap: a step may end one tap and begin the next. So the 48 channels of conv2 fill their
//          steps (99 %; in whole steps to a tap 75 %). Where a pixel's window begins stands in a table in
//          shared memory. Taps outside the image and channels beyond the last one arrive as zeros.
// Slices   where blocks do not fill the GPU (a batch of 1), grid z cuts gemm_k, none into less than DEPTH
//          steps; a second launch adds up the slices in their order, then the bias and ReLU.
// Traffic  x is read ceil(K/groups / TILE_N) * R*S / (stride_h*stride_w) times, mostly from L2, w ceil(N*P*Q
//          / TILE_M) times from L2. y is written once, by way of the ring, 16 bytes to a lane.
// Bound    tensor cores. In the machine code for sm_90a a step is 64 HMMA, 16 LDSM and 8 LDGSTS to a warp;
//          207 registers, no spills, so that two blocks of 4 warps fit on an SM that has 128 KB for their
//          rings. docs/kernels.md has what is predicted for each layer, and the model.
// Lacking  C/groups that is no multiple of 8, and arrays that are not aligned to 16 bytes, are fetched
//          element by element, which is slow; conv2d_fprop_tap_rows_mma takes C < 8.
//
// /// kernel
// op      = "conv2d_fprop"
// dtypes  = ["bfloat16", "float16"]
// layout  = "NHWC, KRSC"
// options = { relu = "int" }
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 32, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2 }
// tiles   = [
//     { TILE_M = 192, TILE_N = 96, WARP_M = 96, WARP_N = 48 },
// ]
// rank    = 20
// truncates = true
// workspace = "4*N*P*Q*PITCH*SLICES if SLICES > 1 else 0"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [32, 64]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// DEPTH    = "8"
// FILL     = "132*PER_SM"
// PIECES_C = "ceil_div(C//groups, 8)"
// ALL_STEPS = "ceil_div(R*S*PIECES_C, TILE_K//8)"
// TILES_N  = "ceil_div(K//groups, TILE_N)"
// PITCH    = "groups*ceil_div(K//groups, 8)*8"
// BLOCKS   = "TILES_N * groups * ceil_div(N*P*Q, TILE_M)"
// SLICES   = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS    = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_n = "TILES_N"
// by_groups  = "groups"
// by_pixels  = "P*Q"
// by_Q       = "Q"
// by_S       = "S"
// by_pieces_c = "max(1, PIECES_C)"
// by_quads   = "PITCH//4"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm_mma"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "2 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "conv2d_fprop_implicit_gemm_mma_reduce"
// grid    = ["min(ceil_div(N*P*Q*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "conv2d_corner.cuh"
#include "gemm_mma.cuh"

using A = AlongK<TILE_M>;  // pixels
using B = AlongK<TILE_N>;  // filters

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void conv2d_fprop_implicit_gemm_mma(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                        const storage_t* __restrict__ w, const storage_t* __restrict__ b,
                                        storage_t* __restrict__ y, float* __restrict__ workspace,
                                        const int with_relu) {
  DYN_SMEM(storage_t, ring);
  __shared__ Corner corners[TILE_M];

  // ---- The tile of this block ----
  // Filter tiles are neighbours, then groups, then pixels.
  const int channels = g.C / g.by_groups, filters = g.K / g.by_groups;
  const unsigned rest = blockIdx.x / g.by_tiles_n;
  const int group = static_cast<int>(rest % g.by_groups);
  const long long first_k = static_cast<long long>(group) * filters;  // of this group
  const int first_n = static_cast<int>(blockIdx.x % g.by_tiles_n) * TILE_N;
  const long long first_m = static_cast<long long>(rest / g.by_groups) * TILE_M;
  const long long pixels = g.by_pixels.divisor * g.N;
  const Steps range = steps_of_slice(
      (g.R * g.S * static_cast<int>(g.by_pieces_c.divisor) + A::CHUNKS - 1) / A::CHUNKS, g.by_slices);

  for (int i = threadIdx.x; i < TILE_M; i += THREADS) corners[i] = corner_of(g, first_m + i);

  // ---- Copying a step: pieces of taps, as each pixel meets them, and as each filter has them ----
  const bool vector = channels % PACK == 0 && aligned(x) && aligned(w);
  const int chunk = A::chunk(0), filled = static_cast<int>(g.by_pieces_c.divisor) * PACK;
  const long long taps = static_cast<long long>(g.R) * g.S * channels;  // of a filter
  const storage_t* const first_filter = w + (first_k + first_n + B::row(0)) * taps;

  // What this thread copies next: a piece of a tap (r, s), channels c to c + 7.
  int c, s, r;
  {
    const int piece = range.first * A::CHUNKS + chunk, tap = piece / g.by_pieces_c;
    c = piece % g.by_pieces_c * PACK, s = tap % g.by_S, r = tap / g.by_S;
  }
  const auto copy_next = [&](storage_t* slot, const auto& copy) {
    const int valid = r < g.R ? channels - c : 0;
    const unsigned down = r * g.dilation_h, across = s * g.dilation_w;
    const storage_t* const tap =
        x + group * channels + (static_cast<long long>(down) * g.W + across) * g.C + c;
#pragma unroll
    for (int i = 0; i < A::COPIES; ++i) {
      const Corner pixel = corners[A::row(i)];
      const bool inside = pixel.row + down < g.H && pixel.column + across < g.W;
      copy(slot + A::place(i), tap + pixel.offset, inside ? valid : 0);
    }
    const storage_t* const filter = first_filter + (static_cast<long long>(r) * g.S + s) * channels + c;
#pragma unroll
    for (int i = 0; i < B::COPIES; ++i) {
      const bool exists = first_n + B::row(i) < filters;
      copy(slot + A::SIZE + B::place(i), filter + (B::row(i) - B::row(0)) * taps, exists ? valid : 0);
    }
    for (c += TILE_K; c >= filled; c -= filled)
      if (++s == g.S) s = 0, ++r;
  };

  const auto copy_step = [&](storage_t* slot) {
    if (vector)
      copy_next(slot, Async());
    else
      copy_next(slot, Elements());
  };

  // ---- The main loop ----
  Sums sum = {};
#pragma unroll 1
  for (int step = 1 - STAGES, read = 0, write = 0; step < range.count; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < range.count) copy_step(ring + write * SLOT);
    cp_async_commit();
    write = next_slot(write);
    if (step < 0) continue;  // nothing has arrived yet
    multiply_step<A, B>(ring + read * SLOT, sum);
    read = next_slot(read);
  }

  // ---- Writing: a slice; or bias, ReLU, and y ----
  if (gridDim.z > 1) {
    const long long pitch = 4 * g.by_quads.divisor, filled_n = filled_up(filters);
    float* const slice = workspace + (blockIdx.z * pixels + first_m) * pitch + group * filled_n + first_n;
    write_slice(sum, filled_n - first_n,
                [&](int m) { return first_m + m < pixels ? slice + m * pitch : nullptr; });
    return;
  }
  if (b)
    add_to_columns(sum,
                   [&](int n) { return first_n + n < filters ? to_float(b[first_k + first_n + n]) : 0.0f; });
  if (with_relu) relu(sum);
  const bool whole = filters % PACK == 0 && aligned(y);
  write_tile(ring, sum, [&](int m, int n, Pack pack) {
    if (first_m + m >= pixels || first_n + n >= filters) return;
    const long long first = (first_m + m) * g.K + first_k;
    store_pack(y, first + first_n + n, first + filters, whole, pack);
  });
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void conv2d_fprop_implicit_gemm_mma_reduce(GEOMETRY(Conv2d), const storage_t* __restrict__ x,
                                               const storage_t* __restrict__ w,
                                               const storage_t* __restrict__ b, storage_t* __restrict__ y,
                                               float* __restrict__ workspace, const int with_relu) {
  const int filters = g.K / g.by_groups;
  const long long filled = filled_up(filters);
  add_slices(workspace, g.by_pixels.divisor * g.N, g.by_quads, g.by_slices,
             [&](long long m, long long column, const float (&v)[4]) {
               const long long group = column / filled;
               const int n = static_cast<int>(column - group * filled);
#pragma unroll
               for (int e = 0; e < 4; ++e) {
                 if (n + e >= filters) return;
                 const long long k = group * filters + n + e;
                 const float with_bias = v[e] + (b ? to_float(b[k]) : 0.0f);
                 y[m * g.K + k] = from_float(with_relu ? relu_of(with_bias) : with_bias);
               }
             });
}
