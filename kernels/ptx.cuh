// ptx.cuh: the only file with inline PTX. Each instruction stands beside its twin for the emulator, which
// has to behave as the ISA allows and no better: a twin that is kinder than the GPU hides bugs.
//
// cp.async (sm_80 and later): a copy from global to shared memory that goes on beside the thread. Of the
// bytes copied the first `valid` come from memory and the others are zeros, so a guarded edge costs no
// branch; with `valid` 0 nothing is read. Its data may be read after cp_async_wait and a barrier, and not
// before: the twin poisons the destination at once and delivers at the wait, as late as the ISA allows.
//
// rsqrt_normal, sqrt_normal: one instruction each, which takes a subnormal number for zero. rsqrtf and sqrtf
// scale such a number first, in three more. Off by some 2^-23 of the result; an infinity gives 0 and
// infinity, a NaN a NaN.
#pragma once

#if defined(CONVKIT_EMULATOR)

__device__ __forceinline__ void cp_async_16(void* smem, const void* gmem, int valid = 16, CONVKIT_SITE) {
  ckemu_copy_async(smem, gmem, 16, static_cast<unsigned>(valid), file, line);
}
__device__ __forceinline__ void cp_async_4(void* smem, const void* gmem, int valid = 4, CONVKIT_SITE) {
  ckemu_copy_async(smem, gmem, 4, static_cast<unsigned>(valid), file, line);
}
__device__ __forceinline__ void cp_async_commit() { ckemu_copy_commit(); }
template <int GROUPS_IN_FLIGHT>
__device__ __forceinline__ void cp_async_wait() {
  ckemu_copy_wait(GROUPS_IN_FLIGHT);
}

__device__ __forceinline__ float without_subnormals(float x) {
  return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x;
}
__device__ __forceinline__ float rsqrt_normal(float x) {
  return without_subnormals(1.0f / sqrtf(without_subnormals(x)));
}
__device__ __forceinline__ float sqrt_normal(float x) { return sqrtf(without_subnormals(x)); }

#else

__device__ __forceinline__ void cp_async_16(void* smem, const void* gmem, int valid = 16) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(smem));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(gmem), "r"(valid) : "memory");
}
__device__ __forceinline__ void cp_async_4(void* smem, const void* gmem, int valid = 4) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(smem));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(gmem), "r"(valid) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS_IN_FLIGHT>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_IN_FLIGHT) : "memory");
}

__device__ __forceinline__ float rsqrt_normal(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sqrt_normal(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif
