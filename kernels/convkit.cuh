// convkit.cuh: the few words that kernels share, for NVRTC, nvcc and the emulator alike (no host header).
//
//   DYN_SMEM(T, name);       T* name: the block's dynamic shared memory, aligned to 16 bytes. CUDA's own
//                            spelling, `extern __shared__ T name[]`, does as well, with one T for a name.
//   ceil_div(a, b)           a / b rounded up, for a >= 0 and b > 0
//   cp_async_16, cp_async_4, cp_async_commit, cp_async_wait<N>    asynchronous copies (ptx.cuh)
#pragma once

#include "ptx.cuh"

#if defined(CONVKIT_EMULATOR)
#define DYN_SMEM(T, name) T* const name = static_cast<T*>(ckemu_dynamic_shared())
#else
#define DYN_SMEM(T, name)                                                 \
  extern __shared__ __align__(16) unsigned char convkit_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(convkit_dynamic_shared)
#endif

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}
