// linear_mma.cuh: how the fully connected kernels on tensor cores copy their matrices, and their main loop.
#pragma once

#include "gemm_mma.cuh"
#include "sgd.cuh"

// A matrix in memory, row by row.
struct Matrix {
  const storage_t* data;
  int rows, columns;

  // Whether rows come in pieces of 16 bytes.
  __device__ __forceinline__ bool vector() const { return columns % PACK == 0 && aligned(data); }
  __device__ __forceinline__ const storage_t* at(long long row, int column) const {
    return data + row * columns + column;
  }
};

// Copies a step's part of a factor: its m (or n) are rows of the matrix from `first` on, k its columns.
template <int LENGTH, class Copy>
__device__ __forceinline__ void copy_part(AlongK<LENGTH> slab_of, storage_t* slab, const Matrix& from,
                                          int first, int k, const Copy& copy) {
#pragma unroll
  for (int i = 0; i < slab_of.COPIES; ++i) {
    if (!slab_of.has(i)) break;
    const int row = first + slab_of.row(i), column = k + slab_of.chunk(i) * PACK;
    copy(slab + slab_of.place(i), from.at(row, column), row < from.rows ? from.columns - column : 0);
  }
}
// The same where k are rows, and m (or n) columns from `first` on.
template <int LENGTH, class Copy>
__device__ __forceinline__ void copy_part(AcrossK<LENGTH> slab_of, storage_t* slab, const Matrix& from,
                                          int first, int k, const Copy& copy) {
#pragma unroll
  for (int i = 0; i < slab_of.COPIES; ++i) {
    if (!slab_of.has(i)) break;
    const int row = k + slab_of.row(i), column = first + slab_of.chunk(i) * PACK;
    copy(slab + slab_of.place(i), from.at(row, column), row < from.rows ? from.columns - column : 0);
  }
}

// A block's tile of the output, of `rows` x `columns`. Tiles that share columns are neighbours.
struct Tile {
  int first_m, first_n, rows, columns;

  __device__ __forceinline__ Tile(const Divider& by_tiles_m, int rows_, int columns_)
      : first_m(static_cast<int>(blockIdx.x % by_tiles_m) * TILE_M),
        first_n(static_cast<int>(blockIdx.x / by_tiles_m) * TILE_N),
        rows(rows_),
        columns(columns_) {}
};

// The main loop: sum += a b over this block's steps, of `steps` in all.
template <class A, class B>
__device__ __forceinline__ void multiply(storage_t* ring, const Tile& tile, const Matrix& a, const Matrix& b,
                                         int steps, const Divider& by_slices, Sums& sum) {
  const Steps range = steps_of_slice(steps, by_slices);
  const bool vector = a.vector() && b.vector();
  const auto copy_pieces = [&](storage_t* slot, int step, const auto& copy) {
    const int k = (range.first + step) * TILE_K;
    copy_part(A(), slot, a, tile.first_m, k, copy);
    copy_part(B(), slot + A::SIZE, b, tile.first_n, k, copy);
  };
  const auto copy_step = [&](storage_t* slot, int step) {
    if (vector)
      copy_pieces(slot, step, Async());
    else
      copy_pieces(slot, step, Elements());
  };
#pragma unroll 1
  for (int step = 1 - STAGES, read = 0, write = 0; step < range.count; ++step) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < range.count) copy_step(ring + write * SLOT, step + STAGES - 1);
    cp_async_commit();
    write = next_slot(write);
    if (step < 0) continue;  // nothing has arrived yet
    multiply_step<A, B>(ring + read * SLOT, sum);
    read = next_slot(read);
  }
}

// This block's slice of the output; by_quads: a row of a slice, in fours.
__device__ __forceinline__ void write_slice(const Sums& sum, const Tile& tile, float* workspace,
                                            const Divider& by_quads) {
  const long long pitch = 4 * by_quads.divisor;
  float* const slice =
      workspace + (static_cast<long long>(blockIdx.z) * tile.rows + tile.first_m) * pitch + tile.first_n;
  write_slice(sum, pitch - tile.first_n,
              [&](int m) { return tile.first_m + m < tile.rows ? slice + m * pitch : nullptr; });
}

