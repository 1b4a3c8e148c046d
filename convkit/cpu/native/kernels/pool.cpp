#include "pool.hpp"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
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

struct Pool {
  std::mutex owner;  // held by the caller whose region runs
  int workers = 0;

  // The region. `function`, `context`, `tasks`, `helpers` and `next` are written before `open` is set, and not again
  // until `open` is cleared and `inside` has come down to 0: a worker that finds `open` set after it has counted
  // itself in may use them.
  TaskFunction function = nullptr;
  const void* context = nullptr;
  std::int64_t tasks = 0;
  std::atomic<int> helpers{0};
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> open{false};
  std::atomic<int> inside{0};

  std::atomic<std::uint64_t> epoch{0};  // of the latest region
  std::atomic<int> sleepers{0};
  std::mutex bed;
  std::condition_variable bell;

  void work() {
    for (std::int64_t i; (i = next.fetch_add(1)) < tasks;) function(context, i);
  }

  void serve(int index) {
    for (std::uint64_t seen = 0;;) {
      auto rung = [&] { return epoch.load() != seen; };
      if (!spin(rung)) {
        std::unique_lock<std::mutex> lock(bed);
        sleepers.fetch_add(1);
        bell.wait(lock, rung);
        sleepers.fetch_sub(1);
      }
      seen = epoch.load();
      inside.fetch_add(1);
      if (open.load() && index < helpers.load()) work();
      inside.fetch_sub(1);
    }
  }

  void hire(int wanted) {
    while (workers < wanted) {
      try {
        std::thread([this, index = workers] { serve(index); }).detach();
      } catch (const std::system_error&) {
        return;  // the system's limit: there will be fewer
      }
      ++workers;
    }
  }

  void run(int threads) {
    hire(threads - 1);
    helpers.store(threads - 1);
    next.store(0);
    open.store(true);
    epoch.fetch_add(1);
    if (sleepers.load() > 0) {
      std::lock_guard<std::mutex> lock(bed);
      bell.notify_all();
    }
    work();
    open.store(false);
    auto empty = [&] { return inside.load() == 0; };
    while (!spin(empty)) std::this_thread::yield();
  }
};

Pool* pool = new Pool;  // never freed: workers may outlive every static

const int registered = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

}  // namespace

void run_tasks(int threads, std::int64_t tasks, TaskFunction function, const void* context) {
  (void)registered;
  Pool& p = *pool;
  std::unique_lock<std::mutex> lock(p.owner, std::try_to_lock);
  if (!lock) {
    for (std::int64_t i = 0; i < tasks; ++i) function(context, i);
    return;
  }
  p.function = function;
  p.context = context;
  p.tasks = tasks;
  p.run(static_cast<int>(threads < tasks ? threads : tasks));
}

}  // namespace convkit
