#include <array>

#include "bind.hpp"
#include "conv.hpp"

namespace convkit {
namespace {

// The fields of convkit.geometry.Conv2d, then P and Q.
using Numbers = std::array<int64_t, 18>;

// The distance from an only output to the next, or from an only tap, means nothing: no kernel need ask which it is.
Conv conv(const Numbers& a) {
  Conv g{a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17]};
  if (g.P == 1) g.stride_h = 1;
  if (g.Q == 1) g.stride_w = 1;
  if (g.R == 1) g.dilation_h = 1;
  if (g.S == 1) g.dilation_w = 1;
  return g;
}

using Workspace = int64_t (*)(const Conv&, Layouts);
using Fprop = void (*)(const Conv&, Layouts, const float*, const float*, const float*, float*, bool, void*, int);
using Dgrad = void (*)(const Conv&, Layouts, const float*, const float*, const float*, float*, void*, int);
using Wgrad = void (*)(const Conv&, Layouts, const float*, const float*, float*, void*, int);

struct Algorithm {  // nullptr: not one of its passes
  const char* name;
  const char* (*refusal)(const Conv&);
  Workspace fprop_workspace, dgrad_workspace, wgrad_workspace;
  Fprop fprop;
  Dgrad dgrad;
  Wgrad wgrad;
};

void bind(py::module_& m, const Algorithm& a) {
  const auto named = [&](const char* pass) { return "conv2d_" + std::string(pass) + "_" + a.name; };
  m.def(("conv2d_" + std::string(a.name) + "_refusal").c_str(),
        [f = a.refusal](const Numbers& g) -> py::object {
          const char* reason = f(conv(g));
          return reason ? py::object(py::str(reason)) : py::object(py::none());
        },
        "Why the problem cannot be done so, or None.");
  for (auto [pass, f] : {std::pair{"fprop", a.fprop_workspace}, {"dgrad", a.dgrad_workspace}, {"wgrad", a.wgrad_workspace}})
    m.def((named(pass) + "_workspace").c_str(),
          [f = f](const Numbers& g, bool x_blocked, bool y_blocked) { return f(conv(g), {x_blocked, y_blocked}); },
          "Bytes of scratch memory.");
  if (a.fprop) m.def(named("fprop").c_str(),
        [f = a.fprop](const Numbers& g, bool x_blocked, bool y_blocked, py::object x, py::object w, py::object b, py::object y,
                      bool relu, py::object workspace, int threads) {
          auto *xp = in(x), *wp = in(w), *bp = in(b);
          auto *yp = out(y), *sp = out(workspace);
          const Unlocked free;
          f(conv(g), {x_blocked, y_blocked}, xp, wp, bp, yp, relu, sp, threads);
        });
  if (a.dgrad) m.def(named("dgrad").c_str(),
        [f = a.dgrad](const Numbers& g, bool x_blocked, bool y_blocked, py::object dy, py::object w, py::object mask,
                      py::object dx, py::object workspace, int threads) {
          auto *dyp = in(dy), *wp = in(w), *mp = in(mask);
          auto *dxp = out(dx), *sp = out(workspace);
          const Unlocked free;
          f(conv(g), {x_blocked, y_blocked}, dyp, wp, mp, dxp, sp, threads);
        });
  if (a.wgrad) m.def(named("wgrad").c_str(),
        [f = a.wgrad](const Numbers& g, bool x_blocked, bool y_blocked, py::object x, py::object dy, py::object dw,
                      py::object workspace, int threads) {
          auto *xp = in(x), *dyp = in(dy);
          auto *dwp = out(dw), *sp = out(workspace);
          const Unlocked free;
          f(conv(g), {x_blocked, y_blocked}, xp, dyp, dwp, sp, threads);
        });
}

}  // namespace

void bind_conv(py::module_& m) {
  bind(m, {"winograd", winograd::refusal, winograd::fprop_workspace, winograd::dgrad_workspace, winograd::wgrad_workspace,
           winograd::fprop, winograd::dgrad, winograd::wgrad});
  bind(m, {"direct", direct::refusal, direct::fprop_workspace, direct::dgrad_workspace, direct::wgrad_workspace,
           direct::fprop, direct::dgrad, direct::wgrad});
  const auto none = [](const Conv&, Layouts) -> int64_t { return 0; };
  bind(m, {"narrow_groups", narrow_groups::refusal, none, none, none,
           [](const Conv& g, Layouts, const float* x, const float* w, const float* b, float* y, bool relu, void*, int threads) {
             narrow_groups::fprop(g, x, w, b, y, relu, threads);
           },
           [](const Conv& g, Layouts, const float* dy, const float* w, const float* mask, float* dx, void*, int threads) {
             narrow_groups::dgrad(g, dy, w, mask, dx, threads);
           },
           [](const Conv& g, Layouts, const float* x, const float* dy, float* dw, void*, int threads) {
             narrow_groups::wgrad(g, x, dy, dw, threads);
           }});
  const auto weights = [](const Conv& g, Layouts) { return pointwise::workspace(g); };
  bind(m, {"pointwise", pointwise::refusal, weights, weights, weights,
           [](const Conv& g, Layouts, const float* x, const float* w, const float* b, float* y, bool relu, void* s, int threads) {
             pointwise::fprop(g, x, w, b, y, relu, s, threads);
           },
           [](const Conv& g, Layouts, const float* dy, const float* w, const float* mask, float* dx, void* s, int threads) {
             pointwise::dgrad(g, dy, w, mask, dx, s, threads);
           },
           nullptr});
  const auto frames = [](const Conv& g, Layouts) { return few_channels::wgrad_workspace(g); };
  bind(m, {"few_channels", few_channels::refusal, none, none, frames, nullptr, nullptr,
           [](const Conv& g, Layouts, const float* x, const float* dy, float* dw, void* s, int threads) {
             few_channels::wgrad(g, x, dy, dw, s, threads);
           }});
}

}  // namespace convkit
