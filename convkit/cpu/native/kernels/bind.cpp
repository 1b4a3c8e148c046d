// The module of one instruction set. What it holds is in the other bind_*.cpp files.
#include "bind.hpp"

#define CK_MODULE_(name, m) PYBIND11_MODULE(name, m)
CK_MODULE_(CK_MODULE, m) {
  using namespace convkit;
  m.doc() = "convkit's CPU kernels for one instruction set; loaded through convkit.native.kernels()";
  m.attr("lanes") = LANES;
  bind_conv(m);
  bind_linear(m);
  bind_memory(m);
}
