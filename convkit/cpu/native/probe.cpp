#include "probe.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if !defined(__GNUC__)
#error "GCC's vector extensions are needed (GCC or Clang); convkit works without this module"
#endif

// One source serves every instruction set: a function body is a template that is always inlined, and each
// set has a shell around it that carries the target attribute. The loops need no intrinsics.
#define CK_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define CK_TARGET(features) __attribute__((target(features)))
#endif

namespace convkit {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

// Runs work(thread) -> units done, in so many threads at once, and returns units per second. The clock runs
// from the moment when all are ready to the end of the last, so threads that share a core are not counted
// twice.
template <class Prepare, class Work>
double rate(int threads, Prepare prepare, Work work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<double> done(threads, 0.0);
  auto body = [&](int t) {
    prepare(t);
    ++ready;
    while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
    done[t] = work(t);
  };
  std::vector<std::thread> others;
  // Unless every thread could be started, those that were must be let go, or joining them would never end.
  try {
    for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
    prepare(0);
  } catch (...) {
    go.store(true, std::memory_order_release);
    for (auto& other : others) other.join();
    throw;
  }
  while (ready.load() < threads - 1) std::this_thread::yield();
  const auto start = Clock::now();
  go.store(true, std::memory_order_release);
  done[0] = work(0);
  for (auto& other : others) other.join();
  const double elapsed = seconds_between(start, Clock::now());
  double total = 0;
  for (double units : done) total += units;
  return total / elapsed;
}

// A peak is what the machine does undisturbed. So the time is cut into slices and the best one counts:
// another process, or a clock that is still rising, then costs a slice and not the result.
template <class Slice>
double best_of_slices(double seconds, Slice slice) {
  const int slices = 5;
  double best = 0;
  for (int i = 0; i < slices; ++i) best = std::max(best, slice(std::max(seconds, 0.0) / slices));
  return best;
}

// ---- FMA ------------------------------------------------------------------------------------------------

template <int BYTES>
struct Vector {
  typedef float type __attribute__((vector_size(BYTES)));
};

// Some 10 microseconds of work: long enough that reading the clock between two calls is free.
constexpr int kSteps = 4096;

// ACCUMULATORS independent chains hide the latency of the FMA: two units times four cycles ask for 8 chains,
// and the registers (16, or 32 with AVX-512 and NEON) bound them from above, with one left for the factor.
//
// The step is a = a*f + a: its addend is its destination, so that it is a single instruction everywhere, NEON
// included. With f = 2^-30, a + a*f rounds back to a: the values neither grow nor fade into slow denormals,
// and without -ffast-math no compiler may conclude that.
template <int BYTES, int ACCUMULATORS>
CK_INLINE float fma_steps(float factor) {
  using V = typename Vector<BYTES>::type;
  V f, acc[ACCUMULATORS];
  f = V{} + factor;
#pragma GCC unroll 32
  for (int i = 0; i < ACCUMULATORS; ++i) acc[i] = V{} + static_cast<float>(i + 1);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 32
    for (int i = 0; i < ACCUMULATORS; ++i) acc[i] += acc[i] * f;
  }
  V sum = V{};
#pragma GCC unroll 32
  for (int i = 0; i < ACCUMULATORS; ++i) sum += acc[i];
  return sum[0];
}

struct Fma {
  const char* isa;
  float (*steps)(float);
  double flops;  // of one call
};

constexpr double flops(int bytes, int accumulators) { return 2.0 * (bytes / 4) * accumulators * kSteps; }

#if defined(__x86_64__)
CK_TARGET("avx512f,avx2,fma") float fma_avx512(float f) { return fma_steps<64, 24>(f); }
CK_TARGET("avx2,fma") float fma_avx2(float f) { return fma_steps<32, 12>(f); }
float fma_sse2(float f) { return fma_steps<16, 10>(f); }  // has no FMA: a multiply, then an add
#else
float fma_generic(float f) { return fma_steps<16, 24>(f); }
#endif

Fma choose_fma() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // These ask the operating system too, whether it saves the wide registers.
  if (__builtin_cpu_supports("avx512f")) return {"avx512", fma_avx512, flops(64, 24)};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {"avx2", fma_avx2, flops(32, 12)};
  return {"sse2", fma_sse2, flops(16, 10)};
