// maxpool2d.cuh: what the max-pool kernels share: how argmax is stored.
// A Geometry has the members of Pool2d: it is Pool2d itself, or LrnMaxPool2d.
#pragma once

#include "storage.cuh"
#include "strip.cuh"

// argmax is a position in the window, in the smallest unsigned type that holds R*S of them (geometry.Pool2d).
// The type is the same for all threads, so the branch costs next to nothing.
template <class Geometry>
__device__ __forceinline__ long long window_taps(const Geometry& g) {
  return static_cast<long long>(g.R) * g.S;
}

template <class Geometry>
__device__ __forceinline__ unsigned load_argmax(const Geometry& g, const void* argmax, long long i) {
  if (window_taps(g) <= 1 << 8) return static_cast<const unsigned char*>(argmax)[i];
  if (window_taps(g) <= 1 << 16) return static_cast<const unsigned short*>(argmax)[i];
  return static_cast<const unsigned*>(argmax)[i];
}

template <class Geometry>
__device__ __forceinline__ void store_argmax(const Geometry& g, void* argmax, long long i, unsigned value) {
  if (window_taps(g) <= 1 << 8)
    static_cast<unsigned char*>(argmax)[i] = static_cast<unsigned char>(value);
  else if (window_taps(g) <= 1 << 16)
    static_cast<unsigned short*>(argmax)[i] = static_cast<unsigned short>(value);
  else
    static_cast<unsigned*>(argmax)[i] = value;
}
