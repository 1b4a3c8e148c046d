// A machine that runs PTX: registers, memory, and the table of operations.
//
// PTX is what NVRTC made of a kernel. Python reads it, and gives each instruction the row of an operation
// and the places of its operands; the machine runs a warp's lanes together, one instruction after the other.
// A register is a row of 32 lanes in its warp's file, so that an operation is a loop that the compiler turns
// into vector instructions; constants and special registers are such rows too, and a predicate is a word of
// 32 bits. An interpreter is as fast here as C++ made from the PTX would be, since an instruction is decoded
// once for 32 lanes, and nothing has to be compiled for a kernel.
//
// The rows stand in integer.cpp, floating.cpp, convert.cpp, memory.cpp and warp.cpp: the name of the
// instruction beside what PTX's manual says that it computes. Nothing here is shared with the emulator, which
// runs the CUDA source: what one of the two misreads, the other may not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
using u128 = unsigned __int128;
using s128 = __int128;

constexpr u32 kLanes = 32;
constexpr u32 kEveryLane = ~0u;
// What is undefined holds this: a NaN in each floating-point type, a large negative number in the integers.
constexpr u16 kPoison = 0xffc1;
constexpr u32 kPoison32 = 0xffc1ffc1u;

template <class To, class From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

struct Warp;
struct Machine;
struct Instr;
struct Part;

// Runs an instruction for some lanes.
using Run = void (*)(Warp&, const Instr&, u32 lanes);
// Runs an instruction at which lanes meet, for all of them; they may have come from different places.
using Meet = void (*)(Warp&, const Part*, size_t parts, u32 members);

enum class Kind : u8 { kPlain, kBranch, kIndexedBranch, kExit, kBarrier, kMeet };
enum class Barrier : u8 { kSync, kArrive, kPopc, kAnd, kOr };

// An operation as the table has it. The signature names the operands' types, written ones with a `>`.
struct Operation {
  std::string name, signature;
  Kind kind = Kind::kPlain;
  Run run = nullptr;
  Meet meet = nullptr;
  Barrier barrier = Barrier::kSync;
  bool aligned = true;  // of a barrier: all lanes of a warp come to the same instruction
};

struct Instr {
  const Operation* op;
  Run run;
  const u32* o;  // the operands' rows: bytes from the beginning of the warp's file
  s64 offset;    // of an address; of a table of branch targets, the number of its targets
  u32 guard;     // row of the predicate
  u32 index, target;
  Kind kind;
  bool guarded, negated;
  mutable u32 hot = 0;  // the argument that this instruction accessed last
};

struct Part {
  const Instr* instr;
  u32 lanes;
};

enum class State : u8 { kRuns, kMeets, kWaits };

// Lanes of a warp that are at the same instruction.
struct Group {
  u32 pc, lanes;
  State state = State::kRuns;
  u32 members = 0;  // whom it meets
  u32 barrier = 0;
  u32 turns = 0;  // how often it has used up its time without an end
};

// A copy to shared memory that has been issued and not waited for.
struct Copy {
  u8* to;
  const u8* from;
  u32 bytes, valid, lane, group;
};

struct Warp {
  Machine* machine;
  u32 index;
  u8* file;
  u8* local;
  u32 live;  // lanes that have not exited
  u64 steps;
  std::vector<Group> groups;
  std::vector<Copy> copies;
  u32 committed[kLanes];  // how many groups of copies each lane has closed
};

template <class T>
inline T* row(const Warp& w, u32 at) {
  return reinterpret_cast<T*>(w.file + at);
}

// Calls f for each of some lanes. Rows of different registers do not overlap. What is not called often has
// no second loop for all lanes at once, which takes the compiler long.
template <bool Often = true, class F>
inline __attribute__((always_inline)) void each(u32 lanes, F f) {
  if (Often && lanes == kEveryLane) {
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
    for (u32 l = 0; l < kLanes; ++l) f(l);
  } else {
    for (u32 left = lanes; left; left &= left - 1) f(static_cast<u32>(__builtin_ctz(left)));
  }
}

// ---------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------
// Whose memory a range is: an argument's by its index, else one of these.
constexpr s32 kModule = -1, kParameters = -2, kShared = -3, kLocal = -4, kNobody = -5;

