// conv2d_dgrad_mma.cuh: the gradient of a convolution's input on tensor cores.
// conv2d_dgrad_implicit_gemm_mma.cu has the argument; conv2d_dgrad_relu_implicit_gemm_mma.cu takes the
// gradient of the ReLU below as well.
#pragma once

#include "conv2d_corner.cuh"
#include "gemm_mma.cuh"
#include "residue_class.cuh"

using A = AlongK<TILE_M>;   // pixels, each with the filters of what a tap meets in dy
using B = AcrossK<TILE_N>;  // filters, each with the channels of a tap

// Where this block is. In shared memory, so that what the loop has no use for takes no registers in it.
struct Block {
  Axis v, u;                       // vertical, horizontal
  Divider by_v_count, by_u_count;  // pixels of the class: rows, columns
  long long first_m;
  int group, first_n;

  // Channel tiles are neighbours, then groups, then residue classes, then pixels.
  template <class Geometry>
  __device__ __forceinline__ void set(const Geometry& g) {
    first_n = static_cast<int>(blockIdx.x % g.by_tiles_n) * TILE_N;
    unsigned rest = blockIdx.x / g.by_tiles_n;
    group = static_cast<int>(rest % g.by_groups);
    rest = rest / g.by_groups;
    const int class_w = static_cast<int>(rest % g.by_classes_w);
    rest = rest / g.by_classes_w;
    const int class_h = static_cast<int>(rest % g.by_classes_h);
    first_m = static_cast<long long>(rest / g.by_classes_h) * TILE_M;
    // Class h has rows h, h + stride_h, ... below H: the most, or one less.
    const int most_rows = static_cast<int>(g.by_most_rows.divisor);
    const int most_columns = static_cast<int>(g.by_most_columns.divisor);
    const bool fewer_rows = class_h + (most_rows - 1LL) * g.stride_h >= g.H;
    const bool fewer_columns = class_w + (most_columns - 1LL) * g.stride_w >= g.W;
    by_v_count = fewer_rows ? g.by_fewer_rows : g.by_most_rows;
    by_u_count = fewer_columns ? g.by_fewer_columns : g.by_most_columns;
    v.set(class_h, g.pad_top, g.by_stride_h, most_rows - fewer_rows, g.R, g.dilation_h);
    u.set(class_w, g.pad_left, g.by_stride_w, most_columns - fewer_columns, g.S, g.dilation_w);
  }

  // Pixels of the residue class in all images.
  __device__ __forceinline__ long long hits(int images) const {
    return static_cast<long long>(v.count) * u.count * images;
  }

  // Pixel j of them: image, row and column among those of the class.
  struct Pixel {
    long long n;
    int i, column;
  };
  __device__ __forceinline__ Pixel pixel(long long j) const {
    const long long line = j / by_u_count, n = line / by_v_count;
    return {n, static_cast<int>(line - n * v.count), static_cast<int>(j - line * u.count)};
  }
  // Its number among all pixels of dx.
  template <class Geometry>
  __device__ __forceinline__ long long in_dx(const Geometry& g, long long j) const {
    const Pixel of = pixel(j);
    const long long h = v.first + static_cast<long long>(of.i) * g.stride_h;
    return (of.n * g.H + h) * g.W + u.first + static_cast<long long>(of.column) * g.stride_w;
  }
};

