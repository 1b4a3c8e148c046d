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

void fprop(int threads, const std::string& dtype, LinearShape g, const py::object& x, const py::object& w,
           const py::object& b, const py::object& y, bool relu, const py::object& scratch) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const S *xs = in<S>(x), *ws = in<S>(w), *bs = in<S>(b);
    S* ys = out<S>(y);
    float* floats = out<float>(scratch);
    const Unlocked unlocked;
    linear_fprop(threads, g, xs, ws, bs, ys, relu, floats);
  });
}

void backward(int threads, const std::string& dtype, LinearShape g, const py::object& dy, const py::object& w,
              const py::object& x, const py::object& v, const py::object& dx, const py::object& dw,
              const py::object& w_new, const py::object& v_new, bool relu, const Sgd& sgd) {
  with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const LinearBackward<S> job{g,          in<S>(dy),     in<S>(w),      in<S>(x), in<S>(v), out<S>(dx),
                                out<S>(dw), out<S>(w_new), out<S>(v_new), relu,     sgd};
    const Unlocked unlocked;
    linear_backward(threads, job);
  });
}

}  // namespace

void bind_linear(py::module_& m) {
  py::class_<LinearShape>(m, "LinearShape", py::module_local()).def(py::init([](int64_t N, int64_t C, int64_t K) {
    return LinearShape{N, C, K};
  }));
  py::class_<Sgd>(m, "Sgd", py::module_local())
      .def(py::init([](float lr, float momentum, float weight_decay, double dampening, bool nesterov,
                       bool lr_in_velocity) {
             return Sgd{lr, momentum, weight_decay, float(1 - dampening), nesterov, lr_in_velocity};
           }),
           py::kw_only(), py::arg("lr") = 0, py::arg("momentum") = 0, py::arg("weight_decay") = 0,
           py::arg("dampening") = 0, py::arg("nesterov") = false, py::arg("lr_in_velocity") = false);
  m.def("linear_fprop_scratch", &linear_fprop_scratch, "Floats of scratch memory that linear_fprop wants.");
  m.def("linear_fprop", &fprop, "y = x w^T + b (b may be None), and its ReLU.");
  m.def("linear_backward", &backward, "dx, dw, or the update of w and v; what is None is not computed.");
}

}  // namespace convkit
