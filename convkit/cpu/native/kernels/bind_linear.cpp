#include <array>
#include <string>

#include "bind.hpp"
#include "linear.hpp"

namespace convkit {
namespace {

// Calls f with a value of the storage type of that name.
template <class F>
void with_storage(const std::string& dtype, const F& f) {
  if (dtype == "float32") return f(float{});
  if (dtype == "bfloat16") return f(BFloat16{});
  if (dtype == "float16") return f(Float16{});
  throw py::value_error("no such storage type here: " + dtype);
}

using Extents = std::array<int64_t, 3>;  // N, C, K

LinearShape shape(const Extents& e) { return {e[0], e[1], e[2]}; }

// Options of ops.sgd_momentum, by name.
Sgd sgd_of(const py::dict& o) {
  if (o.empty()) return {};
  // A name is made a Python string once: the six of a call would take as long as a small update.
  static const auto name = [](const char* text) { return py::str(text).release(); };
  static const py::handle lr = name("lr"), momentum = name("momentum"), weight_decay = name("weight_decay"),
                          dampening = name("dampening"), nesterov = name("nesterov"),
                          lr_in_velocity = name("lr_in_velocity");
  const auto number = [&](py::handle key) { return py::cast<double>(o[key]); };
  return {float(number(lr)),
          float(number(momentum)),
          float(number(weight_decay)),
          float(1 - number(dampening)),
          py::cast<bool>(o[nesterov]),
          py::cast<bool>(o[lr_in_velocity])};
}

void fprop(const std::string& dtype, const Extents& extents, const py::object& x, const py::object& w,
           const py::object& b, const py::object& y, bool relu, const py::object& workspace, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const S *xs = in<S>(x), *ws = in<S>(w), *bs = in<S>(b);
    S* ys = out<S>(y);
    float* scratch = out<float>(workspace);
    const Unlocked unlocked;
    linear_fprop(threads, shape(extents), xs, ws, bs, ys, relu, scratch);
  });
}

void backward(const std::string& dtype, const Extents& extents, const py::object& dy, const py::object& w,
              const py::object& x, const py::object& v, const py::object& dx, const py::object& dw,
              const py::object& w_new, const py::object& v_new, bool relu, const py::dict& sgd,
              const py::object& workspace, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const LinearBackward<S> job{shape(extents), in<S>(dy),  in<S>(w),      in<S>(x),      in<S>(v), out<S>(dx),
                                out<S>(dw),     out<S>(w_new), out<S>(v_new), relu, sgd_of(sgd), out<float>(workspace)};
    const Unlocked unlocked;
    linear_backward(threads, job);
  });
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("linear_fprop_workspace", [](const Extents& e) { return 4 * linear_fprop_scratch(shape(e)); },
        "Bytes of scratch memory that linear_fprop wants.");
  m.def("linear_fprop", &fprop, "y = x w^T + b (b may be None), and its ReLU.");
  m.def("linear_backward_workspace", [](const Extents& e) { return 4 * linear_backward_scratch(shape(e)); },
        "Bytes of scratch memory that linear_backward wants for dx.");
  m.def("linear_backward", &backward, "dx, dw, or the update of w and v; what is None is not computed.");
}

}  // namespace convkit
