// Matrix operations of a warp: mma.sync and ldmatrix. All 32 lanes meet (warp.cpp); the last one to arrive
// computes for all, in what the others have left on their stacks.
//
// Which lane has which element, is asked here the other way round from how the ISA's tables say it: given an
// element, `in_a`, `in_b`, `in_c` tell the lane, the register, and the half of it.
//
// Rounding. The ISA promises no more than single precision, in no particular order. Measured on tensor cores
// (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330,
// 2021): exact products are shifted to the exponent of the largest addend, what is shifted out is lost, and so
// are the last bits of their sum. How many products meet at once, and how many more bits there are than the
// sum's 24, depends on the chip. Here 4 meet with the sum so far, and there are none, as on the oldest one: no
// later one is coarser. An error is toward zero, and so does not average out.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "memory.hpp"

namespace emu {
namespace {

constexpr uint32_t kM = 16, kN = 8;
constexpr uint32_t kTogether = 4;  // products that are added to a sum at once

struct Held {
  uint32_t lane, reg, half;
};
// Of elements of which a register holds `each`: 2, or 1.
constexpr Held in_a(uint32_t m, uint32_t k, uint32_t each) {
  return {m % 8 * 4 + k % (4 * each) / each, m / 8 + k / (4 * each) * 2, k % each};
}
constexpr Held in_b(uint32_t k, uint32_t n, uint32_t each) {
  return {n * 4 + k % (4 * each) / each, k / (4 * each), k % each};
}
constexpr Held in_c(uint32_t m, uint32_t n) { return {m % 8 * 4 + n / 2, m / 8 * 2 + n % 2, 0}; }

float of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
float of_half(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = (half & 0x7fffu) << 13;
  if (magnitude >= 0x7c00u << 13) return of_bits(sign | 0x7f800000u | magnitude);
  return of_bits(sign | magnitude) * 0x1p112f;  // from one bias of the exponent to the other; exact
}
// What the elements of an operand are.
struct Half {
  static constexpr uint32_t kEach = 2;
  static float element(uint32_t word, uint32_t half) { return of_half(word >> 16 * half & 0xffffu); }
};
struct Bfloat {
  static constexpr uint32_t kEach = 2;
  static float element(uint32_t word, uint32_t half) { return of_bits(word >> 16 * half << 16); }
};
struct Tf32 {
  static constexpr uint32_t kEach = 1;
  static float element(uint32_t word, uint32_t) { return of_bits(word); }
};
// Whether a word is a tf32 number: its last 13 bits are zeros, unless it is not finite.
bool is_tf32(uint32_t word) { return !(word & 0x1fffu) || (word & 0x7f800000u) == 0x7f800000u; }

// The 8 columns of a row of sums, side by side.
using Doubles = double __attribute__((vector_size(8 * sizeof(double))));
using Bits = int64_t __attribute__((vector_size(8 * sizeof(int64_t))));
using Floats = float __attribute__((vector_size(8 * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(8 * sizeof(int32_t))));

constexpr int kExponentAt = 52, kBias = 1023, kKept = 23;
constexpr int64_t kMagnitude = INT64_MAX;

Doubles widened(Floats values) { return __builtin_convertvector(values, Doubles); }

// What is left of numbers in single precision.
Floats toward_zero(Doubles values) {
  const Floats near = __builtin_convertvector(values, Floats);
  const Bits size = reinterpret_cast<Bits>(widened(near)) & kMagnitude,
             exact = reinterpret_cast<Bits>(values) & kMagnitude;
  constexpr int64_t infinite = 0x7ffll << kExponentAt;
  // Of a float, the neighbour that is nearer to zero has the bits before it.
  const Bits beyond = (size > exact) & (size != infinite);
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(near) + __builtin_convertvector(beyond, Ints));
}

// sums + products, as above.
Floats add_products(Floats sums, const Doubles* products) {
  const Doubles first = widened(sums);
  Doubles plain = first;
  Bits largest = reinterpret_cast<Bits>(first) & kMagnitude;
  for (uint32_t i = 0; i < kTogether; ++i) {
    plain += products[i];
    const Bits magnitude = reinterpret_cast<Bits>(products[i]) & kMagnitude;
    largest = magnitude > largest ? magnitude : largest;
  }
  // 2^(kKept - exponent) and its inverse. Where all addends are zeros, so is the scale.
  const Bits exponent = largest >> kExponentAt;
  const Bits scale_bits = (2 * kBias + kKept - exponent) << kExponentAt & (largest != 0);
  const Bits unit_bits = (exponent - kKept) << kExponentAt & (largest != 0);
  const auto scale = reinterpret_cast<Doubles>(scale_bits), unit = reinterpret_cast<Doubles>(unit_bits);
  Ints units = __builtin_convertvector(first * scale, Ints);
  for (uint32_t i = 0; i < kTogether; ++i) units += __builtin_convertvector(products[i] * scale, Ints);
  Floats found = toward_zero(__builtin_convertvector(units, Doubles) * unit);
  for (uint32_t n = 0; n < kN; ++n)
    if (plain[n] - plain[n] != 0)  // an infinity, or a NaN
      found[n] = plain[n] == plain[n] ? static_cast<float>(plain[n]) : of_bits(0x7fffffffu);
  return found;
}

void require_tf32(Worker& w, Thread* lanes, CkemuProduct* const* at) {
  for (uint32_t l = 0; l < 32; ++l) {
    const unsigned* const words[] = {at[l]->a,     at[l]->a + 1, at[l]->a + 2,
                                     at[l]->a + 3, at[l]->b,     at[l]->b + 1};
    for (const unsigned* word : words) {
      if (is_tf32(*word)) continue;
      w.current = &lanes[l];
      Report& r = report(w, "unrounded operand", lanes[l].file, lanes[l].line);
      snprintf(r.text, sizeof(r.text), "mma takes %s[%d] = %.9g, which is no tf32 number: to_tf32 rounds it",
               word < at[l]->b ? "a" : "b", static_cast<int>(word - (word < at[l]->b ? at[l]->a : at[l]->b)),
               static_cast<double>(of_bits(*word)));
      leave(w);
    }
  }
}

template <class Type>
void multiply(Worker& w, Thread* lanes) {
  constexpr uint32_t kK = 8 * Type::kEach;
  CkemuProduct* at[32];
  for (int l = 0; l < 32; ++l) memcpy(&at[l], lanes[l].value, sizeof(at[l]));
  if (Type::kEach == 1) require_tf32(w, lanes, at);
  double a[kM][kK];
  Doubles b[kK];
  for (uint32_t m = 0; m < kM; ++m)
    for (uint32_t k = 0; k < kK; ++k) {
      const Held held = in_a(m, k, Type::kEach);
      a[m][k] = Type::element(at[held.lane]->a[held.reg], held.half);
    }
  for (uint32_t n = 0; n < kN; ++n)
    for (uint32_t k = 0; k < kK; ++k) {
      const Held held = in_b(k, n, Type::kEach);
      b[k][n] = Type::element(at[held.lane]->b[held.reg], held.half);
    }
  for (uint32_t m = 0; m < kM; ++m) {
    Floats sums;
    for (uint32_t n = 0; n < kN; ++n) sums[n] = at[in_c(m, n).lane]->sum[in_c(m, n).reg];
    for (uint32_t k = 0; k < kK; k += kTogether) {
      Doubles products[kTogether];
      for (uint32_t i = 0; i < kTogether; ++i) products[i] = a[m][k + i] * b[k + i];
      sums = add_products(sums, products);
    }
    for (uint32_t n = 0; n < kN; ++n) at[in_c(m, n).lane]->sum[in_c(m, n).reg] = sums[n];
  }
}

// Whether an access is inside a block's shared memory; and whether it is beside, which is an index gone wrong.
bool in_shared(const Worker& w, uintptr_t a, size_t bytes, bool beside = false) {
  const size_t margin = beside ? 256 * 1024 : 0;
  const auto inside = [&](const unsigned char* first, size_t size) {
    const size_t offset = a - reinterpret_cast<uintptr_t>(first) + margin;
    return offset < size + 2 * margin && size + 2 * margin - offset >= bytes;
  };
  return inside(w.fixed_shared, w.fixed_bytes) || inside(w.dynamic_shared, w.launch->shared);
}

// A row of a matrix, by the lane that has its address.
const unsigned char* row_of(Worker& w, Thread& t) {
  constexpr size_t bytes = 16;
  const CkemuMatrices* lane;
  memcpy(&lane, t.value, sizeof(lane));
  const auto a = reinterpret_cast<uintptr_t>(lane->row);
  w.current = &t;
  if (a % bytes) {
    Report& r = report(w, "misaligned access", t.file, t.line);
    snprintf(r.text, sizeof(r.text), "ldmatrix takes a row from %p, which is no multiple of 16", lane->row);
    leave(w);
  }
  if (w.launch->check && !arena.holds(a)) check_row(w, lane->row, t.file, t.line);
  if (!in_shared(w, a, bytes)) {
    Report& r = report(w, in_shared(w, a, bytes, true) ? "array overrun" : "wild access", t.file, t.line);
    snprintf(r.text, sizeof(r.text), "ldmatrix takes a row of 16 bytes from %p, not in shared memory",
             lane->row);
    leave(w);
  }
  return static_cast<const unsigned char*>(lane->row);
}

// Element (r, c) of matrix m: lane 8 m + r has the address of its row. A lane gets two elements, neighbours in
// a row; or, transposed, in a column.
void load(Worker& w, Thread* lanes, uint32_t count, bool transposed) {
  Thread* const running = w.current;
  CkemuMatrices* at[32];
  for (int l = 0; l < 32; ++l) memcpy(&at[l], lanes[l].value, sizeof(at[l]));
  for (uint32_t m = 0; m < count; ++m) {
    const unsigned char* rows[8];
    for (uint32_t r = 0; r < 8; ++r) rows[r] = row_of(w, lanes[m * 8 + r]);
    for (uint32_t l = 0; l < 32; ++l) {
      uint16_t two[2];
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t along = l % 4 * 2 + i, r = transposed ? along : l / 4, c = transposed ? l / 4 : along;
        const unsigned char* from = rows[r] + c * sizeof(two[i]);
        if (w.launch->check && (transposed || i == 0)) {
          w.current = &lanes[l];
          check_element(w, rows[r] + c / 2 * 4, lanes[l].file, lanes[l].line);
        }
        memcpy(&two[i], from, sizeof(two[i]));
      }
      at[l]->to[m] = two[0] | static_cast<uint32_t>(two[1]) << 16;
    }
  }
  w.current = running;
}

}  // namespace

