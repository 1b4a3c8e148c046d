// lanes.cuh: LRN across channels in NHWC: runs of a row by lane, and what a lane sees of the runs beside its own.
//
// Run i of the tensor (channels.cuh) is run i % runs of row i / runs; lane l of a warp has the run of lane l - 1 to
// its left. So a window of channels is a lane's own run and what two shuffles bring from its neighbours. Where
// `runs` divides 32, a warp has 32 runs, of whole rows. Else it has 30, and its first and last lane hold the runs
// beside them, of which they lend and store nothing: what is read twice so comes from L1 or L2.
//
//   lane                0    1    2   ...  30   31
//   runs of warp w      -    0    1   ...  29    -     of 30 w ...; lane 0 has run 30 w - 1, lane 31 run 30 w + 30
//
// All lanes of a warp have to come to `see` and `beside`.
#pragma once

#include "channels.cuh"
#include "convkit.cuh"
#include "lrn.cuh"

constexpr unsigned WARP = 0xffffffffu;

struct Lane {
  int row;           // (n, h, w) and the group, the group innermost
  int first;         // channel of the run in its row
  int count;         // channels from there to the row's end; 0 where there is no run
  bool left, right;  // whether there are runs of the same row beside it
  bool stores;       // whether it is this lane's to store
};

// Run of this thread, in the `chunk`-th set of a block's runs; there are `rows` * by_runs in all. by_channels is
// the length of a row, by_step the number of runs that a warp stores. Runs are counted in 32 bits (`when` sees to
// that): a division is then three instructions.
template <class Geometry>
__device__ __forceinline__ Lane lane_of_thread(const Geometry& g, int rows, int chunk) {
  const int in_warp = threadIdx.x % 32, step = static_cast<int>(g.by_step.divisor), lent = (32 - step) / 2;
  const int i = (chunk * (THREADS / 32) + static_cast<int>(threadIdx.x) / 32) * step + in_warp - lent;
  const int runs = static_cast<int>(g.by_runs.divisor), channels = static_cast<int>(g.by_channels.divisor);
  const int held = max(i, 0);
  Lane lane;
  lane.row = held / g.by_runs;
  const int run = held - lane.row * runs;
  lane.first = run * CHANNELS;
  lane.left = run > 0;
  lane.right = run + 1 < runs;
  lane.count = i >= 0 && lane.row < rows ? channels - lane.first : 0;
  lane.stores = lane.count > 0 && in_warp >= lent && in_warp < step + lent;
  return lane;
}

// seen[j] is element j - BEHIND of the lane's run; outside of its row it is zero.
template <int BEHIND, int AHEAD>
__device__ __forceinline__ void see(Run& run, const Lane& lane, float (&seen)[BEHIND + CHANNELS + AHEAD]) {
  static_assert(BEHIND <= CHANNELS && AHEAD <= CHANNELS, "no lane but the next ones");
  constexpr int EACH = 4 / sizeof(storage_t);
  Run before, behind;
#pragma unroll
  for (int w = CHANNELS / EACH - ceil_div(BEHIND, EACH); w < CHANNELS / EACH; ++w)
    before.word(w) = __shfl_up_sync(WARP, run.word(w), 1);
#pragma unroll
  for (int w = 0; w < ceil_div(AHEAD, EACH); ++w) behind.word(w) = __shfl_down_sync(WARP, run.word(w), 1);
#pragma unroll
  for (int j = 0; j < BEHIND; ++j) seen[j] = lane.left ? before.value(CHANNELS - BEHIND + j) : 0.0f;
#pragma unroll
  for (int j = 0; j < CHANNELS; ++j) seen[BEHIND + j] = run.value(j);
#pragma unroll
  for (int j = 0; j < AHEAD; ++j) seen[BEHIND + CHANNELS + j] = lane.right ? behind.value(j) : 0.0f;
}

// The same of numbers: own[j] is seen[BEHIND + j].
template <int BEHIND, int AHEAD>
__device__ __forceinline__ void beside(const Lane& lane, float (&seen)[BEHIND + CHANNELS + AHEAD]) {
  static_assert(BEHIND <= CHANNELS && AHEAD <= CHANNELS, "no lane but the next ones");
  float before[BEHIND], behind[AHEAD];
#pragma unroll
  for (int j = 0; j < BEHIND; ++j) before[j] = __shfl_up_sync(WARP, seen[CHANNELS + j], 1);
#pragma unroll
  for (int j = 0; j < AHEAD; ++j) behind[j] = __shfl_down_sync(WARP, seen[BEHIND + j], 1);
#pragma unroll
  for (int j = 0; j < BEHIND; ++j) seen[j] = lane.left ? before[j] : 0.0f;
#pragma unroll
  for (int j = 0; j < AHEAD; ++j) seen[BEHIND + CHANNELS + j] = lane.right ? behind[j] : 0.0f;
}

// d of element c of a run; `scale` is alpha/size.
template <int SIZE>
__device__ __forceinline__ float divisor(const float (&seen)[SIZE - 1 + CHANNELS], int c, float scale,
                                         float k) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < SIZE; ++j) sum = fmaf(seen[c + j], seen[c + j], sum);
  return fmaf(scale, sum, k);
}
