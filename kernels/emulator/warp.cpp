// What the lanes of a warp do together: __syncwarp, shuffles, votes, reductions, and (in matrix.cpp) matrix
// operations. A rendezvous: each lane
// leaves its value and waits; the last of the mask to arrive computes for all, so that no lane can
// overwrite its value before the others have read it. Several groups may wait in one warp at a time. Where
// their masks overlap, as those of a tile and of its parts do, a lane that one group waits for may first meet
// another; only two lanes that wait for each other with different masks can never go on.
//
// As PTX has it, lanes that have left the kernel need not come, even where a mask names them. But to read
// the value of such a lane is an error here, where a GPU returns garbage. Reading a lane that the mask does
// not name yields a NaN.
#include <cstdio>
#include <cstring>

#include "runtime.hpp"

namespace emu {

static void complete(Worker& w, uint32_t warp, uint32_t group, uint32_t mask) {
  Thread* lanes = &w.threads[warp * 32];
  Thread& first = lanes[__builtin_ctz(group)];
  uint32_t sum = 0, all = ~0u, any = 0, parity = 0, ballot = 0, low_u = ~0u, high_u = 0;
  int32_t low_s = INT32_MAX, high_s = INT32_MIN;
  for (uint32_t rest = group; rest; rest &= rest - 1) {
    Thread& t = lanes[__builtin_ctz(rest)];
    if (t.mask != mask || t.op != first.op) {
      w.current = &t;
      Report& r = report(w, "bad mask", t.file, t.line);
      snprintf(r.text, sizeof(r.text),
               "lanes of one warp meet with different masks or operations: 0x%08x and 0x%08x", t.mask,
               first.mask);
      name_other(w, r, first);
      leave(w);
    }
    if (first.op < CKEMU_BALLOT || of_whole_warp(first.op)) continue;
    uint32_t v;
    memcpy(&v, t.value, 4);
    const int32_t s = static_cast<int32_t>(v);
    sum += v, all &= v, any |= v, parity ^= v;
    if (v < low_u) low_u = v;
    if (v > high_u) high_u = v;
    if (s < low_s) low_s = s;
    if (s > high_s) high_s = s;
    if (v) ballot |= 1u << (t.index & 31);
  }
  if (of_whole_warp(first.op)) matrix_operation(w, warp, group);
  for (uint32_t rest = group; rest && !of_whole_warp(first.op); rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    Thread& t = lanes[lane];
    uint32_t v = 0;
    switch (t.op) {
      case CKEMU_SYNCWARP:
        break;
      case CKEMU_BALLOT:
        v = ballot;
        break;
      case CKEMU_ADD:
        v = sum;
        break;
      case CKEMU_MIN_S:
        v = static_cast<uint32_t>(low_s);
        break;
      case CKEMU_MAX_S:
        v = static_cast<uint32_t>(high_s);
        break;
      case CKEMU_MIN_U:
        v = low_u;
        break;
      case CKEMU_MAX_U:
        v = high_u;
        break;
      case CKEMU_RAND:
        v = all;
        break;
      case CKEMU_ROR:
        v = any;
        break;
      case CKEMU_RXOR:
        v = parity;
        break;
      case CKEMU_MATCH_ANY:
        for (uint32_t others = group; others; others &= others - 1) {
          const int other = __builtin_ctz(others);
          if (!memcmp(lanes[other].value, t.value, 8)) v |= 1u << other;
        }
        break;
      default: {
        const int segment = lane & ~(t.width - 1);
        int from = lane;
        if (t.op == CKEMU_SHFL_IDX) from = segment + (t.operand & (t.width - 1));
        if (t.op == CKEMU_SHFL_UP && lane - t.operand >= segment) from = lane - t.operand;
        if (t.op == CKEMU_SHFL_DOWN && lane - segment + t.operand < t.width) from = lane + t.operand;
        if (t.op == CKEMU_SHFL_XOR && (lane ^ t.operand) < segment + t.width) from = lane ^ t.operand;
        if (group >> from & 1) {
          memcpy(t.result, lanes[from].value, t.bytes);
        } else if (mask >> from & 1) {
          w.current = &t;
          Report& r = report(w, "bad mask", t.file, t.line);
          snprintf(
              r.text, sizeof(r.text),
              "a shuffle reads lane %d, which its mask 0x%08x names but which is not there: it has left the "
              "kernel, or the warp has fewer lanes",
              from, mask);
          leave(w);
        } else {
          memset(t.result, 0xff, t.bytes);  // undefined on a GPU: a NaN
        }
      }
    }
    if (t.op >= CKEMU_BALLOT) memcpy(t.result, &v, 4);
  }
  if (first.op == CKEMU_SYNCWARP && w.launch->check) check_syncwarp(w, warp, group);
  w.warps[warp].waiting &= ~group;
  for (uint32_t rest = group; rest; rest &= rest - 1) {
    Thread& t = lanes[__builtin_ctz(rest)];
    t.state = State::Ready;
    set_ready(w, t);
  }
}

// Whether all lanes of a group wait at one operation.
static bool arrived(const Worker& w, uint32_t index, uint32_t group, const Thread& t) {
  if ((group & w.warps[index].waiting) != group) return false;
  for (uint32_t rest = group; rest; rest &= rest - 1) {
    const Thread& other = w.threads[index * 32 + static_cast<uint32_t>(__builtin_ctz(rest))];
    if (other.mask != t.mask || other.op != t.op) return false;
  }
  return true;
}

// A lane leaves the kernel: others may have waited for nobody but it.
void lane_left(Worker& w, const Thread& t) {
  const uint32_t index = t.index >> 5;
  Warp& warp = w.warps[index];
  warp.alive &= ~(1u << (t.index & 31));
  for (uint32_t rest = warp.waiting; rest; rest &= (rest - 1) & warp.waiting) {
    Thread& other = w.threads[index * 32 + static_cast<uint32_t>(__builtin_ctz(rest))];
    const uint32_t group = other.mask & warp.alive;
    if (arrived(w, index, group, other)) complete(w, index, group, other.mask);
  }
}

}  // namespace emu

