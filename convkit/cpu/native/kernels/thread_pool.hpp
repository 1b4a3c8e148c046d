// The thread pool: parallel_for(threads, tasks, f) calls f(task) once for each task, on up to `threads`
// threads.
//
// Idea      Each thread has a share of the tasks, neighbours, and takes them one at a time; when it has done
//           its own it helps with the others'. So on cores that are shared with other programs a thread that
//           is held up keeps one task from the rest, not its share of the work; and from one region to the
//           next the same thread meets the same images, rows or groups, which its caches still hold. The
//           caller works too. A worker that runs out of work spins for a while, since the next call of a
//           training step comes within microseconds, and then sleeps.
// Order     So a kernel numbers its tasks such that neighbours share data: images, or groups, outermost.
// Measured  Against one counter for all, whole steps of AlexNet on two cores of a Zen 4, in turns in one
//           process: N = 16 93 and 95 % of the time where a line takes 60 ns to the other core and back, 82
//           and 85 % where it takes 330; N = 128 100 % and 76 %.
// Bits      A task is computed whole by one thread, and what a task is never depends on the number of
//           threads: the results have the same bits for any number of them. That holds as long as every
//           thread rounds alike: workers take over the caller's floating-point mode.
// Callers   One region runs at a time. A second Python thread that comes meanwhile does its tasks alone: no
//           thread waits for a lock, so there is no deadlock. A task that calls parallel_for does its part
//           alone as well. Tasks do not throw, and do not touch Python: they may run on threads that it has
//           never seen.
// Fork      A forked child has none of its parent's workers: it starts with a new pool (pthread_atfork).
// Signals   Workers take none: Python's handlers belong to its main thread, which must be the one
//           interrupted.
#pragma once

#include <cstdint>

namespace convkit {

using TaskFunction = void (*)(const void* context, std::int64_t task);
void run_tasks(int threads, std::int64_t tasks, TaskFunction function, const void* context);

// f is called in one place alone, also where there is one thread: a second one would be the whole kernel once
// more, in the compiler's time and in the module.
template <class F>
void parallel_for(int threads, std::int64_t tasks, const F& f) {
  run_tasks(threads, tasks, [](const void* c, std::int64_t i) { (*static_cast<const F*>(c))(i); }, &f);
}

}  // namespace convkit
