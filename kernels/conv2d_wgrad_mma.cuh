// conv2d_wgrad_mma.cuh: the gradient of a convolution's weights on tensor cores.
// conv2d_wgrad_implicit_gemm_mma.cu has the argument; conv2d_wgrad_bgrad_implicit_gemm_mma.cu makes the
// gradient of the bias as well: WITH_DB.
#pragma once

#include "conv2d_corner.cuh"
#include "gemm_mma.cuh"

using A = AcrossK<TILE_M>;  // pixels, each with its filters in dy
using B = AcrossK<TILE_N>;  // pixels, each with what the taps meet in x

static_assert(TILE_M % 64 == 0 && TILE_N % 64 == 0,
              "TILE_M, TILE_N: 64, 128 or 256, so that a thread's pieces are one "
              "below the other");
static_assert(THREADS % A::CHUNKS == 0 && THREADS % B::CHUNKS == 0 && A::ROWS % (THREADS / A::CHUNKS) == 0 &&
                  B::ROWS % (THREADS / B::CHUNKS) == 0,
              "a thread copies whole columns of pieces");

// Corners of pixels are made a chunk at a time; the table is a ring of two chunks.
constexpr int CHUNK = 256, CHUNK_STEPS = CHUNK / TILE_K;
static_assert(STAGES <= CHUNK_STEPS,
              "the copies ahead are in the chunk that is being read, or in the next one");

// Pieces of 8 columns: those of each tap's channels, and one for db: a column of ones.
template <class Geometry>
__device__ __forceinline__ int pieces_of_taps(const Geometry& g) {
  return g.R * g.S * static_cast<int>(g.by_pieces_c.divisor);
}

