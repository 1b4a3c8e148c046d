// What the bindings share. With ../module.cpp this folder has the only C++ files that know of Python.
//
// Names     A binding has the name of the C++ function that it calls (kernels/kernels.hpp), as one literal:
//           `git grep conv2d_fprop_winograd` finds the kernel, its binding, and its calls.
// Once      module.cpp includes every file here and is the only one to be compiled: most of the time goes
//           into pybind11's templates, whatever the number of bindings. It is compiled once, for the
//           architecture's baseline, and linked into the module of each instruction set (setup.py). So
//           nothing that depends on the instruction set may be seen here.
// Arrays    arrive as NumPy arrays, which Python has checked: contiguous, aligned to their elements, of the
//           shapes that the problem says. An optional one may be None. Pointers are taken first, then the GIL
//           is released.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "../kernels/kernels.hpp"
#include "../unlock.hpp"

#if defined(CK_LANES)
#error "simd.hpp was included: its types differ from one instruction set to another"
#endif

namespace py = pybind11;

namespace convkit {

using Object = const py::object&;

template <class T = float>
const T* in(Object a) {
  return a.is_none() ? nullptr : static_cast<const T*>(py::reinterpret_borrow<py::array>(a).data());
}
template <class T = float>
T* out(Object a) {
  return a.is_none() ? nullptr : static_cast<T*>(py::reinterpret_borrow<py::array>(a).mutable_data());
}

// Calls f with a value of the storage type of that name.
template <class F>
void with_storage(const std::string& dtype, const F& f) {
  if (dtype == "float32") return f(float{});
  if (dtype == "bfloat16") return f(BFloat16{});
  if (dtype == "float16") return f(Float16{});
  throw py::value_error("no such storage type here: " + dtype);
}

// The numbers of a tuple of N of them.
template <int N>
struct Numbers {
  int64_t of[N];
  explicit Numbers(const py::tuple& numbers) {
    if (numbers.size() != N) throw py::value_error("needs " + std::to_string(N) + " numbers");
    for (size_t i = 0; i < N; ++i) of[i] = numbers[i].cast<int64_t>();
  }
  int64_t operator[](int i) const { return of[i]; }
};

}  // namespace convkit
