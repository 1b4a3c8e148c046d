// The thread pool: parallel_for(threads, tasks, f) calls f(task) once for each task, on up to `threads` threads.
//
// Idea      Tasks are handed out one at a time from a counter, to whoever asks: on cores that are shared with other
//           programs a thread that is held up keeps one task from the rest, not its even share of the work. The
//           caller works too. A worker that runs out of work spins for SPIN nanoseconds, since the next call of a
//           training step comes within microseconds, and then sleeps.
// Bits      A task is computed whole by one thread, and what a task is never depends on the number of threads: the
//           results have the same bits for any number of them.
//           That holds as long as every thread rounds alike: workers take over the caller's floating-point mode.
// Callers   One region runs at a time. A second Python thread that comes meanwhile does its tasks alone: nobody
//           waits for a lock, so nothing can lock up. A task that calls parallel_for does its part alone as well.
//           Tasks do not throw, and do not touch Python: they may run on threads that it has never seen.
// Fork      A forked child has none of its parent's workers: it starts with a new pool (pthread_atfork).
// Signals   Workers take none: Python's handlers belong to its main thread, which must be the one interrupted.
#pragma once

#include <cstdint>

namespace convkit {

using TaskFunction = void (*)(const void* context, std::int64_t task);
void run_tasks(int threads, std::int64_t tasks, TaskFunction function, const void* context);

template <class F>
void parallel_for(int threads, std::int64_t tasks, const F& f) {
  if (threads <= 1 || tasks <= 1) {
    for (std::int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
  run_tasks(threads, tasks, [](const void* c, std::int64_t i) { (*static_cast<const F*>(c))(i); }, &f);
}

}  // namespace convkit