#elif defined(__aarch64__)
  return {"neon", fma_generic, flops(16, 24)};
#else
  return {"generic", fma_generic, flops(16, 24)};
#endif
}

const Fma& fma() {
  static const Fma chosen = choose_fma();
  return chosen;
}

}  // namespace

const char* isa() { return fma().isa; }

std::vector<std::string> cpu_isas() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  std::vector<std::string> found;
#define CK_HAS(feature) (__builtin_cpu_supports(feature) != 0)
  // Not every compiler knows every feature by name, and those of general registers need no system's consent.
  unsigned a, b, c, d, basic = 0, extended = 0;
  if (__get_cpuid(1, &a, &b, &c, &d)) basic = c;
  if (__get_cpuid(0x80000001, &a, &b, &c, &d)) extended = c;
  const unsigned cx16 = 1u << 13, movbe = 1u << 22, f16c = 1u << 29, lahf = 1u << 0, lzcnt = 1u << 5;
  const bool v2 =
      CK_HAS("ssse3") && CK_HAS("sse4.2") && CK_HAS("popcnt") && (basic & cx16) && (extended & lahf);
  const bool v3 = v2 && CK_HAS("avx2") && CK_HAS("fma") && CK_HAS("bmi") && CK_HAS("bmi2") &&
                  (basic & movbe) && (basic & f16c) && (extended & lzcnt);
  const bool v4 = v3 && CK_HAS("avx512f") && CK_HAS("avx512bw") && CK_HAS("avx512cd") && CK_HAS("avx512dq") &&
                  CK_HAS("avx512vl");
#undef CK_HAS
  if (v4) found.push_back("v4");
  if (v3) found.push_back("v3");
  if (v2) found.push_back("v2");
  return found;
#elif defined(__aarch64__)
  return {"neon"};
#else
  return {"generic"};
#endif
}

double fma_gflops(int threads, double seconds) {
  const Fma& best = fma();
  threads = std::max(threads, 1);
  // Read through volatile, so that the factor is unknown to the compiler, and written, so that the sum is
  // wanted.
  volatile float factor = 0x1p-30f;
  auto slice = [&](double duration) {
    auto work = [&](int) {
      volatile float sink;
      double done = 0;
      const auto start = Clock::now();
      do {
        sink = best.steps(factor);
        done += best.flops;
      } while (seconds_between(start, Clock::now()) < duration);
      (void)sink;
      return done;
    };
    return rate(threads, [](int) {}, work);
  };
  return best_of_slices(seconds, slice) * 1e-9;
}

double copy_gbs(int threads, double megabytes, double seconds) {
  threads = std::max(threads, 1);
  // Each thread owns a pair of pieces. Odd lines between them keep the two from falling on the same cache
  // sets.
  const std::size_t page = 4096;
  const std::size_t piece =
      std::max<std::size_t>(page, static_cast<std::size_t>(megabytes * 1e6 / 2 / threads) / page * page);
  const std::size_t gap = 5 * 64;
  std::vector<std::unique_ptr<char[]>> buffers(threads);
  for (auto& buffer : buffers) buffer.reset(new char[2 * piece + gap]);  // throws here, not in a thread
  // Touched first by the thread that uses it: that is what places a page near its core.
  auto touch = [&](int t) { std::memset(buffers[t].get(), t + 1, 2 * piece + gap); };
  auto slice = [&](double duration) {
    auto work = [&](int t) {
      const char* from = buffers[t].get();
      char* to = buffers[t].get() + piece + gap;
      volatile char sink;
      double done = 0;
      const auto start = Clock::now();
      do {
        // The C library's own copy, which for a size beyond the caches bypasses them on its way out. Where it
        // does not, a written line is read first, and the memory moves half as much again as is counted here.
        std::memcpy(to, from, piece);
        sink = to[piece / 2];
        done += 2.0 * static_cast<double>(piece);
      } while (seconds_between(start, Clock::now()) < duration);
      (void)sink;
      return done;
    };
    return rate(threads, touch, work);
  };
  return best_of_slices(seconds, slice) * 1e-9;
}

}  // namespace convkit