struct Range {
  u64 begin, bytes;
  s32 owner;
  u32 writable;

  bool holds(u64 at, u32 size) const { return at - begin <= bytes && size <= bytes - (at - begin); }
};

enum class Space : u8 { kGeneric, kGlobal, kShared, kLocal, kParam };

struct Fault {  // read by ctypes: keep convkit/cuda/ptx/library.py in step
  char kind[48];
  char text[256];
  u32 block[3], thread[3];
  s32 at, other;  // instructions, or -1
  s32 owner;
  s64 offset;
  u32 bytes, writes;
};

struct Stop {};  // thrown when a fault is written down

// ---------------------------------------------------------------------------------------------------
// The machine
// ---------------------------------------------------------------------------------------------------
struct Code {  // an instruction as Python gives it
  u32 row, operands, guard, flags, target, unused;
  s64 offset;
};
struct Fixed {  // a row that holds the same value in every lane for a whole launch
  u32 at, bytes;
  u64 value;
  u32 base;    // what the value is relative to: 0 nothing, 1 the parameters, 2 the module's variables
  u32 single;  // a predicate: one word for all lanes
};
struct Special {  // a row that holds a special register
  u32 at, which;
};

struct Spec {  // a launch: keep convkit/cuda/ptx/library.py in step
  const Code* code;
  const u32* operands;
  const Fixed* fixed;
  const Special* special;
  const Range* ranges;  // of global memory: arguments, then the module's variables
  const Range* shared;  // the variables in shared memory, the dynamic ones last
  const u8* parameters;
  const u8* module;
  u64 seed, steps;
  u32 code_count, fixed_count, special_count, range_count, shared_count, parameter_bytes;
  u32 fixed_bytes, file_bytes, shared_bytes, dynamic_bytes, local_bytes, seeded;
  u32 grid[3], block[3];
  f64 seconds;
};

struct Meeting {  // a barrier
  u32 arrived = 0, expected = 0, count = 0;
  bool all = true, any = false;
};

struct Machine {
  const Spec& spec;
  Fault& fault;
  std::vector<Instr> code;
  std::vector<Warp> warps;
  Meeting barriers[16];
  u32 ctaid[3];
  u32 live;
  bool apart;  // lanes of a warp that have parted stay so until they must meet
  u64 random;
  u8* shared;
  u64 local_stride;  // from one lane's local memory to the next one's

  Machine(const Spec& given, Fault& told) : spec(given), fault(told) {}
  void run();

  [[noreturn]] void stop(const Warp& w, const Instr& i, u32 lane, const char* kind, const char* text = "");
  [[noreturn]] void stray(const Warp& w, const Instr& i, u32 lane, Space space, u64 at, u32 bytes,
                          bool writes);
  // The place of an access in the host's memory; does not return where there is none.
  template <Space S>
  u8* place(const Warp& w, const Instr& i, u32 lane, u64 at, u32 bytes, bool writes);

 private:
  u8* find(const Warp& w, const Instr& i, u32 lane, Space space, u64 at, u32 bytes, bool writes);
  void load();
  void block(u64 number);
  void begin_warp(Warp& w);
  bool run_warp(Warp& w);
  bool run_group(Warp& w, size_t number);
  int choose(const Warp& w);
  void add_group(Warp& w, Group group);
  void regroup(Warp& w);
  bool settle(Warp& w, size_t number);
  void settle_all(Warp& w);
  void arrive(Warp& w, size_t number, const Instr& i, u32 lanes);
  void release(u32 id);
  void leave(Warp& w, u32 lanes);
  void count_steps(Warp& w, const Instr& i, u32 lanes, u32 target);
  [[noreturn]] void deadlock();
  u64 next_random();
};

template <Space S>
inline u8* Machine::place(const Warp& w, const Instr& i, u32 lane, u64 at, u32 bytes, bool writes) {
  // Mostly it is the argument or the variable that the instruction accessed before.
  if (!(at & (bytes - 1))) {
    if constexpr (S == Space::kGlobal || S == Space::kGeneric)
      if (i.hot < spec.range_count) {
        const Range& range = spec.ranges[i.hot];
        if (range.holds(at, bytes) && (!writes || range.writable)) return reinterpret_cast<u8*>(at);
      }
    if constexpr (S == Space::kShared)
      if (i.hot < spec.shared_count && spec.shared[i.hot].holds(at, bytes)) return shared + at;
  }
  return find(w, i, lane, S, at, bytes, writes);
}

