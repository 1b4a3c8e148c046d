#include "thread_pool.hpp"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace convkit {
namespace {

constexpr auto SPIN = std::chrono::microseconds(100);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A thread's rounding and its treatment of denormal numbers. A caller may have changed its own at any time,
// as torch.set_flush_denormal does; a worker has those of the thread that started it.
#if defined(__x86_64__)
using Mode = unsigned;
Mode mode() { return __builtin_ia32_stmxcsr(); }
void adopt(Mode m) { __builtin_ia32_ldmxcsr(m); }
#elif defined(__aarch64__)
using Mode = std::uint64_t;
Mode mode() {
  Mode m;
  asm volatile("mrs %0, fpcr" : "=r"(m));
  return m;
}
void adopt(Mode m) { asm volatile("msr fpcr, %0" : : "r"(m)); }
#else
using Mode = int;
Mode mode() { return 0; }
void adopt(Mode) {}
#endif

// Holds back every signal while it lives, for the threads that are started meanwhile. Not those that a fault
// of the thread itself raises: blocked, they would end the process before faulthandler could say where it
// was.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// Spins until done(), for SPIN at most; whether it came true.
template <class Done>
bool spin(Done done) {
  const auto end = std::chrono::steady_clock::now() + SPIN;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

int this_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread to another CPU, if it is on that one and may run elsewhere. The system often wakes a
// worker where its caller runs, and a region is over before it would move one of the two: measured on two
// idle CPUs, whole calls of 5 ms took 9.5 ms, one after the other.
void leave(int cpu) {
#if defined(__linux__)
  if (cpu < 0 || sched_getcpu() != cpu) return;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0) return;
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)cpu;
#endif
}

// What different threads write lies on cache lines of its own.
constexpr int LINE = 64;

struct ThreadPool {
  std::atomic<bool> busy{false};  // a region runs; only its caller may touch what is not atomic here
  int workers = 0;

  // The region. Its parts are written before `open` is set, and not again until `open` is cleared and
  // `inside` has come down to 0: a worker that finds `open` set after it has counted itself in may use them.
  // (It counts itself in, then looks at `open`; the caller clears `open`, then looks at `inside`. All in one
  // order that everybody sees, so one of the two sees the other.)
  TaskFunction function = nullptr;
  const void* context = nullptr;
  Mode caller_mode{};
  std::atomic<int> helpers{0};
  std::atomic<int> caller_cpu{-1};
  std::atomic<bool> open{false};

  // The tasks are cut into shares, one for each thread: it takes those of its own first, and then those that
  // are left of the others'. Beyond SHARES threads, some have one together.
  struct alignas(LINE) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  static constexpr int SHARES = 64;
  Share share[SHARES];
  int shares = 1;

  alignas(LINE) std::atomic<int> inside{0};
  alignas(LINE) std::atomic<std::uint64_t> epoch{0};  // of the latest region
  alignas(LINE) std::atomic<int> sleepers{0};
  std::mutex bed;
  std::condition_variable bell;

  void work(int index) {
    for (int turn = 0; turn < shares; ++turn) {
      Share& s = share[(index + turn) % shares];
      // Asked before it is taken: a thread that only looks leaves the line to its owner.
      for (std::int64_t i; s.next.load() < s.end && (i = s.next.fetch_add(1)) < s.end;) function(context, i);
    }
  }

  void serve(int index) {
    for (std::uint64_t seen = 0;;) {
      // A region for fewer threads is none of this worker's business: it neither spins nor stays awake for
      // it.
      auto rung = [&] { return epoch.load() != seen && index < helpers.load(); };
      if (!spin(rung)) {
        std::unique_lock<std::mutex> lock(bed);
        sleepers.fetch_add(1);  // before `rung` is asked, as the caller rings before it asks for sleepers
        bell.wait(lock, rung);
        sleepers.fetch_sub(1);
      }
      seen = epoch.load();
      leave(caller_cpu.load());
      inside.fetch_add(1);
      if (open.load() && index < helpers.load()) {
        adopt(caller_mode);
        work(index + 1);
      }
      inside.fetch_sub(1);
    }
  }

  void hire(int wanted) {
    if (workers >= wanted) return;
    const NoSignals quiet;
    while (workers < wanted) {
      try {
        std::thread([this, index = workers] { serve(index); }).detach();
      } catch (const std::exception&) {
        return;  // the system's limit, or no memory: there will be fewer
      }
      ++workers;
    }
  }

  void run(int threads, std::int64_t tasks) {
    hire(threads - 1);
    helpers.store(threads - 1);
    caller_cpu.store(this_cpu());
    shares = threads < SHARES ? threads : SHARES;
    for (int i = 0; i < shares; ++i) {
      share[i].next.store(tasks * i / shares);
      share[i].end = tasks * (i + 1) / shares;
    }
    open.store(true);
    epoch.fetch_add(1);
    if (sleepers.load() > 0) {
      std::lock_guard<std::mutex> lock(bed);  // so that none is between asking `rung` and falling asleep
      bell.notify_all();
    }
    work(0);
    open.store(false);
    auto empty = [&] { return inside.load() == 0; };
    while (!spin(empty)) std::this_thread::yield();
  }
};

ThreadPool* pool = new ThreadPool;  // never freed: workers may outlive every static

const int registered = pthread_atfork(nullptr, nullptr, [] { pool = new ThreadPool; });

}  // namespace

void run_tasks(int threads, std::int64_t tasks, TaskFunction function, const void* context) {
  (void)registered;
  ThreadPool& p = *pool;
  if (threads <= 1 || tasks <= 1 || p.busy.exchange(true)) {
    for (std::int64_t i = 0; i < tasks; ++i) function(context, i);
    return;
  }
  p.function = function;
  p.context = context;
  p.caller_mode = mode();
  p.run(static_cast<int>(threads < tasks ? threads : tasks), tasks);
  p.busy.store(false);
}

}  // namespace convkit
