// What a kernel's translation unit and the runtime share: the built-in variables and the calls from one to
// the other. Plain C linkage, so that a kernel's .so finds the runtime's symbols whatever it was compiled
// with.
//
// The built-in variables are thread-local with the initial-exec model: one instruction to read them. To a
// kernel they are `const`, which is true (a fiber's threadIdx never changes while it lives, and fibers never
// move to another OS thread) and pays twice: the compiler may keep them in registers across barriers, and
// the sanitizer's pass leaves reads of constants alone.
#pragma once

#include "types.hpp"

#if defined(CONVKIT_EMULATOR_RUNTIME)
#define CONVKIT_BUILTIN __attribute__((tls_model("initial-exec"), visibility("default"))) extern __thread
#else
#define CONVKIT_BUILTIN \
  __attribute__((tls_model("initial-exec"), visibility("default"))) extern __thread const
#endif

// Where in the user's source something happens: default arguments are evaluated at the call.
#define CONVKIT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

extern "C" {
CONVKIT_BUILTIN uint3 threadIdx;
CONVKIT_BUILTIN uint3 blockIdx;
CONVKIT_BUILTIN uint3 blockDim;
CONVKIT_BUILTIN uint3 gridDim;

#pragma GCC visibility push(default)
// Block-wide barriers; returns the count, the conjunction or the disjunction of `predicate`.
enum { CKEMU_SYNC, CKEMU_COUNT, CKEMU_AND, CKEMU_OR };
int ckemu_barrier(int kind, int predicate, const char* file, int line);

// Warp-wide operations: the lanes of `mask` meet, then `value` (at most 16 bytes) holds each lane's result.
enum {
  CKEMU_SYNCWARP,
  CKEMU_SHFL_IDX,
  CKEMU_SHFL_UP,
  CKEMU_SHFL_DOWN,
  CKEMU_SHFL_XOR,
  CKEMU_BALLOT,
  CKEMU_MATCH_ANY,
  CKEMU_ADD,
  CKEMU_MIN_S,
  CKEMU_MAX_S,
  CKEMU_MIN_U,
  CKEMU_MAX_U,
  CKEMU_RAND,
  CKEMU_ROR,
  CKEMU_RXOR,
  CKEMU_MMA_F16,  // from here on: of a whole warp, see ckemu_matrix
  CKEMU_MMA_BF16,
  CKEMU_MMA_TF32,
  CKEMU_LDMATRIX,
  CKEMU_LDMATRIX_TRANS
};
void ckemu_warp(int op, unsigned mask, void* value, unsigned bytes, int operand, int width, const char* file,
                int line);
unsigned ckemu_activemask(void);

// Matrix operations of all 32 lanes; `lane` is what this lane brings and gets, one of these two. `count` is
// that of the matrices to load, 1, 2 or 4.
struct CkemuProduct {  // sum += a b
  float sum[4];
  unsigned a[4], b[2];
};
struct CkemuMatrices {
  const void* row;  // of lane i: row i % 8 of matrix i / 8
  unsigned to[4];
};
void ckemu_matrix(int op, int count, void* lane, const char* file, int line);

// Asynchronous copies to shared memory: `bytes` of which the first `valid` come from `from`, the rest are
// zeros.
void ckemu_copy_async(void* to, const void* from, unsigned bytes, unsigned valid, const char* file, int line);
void ckemu_copy_commit(void);
void ckemu_copy_wait(unsigned groups_in_flight);

void* ckemu_dynamic_shared(void);
// The same as a variable: what `extern __shared__ T name[]` becomes (emulator.py) is declared as this symbol.
#if defined(CONVKIT_EMULATOR_RUNTIME)
extern __thread __attribute__((tls_model("initial-exec"))) void* ckemu_dynamic;
#endif
// A count that grows with every call, for clock() and its like; `passed` is added to it first.
unsigned long long ckemu_clock(unsigned passed);
// Keeps a line of device printf for after the launch.
int ckemu_printf(const char* format, ...);
// In check mode: an access by an atomic operation, told before it is made.
void ckemu_atomic(const void* at, unsigned bytes, const char* file, int line);
[[noreturn]] void ckemu_fail(const char* kind, const char* text, const char* file, int line);
#pragma GCC visibility pop
}
