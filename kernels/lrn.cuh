// lrn.cuh: what the kernels of local response normalisation share: powers of d, and the sum over a window.
// A Geometry has the members of LRN: it is LRN itself, or LrnMaxPool2d.
#pragma once

#include "convkit.cuh"
#include "divider.cuh"
#include "storage.cuh"

struct Powers {
  float of_d;    // d^-beta
  float over_d;  // d^-beta / d
};

// With THREE_QUARTERS beta is 0.75, and d^-0.75 = d^-1/2 * (d^1/2)^-1/2 costs two reciprocal roots. Of an
// infinite d, d^1/2 comes out as 0 * inf; fminf takes that NaN for the largest number, and the product is 0,
// as it should be.
template <bool THREE_QUARTERS>
__device__ __forceinline__ Powers powers(float d, float beta) {
  if (THREE_QUARTERS) {
    const float root = rsqrtf(d);
    const float power = root * rsqrtf(fminf(d * root, 3.4028234e38f));
    return {power, power * root * root};
  }
  const float power = powf(d, -beta);
  return {power, power / d};
}

__device__ __forceinline__ Powers powers(float d, float beta) {
  return beta == 0.75f ? powers<true>(d, beta) : powers<false>(d, beta);
}

// NORMAL: beta is 0.75 and d at least 1 (k is), so that neither root meets a subnormal number.
template <bool NORMAL>
__device__ __forceinline__ Powers powers_of(float d, float beta) {
  if (!NORMAL) return powers(d, beta);
  const float root = rsqrt_normal(d), power = root * sqrt_normal(root);  // d^-3/4 = d^-1/2 * (d^-1/2)^1/2
  return {power, power * (root * root)};
}

// Sum of value(j) over the elements j in the window [-behind, +ahead] of element i, which is (c, h, w) of its
// image: as far as they are in its group of channels or, for the region within a channel, in its map.
template <class Geometry, class Value>
__device__ __forceinline__ float window_sum_at(const Geometry& g, long long i, int c, int h, int w,
                                               int behind, int ahead, Value value) {
  float sum = 0.0f;
  if (!g.within) {
    const long long pixels = static_cast<long long>(g.H) * g.W;
    const int channels = static_cast<int>(g.by_channels.divisor), group = c / g.by_channels * channels;
    const int first = max(c - behind, group);
    const int last = c + min(ahead, group + channels - 1 - c);
    for (int j = first; j <= last; ++j) sum += value(i + (j - c) * pixels);
    return sum;
  }
  const int top = max(h - behind, 0), bottom = h + min(ahead, g.H - 1 - h);
  const int left = max(w - behind, 0), right = w + min(ahead, g.W - 1 - w);
  for (int row = top; row <= bottom; ++row) {
    const long long start = i + static_cast<long long>(row - h) * g.W - w;
    float row_sum = 0.0f;
    for (int column = left; column <= right; ++column) row_sum += value(start + column);
    sum += row_sum;
  }
  return sum;
}

template <class Geometry, class Value>
__device__ __forceinline__ float window_sum(const Geometry& g, long long i, int behind, int ahead,
                                            Value value) {
  const int c = g.within ? 0 : static_cast<int>(i / g.by_pixels % g.by_C);
  const int h = g.within ? static_cast<int>(i / g.by_W % g.by_H) : 0;
  const int w = g.within ? static_cast<int>(i % g.by_W) : 0;
  return window_sum_at(g, i, c, h, w, behind, ahead, value);
}

// The part of a problem that one thread of a sliding kernel makes: channels [first, last) of one pixel.
struct Walk {
  int first, last;  // channels
  int begin, end;   // the group that they are in
  long long base;   // element of channel 0 of the pixel
  long long step;   // elements from one channel to the next
  bool any;         // false for the threads behind the last pixel
};

// Blocks that make neighbouring segments of the same pixels have neighbouring indices, and so run side by
// side: the channels that both read come from DRAM once.
template <int SEGMENT_CHANNELS, class Geometry>
__device__ __forceinline__ Walk walk_of_thread(const Geometry& g) {
  const int channels = static_cast<int>(g.by_channels.divisor);
  const int part = static_cast<int>(blockIdx.x % g.by_parts), group = part / g.by_segments;
  const long long pixel = static_cast<long long>(blockIdx.x / g.by_parts) * blockDim.x + threadIdx.x;
  Walk walk;
  walk.step = static_cast<long long>(g.H) * g.W;
  walk.begin = group * channels;
  walk.end = walk.begin + channels;
  walk.first = walk.begin + part % g.by_segments * SEGMENT_CHANNELS;
  walk.last = min(walk.first + SEGMENT_CHANNELS, walk.end);
  walk.base = pixel / g.by_pixels * g.C * walk.step + pixel % g.by_pixels;
  walk.any = pixel < walk.step * g.N;
  return walk;
}
