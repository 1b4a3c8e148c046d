// Loads, stores and atomics. Each access of each lane is checked: whose memory it is, and its alignment.
#include "machine.hpp"

namespace ptx {
namespace {

template <Space S, class T, u32 N, class A>
void load(Warp& w, const Instr& i, u32 lanes) {
  T* to[N];
  for (u32 k = 0; k < N; ++k) to[k] = row<T>(w, i.o[k]);
  const A* at = row<A>(w, i.o[N]);
  for (u32 left = lanes; left; left &= left - 1) {
    const u32 l = static_cast<u32>(__builtin_ctz(left));
    const A address = static_cast<A>(at[l] + static_cast<A>(i.offset));
    T values[N];
    memcpy(values, w.machine->place<S>(w, i, l, address, sizeof(values), false), sizeof(values));
    for (u32 k = 0; k < N; ++k) to[k][l] = values[k];
  }
}

template <Space S, class T, u32 N, class A>
void store(Warp& w, const Instr& i, u32 lanes) {
  const T* from[N];
  for (u32 k = 0; k < N; ++k) from[k] = row<T>(w, i.o[1 + k]);
  const A* at = row<A>(w, i.o[0]);
  for (u32 left = lanes; left; left &= left - 1) {
    const u32 l = static_cast<u32>(__builtin_ctz(left));
    const A address = static_cast<A>(at[l] + static_cast<A>(i.offset));
    T values[N];
    for (u32 k = 0; k < N; ++k) values[k] = from[k][l];
    memcpy(w.machine->place<S>(w, i, l, address, sizeof(values), true), values, sizeof(values));
  }
}

std::string several(const std::string& type, u32 count) {
  std::string text = type;
  for (u32 k = 1; k < count; ++k) text += "," + type;
  return text;
}

template <Space S, class T, u32 N, class A>
void add_access(Table& t, const std::string& space, bool stores) {
  const std::string type = type_name<T>(), address = type_name<A>();
  const std::string tail =
      space + "." + address + ".v" + std::to_string(N) + ".b" + std::to_string(8 * sizeof(T));
  t.plain("ld." + tail, several(">" + type, N) + "," + address, load<S, T, N, A>);
  if (stores) t.plain("st." + tail, address + "," + several(type, N), store<S, T, N, A>);
}

template <Space S, class A>
void add_space(Table& t, const std::string& space, bool stores) {
  add_access<S, u8, 1, A>(t, space, stores);
  add_access<S, u8, 2, A>(t, space, stores);
  add_access<S, u8, 4, A>(t, space, stores);
  add_access<S, u16, 1, A>(t, space, stores);
  add_access<S, u16, 2, A>(t, space, stores);
  add_access<S, u16, 4, A>(t, space, stores);
  add_access<S, u32, 1, A>(t, space, stores);
  add_access<S, u32, 2, A>(t, space, stores);
  add_access<S, u32, 4, A>(t, space, stores);
  add_access<S, u64, 1, A>(t, space, stores);
  add_access<S, u64, 2, A>(t, space, stores);
  if constexpr (S == Space::kGlobal) {  // of 256 bits, since sm_100
    add_access<S, u32, 8, A>(t, space, stores);
    add_access<S, u64, 4, A>(t, space, stores);
  }
}

// Lane after lane: the old value is the result, and a function of it and the operands takes its place.
template <Space S, class T, class F, class A>
void atomic(Warp& w, const Instr& i, u32 lanes) {
  T* to = row<T>(w, i.o[0]);
  const A* at = row<A>(w, i.o[1]);
  const T* b = row<T>(w, i.o[2]);
  const T* c = row<T>(w, i.o[3]);
  for (u32 left = lanes; left; left &= left - 1) {
    const u32 l = static_cast<u32>(__builtin_ctz(left));
    const A address = static_cast<A>(at[l] + static_cast<A>(i.offset));
    u8* place = w.machine->place<S>(w, i, l, address, sizeof(T), true);
    T old;
    memcpy(&old, place, sizeof(T));
    const T made = F{}(old, b[l], c[l]);
    memcpy(place, &made, sizeof(T));
    to[l] = old;
  }
}

template <class T, class F>
void add_atomic(Table& t, const std::string& name, F) {
  const std::string type = type_name<T>(), rest = "," + type + "," + type;
  t.plain("atom.generic.u64." + name, ">" + type + ",u64" + rest, atomic<Space::kGeneric, T, F, u64>);
  t.plain("atom.global.u64." + name, ">" + type + ",u64" + rest, atomic<Space::kGlobal, T, F, u64>);
  t.plain("atom.shared.u64." + name, ">" + type + ",u64" + rest, atomic<Space::kShared, T, F, u64>);
  t.plain("atom.shared.u32." + name, ">" + type + ",u32" + rest, atomic<Space::kShared, T, F, u32>);
}

template <class T>
void add_atomic_integers(Table& t, const std::string& type) {
  using W = std::make_unsigned_t<T>;
  add_atomic<T>(t, "add." + type, [](T a, T b, T) -> T { return static_cast<T>(W(a) + W(b)); });
  add_atomic<T>(t, "min." + type, [](T a, T b, T) -> T { return a < b ? a : b; });
  add_atomic<T>(t, "max." + type, [](T a, T b, T) -> T { return a > b ? a : b; });
}

template <class T>
void add_atomic_bits(Table& t, const std::string& type) {
  add_atomic<T>(t, "and." + type, [](T a, T b, T) -> T { return a & b; });
  add_atomic<T>(t, "or." + type, [](T a, T b, T) -> T { return a | b; });
  add_atomic<T>(t, "xor." + type, [](T a, T b, T) -> T { return a ^ b; });
  add_atomic<T>(t, "exch." + type, [](T, T b, T) -> T { return b; });
  add_atomic<T>(t, "cas." + type, [](T a, T b, T c) -> T { return a == b ? c : a; });
}

// Where an address of a space is as a generic one, and back.
template <class T>
void to_generic_shared(Warp& w, const Instr& i, u32 lanes) {
  u64* to = row<u64>(w, i.o[0]);
  const T* from = row<T>(w, i.o[1]);
  each(lanes, [&](u32 l) { to[l] = reinterpret_cast<u64>(w.machine->shared) + from[l]; });
}
void from_generic_shared(Warp& w, const Instr& i, u32 lanes) {
  u64* to = row<u64>(w, i.o[0]);
  const u64* from = row<u64>(w, i.o[1]);
  each(lanes, [&](u32 l) { to[l] = from[l] - reinterpret_cast<u64>(w.machine->shared); });
}
u64 local_base(const Warp& w, u32 l) {
  return reinterpret_cast<u64>(w.local) + u64(l) * w.machine->local_stride;
}
void to_generic_local(Warp& w, const Instr& i, u32 lanes) {
  u64* to = row<u64>(w, i.o[0]);
  const u64* from = row<u64>(w, i.o[1]);
  each(lanes, [&](u32 l) { to[l] = local_base(w, l) + from[l]; });
}
void from_generic_local(Warp& w, const Instr& i, u32 lanes) {
  u64* to = row<u64>(w, i.o[0]);
  const u64* from = row<u64>(w, i.o[1]);
  each(lanes, [&](u32 l) { to[l] = from[l] - local_base(w, l); });
}

void nothing(Warp&, const Instr&, u32) {}

}  // namespace

void add_memory(Table& t) {
  add_space<Space::kGeneric, u64>(t, "generic", true);
  add_space<Space::kGlobal, u64>(t, "global", true);
  add_space<Space::kShared, u64>(t, "shared", true);
  add_space<Space::kShared, u32>(t, "shared", true);
  add_space<Space::kLocal, u64>(t, "local", true);
  add_space<Space::kParam, u64>(t, "param", false);

  add_atomic_integers<u32>(t, "u32");
  add_atomic_integers<s32>(t, "s32");
  add_atomic_integers<u64>(t, "u64");
  add_atomic_integers<s64>(t, "s64");
  add_atomic_bits<u32>(t, "b32");
  add_atomic_bits<u64>(t, "b64");
  add_atomic<f32>(t, "add.f32", [](f32 a, f32 b, f32) -> f32 { return a + b; });
  add_atomic<f64>(t, "add.f64", [](f64 a, f64 b, f64) -> f64 { return a + b; });
  add_atomic<u32>(t, "inc.u32", [](u32 a, u32 b, u32) -> u32 { return a >= b ? 0 : a + 1; });
  add_atomic<u32>(t, "dec.u32", [](u32 a, u32 b, u32) -> u32 { return a == 0 || a > b ? b : a - 1; });

  t.plain("cvta.shared.u64", ">u64,u64", to_generic_shared<u64>);
  t.plain("cvta.to.shared.u64", ">u64,u64", from_generic_shared);
  t.plain("cvta.local.u64", ">u64,u64", to_generic_local);
  t.plain("cvta.to.local.u64", ">u64,u64", from_generic_local);
  t.plain("nothing", "", nothing);
}

}  // namespace ptx