// What the block does whose tile the header's grid gives it.
template <bool WITH_DB, class Geometry>
__device__ __forceinline__ void conv2d_wgrad(const Geometry& g, const storage_t* __restrict__ x,
                                             const storage_t* __restrict__ dy,
                                             float* __restrict__ workspace) {
  DYN_SMEM(storage_t, ring);
  __shared__ Corner corners[2 * CHUNK];

  // ---- The tile of this block ----
  // Filter tiles are neighbours, then taps, then groups.
  const int channels = g.C / g.by_groups, filters = g.K / g.by_groups;
  const int first_m = static_cast<int>(blockIdx.x % g.by_tiles_m) * TILE_M;
  const unsigned rest = blockIdx.x / g.by_tiles_m;
  const int first_piece = static_cast<int>(rest % g.by_tiles_n) * (TILE_N / PACK);
  const int group = static_cast<int>(rest / g.by_tiles_n);
  const long long first_k = static_cast<long long>(group) * filters + first_m;
  const long long pixels = g.by_pixels.divisor * g.N;
  const Steps range = steps_of_slice(static_cast<int>((pixels + TILE_K - 1) / TILE_K), g.by_slices);
  const long long first_pixel = static_cast<long long>(range.first) * TILE_K;

  // ---- The table: where pixels' windows begin in x ----
  const auto make_corners = [&](int number) {
    for (int i = threadIdx.x; i < CHUNK; i += THREADS)
      corners[number % 2 * CHUNK + i] =
          corner_of(g, first_pixel + static_cast<long long>(number) * CHUNK + i);
  };

  // ---- Copying a step: TILE_K pixels. A thread keeps its columns ----
  const bool vector = channels % PACK == 0 && filters % PACK == 0 && aligned(x) && aligned(dy);
  const int chunk_a = A::chunk(0), chunk_b = B::chunk(0);
  const int filters_left = filters - first_m - chunk_a * PACK;
  const storage_t* const gradients = dy + first_k + chunk_a * PACK;
  // The tap and the channels of this thread's columns.
  const int piece = first_piece + chunk_b, taps_end = pieces_of_taps(g);
  const int tap = piece / g.by_pieces_c, c = piece % g.by_pieces_c * PACK;
  const unsigned down = tap / g.by_S * g.dilation_h, across = tap % g.by_S * g.dilation_w;
  const storage_t* const first_tap =
      x + (static_cast<long long>(down) * g.W + across) * g.C + static_cast<long long>(group) * channels + c;
  const int channels_left = piece < taps_end ? channels - c : 0;
  const bool ones = WITH_DB && piece == taps_end;

  const auto copy_pieces = [&](storage_t* slot, int step, const auto& copy) {
    const long long from = first_pixel + static_cast<long long>(step) * TILE_K;
    const Corner* const table = corners + step % (2 * CHUNK_STEPS) * TILE_K;
#pragma unroll
    for (int i = 0; i < A::COPIES; ++i) {
      const long long j = from + A::row(i);
      copy(slot + A::place(i), gradients + j * g.K, j < pixels ? filters_left : 0);
    }
#pragma unroll
    for (int i = 0; i < B::COPIES; ++i) {
      const Corner pixel = table[B::row(i)];
      storage_t* const to = slot + A::SIZE + B::place(i);
      if (ones) {
        // dy is zero where there is no pixel: so it does no harm that these are ones there too.
        Pack pack = {};
        pack[0] = from_float(1.0f);
        *reinterpret_cast<uint4*>(to) = pack.words;
      } else {
        const bool inside = pixel.row + down < g.H && pixel.column + across < g.W;
        copy(to, first_tap + pixel.offset, inside ? channels_left : 0);
      }
    }
  };

  const auto copy_step = [&](storage_t* slot, int step) {
    if (vector)
      copy_pieces(slot, step, Async());
    else
      copy_pieces(slot, step, Elements());
  };

  // ---- The main loop ----
  Sums sum = {};
  make_corners(0);
#pragma unroll 1
  for (int step = 1 - STAGES, read = 0, write = 0; step < range.count; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    // The half of the table that this overwrites was last read before this barrier, and what it writes is
    // first read behind the next one.
    const int ahead = step + STAGES - 1;
    if (ahead % CHUNK_STEPS == CHUNK_STEPS - 1) make_corners(ahead / CHUNK_STEPS + 1);
    if (ahead < range.count) copy_step(ring + write * SLOT, ahead);
    cp_async_commit();
    write = next_slot(write);
    if (step < 0) continue;  // nothing has arrived yet
    multiply_step<A, B>(ring + read * SLOT, sum);
    read = next_slot(read);
  }

  // ---- Writing: a slice ----
  const long long pitch = 4 * g.by_quads.divisor;
  const int first_n = first_piece * PACK;
  float* const slice = workspace + (static_cast<long long>(blockIdx.z) * g.K + first_k) * pitch + first_n;
  write_slice(sum, pitch - first_n,
              [&](int m) { return first_m + m < filters ? slice + m * pitch : nullptr; });
}

// The second launch: adds up the slices, and writes dw, KCRS, and db.
template <bool WITH_DB, class Geometry>
__device__ __forceinline__ void conv2d_wgrad_reduce(const Geometry& g, param_t* __restrict__ dw,
                                                    param_t* __restrict__ db,
                                                    const float* __restrict__ workspace) {
  const int channels = g.C / g.by_groups, taps = g.R * g.S;
  add_slices(workspace, g.K, g.by_quads, g.by_slices,
             [&](long long k, long long column, const float (&v)[4]) {
               const int piece = static_cast<int>(column / PACK), tap = piece / g.by_pieces_c;
               if (WITH_DB && tap == taps) {
                 if (column % PACK == 0) db[k] = to_param(v[0]);
                 return;
               }
               const int c = piece % g.by_pieces_c * PACK + static_cast<int>(column % PACK);
#pragma unroll
               for (int e = 0; e < 4; ++e)
                 if (c + e < channels) dw[(k * channels + c + e) * taps + tap] = to_param(v[e]);
             });
}
