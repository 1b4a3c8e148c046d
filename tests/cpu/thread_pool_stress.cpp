// Puts the kernels' thread pool under stress; built and run by tests/cpu/test_native.py, with ThreadSanitizer
// too. What tasks share is deliberately not atomic: the pool must order it, and the sanitizer says where it
// does not.
#include "thread_pool.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

using convkit::parallel_for;
using std::int64_t;

#define CHECK(truth)                                                         \
  do {                                                                       \
    if (!(truth)) {                                                          \
      std::fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #truth); \
      std::_Exit(1);                                                         \
    }                                                                        \
  } while (0)

namespace {

void sleep_us(int us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

// Threads wait for each other here, so that nothing depends on which of them gets a core first. One that
// never comes is a failure, after a minute.
class Meeting {
 public:
  // Goes on when as many threads have come.
  void of(int threads) {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = come_ / threads;
    ++come_;
    bell_.notify_all();
    CHECK(bell_.wait_for(lock, std::chrono::seconds(60), [&] { return come_ / threads > round; }));
  }

  // Goes on when any other thread has been here.
  void of_two() {
    std::unique_lock<std::mutex> lock(mutex_);
    seen_.insert(std::this_thread::get_id());
    bell_.notify_all();
    CHECK(bell_.wait_for(lock, std::chrono::seconds(60), [&] { return seen_.size() > 1; }));
  }

 private:
  std::mutex mutex_;
  std::condition_variable bell_;
  int64_t come_ = 0;
  std::set<std::thread::id> seen_;
};

// Every task runs once, and sees what was written before the region; what it writes is seen after the region.
void region(int threads, int64_t tasks, int seed) {
  std::vector<int> in(tasks, seed), out(tasks, 0);
  parallel_for(threads, tasks, [&](int64_t i) { out[i] += in[i] + static_cast<int>(i); });
  for (int64_t i = 0; i < tasks; ++i) CHECK(out[i] == seed + static_cast<int>(i));
}

// Busy and sleeping workers, more and fewer threads from one region to the next.
void regions(int rounds, unsigned state) {
  auto random = [&](unsigned n) { return (state = state * 1664525u + 1013904223u) / 65536u % n; };
  for (int r = 0; r < rounds; ++r) {
    region(1 + static_cast<int>(random(6)), random(40), r);
    if (random(20) == 0) sleep_us(300);  // beyond the time for which workers spin
  }
}

void callers(int rounds) {
  std::vector<std::thread> all;
  for (unsigned t = 0; t < 4; ++t) all.emplace_back([=] { regions(rounds, t + 1); });
  for (auto& thread : all) thread.join();
}

void nested() {
  for (int r = 0; r < 50; ++r) {
    std::vector<std::vector<int>> out(8, std::vector<int>(8, 0));
    parallel_for(3, 8, [&](int64_t i) { parallel_for(3, 8, [&](int64_t j) { out[i][j] += 1; }); });
    for (auto& row : out)
      for (int count : row) CHECK(count == 1);
  }
}

// Workers take over the caller's treatment of denormal numbers, also when it has changed since they were
// started.
void modes() {
#if defined(__x86_64__)
  const unsigned before = __builtin_ia32_stmxcsr();
  for (unsigned flush : {0u, 0x8040u, 0u}) {
    __builtin_ia32_ldmxcsr(before | flush);
    std::vector<unsigned> seen(64);
    Meeting meeting;
    parallel_for(4, 64, [&](int64_t i) {
      seen[i] = __builtin_ia32_stmxcsr() & 0x8040u;
      meeting.of_two();
    });
    for (unsigned mode : seen) CHECK(mode == flush);
  }
  __builtin_ia32_ldmxcsr(before);
#endif
}

void signals() {
  const pthread_t caller = pthread_self();
  std::vector<int> blocked(64, 1), faults(64, 0), worker(64, 0);
  Meeting meeting;
  parallel_for(4, 64, [&](int64_t i) {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    worker[i] = !pthread_equal(pthread_self(), caller);
    blocked[i] = sigismember(&mask, SIGINT) && sigismember(&mask, SIGALRM);
    faults[i] = sigismember(&mask, SIGSEGV);
    meeting.of_two();
  });
  int helped = 0;
  for (int i = 0; i < 64; ++i) {
    CHECK(blocked[i] == worker[i] && !faults[i]);
    helped += worker[i];
  }
  CHECK(helped > 0);
}

// From region to region a thread takes the same part of the tasks; what one that is held up leaves, others
// do.
void shares() {
  const pthread_t caller = pthread_self();
  constexpr int64_t TASKS = 40;
  for (int r = 0; r < 20; ++r) {
    int by_caller[TASKS] = {};
    Meeting meeting;
    parallel_for(2, TASKS, [&](int64_t i) {
      by_caller[i] = pthread_equal(pthread_self(), caller);
      meeting.of(2);  // two at a time: neither thread runs ahead, and does what is left of the other's
    });
    for (int64_t i = 0; i < TASKS; ++i) CHECK(by_caller[i] == (i < TASKS / 2));
  }
  int done = 0;
  bool helped = false;
  parallel_for(2, TASKS, [&](int64_t i) {
    for (int wait = 0; i == 0 && wait < 60000 && !helped;
         ++wait) {  // whoever has it is held up until all others are done
      sleep_us(1000);
      helped = __atomic_load_n(&done, __ATOMIC_SEQ_CST) == TASKS - 1;
    }
    __atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
  });
  CHECK(helped);
}

// More threads than the pool has shares for.
void many() {
  for (int r = 0; r < 20; ++r) region(100, 1000 + r, r);
}

void forks(int rounds) {
  // One thread is within regions all the time: the child must not take its pool for its own.
  bool stop = false;
  std::thread other([&] {
    for (unsigned r = 0; !__atomic_load_n(&stop, __ATOMIC_SEQ_CST); ++r) regions(5, r + 1);
  });
  for (int r = 0; r < rounds; ++r) {
    regions(3, static_cast<unsigned>(r) + 99);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      alarm(60);  // ends it if it waits for threads that it has not got
      regions(20, static_cast<unsigned>(r) + 7);
      std::_Exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  __atomic_store_n(&stop, true, __ATOMIC_SEQ_CST);
  other.join();
}

// The system gives no thread: the work is done all the same. In a process of its own, since the C library
// keeps the stacks of threads that have ended for others.
void starved() {
  const rlimit none{1 << 20, 1 << 20};
  CHECK(setrlimit(RLIMIT_AS, &none) == 0);
  bool refused = false;
  try {
    std::thread([] {}).join();
  } catch (const std::exception&) {
    refused = true;
  }
  CHECK(refused);
  int done[16] = {};
  for (int r = 0; r < 3; ++r) parallel_for(64, 16, [&](int64_t i) { done[i] += 1; });
  for (int count : done) CHECK(count == 3);
}

}  // namespace

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "";
  const bool sanitized = std::strcmp(mode, "sanitized") == 0;  // no tricks with processes then
  if (std::strcmp(mode, "starved") == 0) {
    starved();
  } else {
    const int rounds = sanitized ? 300 : 3000;
    regions(rounds, 1);
    callers(rounds);
    nested();
    modes();
    signals();
    shares();
    many();
    if (!sanitized) forks(100);
  }
  std::puts("done");
  return 0;  // while workers spin
}
