// maps.cuh: LRN within a channel in NHWC: sums over windows of pixels, of CHANNELS channels at a time.
// A Geometry has the members of LRN, and dividers by_runs (runs of a pixel), by_W and by_H.
#pragma once

#include "channels.cuh"
#include "lrn.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 64.
constexpr int RESIDENT = 1024;

// What a thread makes: `count` channels of a pixel, from `channel` on.
struct Pixel {
  long long n;  // beyond the last image for threads behind the last run
  int h, w, channel, count;
  template <class Geometry>
  __device__ __forceinline__ long long element(const Geometry& g) const {
    return ((n * g.H + h) * g.W + w) * g.C + channel;
  }
};

template <class Geometry>
__device__ __forceinline__ Pixel pixel_of_thread(const Geometry& g) {
  const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x), at = i / g.by_runs;
  const int line = at / g.by_W;
  Pixel pixel;
  pixel.channel = i % g.by_runs * CHANNELS;
  pixel.count = min(g.C - pixel.channel, CHANNELS);
  pixel.w = at % g.by_W;
  pixel.h = line % g.by_H;
  pixel.n = line / g.by_H;
  return pixel;
}

// Sums of what `load` gives for the element of a run, over the pixels [-behind, +ahead] each way that are in the
// map.
template <class Geometry, class Load>
__device__ __forceinline__ void map_sum(const Geometry& g, const Pixel& pixel, int behind, int ahead,
                                        float (&sums)[CHANNELS], Load load) {
  const int top = max(pixel.h - behind, 0), bottom = pixel.h + min(ahead, g.H - 1 - pixel.h);
  const int left = max(pixel.w - behind, 0), right = pixel.w + min(ahead, g.W - 1 - pixel.w);
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) sums[c] = 0.0f;
  for (int row = top; row <= bottom; ++row) {
    const long long start = (pixel.n * g.H + row) * g.W;
    float row_sums[CHANNELS] = {};
    for (int column = left; column <= right; ++column) {
      float values[CHANNELS];
      load((start + column) * g.C + pixel.channel, values);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) row_sums[c] += values[c];
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) sums[c] += row_sums[c];
  }
}
