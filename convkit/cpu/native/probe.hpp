// What this machine can do: the ceilings that benchmarks are judged by.
#pragma once

#include <string>
#include <vector>

namespace convkit {

// The widest instruction set that the probes use on this CPU: "avx512", "avx2", "sse2", "neon" or "generic".
const char* isa();

// Which of the kernel modules (setup.py: ISAS) this CPU and its operating system can run.
std::vector<std::string> cpu_isas();

// Single-precision multiply-adds, as GFLOP/s of all threads together (one multiply-add = 2 FLOP).
double fma_gflops(int threads, double seconds);

// Rate of copying memory, as GB/s (1e9 bytes) of all threads together. A copied byte counts twice, once read
// and once written. `megabytes` (1e6 bytes) is the size of source and destination together, over all threads.
double copy_gbs(int threads, double megabytes, double seconds);

}  // namespace convkit
