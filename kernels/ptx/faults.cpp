// What goes wrong in a launch, written down for Python; and whose memory an address is.
#include <cstdio>

#include "machine.hpp"

namespace ptx {

void Machine::stop(const Warp& w, const Instr& i, u32 lane, const char* kind, const char* text) {
  snprintf(fault.kind, sizeof(fault.kind), "%s", kind);
  snprintf(fault.text, sizeof(fault.text), "%s", text);
  const u32 thread = w.index * kLanes + lane;
  for (int k = 0; k < 3; ++k) fault.block[k] = ctaid[k];
  fault.thread[0] = thread % spec.block[0];
  fault.thread[1] = thread / spec.block[0] % spec.block[1];
  fault.thread[2] = thread / spec.block[0] / spec.block[1];
  fault.at = static_cast<s32>(i.index);
  throw Stop{};
}

void Machine::stray(const Warp& w, const Instr& i, u32 lane, Space space, u64 at, u32 bytes, bool writes) {
  fault.bytes = bytes;
  fault.writes = writes;
  fault.owner = kNobody;
  fault.offset = static_cast<s64>(at);
  bool read_only = false;
  if (space == Space::kShared || space == Space::kLocal) {
    fault.owner = space == Space::kShared ? kShared : kLocal;
  } else if (space == Space::kParam) {
    fault.owner = kParameters;
    fault.offset = static_cast<s64>(at - reinterpret_cast<u64>(spec.parameters));
  } else {  // the nearest argument within a megabyte
    u64 least = u64(1) << 20;
    for (u32 k = 0; k < spec.range_count; ++k) {
      const Range& r = spec.ranges[k];
      const u64 end = r.begin + r.bytes;
      const u64 far = at < r.begin ? r.begin - at : at + bytes > end ? at + bytes - end : 0;
      if (far >= least) continue;
      least = far;
      fault.owner = r.owner;
      fault.offset = static_cast<s64>(at - r.begin);
      read_only = !far && !r.writable;
    }
  }
  if (at & (bytes - 1)) stop(w, i, lane, "misaligned access");
  if (at < 65536 && fault.owner == kNobody) stop(w, i, lane, "null pointer");
  stop(w, i, lane,
       fault.owner == kNobody ? "wild access"
       : read_only            ? "write to an input"
                              : "out of bounds");
}

u8* Machine::find(const Warp& w, const Instr& i, u32 lane, Space space, u64 at, u32 bytes, bool writes) {
  if (at & (bytes - 1)) stray(w, i, lane, space, at, bytes, writes);
  const bool generic = space == Space::kGeneric;
  if (space == Space::kGlobal || generic) {
    for (u32 k = 0; k < spec.range_count; ++k) {
      const Range& range = spec.ranges[k];
      if (!range.holds(at, bytes) || (writes && !range.writable)) continue;
      i.hot = k;
      return reinterpret_cast<u8*>(at);
    }
  }
  if (space == Space::kParam || generic) {
    const u64 from = at - reinterpret_cast<u64>(spec.parameters);
    if (!writes && from <= spec.parameter_bytes && bytes <= spec.parameter_bytes - from)
      return reinterpret_cast<u8*>(at);
  }
  if (space == Space::kShared || generic) {
    const u64 from = generic ? at - reinterpret_cast<u64>(shared) : at;
    for (u32 k = 0; k < spec.shared_count; ++k) {
      if (!spec.shared[k].holds(from, bytes)) continue;
      if (!generic) i.hot = k;
      return shared + from;
    }
  }
  if (space == Space::kLocal || generic) {
    u8* own = w.local + u64(lane) * local_stride;
    const u64 from = generic ? at - reinterpret_cast<u64>(own) : at;
    if (from <= spec.local_bytes && bytes <= spec.local_bytes - from) return own + from;
  }
  stray(w, i, lane, space, at, bytes, writes);
}

void Machine::deadlock() {
  const Warp* waits[2] = {};
  const Instr* at[2] = {};
  u32 lanes[2] = {}, found = 0;
  for (const Warp& w : warps) {
    for (const Group& g : w.groups) {
      const Instr& i = code[g.pc];
      if (found == 2 || (found == 1 && at[0] == &i)) continue;
      waits[found] = &w;
      at[found] = &i;
      lanes[found++] = g.lanes;
    }
  }
  if (found == 2) fault.other = static_cast<s32>(at[1]->index);
  stop(*waits[0], *at[0], static_cast<u32>(__builtin_ctz(lanes[0])), "deadlock", "nobody can go on");
}

}  // namespace ptx