using namespace emu;

void ckemu_warp(int op, unsigned mask, void* value, unsigned bytes, int operand, int width, const char* file,
                int line) {
  Worker& w = *worker;
  Thread& t = *w.current;
  const uint32_t lane = t.index & 31, index = t.index >> 5;
  Warp& warp = w.warps[index];
  t.file = file;
  t.line = line;
  t.op = op;
  t.mask = mask;
  t.operand = operand;
  t.width = width;
  t.bytes = bytes;
  if (bytes) memcpy(t.value, value, bytes);
  if (!(mask >> lane & 1) || width < 1 || width > 32 || width & (width - 1)) {
    Report& r = report(w, "bad mask", file, line);
    if (mask >> lane & 1)
      snprintf(r.text, sizeof(r.text), "the width %d is not a power of two up to 32", width);
    else
      snprintf(r.text, sizeof(r.text), "lane %u takes part, but its mask 0x%08x does not name it", lane,
               mask);
    leave(w);
  }
  for (uint32_t met = warp.waiting & mask; met; met &= met - 1) {
    const Thread& other = w.threads[index * 32 + static_cast<uint32_t>(__builtin_ctz(met))];
    if (other.mask >> lane & 1 && (other.mask != mask || other.op != op)) {
      Report& r = report(w, "bad mask", file, line);
      snprintf(r.text, sizeof(r.text),
               "lanes of one warp meet with different masks or operations: 0x%08x and 0x%08x", mask,
               other.mask);
      name_other(w, r, other);
      leave(w);
    }
  }
  t.state = State::AtWarp;
  warp.waiting |= 1u << lane;
  const uint32_t group = mask & warp.alive;
  if (arrived(w, index, group, t)) complete(w, index, group, mask);
  wait(w, t);
  if (bytes) memcpy(value, t.result, bytes);
}

// Some set of lanes that runs together: all that have not left. A GPU may answer with any part of it.
unsigned ckemu_activemask(void) { return worker->warps[worker->current->index >> 5].alive; }
