// What the bind_*.cpp files share: the only ones here that know of Python.
//
// Arrays arrive as NumPy arrays, which Python has checked: contiguous, aligned to their elements, of the shapes that
// the problem says. An optional one may be None. Pointers are taken first, then the GIL is released.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "simd.hpp"
#include "unlock.hpp"

namespace py = pybind11;

namespace convkit {

template <class T = float>
const T* in(const py::object& a) {
  return a.is_none() ? nullptr : static_cast<const T*>(py::reinterpret_borrow<py::array>(a).data());
}
template <class T = float>
T* out(const py::object& a) {
  return a.is_none() ? nullptr : static_cast<T*>(py::reinterpret_borrow<py::array>(a).mutable_data());
}

void bind_conv(py::module_& m);
void bind_linear(py::module_& m);
void bind_memory(py::module_& m);

}  // namespace convkit
