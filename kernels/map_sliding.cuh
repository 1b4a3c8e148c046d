// map_sliding.cuh: LRN within a channel in NHWC, by blocks that walk down the map: what a block has, and sums over
// its windows' rows and columns.
//
// A block has `cols` neighbouring columns of a map, and `each` runs of channels (channels.cuh); a thread has one run
// of one column. The rows of a window are in the thread's registers, as they are stored, and are added up there. What
// they add up to is put into shared memory, where the threads of the columns beside it find it:
//
//              column  0       1       2    ...
//   thread             0 - 7   8 - 15  16 - 23      of 8 runs: thread = column * each + run
//   row r - 2    x²    +       +       +            the rows: registers
//       ...            +       +       +
//   row r + 2    x²    +       +       +
//                      s[0]    s[1]    s[2] ...     the columns: shared memory
//
// So each element is read once. Where a map is wider than a block, blocks overlap by the columns that windows need.
#pragma once

#include "channels.cuh"
#include "lrn.cuh"

// 32 bytes of each thread, in two halves: neighbours read 16 bytes side by side. Behind them stand zeros, for columns
// that the block has not. There are no bank conflicts where 8 divides the block's runs; else a zero may cost one.
struct Exchange {
  float4 halves[2][THREADS + 1];
};

// What a thread has.
struct Strip {
  long long base;   // element of its column in row 0
  int first, last;  // rows that the block makes
  int column;       // in the block
  int count;        // channels of its run from the first one on; 0 where it has no column of the map
  bool makes;       // whether it writes, or lends alone
};

// REACH: columns on each side that a block needs and does not make.
template <int REACH, class Geometry>
__device__ __forceinline__ Strip strip_of_thread(const Geometry& g) {
  const int each = static_cast<int>(g.by_each.divisor), columns = static_cast<int>(g.by_columns.divisor);
  const unsigned segment = blockIdx.x / g.by_parts / g.by_strips;
  const int part = static_cast<int>(blockIdx.x % g.by_parts);
  const int strip = static_cast<int>(blockIdx.x / g.by_parts % g.by_strips);
  const int n = static_cast<int>(segment / g.by_segments), beyond = g.by_strips.divisor > 1 ? REACH : 0;
  const int made = columns - 2 * beyond;  // by a block
  Strip found;
  found.column = static_cast<int>(threadIdx.x) / g.by_each;
  const int run = part * each + static_cast<int>(threadIdx.x) - found.column * each;
  const int w = strip * made - beyond + found.column, channel = run * CHANNELS;
  const bool exists = found.column < columns && w >= 0 && w < g.W && channel < g.C;
  found.first = static_cast<int>(segment % g.by_segments) * SEGMENT;
  found.last = min(found.first + SEGMENT, g.H);
  found.count = exists ? g.C - channel : 0;
  found.makes = exists && found.column >= beyond && found.column < beyond + made;
  found.base = (static_cast<long long>(n) * g.H * g.W + w) * g.C + channel;
  return found;
}

// A run of a row; zeros outside the map.
template <class Geometry>
__device__ __forceinline__ Run load_row(const Geometry& g, const Strip& strip, const storage_t* from, int row,
                                        bool vector) {
  Run run = {};
  if (row >= 0 && row < g.H && strip.count > 0)
    run = load_run(from + strip.base + static_cast<long long>(row) * g.W * g.C, strip.count, vector);
  return run;
}

// Sums of squares of SIZE rows, of which the one in `oldest` is added first.
template <int SIZE>
__device__ __forceinline__ void add_rows(Run (&rows)[SIZE], int oldest, float (&sums)[CHANNELS]) {
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    const float first = rows[oldest % SIZE].value(c);
    sums[c] = first * first;
#pragma unroll
    for (int j = 1; j < SIZE; ++j) {
      const float x = rows[(oldest + j) % SIZE].value(c);
      sums[c] = fmaf(x, x, sums[c]);
    }
  }
}

// Before anything is put.
__device__ __forceinline__ void put_zeros(Exchange& shared) {
  if (threadIdx.x < 2) shared.halves[threadIdx.x][THREADS] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Puts this thread's numbers where it, and behind a barrier the others, find them.
__device__ __forceinline__ void put(Exchange& shared, const float (&values)[CHANNELS]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    shared.halves[half][threadIdx.x] =
        make_float4(values[4 * half], values[4 * half + 1], values[4 * half + 2], values[4 * half + 3]);
}

// This thread's numbers.
__device__ __forceinline__ void take(const Exchange& shared, float (&values)[CHANNELS]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4 four = shared.halves[half][threadIdx.x];
    values[4 * half] = four.x, values[4 * half + 1] = four.y;
    values[4 * half + 2] = four.z, values[4 * half + 3] = four.w;
  }
}

// Sums over the columns [-BEHIND, AHEAD] of this thread's that are in the block, of what was put; `own` is what this
// thread has put.
template <int BEHIND, int AHEAD, class Geometry>
__device__ __forceinline__ void add_columns(const Geometry& g, const Exchange& shared, const Strip& strip,
                                            const float (&own)[CHANNELS], float (&sums)[CHANNELS]) {
  const int each = static_cast<int>(g.by_each.divisor), columns = static_cast<int>(g.by_columns.divisor);
  float total[CHANNELS];
#pragma unroll
  for (int j = -BEHIND; j <= AHEAD; ++j) {
    const bool exists = static_cast<unsigned>(strip.column + j) < static_cast<unsigned>(columns);
    const int at = exists ? static_cast<int>(threadIdx.x) + j * each : THREADS;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float four[4];
      if (j == 0) {
#pragma unroll
        for (int e = 0; e < 4; ++e) four[e] = own[4 * half + e];
      } else {
        const float4 read = shared.halves[half][at];
        four[0] = read.x, four[1] = read.y, four[2] = read.z, four[3] = read.w;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& sum = total[4 * half + e];
        sum = j == -BEHIND ? four[e] : sum + four[e];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) sums[c] = total[c];
}
