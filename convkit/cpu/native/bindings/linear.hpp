// Fully connected layers, for Python: convkit/cpu/linear_panels.py calls them.
#pragma once

#include "arrays.hpp"

namespace convkit {
namespace linear {

inline LinearShape shape(const py::tuple& extents) {
  const Numbers<3> a(extents);
  return {a[0], a[1], a[2]};
}

// Options of ops.sgd_momentum, by name.
inline Sgd sgd_of(const py::dict& o) {
  if (o.empty()) return {};
  // A name is made a Python string once: the six of a call would take as long as a small update.
  static const auto name = [](const char* text) { return py::str(text).release(); };
  static const py::handle lr = name("lr"), momentum = name("momentum"), weight_decay = name("weight_decay"),
                          dampening = name("dampening"), nesterov = name("nesterov"),
                          lr_in_velocity = name("lr_in_velocity");
  const auto number = [&](py::handle key) { return py::cast<double>(o[key]); };
  return {float(number(lr)),           float(number(momentum)),
          float(number(weight_decay)), float(1 - number(dampening)),
          py::cast<bool>(o[nesterov]), py::cast<bool>(o[lr_in_velocity])};
}

inline void fprop(const std::string& dtype, const py::tuple& extents, Object x, Object w, Object b, Object y,
                  bool relu, Object workspace, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const S *xs = in<S>(x), *ws = in<S>(w), *bs = in<S>(b);
    S* ys = out<S>(y);
    float* scratch = out<float>(workspace);
    const LinearShape g = shape(extents);
    const Unlocked unlocked;
    linear_fprop_panels(g, xs, ws, bs, ys, relu, scratch, threads);
  });
}

inline void backward(const std::string& dtype, const py::tuple& extents, Object dy, Object w, Object x,
                     Object v, Object dx, Object dw, Object w_new, Object v_new, bool relu,
                     const py::dict& sgd, Object workspace, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const LinearBackward<S> job{shape(extents), in<S>(dy),  in<S>(w),    in<S>(x),
                                in<S>(v),       out<S>(dx), out<S>(dw),  out<S>(w_new),
                                out<S>(v_new),  relu,       sgd_of(sgd), out<float>(workspace)};
    const Unlocked unlocked;
    linear_backward_panels(job, threads);
  });
}

inline void bind(py::module_& m) {
  m.def(
      "linear_fprop_panels_workspace",
      [](const py::tuple& e) { return 4 * linear_fprop_panels_floats(shape(e)); },
      "Bytes of scratch memory that linear_fprop_panels wants.");
  m.def("linear_fprop_panels", &fprop, "y = x w^T + b (b may be None), and its ReLU.");
  m.def(
      "linear_backward_panels_workspace",
      [](const py::tuple& e) { return 4 * linear_backward_panels_floats(shape(e)); },
      "Bytes of scratch memory that linear_backward_panels wants for dx.");
  m.def("linear_backward_panels", &backward,
        "dx, dw, or the update of w and v; what is None is not computed.");
}

}  // namespace linear
}  // namespace convkit