Report& divergent_matrix(Worker& w, const Thread& t) {
  w.current = const_cast<Thread*>(&t);
  return report(w, "divergent matrix operation", t.file, t.line);
}

void matrix_operation(Worker& w, uint32_t warp, uint32_t group) {
  Thread* lanes = &w.threads[warp * 32];
  const Thread& first = lanes[__builtin_ctz(group)];
  if (group != ~0u) {
    Report& r = divergent_matrix(w, first);
    snprintf(r.text, sizeof(r.text), "the warp has no lane %d here: it has left the kernel, or never was",
             __builtin_ctz(~group));
    leave(w);
  }
  for (int l = 1; l < 32; ++l) {
    const Thread& t = lanes[l];
    if (t.operand == first.operand && t.line == first.line &&
        (t.file == first.file || !strcmp(t.file, first.file)))
      continue;
    Report& r = divergent_matrix(w, t);
    snprintf(r.text, sizeof(r.text), "lanes of one warp come to different places");
    name_other(w, r, first);
    leave(w);
  }
  if (first.op == CKEMU_MMA_F16)
    multiply<Half>(w, lanes);
  else if (first.op == CKEMU_MMA_BF16)
    multiply<Bfloat>(w, lanes);
  else if (first.op == CKEMU_MMA_TF32)
    multiply<Tf32>(w, lanes);
  else
    load(w, lanes, static_cast<uint32_t>(first.operand), first.op == CKEMU_LDMATRIX_TRANS);
}

}  // namespace emu

void ckemu_matrix(int op, int count, void* lane, const char* file, int line) {
  ckemu_warp(op, ~0u, &lane, sizeof(lane), count, 32, file, line);
}
