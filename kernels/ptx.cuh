// ptx.cuh: the only file with inline PTX. Each instruction stands beside its twin for the emulator, which
// has to behave as the ISA allows and no better: a twin that is kinder than the GPU hides bugs.
//
// cp.async (sm_80 and later): a copy from global to shared memory that goes on beside the thread. Of the
// bytes copied the first `valid` come from memory and the others are zeros, so a guarded edge costs no
// branch; with `valid` 0 nothing is read. Its data may be read after cp_async_wait and a barrier, and not
// before: the twin poisons the destination at once and delivers at the wait, as late as the ISA allows.
//
// mma.sync (sm_80 and later), of elements of 16 bits: sum += a b by a warp, where a is 16 x 16 elements of 16 bits, b 16 x 8, and sum
// 16 x 8 of 32 bits. Lane l holds, with g = l / 4 and t = 2 (l % 4), two elements in each register of a and b
// (the first one in the lower half), and four of sum:
//
//                 k  t, t+1     t+8, t+9
//      m  g          a[0]       a[2]          b0: k t, t+1     of column g         sum[0], sum[1]: row g
//         g+8        a[1]       a[3]          b1: k t+8, t+9   of column g         sum[2], sum[3]: row g + 8,
//                                                                                  columns t, t+1
//
// mma_m16n8k8_tf32 has half as many elements of twice the size, t = l % 4 and one element in each register:
//
//                 k  t         t+4
//      m  g          a[0]      a[2]             b0: k t     of column g           sum: as above
//         g+8        a[1]      a[3]             b1: k t+4   of column g
//
// They are floats of which 10 bits of the mantissa count: to_tf32 rounds to them, ties away from zero. What has
// more bits than that the ISA does not define as an operand, and the twin stops at it.
//
// Products are exact; no more is promised of their sum than single precision. The twin loses as much as the
// coarsest of tensor cores is known to (emulator/matrix.cpp).
//
// ldmatrix, ldmatrix_trans: 1, 2 or 4 matrices of 8 x 8 elements of 16 bits from shared memory, a register of
// each to a lane. `row` of lane l is the address of row l % 8 of matrix l / 8, a multiple of 16; of one matrix
// only the first 8 lanes' count, of two the first 16 lanes'. Lane l gets elements t and t + 1 of row g; or,
// transposed, rows t and t + 1 of column g. What other lanes have written needs a barrier or __syncwarp first.
//
// All 32 lanes have to come to the same one of these.
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

__device__ __forceinline__ void mma_m16n8k16_f16(float (&sum)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1, CONVKIT_SITE) {
  convkit_emulator::multiply(CKEMU_MMA_F16, sum, a, b0, b1, file, line);
}
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&sum)[4], const unsigned (&a)[4], unsigned b0,
                                                  unsigned b1, CONVKIT_SITE) {
  convkit_emulator::multiply(CKEMU_MMA_BF16, sum, a, b0, b1, file, line);
}
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&sum)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1, CONVKIT_SITE) {
  convkit_emulator::multiply(CKEMU_MMA_TF32, sum, a, b0, b1, file, line);
}
__device__ __forceinline__ unsigned to_tf32(float x) {
  const unsigned bits = __float_as_uint(x), half = 1u << 12, low = 2 * half - 1;
  if (x - x != 0.0f) return x == x ? bits : 0x7fffe000u;
  return (bits + half) & ~low;  // of the magnitude, so away from zero; what rounds up beyond all is infinite
}
template <int COUNT>
__device__ __forceinline__ void ldmatrix(unsigned (&to)[COUNT], const void* row, CONVKIT_SITE) {
  convkit_emulator::load_matrices(CKEMU_LDMATRIX, to, row, file, line);
}
template <int COUNT>
__device__ __forceinline__ void ldmatrix_trans(unsigned (&to)[COUNT], const void* row, CONVKIT_SITE) {
  convkit_emulator::load_matrices(CKEMU_LDMATRIX_TRANS, to, row, file, line);
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

#define CONVKIT_MMA(name, type)                                                                             \
  __device__ __forceinline__ void name(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                     \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                           \
  }
CONVKIT_MMA(mma_m16n8k16_f16, "f16")
CONVKIT_MMA(mma_m16n8k16_bf16, "bf16")
#undef CONVKIT_MMA

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&sum)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

#define CONVKIT_LDMATRIX(name, trans)                                                        \
  __device__ __forceinline__ void name(unsigned (&to)[1], const void* row) {                 \
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));              \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                 : "=r"(to[0])                                                               \
                 : "r"(from)                                                                 \
                 : "memory");                                                                \
  }                                                                                          \
  __device__ __forceinline__ void name(unsigned (&to)[2], const void* row) {                 \
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));              \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                 : "=r"(to[0]), "=r"(to[1])                                                  \
                 : "r"(from)                                                                 \
                 : "memory");                                                                \
  }                                                                                          \
  __device__ __forceinline__ void name(unsigned (&to)[4], const void* row) {                 \
    const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));              \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])                        \
                 : "r"(from)                                                                 \
                 : "memory");                                                                \
  }
CONVKIT_LDMATRIX(ldmatrix, "")
CONVKIT_LDMATRIX(ldmatrix_trans, ".trans")
#undef CONVKIT_LDMATRIX

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
