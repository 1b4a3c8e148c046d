// The module of one instruction set. What it holds is in the other files of this folder; arrays.hpp says
// more.
#include "conv2d.hpp"
#include "linear.hpp"
#include "memory.hpp"

namespace {

void fill(py::module_& m) {
  m.doc() = "convkit's CPU kernels for one instruction set; loaded through convkit.cpu.extension.kernels()";
  m.attr("lanes") = convkit::lanes();
  convkit::conv2d::bind(m);
  convkit::linear::bind(m);
  convkit::memory::bind(m);
}

}  // namespace

// Python looks for the function that has the module's name, and this file is linked into each of these
// modules.
PYBIND11_MODULE(_cpu_v2, m) { fill(m); }
PYBIND11_MODULE(_cpu_v3, m) { fill(m); }
PYBIND11_MODULE(_cpu_v4, m) { fill(m); }
PYBIND11_MODULE(_cpu_neon, m) { fill(m); }
PYBIND11_MODULE(_cpu_generic, m) { fill(m); }
