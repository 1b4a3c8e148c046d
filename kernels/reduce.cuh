// reduce.cuh: sums and maxima over a warp or a block, in a fixed tree, so that the same inputs give the same
// bits. Every thread of the warp or block must call, and each gets the result. Sums are of float, double or
// int.
#pragma once

constexpr unsigned ALL_LANES = 0xffffffffu;

// Over the warp, or over LANES lanes in a row, a power of two.
template <int LANES = 32, class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int lanes = LANES / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(ALL_LANES, value, lanes);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, lanes));
  return value;
}

// `partial` is shared memory of one value per warp, used for this one call.
template <int WARPS, class T>
__device__ __forceinline__ T block_sum(T value, T* partial) {
  static_assert(WARPS >= 1 && WARPS <= 32, "a warp reduces what the warps leave");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return warp_sum(lane < WARPS ? partial[lane] : T(0));
}

template <int WARPS>
__device__ __forceinline__ float block_max(float value, float* partial) {
  static_assert(WARPS >= 1 && WARPS <= 32, "a warp reduces what the warps leave");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  value = warp_max(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return warp_max(partial[lane < WARPS ? lane : 0]);
}
