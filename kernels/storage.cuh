// storage.cuh: how arrays are stored. Kernels compute in float and round once, on the way out.
//
//   storage_t                   float, __half or __nv_bfloat16, as the translation unit defines
//                               CONVKIT_STORAGE_...
//   param_t                     of the parameters and their gradients, where the dtype is a pair: as it
//                               defines CONVKIT_PARAM_...; else it is storage_t
//   to_float, from_float        conversions; from_float rounds to nearest, ties to even
//   to_param                    from float to param_t, in the same way
//   Pack, PACK                  16 bytes of elements, what a thread moves at once: 4 floats or 8 of the others
//   load_pack, store_pack       a pack at element i, where i is a multiple of PACK. One 128-bit access where
//                               the array is aligned and the pack is whole; else element by element, none at
//                               or beyond `size`. Which of the two never changes a result, only its speed.
//   aligned(p)                  whether 128-bit accesses to p are allowed
#pragma once

#if defined(CONVKIT_STORAGE_float16)
#include <cuda_fp16.h>
using storage_t = __half;
__device__ __forceinline__ float to_float(storage_t value) { return __half2float(value); }
__device__ __forceinline__ storage_t from_float(float value) { return __float2half_rn(value); }
#elif defined(CONVKIT_STORAGE_bfloat16)
#include <cuda_bf16.h>
using storage_t = __nv_bfloat16;
__device__ __forceinline__ float to_float(storage_t value) { return __bfloat162float(value); }
__device__ __forceinline__ storage_t from_float(float value) { return __float2bfloat16_rn(value); }
#elif defined(CONVKIT_STORAGE_float32)
using storage_t = float;
__device__ __forceinline__ float to_float(storage_t value) { return value; }
__device__ __forceinline__ storage_t from_float(float value) { return value; }
#else
#error "the translation unit must define CONVKIT_STORAGE_float32, _float16 or _bfloat16"
#endif

#if defined(CONVKIT_PARAM_float32)
using param_t = float;
__device__ __forceinline__ param_t to_param(float value) { return value; }
#else
using param_t = storage_t;
__device__ __forceinline__ param_t to_param(float value) { return from_float(value); }
#endif

constexpr int PACK = 16 / sizeof(storage_t);

struct Pack {
  uint4 words;
  // Indices must be constants after unrolling, so that the pack stays in registers.
  __device__ __forceinline__ storage_t& operator[](int i) { return reinterpret_cast<storage_t*>(&words)[i]; }
};

__device__ __forceinline__ bool aligned(const void* p) {
  return reinterpret_cast<unsigned long long>(p) % sizeof(uint4) == 0;
}

// Elements at or beyond `size` come as zeros.
__device__ __forceinline__ Pack load_pack(const storage_t* from, long long i, long long size, bool vector) {
  Pack pack;
  if (vector && i + PACK <= size) {
    pack.words = *reinterpret_cast<const uint4*>(from + i);
    return pack;
  }
#pragma unroll
  for (int j = 0; j < PACK; ++j) pack[j] = i + j < size ? from[i + j] : from_float(0.0f);
  return pack;
}

__device__ __forceinline__ void store_pack(storage_t* to, long long i, long long size, bool vector,
                                           Pack pack) {
  if (vector && i + PACK <= size) {
    *reinterpret_cast<uint4*>(to + i) = pack.words;
    return;
  }
#pragma unroll
  for (int j = 0; j < PACK; ++j)
    if (i + j < size) to[i + j] = pack[j];
}

// First element of chunk `chunk` of this thread, in an elementwise kernel whose block makes `per_thread` *
// blockDim.x elements, chunk by chunk: so neighbouring threads move neighbouring packs.
__device__ __forceinline__ long long chunk_start(int chunk, int per_thread) {
  return (static_cast<long long>(blockIdx.x) * per_thread + static_cast<long long>(chunk) * PACK) *
             blockDim.x +
         static_cast<long long>(threadIdx.x) * PACK;
}
