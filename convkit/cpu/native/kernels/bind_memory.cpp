#include "bind.hpp"
#include "lrn_maxpool2d.hpp"

namespace convkit {
namespace {

// Calls f with a value of argmax's type.
template <class F>
void with_index(const py::object& argmax, const F& f) {
  switch (py::reinterpret_borrow<py::array>(argmax).itemsize()) {
    case 1: return f(std::uint8_t{});
    case 2: return f(std::uint16_t{});
    default: return f(std::uint32_t{});
  }
}

}  // namespace

void bind_memory(py::module_& m) {
  py::class_<Lrn>(m, "Lrn", py::module_local())
      .def(py::init([](int64_t N, int64_t C, int64_t H, int64_t W, int64_t groups, int64_t behind, int64_t ahead, double k,
                       double scale, double beta) {
             return Lrn{N, C, H, W, groups, behind, ahead, float(k), float(scale), float(beta), float(2 * scale * beta)};
           }),
           py::kw_only(), py::arg("N"), py::arg("C"), py::arg("H"), py::arg("W"), py::arg("groups"), py::arg("behind"),
           py::arg("ahead"), py::arg("k"), py::arg("scale"), py::arg("beta"));
  py::class_<Pool>(m, "Pool", py::module_local())
      .def(py::init([](const std::array<int64_t, 14>& a) {
        return Pool{a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13]};
      }));

  m.def("lrn_fprop_blocked", [](const Lrn& g, const py::object& x, const py::object& y, int threads) {
    const float* xs = in(x);
    float* ys = out(y);
    const Unlocked unlocked;
    lrn_fprop_blocked(g, xs, ys, threads);
  }, py::arg("g"), py::arg("x"), py::arg("y"), py::kw_only(), py::arg("threads"));
  m.def("lrn_dgrad_blocked",
        [](const Lrn& g, const py::object& dy, const py::object& x, const py::object& dx, int threads) {
          const float *dys = in(dy), *xs = in(x);
          float* dxs = out(dx);
          const Unlocked unlocked;
          lrn_dgrad_blocked(g, dys, xs, dxs, threads);
        }, py::arg("g"), py::arg("dy"), py::arg("x"), py::arg("dx"), py::kw_only(), py::arg("threads"));
  m.def("maxpool2d_fprop_blocked",
        [](const Pool& g, const py::object& x, const py::object& y, const py::object& argmax, int threads) {
          with_index(argmax, [&](auto index) {
            const float* xs = in(x);
            float* ys = out(y);
            auto* winners = out<decltype(index)>(argmax);
            const Unlocked unlocked;
            maxpool2d_fprop_blocked(g, xs, ys, winners, threads);
          });
        }, py::arg("g"), py::arg("x"), py::arg("y"), py::arg("argmax"), py::kw_only(), py::arg("threads"));
  m.def("maxpool2d_dgrad_blocked",
        [](const Pool& g, const py::object& dy, const py::object& argmax, const py::object& dx, int threads) {
          with_index(argmax, [&](auto index) {
            const float* dys = in(dy);
            const auto* winners = in<decltype(index)>(argmax);
            float* dxs = out(dx);
            const Unlocked unlocked;
            maxpool2d_dgrad_blocked(g, dys, winners, dxs, threads);
          });
        }, py::arg("g"), py::arg("dy"), py::arg("argmax"), py::arg("dx"), py::kw_only(), py::arg("threads"));
  m.def("lrn_maxpool2d_fprop_blocked",
        [](const Lrn& lrn, const Pool& pool, const py::object& x, const py::object& y, const py::object& argmax,
           int threads) {
          with_index(argmax, [&](auto index) {
            const float* xs = in(x);
            float* ys = out(y);
            auto* winners = out<decltype(index)>(argmax);
            const Unlocked unlocked;
            lrn_maxpool2d_fprop_blocked(lrn, pool, xs, ys, winners, threads);
          });
        }, py::arg("lrn"), py::arg("pool"), py::arg("x"), py::arg("y"), py::arg("argmax"), py::kw_only(), py::arg("threads"));
  m.def("lrn_maxpool2d_dgrad_blocked",
        [](const Lrn& lrn, const Pool& pool, const py::object& dy, const py::object& argmax, const py::object& x,
           const py::object& dx, bool relu, int threads) {
          with_index(argmax, [&](auto index) {
            const float *dys = in(dy), *xs = in(x);
            const auto* winners = in<decltype(index)>(argmax);
            float* dxs = out(dx);
            const Unlocked unlocked;
            lrn_maxpool2d_dgrad_blocked(lrn, pool, dys, winners, xs, dxs, relu, threads);
          });
        }, py::arg("lrn"), py::arg("pool"), py::arg("dy"), py::arg("argmax"), py::arg("x"), py::arg("dx"),
        py::kw_only(), py::arg("relu"), py::arg("threads"));
}

}  // namespace convkit