// The output itself: of 32 bits from where the sums are, since four lanes have a sector of 32 bytes; of 16
// bits through the ring.
template <class T>
__device__ __forceinline__ void write_tile(storage_t* ring, const Sums& sum, const Tile& tile, T* out) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const bool pairs = tile.columns % 2 == 0 && pair_at(out);
    float* const first = out + static_cast<long long>(tile.first_m) * tile.columns + tile.first_n;
    write_floats(sum, tile.columns - tile.first_n, pairs, [&](int m) {
      return tile.first_m + m < tile.rows ? first + static_cast<long long>(m) * tile.columns : nullptr;
    });
  } else {
    const bool whole = tile.columns % PACK == 0 && aligned(out);
    write_tile(ring, sum, [&](int m, int n, Pack pack) {
      if (tile.first_m + m >= tile.rows || tile.first_n + n >= tile.columns) return;
      const long long row = static_cast<long long>(tile.first_m + m) * tile.columns;
      store_pack(out, row + tile.first_n + n, row + tile.columns, whole, pack);
    });
  }
}

// The second launch, where the output has nothing but the sums: adds up the slices, if there are several.
// `out` is a gradient of parameters, or of the one type that there is.
__device__ __forceinline__ void add_slices(const float* __restrict__ workspace, param_t* __restrict__ out,
                                           int rows, int columns, const Divider& by_quads,
                                           const Divider& by_slices) {
  add_slices(workspace, rows, by_quads, by_slices, [&](long long row, long long column, const float (&v)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (column + e < columns) out[row * columns + column + e] = to_param(v[e]);
  });
}

// -----------------------------------------------------------------------------------------------------------
// The layer's output: bias and ReLU
// -----------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void write_layer(storage_t* ring, Sums& sum, const Tile& tile,
                                            const storage_t* __restrict__ b, int with_relu,
                                            storage_t* __restrict__ y) {
  if (b)
    add_to_columns(
        sum, [&](int n) { return tile.first_n + n < tile.columns ? to_float(b[tile.first_n + n]) : 0.0f; });
  if (with_relu) relu(sum);
  write_tile(ring, sum, tile, y);
}

// The second launch: adds up the slices, if there are several.
__device__ __forceinline__ void add_slices_of_layer(const float* __restrict__ workspace,
                                                    const storage_t* __restrict__ b, int with_relu,
                                                    storage_t* __restrict__ y, int rows, int columns,
                                                    const Divider& by_quads, const Divider& by_slices) {
  add_slices(workspace, rows, by_quads, by_slices, [&](long long n, long long k, const float (&v)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (k + e >= columns) return;
      const float with_bias = v[e] + (b ? to_float(b[k + e]) : 0.0f);
      y[n * columns + k + e] = from_float(with_relu ? relu_of(with_bias) : with_bias);
    }
  });
}

// -----------------------------------------------------------------------------------------------------------
// The gradient of the ReLU below: zero where its output x is not positive
// -----------------------------------------------------------------------------------------------------------
__device__ __forceinline__ void mask(Sums& sum, const Tile& tile, const storage_t* __restrict__ x) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = tile.first_m + warp_m() + i * 16 + half * 8 + lane / 4;
      if (m >= tile.rows) continue;
      const storage_t* const row = x + static_cast<long long>(m) * tile.columns;
#pragma unroll
      for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int n = tile.first_n + warp_n() + j * 8 + lane % 4 * 2 + e;
          if (n < tile.columns && to_float(row[n]) <= 0.0f) sum[i][j][half * 2 + e] = 0.0f;
        }
    }
}

