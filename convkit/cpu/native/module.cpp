// convkit._native: the Python face of the C++ code in this folder, and the only file here that knows of
// Python.
#include <pybind11/pybind11.h>

#include "probe.hpp"
#include "unlock.hpp"

namespace py = pybind11;

// By this threadpoolctl tells this library from others of its name (convkit/cpu/threads.py).
extern "C" __attribute__((visibility("default"), used)) void convkit_is_here() {}

PYBIND11_MODULE(_native, m) {
  m.doc() = "convkit's C++ code; load it through convkit.cpu.extension.load(), since it is optional";

  m.def("isa", &convkit::isa, "Widest instruction set in use: avx512, avx2, sse2, neon or generic.");
  m.def(
      "cpu_isas",
      [] {
        py::list names;  // by hand: pybind11/stl.h takes a while to compile
        for (const auto& name : convkit::cpu_isas()) names.append(name);
        return names;
      },
      "Names of the kernel modules that this CPU and its system can run.");
  m.def("fma_gflops", &convkit::fma_gflops, py::arg("threads"), py::arg("seconds"),
        py::call_guard<convkit::Unlocked>(),
        "Single-precision FMA peak of all threads together, in GFLOP/s (one multiply-add is 2 FLOP).");
  m.def("copy_gbs", &convkit::copy_gbs, py::arg("threads"), py::arg("megabytes"), py::arg("seconds"),
        py::call_guard<convkit::Unlocked>(),
        "Rate of copying memory with all threads together, in GB/s; a copied byte counts twice (read, "
        "written).");
}
