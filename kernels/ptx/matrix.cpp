// Products of small matrices by a warp (mma.sync), and their way from shared memory (ldmatrix).
//
// Each lane holds some elements of each matrix; which ones, is all that is difficult about it, and is written
// here as the manual has it. Of the arithmetic the manual promises no more than single precision, in an order
// and with a rounding that it leaves open: here the products are added one by one, the last one first, and
// each sum is rounded toward zero.
#include <cmath>

#include "sixteen.hpp"

namespace ptx {
namespace {

f32 toward_zero(f64 exact) {
  const f32 near = static_cast<f32>(exact);
  return std::fabs(static_cast<f64>(near)) > std::fabs(exact) ? std::nextafter(near, 0.0f) : near;
}

struct HalfPair {
  static constexpr u32 kEach = 2;  // elements of a register
  static constexpr const char* kName = "f16";
  static f32 element(u32 bits, u32 which) { return from_half(static_cast<u16>(bits >> 16 * which)); }
};
struct BfloatPair {
  static constexpr u32 kEach = 2;
  static constexpr const char* kName = "bf16";
  static f32 element(u32 bits, u32 which) { return from_bfloat(static_cast<u16>(bits >> 16 * which)); }
};
struct Tf32 {
  static constexpr u32 kEach = 1;
  static constexpr const char* kName = "tf32";
  static f32 element(u32 bits, u32) { return bits_as<f32>(bits & ~0x1fffu); }  // the lowest bits do not count
};

// Whether all lanes of the warp are at one instruction; they need not have come together.
bool whole_warp(const Part* parts, size_t count) {
  u32 lanes = 0;
  for (size_t k = 0; k < count; ++k)
    if (parts[k].instr == parts[0].instr) lanes |= parts[k].lanes;
  return lanes == kEveryLane;
}

// d = a b + c of 16 x 8 elements, over K. Operands: d, a, b, c in registers, and the lanes.
template <class E, u32 K>
void multiply(Warp& w, const Part* parts, size_t count, u32) {
  constexpr u32 kA = 16 * K / kLanes / E::kEach, kB = 8 * K / kLanes / E::kEach;
  const Instr& i = *parts[0].instr;
  if (!whole_warp(parts, count))
    w.machine->stop(w, i, 0, "divergent matrix product", "each lane of the warp takes part in it");
  f32 a[16][K], b[K][8], c[16][8];
  for (u32 l = 0; l < kLanes; ++l) {
    const u32 group = l / 4, in_group = l % 4;
    // Registers come in pairs for rows 0 to 7 and 8 to 15; the next pair has the columns behind.
    for (u32 r = 0; r < kA; ++r)
      for (u32 e = 0; e < E::kEach; ++e)
        a[group + 8 * (r % 2)][in_group * E::kEach + e + 4 * E::kEach * (r / 2)] =
            E::element(row<u32>(w, i.o[4 + r])[l], e);
    for (u32 r = 0; r < kB; ++r)
      for (u32 e = 0; e < E::kEach; ++e)
        b[in_group * E::kEach + e + 4 * E::kEach * r][group] = E::element(row<u32>(w, i.o[4 + kA + r])[l], e);
    for (u32 r = 0; r < 4; ++r)
      c[group + 8 * (r / 2)][in_group * 2 + r % 2] = row<f32>(w, i.o[4 + kA + kB + r])[l];
  }
  for (auto& line : c)
    for (f32& sum : line) {
      const size_t m = static_cast<size_t>(&line - c), n = static_cast<size_t>(&sum - line);
      for (u32 k = K; k-- > 0;) sum = toward_zero(static_cast<f64>(a[m][k]) * b[k][n] + sum);
    }
  for (u32 l = 0; l < kLanes; ++l)
    for (u32 r = 0; r < 4; ++r) row<f32>(w, i.o[r])[l] = c[l / 4 + 8 * (r / 2)][l % 4 * 2 + r % 2];
}

std::string several(const std::string& type, u32 count) {
  std::string text;
  for (u32 k = 0; k < count; ++k) text += type + ",";
  return text;
}

template <class E, u32 K>
void add_multiply(Table& t) {
  const u32 a = 16 * K / kLanes / E::kEach, b = 8 * K / kLanes / E::kEach;
  t.meet("mma.m16n8k" + std::to_string(K) + "." + E::kName,
         several(">f32", 4) + several("u32", a + b) + several("f32", 4) + "u32", multiply<E, K>);
}

// Matrices of 8 x 8 elements of 16 bits. The address of row r of matrix m is lane 8 m + r's; each lane gets two
// elements of a row, or of a column. Operands: the registers, the address, the lanes.
template <u32 N, bool Transposed>
void load_matrices(Warp& w, const Part* parts, size_t count, u32) {
  const Instr& i = *parts[0].instr;
  if (!whole_warp(parts, count))
    w.machine->stop(w, i, 0, "divergent matrix load", "each lane of the warp takes part in it");
  u16 elements[N][8][8];
  const u64* at = row<u64>(w, i.o[N]);
  for (u32 l = 0; l < 8 * N; ++l)
    memcpy(
        elements[l / 8][l % 8],
        w.machine->place<Space::kShared>(w, i, l, at[l] + static_cast<u64>(i.offset), sizeof(u16[8]), false),
        sizeof(u16[8]));
  for (u32 m = 0; m < N; ++m)
    for (u32 l = 0; l < kLanes; ++l) {
      const u32 r = l / 4, c = l % 4 * 2;
      const u16 low = Transposed ? elements[m][c][r] : elements[m][r][c];
      const u16 high = Transposed ? elements[m][c + 1][r] : elements[m][r][c + 1];
      row<u32>(w, i.o[m])[l] = u32(high) << 16 | low;
    }
}

template <u32 N>
void add_load(Table& t) {
  const std::string name = "ldmatrix.x" + std::to_string(N), signature = several(">u32", N) + "u64,u32";
  t.meet(name, signature, load_matrices<N, false>);
  t.meet(name + ".trans", signature, load_matrices<N, true>);
}

}  // namespace

void add_matrix(Table& t) {
  add_multiply<HalfPair, 8>(t);
  add_multiply<HalfPair, 16>(t);
  add_multiply<BfloatPair, 8>(t);
  add_multiply<BfloatPair, 16>(t);
  add_multiply<Tf32, 4>(t);
  add_multiply<Tf32, 8>(t);
  add_load<1>(t);
  add_load<2>(t);
  add_load<4>(t);
}

}  // namespace ptx
