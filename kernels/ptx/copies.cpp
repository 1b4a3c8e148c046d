// Copies to shared memory that go on beside the thread (cp.async).
//
// They are as late as PTX allows: the destination is poison from the beginning, and is filled when the lane
// waits for the copy's group. What is read without a wait, or after a wait for too few groups, is poison.
#include <algorithm>
#include <cstdio>

#include "machine.hpp"

namespace ptx {
namespace {

// Operands: where to, where from, and how many of the bytes come from there; the others are zeros.
template <u32 Bytes>
void copy(Warp& w, const Instr& i, u32 lanes) {
  const u64 *tos = row<u64>(w, i.o[0]), *froms = row<u64>(w, i.o[1]);
  const u32* valid = row<u32>(w, i.o[2]);
  Machine& m = *w.machine;
  for (u32 left = lanes; left; left &= left - 1) {
    const u32 l = static_cast<u32>(__builtin_ctz(left));
    const u64 from = froms[l] + static_cast<u64>(i.offset);
    if (valid[l] > Bytes) m.stop(w, i, l, "bad copy", "it takes more bytes than it copies");
    u8* to = m.place<Space::kShared>(w, i, l, tos[l], Bytes, true);
    if (valid[l] && from % Bytes) m.stray(w, i, l, Space::kGlobal, from, Bytes, false);
    const u8* source = nullptr;
    if (valid[l]) {
      const u32 hot = i.hot;
      source = m.place<Space::kGlobal>(w, i, l, from, 1, false);
      m.place<Space::kGlobal>(w, i, l, from + valid[l] - 1, 1, false);
      i.hot = hot;
    }
    for (u32 k = 0; k < Bytes; k += 2) memcpy(to + k, &kPoison, 2);
    w.copies.push_back({to, source, Bytes, valid[l], l, w.committed[l]});
  }
}

void commit(Warp& w, const Instr&, u32 lanes) {
  each<false>(lanes, [&](u32 l) { ++w.committed[l]; });
}

// Delivers a lane's copies but those of the last so many groups that it has closed.
void deliver(Warp& w, u32 lanes, const u32* in_flight) {
  const auto delivered = [&](const Copy& c) {
    if (!(lanes >> c.lane & 1) || c.group + in_flight[c.lane] >= w.committed[c.lane]) return false;
    if (c.valid) memcpy(c.to, c.from, c.valid);
    memset(c.to + c.valid, 0, c.bytes - c.valid);
    return true;
  };
  w.copies.erase(std::remove_if(w.copies.begin(), w.copies.end(), delivered), w.copies.end());
}

void wait_group(Warp& w, const Instr& i, u32 lanes) { deliver(w, lanes, row<u32>(w, i.o[0])); }

void wait_all(Warp& w, const Instr& i, u32 lanes) {
  const u32 none[kLanes] = {};
  commit(w, i, lanes);
  deliver(w, lanes, none);
}

}  // namespace

void add_copies(Table& t) {
  t.plain("cp.async.4", "u64,u64,u32", copy<4>);
  t.plain("cp.async.8", "u64,u64,u32", copy<8>);
  t.plain("cp.async.16", "u64,u64,u32", copy<16>);
  t.plain("cp.async.commit_group", "", commit);
  t.plain("cp.async.wait_group", "u32", wait_group);
  t.plain("cp.async.wait_all", "", wait_all);
}

}  // namespace ptx