// What the block does whose tile the header's grid gives it. `x` is the ReLU's output, or null where there is
// none.
template <class Geometry>
__device__ __forceinline__ void conv2d_dgrad(const Geometry& g, const storage_t* __restrict__ dy,
                                             const storage_t* __restrict__ w, const storage_t* __restrict__ x,
                                             storage_t* __restrict__ dx, float* __restrict__ workspace) {
  DYN_SMEM(storage_t, ring);
  __shared__ Block block;
  __shared__ Corner corners[TILE_M];  // in dy, of the tap that is not shifted
  if (threadIdx.x == 0) block.set(g);
  __syncthreads();
  const long long hits = block.hits(g.N);
  if (block.first_m >= hits) return;  // a smaller class than the first: the whole block leaves
  const int channels = g.C / g.by_groups, filters = g.K / g.by_groups;
  const Steps range =
      steps_of_slice(block.v.taps * block.u.taps * static_cast<int>(g.by_pieces_k.divisor), g.by_slices);

  for (int i = threadIdx.x; i < TILE_M; i += THREADS) {
    const long long j = block.first_m + i;
    const Block::Pixel of = block.pixel(j);
    const int p = block.v.origin + of.i, q = block.u.origin + of.column;
    corners[i] = {((of.n * g.P + p) * g.Q + q) * g.K, j < hits ? static_cast<unsigned>(p) : OUTSIDE,
                  static_cast<unsigned>(q)};
  }

  // ---- Copying a step: TILE_K filters of a tap ----
  const bool vector = filters % PACK == 0 && channels % PACK == 0 && aligned(dy) && aligned(w);
  const int chunk = A::chunk(0);

  // Of the step that is copied next. A class that no tap hits has no steps.
  int k = range.first % g.by_pieces_k * TILE_K;
  int ts = 0, tr = 0;
  if (range.count) {
    const int tap = range.first / g.by_pieces_k;
    ts = tap % block.u.taps, tr = tap / block.u.taps;
  }
  const auto copy_next = [&](storage_t* slot, const auto& copy) {
    const unsigned up = block.v.shift(tr), left = block.u.shift(ts);
    const storage_t* const tap =
        dy - (static_cast<long long>(up) * g.Q + left) * g.K + block.group * filters + k + chunk * PACK;
    const int valid = filters - k - chunk * PACK;
#pragma unroll
    for (int i = 0; i < A::COPIES; ++i) {
      const Corner pixel = corners[A::row(i)];
      const bool inside = pixel.row - up < g.P && pixel.column - left < g.Q;
      copy(slot + A::place(i), tap + pixel.offset, inside ? valid : 0);
    }
    const long long window = static_cast<long long>(g.R) * g.S,
                    in_window = block.v.nth(tr) * g.S + block.u.nth(ts);
    const long long first_k = static_cast<long long>(block.group) * filters + k;
#pragma unroll
    for (int i = 0; i < B::COPIES; ++i) {
      if (!B::has(i)) break;
      const int c = block.first_n + B::chunk(i) * PACK;
      copy(slot + A::SIZE + B::place(i), w + ((first_k + B::row(i)) * window + in_window) * channels + c,
           k + B::row(i) < filters ? channels - c : 0);
    }
    k += TILE_K;
    if (k < filters) return;
    k = 0;
    if (++ts < block.u.taps) return;
    ts = 0;
    ++tr;
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

  // ---- Writing: a slice; or the mask of the ReLU, and dx ----
  if (gridDim.z > 1) {
    const long long pitch = 4 * g.by_quads.divisor, filled = filled_up(channels);
    const long long size = static_cast<long long>(g.N) * g.H * g.W * pitch;
    float* const slice = workspace + size * blockIdx.z + block.group * filled + block.first_n;
    write_slice(sum, filled - block.first_n, [&](int m) {
      return block.first_m + m < hits ? slice + block.in_dx(g, block.first_m + m) * pitch : nullptr;
    });
    return;
  }
  const bool whole = channels % PACK == 0 && aligned(dx) && aligned(x);
  write_tile(ring, sum, [&](int m, int n, Pack pack) {
    if (block.first_m + m >= hits || block.first_n + n >= channels) return;
    const long long first = block.in_dx(g, block.first_m + m) * g.C + block.group * channels;
    const long long at = first + block.first_n + n, end = first + channels;
    if (x) {
      Pack below = load_pack(x, at, end, whole);
#pragma unroll
      for (int e = 0; e < PACK; ++e)
        if (to_float(below[e]) <= 0.0f) pack[e] = from_float(0.0f);
    }
    store_pack(dx, at, end, whole, pack);
  });
}

// The second launch: adds up the slices, if there are several.
template <class Geometry>
__device__ __forceinline__ void conv2d_dgrad_reduce(const Geometry& g, const storage_t* __restrict__ x,
                                                    storage_t* __restrict__ dx,
                                                    const float* __restrict__ workspace) {
  const int channels = g.C / g.by_groups;
  const long long filled = filled_up(channels);
  add_slices(workspace, static_cast<long long>(g.N) * g.H * g.W, g.by_quads, g.by_slices,
             [&](long long pixel, long long column, const float (&v)[4]) {
               const long long group = column / filled;
               const int c = static_cast<int>(column - group * filled);
#pragma unroll
               for (int e = 0; e < 4; ++e) {
                 if (c + e >= channels) return;
                 const long long at = pixel * g.C + group * channels + c + e;
                 dx[at] = from_float(x && to_float(x[at]) <= 0.0f ? 0.0f : v[e]);
               }
             });
}
