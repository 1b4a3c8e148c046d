// The functions that a kernel calls because it was compiled with
//   -fsanitize=thread,alignment,bounds,signed-integer-overflow
// (in fast mode with `alignment` alone) and linked without the sanitizers: names and parameters are the
// compiler's, what they do is ours. The thread sanitizer's part announces each load and store, which needs no
// wrapper types and no change to the source. The others are only called where something is wrong already, and
// know its place in the source.
#include <cstdio>
#include <cstring>

#include "check.hpp"

using namespace emu;

static inline __attribute__((always_inline)) void seen(void* address, How how, uint32_t bytes, void* from) {
  Worker* w = worker;
  if (!w || !w->shadow || !bytes) return;
  const auto pc = static_cast<uint32_t>(reinterpret_cast<uint64_t>(from) - w->launch->module_low);
  access(*w, reinterpret_cast<uintptr_t>(address), {how, bytes, pc});
}

#define HERE __builtin_return_address(0)
#define HOOKS(n)                                                            \
  void __tsan_read##n(void* a) { seen(a, How::Read, n, HERE); }             \
  void __tsan_write##n(void* a) { seen(a, How::Write, n, HERE); }           \
  void __tsan_unaligned_read##n(void* a) { seen(a, How::Read, n, HERE); }   \
  void __tsan_unaligned_write##n(void* a) { seen(a, How::Write, n, HERE); } \
  void __tsan_volatile_read##n(void* a) { seen(a, How::Read, n, HERE); }    \
  void __tsan_volatile_write##n(void* a) { seen(a, How::Write, n, HERE); }

// As the compiler lays them out.
struct Location {
  const char* file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;
  char name[1];
};
struct Mismatch {
  Location at;
  const Type* type;
  unsigned char log_alignment, kind;
};
struct Bounds {
  Location at;
  const Type* array;
  const Type* index;
};
struct Overflow {
  Location at;
  const Type* type;
};

static Report& wrong(const char* kind, const Location& at, void* from) {
  return report(*worker, kind, at.file, static_cast<int>(at.line), reinterpret_cast<uint64_t>(from));
}

static long long value_of(const Type& type, uintptr_t v) {
  const unsigned bits = 1u << (type.info >> 1);
  if (bits > 64) return *reinterpret_cast<const long long*>(v);
  if (!(type.info & 1) || bits == 64) return static_cast<long long>(v);
  return static_cast<long long>(static_cast<unsigned long long>(v) << (64 - bits)) >> (64 - bits);
}

[[noreturn]] static void overflow(const Overflow* data, const char* sign, uintptr_t a, uintptr_t b,
                                  void* from) {
  Report& r = wrong("integer overflow", data->at, from);
  snprintf(r.text, sizeof(r.text), "%lld %s %lld does not fit %s", value_of(*data->type, a), sign,
           value_of(*data->type, b), data->type->name);
  leave(*worker);
}

extern "C" {
#pragma GCC visibility push(default)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* a, unsigned long n) { seen(a, How::Read, static_cast<uint32_t>(n), HERE); }
void __tsan_write_range(void* a, unsigned long n) { seen(a, How::Write, static_cast<uint32_t>(n), HERE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void __ubsan_handle_type_mismatch_v1(const Mismatch* data, uintptr_t address) {
  const unsigned long alignment = 1ul << data->log_alignment;
  // Copies of the fast mode keep the caller's address modulo 16 alone (memory.hpp), which is all that
  // accesses of up to 16 bytes need, the widest on most GPUs: a struct aligned to more is moved in pieces
  // there.
  if (!worker->launch->check && alignment > 16 && address % 16 == 0) return;
  Report& r = wrong(address ? "misaligned access" : "null pointer", data->at, HERE);
  snprintf(r.text, sizeof(r.text), "address 0x%llx as %s, which needs a multiple of %lu",
           static_cast<unsigned long long>(address), data->type->name, alignment);
  leave(*worker);
}
void __ubsan_handle_out_of_bounds(const Bounds* data, uintptr_t index) {
  Report& r = wrong("array overrun", data->at, HERE);
  snprintf(r.text, sizeof(r.text), "index %lld of %s", value_of(*data->index, index), data->array->name);
  leave(*worker);
}
void __ubsan_handle_add_overflow(const Overflow* d, uintptr_t a, uintptr_t b) {
  overflow(d, "+", a, b, HERE);
}
void __ubsan_handle_sub_overflow(const Overflow* d, uintptr_t a, uintptr_t b) {
  overflow(d, "-", a, b, HERE);
}
void __ubsan_handle_mul_overflow(const Overflow* d, uintptr_t a, uintptr_t b) {
  overflow(d, "*", a, b, HERE);
}
void __ubsan_handle_divrem_overflow(const Overflow* d, uintptr_t a, uintptr_t b) {
  overflow(d, "/", a, b, HERE);
}
void __ubsan_handle_negate_overflow(const Overflow* d, uintptr_t a) {
  overflow(d, "negated, from", a, 0, HERE);
}
#pragma GCC visibility pop
}