// The second launch: adds up the slices, if there are several; masked where x is not null.
__device__ __forceinline__ void add_masked_slices(const float* __restrict__ workspace,
                                                  const storage_t* __restrict__ x, storage_t* __restrict__ dx,
                                                  int rows, int columns, const Divider& by_quads,
                                                  const Divider& by_slices) {
  add_slices(workspace, rows, by_quads, by_slices, [&](long long row, long long column, const float (&v)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e >= columns) return;
      const long long i = row * columns + column + e;
      dx[i] = x && to_float(x[i]) <= 0.0f ? from_float(0.0f) : from_float(v[e]);
    }
  });
}

// -----------------------------------------------------------------------------------------------------------
// The update of the weights: a sum is the gradient of a weight, which no one else updates. w_new and v_new may
// be w and v, hence no __restrict__.
// -----------------------------------------------------------------------------------------------------------
struct Weights {
  const float *w, *v;
  float *w_new, *v_new;

  // Whether two neighbours may be moved at once, in rows of that length.
  __device__ __forceinline__ bool pairs(int columns) const {
    return columns % 2 == 0 && pair_at(w) && pair_at(v) && pair_at(w_new) && pair_at(v_new);
  }
};

// New weights from this block's sums. A lane loads its sums' weights of a row of the tile, all of them before it
// stores one: eight bytes each, and the four lanes beside it have the rest of a sector of 32.
__device__ __forceinline__ void update_tile(const Sums& sum, const Tile& tile, const Weights& of,
                                            const SgdUpdate& update) {
  const int lane = threadIdx.x % 32;
  const bool pairs = of.pairs(tile.columns);
#pragma unroll
  for (int i = 0; i < PRODUCTS_M; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = tile.first_m + warp_m() + i * 16 + half * 8 + lane / 4;
      if (m >= tile.rows) continue;
      const long long row = static_cast<long long>(m) * tile.columns;
      const int first_n = tile.first_n + warp_n() + lane % 4 * 2;
      float w[PRODUCTS_N][2] = {}, v[PRODUCTS_N][2] = {};
      if (pairs) {
#pragma unroll
        for (int j = 0; j < PRODUCTS_N; ++j) {
          const int n = first_n + j * 8;
          if (n >= tile.columns) break;
          const float2 w2 = *reinterpret_cast<const float2*>(of.w + row + n);
          const float2 v2 = *reinterpret_cast<const float2*>(of.v + row + n);
          w[j][0] = w2.x, w[j][1] = w2.y, v[j][0] = v2.x, v[j][1] = v2.y;
        }
      } else {
#pragma unroll
        for (int j = 0; j < PRODUCTS_N; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int n = first_n + j * 8 + e;
            if (n < tile.columns) w[j][e] = of.w[row + n], v[j][e] = of.v[row + n];
          }
      }
#pragma unroll
      for (int j = 0; j < PRODUCTS_N; ++j) {
        const int n = first_n + j * 8;
#pragma unroll
        for (int e = 0; e < 2; ++e) update(sum[i][j][half * 2 + e], w[j][e], v[j][e]);
        if (pairs && n < tile.columns) {
          *reinterpret_cast<float2*>(of.w_new + row + n) = make_float2(w[j][0], w[j][1]);
          *reinterpret_cast<float2*>(of.v_new + row + n) = make_float2(v[j][0], v[j][1]);
        } else {
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (n + e < tile.columns) of.w_new[row + n + e] = w[j][e], of.v_new[row + n + e] = v[j][e];
        }
      }
    }
}

// The second launch: adds up the slices of the gradients, and updates.
__device__ __forceinline__ void update_slices(const float* __restrict__ workspace, int rows, int columns,
                                              const Divider& by_quads, const Divider& by_slices,
                                              const Weights& of, const SgdUpdate& update) {
  add_slices(workspace, rows, by_quads, by_slices,
             [&](long long row, long long column, const float (&gradient)[4]) {
#pragma unroll
               for (int e = 0; e < 4; ++e) {
                 if (column + e >= columns) return;
                 const long long i = row * columns + column + e;
                 float w = of.w[i], v = of.v[i];
                 update(gradient[e], w, v);
                 of.w_new[i] = w;
                 of.v_new[i] = v;
               }
             });
}