// ---------------------------------------------------------------------------------------------------
// The table
// ---------------------------------------------------------------------------------------------------
template <class T>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, bool>) return "pred";
  if constexpr (std::is_same_v<T, u8>) return "u8";
  if constexpr (std::is_same_v<T, s8>) return "s8";
  if constexpr (std::is_same_v<T, u16>) return "u16";
  if constexpr (std::is_same_v<T, s16>) return "s16";
  if constexpr (std::is_same_v<T, u32>) return "u32";
  if constexpr (std::is_same_v<T, s32>) return "s32";
  if constexpr (std::is_same_v<T, u64>) return "u64";
  if constexpr (std::is_same_v<T, s64>) return "s64";
  if constexpr (std::is_same_v<T, f32>) return "f32";
  if constexpr (std::is_same_v<T, f64>) return "f64";
}

// An operand that is read: a row, or the bits of a predicate.
template <class T>
struct In {
  const T* values;
  In(const Warp& w, u32 at) : values(row<T>(w, at)) {}
  T operator[](u32 l) const { return values[l]; }
};
template <>
struct In<bool> {
  u32 bits;
  In(const Warp& w, u32 at) : bits(*row<u32>(w, at)) {}
  bool operator[](u32 l) const { return bits >> l & 1; }
};

// What a function of a lane's operands is as an operation. F holds no data: it is made where it is called.
template <class F, bool Often, class Function>
struct Elementwise;
template <class F, bool Often, class D, class... A>
struct Elementwise<F, Often, D (*)(A...)> {
  static std::string signature() {
    std::string text = std::string(">") + type_name<D>();
    ((text += std::string(",") + type_name<A>()), ...);
    return text;
  }
  static void run(Warp& w, const Instr& i, u32 lanes) { apply(w, i, lanes, std::index_sequence_for<A...>{}); }
  template <size_t... K>
  static void apply(Warp& w, const Instr& i, u32 lanes, std::index_sequence<K...>) {
    const std::tuple<In<A>...> from{In<A>(w, i.o[K + 1])...};
    if constexpr (std::is_same_v<D, bool>) {
      u32 found = 0;
      each<Often>(lanes, [&](u32 l) { found |= static_cast<u32>(F{}(std::get<K>(from)[l]...)) << l; });
      u32& to = *row<u32>(w, i.o[0]);
      to = (to & ~lanes) | found;
    } else {
      D* to = row<D>(w, i.o[0]);
      each<Often>(lanes, [&](u32 l) { to[l] = F{}(std::get<K>(from)[l]...); });
    }
  }
};

struct Table {
  std::vector<Operation> rows;
  std::unordered_map<std::string, u32> by_name;

  void add(Operation row) {
    by_name.emplace(row.name, static_cast<u32>(rows.size()));
    rows.push_back(std::move(row));
  }
  // An operation on each lane alone.
  template <bool Often = true, class F>
  void lane(const std::string& name, F function) {
    static_assert(std::is_empty_v<F>, "a lambda, of which a new one does the same; no pointer to a function");
    using Whole = Elementwise<F, Often, decltype(+function)>;
    add({name, Whole::signature(), Kind::kPlain, Whole::run});
  }
  // The same, for what kernels do seldom.
  template <class F>
  void rare(const std::string& name, F function) {
    lane<false>(name, function);
  }
  void plain(const std::string& name, const std::string& signature, Run run) {
    add({name, signature, Kind::kPlain, run});
  }
  // The last operand is the mask of the lanes that meet.
  void meet(const std::string& name, const std::string& signature, Meet meet) {
    add({name, signature, Kind::kMeet, nullptr, meet});
  }
};

void add_integer(Table& t);
void add_floating(Table& t);
void add_convert(Table& t);
void add_sixteen(Table& t);
void add_memory(Table& t);
void add_warp(Table& t);
void add_copies(Table& t);
void add_matrix(Table& t);

}  // namespace ptx
