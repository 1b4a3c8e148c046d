// Convolution, for Python: convkit/cpu/conv2d_native.py calls it.
#pragma once

#include "arrays.hpp"

namespace convkit {
namespace conv2d {

// The fields of convkit's Conv2d, then P and Q. The distance from an only output to the next, or from an only
// tap, means nothing: no kernel need ask which it is.
inline Conv conv(const py::tuple& numbers) {
  const Numbers<18> a(numbers);
  Conv g{a[0], a[1],  a[2],  a[3],  a[4],  a[5],  a[6],  a[7],  a[8],
         a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17]};
  if (g.P == 1) g.stride_h = 1;
  if (g.Q == 1) g.stride_w = 1;
  if (g.R == 1) g.dilation_h = 1;
  if (g.S == 1) g.dilation_w = 1;
  return g;
}

// A kernel for NCHW alone is called as the others are: with the layouts, and with a workspace.
template <auto kernel, class... Arguments>
void on_nchw(const Conv& g, Layouts, Arguments... arguments) {
  kernel(g, arguments...);
}
template <auto bytes>
int64_t bytes_on_nchw(const Conv& g, Layouts) {
  return bytes(g);
}
inline int64_t no_bytes(const Conv&, Layouts) { return 0; }

// The pointers are arguments of the bindings, not of a template: each kind of pass is compiled once.
using Refusal = const char* (*)(const Conv&);
using Workspace = int64_t (*)(const Conv&, Layouts);
using Fprop = void (*)(const Conv&, Layouts, const float*, const float*, const float*, float*, bool, void*,
                       int);
using Dgrad = void (*)(const Conv&, Layouts, const float*, const float*, const float*, float*, void*, int);
using Wgrad = void (*)(const Conv&, Layouts, const float*, const float*, float*, void*, int);

inline void refusal(py::module_& m, const char* name, Refusal f) {
  m.def(name, [f](const py::tuple& g) { return f(conv(g)); }, "Why the problem cannot be done so, or None.");
}

inline void workspace(py::module_& m, const char* name, Workspace f) {
  m.def(
      name,
      [f](const py::tuple& g, bool x_blocked, bool y_blocked) { return f(conv(g), {x_blocked, y_blocked}); },
      "Bytes of scratch memory.");
}

inline void fprop(py::module_& m, const char* name, Fprop f) {
  m.def(name, [f](const py::tuple& g, bool x_blocked, bool y_blocked, Object x, Object w, Object b, Object y,
                  bool relu, Object workspace, int threads) {
    const Conv problem = conv(g);
    auto *xp = in(x), *wp = in(w), *bp = in(b);
    auto *yp = out(y), *sp = out(workspace);
    const Unlocked unlocked;
    f(problem, {x_blocked, y_blocked}, xp, wp, bp, yp, relu, sp, threads);
  });
}

inline void dgrad(py::module_& m, const char* name, Dgrad f) {
  m.def(name, [f](const py::tuple& g, bool x_blocked, bool y_blocked, Object dy, Object w, Object mask,
                  Object dx, Object workspace, int threads) {
    const Conv problem = conv(g);
    auto *dyp = in(dy), *wp = in(w), *mp = in(mask);
    auto *dxp = out(dx), *sp = out(workspace);
    const Unlocked unlocked;
    f(problem, {x_blocked, y_blocked}, dyp, wp, mp, dxp, sp, threads);
  });
}

inline void wgrad(py::module_& m, const char* name, Wgrad f) {
  m.def(name, [f](const py::tuple& g, bool x_blocked, bool y_blocked, Object x, Object dy, Object dw,
                  Object workspace, int threads) {
    const Conv problem = conv(g);
    auto *xp = in(x), *dyp = in(dy);
    auto *dwp = out(dw), *sp = out(workspace);
    const Unlocked unlocked;
    f(problem, {x_blocked, y_blocked}, xp, dyp, dwp, sp, threads);
  });
}

inline void bind(py::module_& m) {
  refusal(m, "conv2d_winograd_refusal", conv2d_winograd_refusal);
  workspace(m, "conv2d_fprop_winograd_workspace", conv2d_fprop_winograd_workspace);
  workspace(m, "conv2d_dgrad_winograd_workspace", conv2d_dgrad_winograd_workspace);
  workspace(m, "conv2d_wgrad_winograd_workspace", conv2d_wgrad_winograd_workspace);
  fprop(m, "conv2d_fprop_winograd", conv2d_fprop_winograd);
  dgrad(m, "conv2d_dgrad_winograd", conv2d_dgrad_winograd);
  wgrad(m, "conv2d_wgrad_winograd", conv2d_wgrad_winograd);

  refusal(m, "conv2d_direct_refusal", conv2d_direct_refusal);
  workspace(m, "conv2d_fprop_direct_workspace", conv2d_fprop_direct_workspace);
  workspace(m, "conv2d_dgrad_direct_workspace", conv2d_dgrad_direct_workspace);
  workspace(m, "conv2d_wgrad_direct_workspace", conv2d_wgrad_direct_workspace);
  fprop(m, "conv2d_fprop_direct", conv2d_fprop_direct);
  dgrad(m, "conv2d_dgrad_direct", conv2d_dgrad_direct);
  wgrad(m, "conv2d_wgrad_direct", conv2d_wgrad_direct);

  refusal(m, "conv2d_narrow_groups_refusal", conv2d_narrow_groups_refusal);
  workspace(m, "conv2d_fprop_narrow_groups_workspace", no_bytes);
  workspace(m, "conv2d_dgrad_narrow_groups_workspace", no_bytes);
  workspace(m, "conv2d_wgrad_narrow_groups_workspace", no_bytes);
  fprop(m, "conv2d_fprop_narrow_groups",
        [](const Conv& g, Layouts, const float* x, const float* w, const float* b, float* y, bool relu, void*,
           int threads) { conv2d_fprop_narrow_groups(g, x, w, b, y, relu, threads); });
  dgrad(m, "conv2d_dgrad_narrow_groups",
        [](const Conv& g, Layouts, const float* dy, const float* w, const float* mask, float* dx, void*,
           int threads) { conv2d_dgrad_narrow_groups(g, dy, w, mask, dx, threads); });
  wgrad(m, "conv2d_wgrad_narrow_groups",
        [](const Conv& g, Layouts, const float* x, const float* dy, float* dw, void*, int threads) {
          conv2d_wgrad_narrow_groups(g, x, dy, dw, threads);
        });

  refusal(m, "conv2d_pointwise_refusal", conv2d_pointwise_refusal);
  workspace(m, "conv2d_fprop_pointwise_workspace", bytes_on_nchw<conv2d_fprop_pointwise_workspace>);
  workspace(m, "conv2d_dgrad_pointwise_workspace", bytes_on_nchw<conv2d_dgrad_pointwise_workspace>);
  fprop(m, "conv2d_fprop_pointwise", on_nchw<conv2d_fprop_pointwise>);
  dgrad(m, "conv2d_dgrad_pointwise", on_nchw<conv2d_dgrad_pointwise>);

  refusal(m, "conv2d_few_channels_refusal", conv2d_few_channels_refusal);
  workspace(m, "conv2d_wgrad_few_channels_workspace", bytes_on_nchw<conv2d_wgrad_few_channels_workspace>);
  wgrad(m, "conv2d_wgrad_few_channels", on_nchw<conv2d_wgrad_few_channels>);
}

}  // namespace conv2d
}  // namespace convkit
