// What the lanes of a warp do together: shuffles, votes, matches and reductions.
//
// A value that is taken from a lane which has not come, or which has exited, is undefined: it is poison.
#include <cstdio>

#include "machine.hpp"

namespace ptx {
namespace {

// An operand's values of all lanes that have come, and which those are.
struct Gathered {
  u32 values[kLanes], lanes = 0;

  Gathered(const Warp& w, const Part* parts, size_t count, u32 operand) {
    for (u32& value : values) value = kPoison32;
    for (size_t k = 0; k < count; ++k) {
      const u32* from = row<u32>(w, parts[k].instr->o[operand]);
      each(parts[k].lanes, [&](u32 l) { values[l] = from[l]; });
      lanes |= parts[k].lanes;
    }
  }
};

void set(u32& predicate, u32 l, bool value) { predicate = (predicate & ~(1u << l)) | u32(value) << l; }

enum class Mode { kUp, kDown, kButterfly, kIndex };

// Operands: the result and whether it is in range; the value, b, c; the lanes.
template <Mode M>
void shuffle(Warp& w, const Part* parts, size_t count, u32) {
  const Gathered all(w, parts, count, 2);
  for (size_t k = 0; k < count; ++k) {
    const u32* o = parts[k].instr->o;
    u32 *to = row<u32>(w, o[0]), *in_range = row<u32>(w, o[1]);
    const u32 *bs = row<u32>(w, o[3]), *cs = row<u32>(w, o[4]);
    for (u32 left = parts[k].lanes; left; left &= left - 1) {
      const u32 lane = static_cast<u32>(__builtin_ctz(left));
      const u32 b = bs[lane] & 31, c = cs[lane] & 31, segment = cs[lane] >> 8 & 31;
      const s32 most = static_cast<s32>((lane & segment) | (c & ~segment));
      s32 from = static_cast<s32>(lane);
      bool inside;
      if constexpr (M == Mode::kUp) {
        from -= static_cast<s32>(b);
        inside = from >= most;
      } else {
        if constexpr (M == Mode::kDown) from += static_cast<s32>(b);
        if constexpr (M == Mode::kButterfly) from = static_cast<s32>(lane ^ b);
        if constexpr (M == Mode::kIndex) from = static_cast<s32>((lane & segment) | (b & ~segment & 31));
        inside = from <= most;
      }
      if (!inside) from = static_cast<s32>(lane);
      to[lane] = all.values[from];
      set(*in_range, lane, inside);
    }
  }
}

enum class Vote { kAll, kAny, kUni, kBallot };

// Operands: the result, the predicate, the lanes.
template <Vote V>
void vote(Warp& w, const Part* parts, size_t count, u32) {
  u32 yes = 0, all = 0;
  for (size_t k = 0; k < count; ++k) {
    yes |= *row<u32>(w, parts[k].instr->o[1]) & parts[k].lanes;
    all |= parts[k].lanes;
  }
  const bool value = V == Vote::kAll ? yes == all : V == Vote::kAny ? yes != 0 : yes == all || !yes;
  for (size_t k = 0; k < count; ++k) {
    u32* to = row<u32>(w, parts[k].instr->o[0]);
    if constexpr (V == Vote::kBallot)
      each(parts[k].lanes, [&](u32 l) { to[l] = yes; });
    else
      *to = (*to & ~parts[k].lanes) | (value ? parts[k].lanes : 0);
  }
}

template <class T, class F>
void reduce(Warp& w, const Part* parts, size_t count, u32) {
  const Gathered all(w, parts, count, 1);
  T value{};
  bool first = true;
  for (u32 left = all.lanes; left; left &= left - 1) {
    const T next = static_cast<T>(all.values[__builtin_ctz(left)]);
    value = first ? next : F{}(value, next);
    first = false;
  }
  for (size_t k = 0; k < count; ++k) {
    T* to = row<T>(w, parts[k].instr->o[0]);
    each(parts[k].lanes, [&](u32 l) { to[l] = value; });
  }
}

void match_any(Warp& w, const Part* parts, size_t count, u32) {
  const Gathered all(w, parts, count, 1);
  for (size_t k = 0; k < count; ++k) {
    u32* to = row<u32>(w, parts[k].instr->o[0]);
    for (u32 left = parts[k].lanes; left; left &= left - 1) {
      const u32 l = static_cast<u32>(__builtin_ctz(left));
      to[l] = 0;
      for (u32 other = all.lanes; other; other &= other - 1) {
        const u32 m = static_cast<u32>(__builtin_ctz(other));
        if (all.values[m] == all.values[l]) to[l] |= 1u << m;
      }
    }
  }
}

void meet_only(Warp&, const Part*, size_t, u32) {}

void activemask(Warp& w, const Instr& i, u32 lanes) {
  u32* to = row<u32>(w, i.o[0]);
  each(lanes, [&](u32 l) { to[l] = lanes; });
}

void trap(Warp& w, const Instr& i, u32 lanes) {
  w.machine->stop(w, i, static_cast<u32>(__builtin_ctz(lanes)), "trap", "the kernel gives up here");
}

template <class T, class F>
void add_redux(Table& t, const std::string& name, const std::string& type, F) {
  const std::string own = type_name<T>();
  t.meet("redux.sync." + name + "." + type, ">" + own + "," + own + ",u32", reduce<T, F>);
}

template <class T>
void add_extremes(Table& t, const std::string& type) {
  add_redux<T>(t, "min", type, [](T a, T b) -> T { return a < b ? a : b; });
  add_redux<T>(t, "max", type, [](T a, T b) -> T { return a > b ? a : b; });
  add_redux<T>(t, "add", type, [](T a, T b) -> T { return static_cast<T>(u32(a) + u32(b)); });
}

}  // namespace

void add_warp(Table& t) {
  const char* shuffled = ">u32,>pred,u32,u32,u32,u32";
  t.meet("shfl.sync.up.b32", shuffled, shuffle<Mode::kUp>);
  t.meet("shfl.sync.down.b32", shuffled, shuffle<Mode::kDown>);
  t.meet("shfl.sync.bfly.b32", shuffled, shuffle<Mode::kButterfly>);
  t.meet("shfl.sync.idx.b32", shuffled, shuffle<Mode::kIndex>);
  t.meet("vote.sync.all.pred", ">pred,pred,u32", vote<Vote::kAll>);
  t.meet("vote.sync.any.pred", ">pred,pred,u32", vote<Vote::kAny>);
  t.meet("vote.sync.uni.pred", ">pred,pred,u32", vote<Vote::kUni>);
  t.meet("vote.sync.ballot.b32", ">u32,pred,u32", vote<Vote::kBallot>);
  t.meet("match.any.sync.b32", ">u32,u32,u32", match_any);
  add_extremes<u32>(t, "u32");
  add_extremes<s32>(t, "s32");
  add_redux<u32>(t, "and", "b32", [](u32 a, u32 b) -> u32 { return a & b; });
  add_redux<u32>(t, "or", "b32", [](u32 a, u32 b) -> u32 { return a | b; });
  add_redux<u32>(t, "xor", "b32", [](u32 a, u32 b) -> u32 { return a ^ b; });
  t.meet("bar.warp.sync", "u32", meet_only);
  t.plain("activemask.b32", ">u32", activemask);
  t.plain("trap", "", trap);
}

}  // namespace ptx
