// What kernels call and what is not of a warp (warp.cpp): block barriers, dynamic shared memory, asynchronous
// copies, atomics, assertions, clocks, printf.
//
// Block barriers compare the places in the source that threads wait at, and never let a block go on with
// threads missing: a GPU may get through either, or hang. Asynchronous copies poison their destination when
// they are issued and deliver when they are waited for, as late as the ISA allows; their source is touched
// at once, so that a bad address shows where it is written.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "runtime.hpp"

using namespace emu;

int ckemu_barrier(int kind, int predicate, const char* file, int line) {
  Worker& w = *worker;
  Thread& t = *w.current;
  t.file = file;
  t.line = line;
  if (w.arrived == 0) {
    w.barrier_first = &t;
    w.barrier_kind = kind;
    w.barrier_sum = 0;
  } else {
    const Thread& first = *w.barrier_first;
    if (first.line != line || w.barrier_kind != kind || (first.file != file && strcmp(first.file, file))) {
      Report& r = report(w, "divergent barrier", file, line);
      snprintf(r.text, sizeof(r.text), "threads of one block wait at different barriers");
      name_other(w, r, first);
      leave(w);
    }
  }
  t.state = State::AtBarrier;
  w.barrier_sum += predicate != 0;
  if (++w.arrived == w.launch->threads) {
    const int sum = w.barrier_sum;
    w.barrier_result = kind == CKEMU_COUNT ? sum
                       : kind == CKEMU_OR  ? sum > 0
                                           : sum == static_cast<int>(w.arrived);
    w.arrived = 0;
    ++w.barriers;
    if (w.launch->seeded && w.barriers == w.reshuffle_at) draw_ranks(w);
    all_ready(w);
    if (w.launch->check) check_barrier(w);
  }
  wait(w, t);
  t.state = State::Ready;
  return w.barrier_result;
}

// The same counts in every run: a loop that waits by the clock ends, but measures nothing.
unsigned long long ckemu_clock(unsigned passed) {
  Worker& w = *worker;
  stop_here(w);
  return w.clock += 32ull + passed;
}

// Formatted before anything is locked: a bad pointer behind %s is a fault of the kernel's, which leaves from
// there. Returns the bytes, where CUDA returns the number of arguments.
int ckemu_printf(const char* format, ...) {
  constexpr size_t most = 1 << 20;
  Worker& w = *worker;
  stop_here(w);
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  const int bytes = vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  if (bytes <= 0) return bytes;
  const size_t length = strlen(text);
  Launch& launch = *w.launch;
  std::lock_guard<std::mutex> lock(launch.print);
  if (launch.printed_bytes + length > most) {
    launch.dropped_bytes += length;
  } else {
    launch.printed_bytes += length;
    launch.printed.emplace_back(w.block_index, text);
  }
  return bytes;
}

void* ckemu_dynamic_shared(void) { return worker->dynamic_shared; }

void ckemu_copy_async(void* to, const void* from, unsigned bytes, unsigned valid, const char* file,
                      int line) {
  Worker& w = *worker;
  Thread& t = *w.current;
  const Copy copy{to, from, bytes, valid, t.group, file, line};
  if (valid > bytes ||
      (reinterpret_cast<uintptr_t>(to) | (valid ? reinterpret_cast<uintptr_t>(from) : 0)) % bytes) {
    Report& r = report(w, valid > bytes ? "bad argument" : "misaligned access", file, line);
    snprintf(r.text, sizeof(r.text),
             "an asynchronous copy of %u bytes, %u of them from memory, between %p and %p", bytes, valid,
             from, to);
    leave(w);
  }
  if (w.launch->check) check_issue(w, copy);
  w.blame_file = file;
  w.blame_line = line;
  if (valid) {  // a bad address shows now, where it is written
    (void)*static_cast<const volatile char*>(from);
    (void)static_cast<const volatile char*>(from)[valid - 1];
  }
  memset(to, 0xff, bytes);
  w.blame_file = nullptr;
  t.copies.push_back(copy);
}

void ckemu_copy_commit(void) { ++worker->current->group; }

void ckemu_copy_wait(unsigned groups_in_flight) {
  Worker& w = *worker;
  Thread& t = *w.current;
  size_t kept = 0;
  for (size_t i = 0; i < t.copies.size(); ++i) {
    const Copy copy = t.copies[i];
    // A copy outside any committed group, or in one of the youngest groups, stays in flight.
    if (copy.group + groups_in_flight >= t.group) {
      t.copies[kept++] = copy;
      continue;
    }
    w.blame_file = copy.file;
    w.blame_line = copy.line;
    memcpy(copy.to, copy.from, copy.valid);
    memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
    w.blame_file = nullptr;
    if (w.launch->check) check_deliver(w, copy);
  }
  t.copies.resize(kept);
}

void ckemu_atomic(const void* at, unsigned bytes, const char* file, int line) {
  Worker& w = *worker;
  if (w.launch->check) check_atomic(w, at, bytes, file, line);
}

void ckemu_fail(const char* kind, const char* text, const char* file, int line) {
  Worker& w = *worker;
  Report& r = report(w, kind, file, line);
  snprintf(r.text, sizeof(r.text), "%s", text);
  leave(w);
}
