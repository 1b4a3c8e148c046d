// conv2d_fprop_mma.cuh: a convolution on tensor cores. conv2d_fprop_implicit_gemm_mma.cu has the argument;
// conv2d_fprop_implicit_gemm_tf32.cu takes elements of 32 bits.
#pragma once

#include "conv2d_corner.cuh"
#include "gemm_mma.cuh"

using A = AlongK<TILE_M>;  // pixels
using B = AlongK<TILE_N>;  // filters

// What the block does whose tile the header's grid gives it.
template <class Geometry>
__device__ __forceinline__ void conv2d_fprop(const Geometry& g, const storage_t* __restrict__ x,
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
    const storage_t* const tap = x + static_cast<long long>(group) * channels +
                                 (static_cast<long long>(down) * g.W + across) * g.C + c;
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

// The second launch: adds up the slices, if there are several.
template <class Geometry>
__device__ __forceinline__ void conv2d_fprop_reduce(const Geometry& g, const storage_t* __restrict__ b,
                                                    storage_t* __restrict__ y,
                                                    const float* __restrict__ workspace,
                                                    const int with_relu) {
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
