// What the convolution kernels share: the problem, and scratch memory.
//
// Inside, activations are blocked, (images, groups, blocks of 16 channels, rows, columns, 16), whatever the caller's
// layout is: a register holds neighbouring channels of one pixel, so that no kernel shuffles. Users' NCHW arrays are
// packed a chunk of images at a time, into scratch that stays in the caches, and results unpacked in the same way.
#pragma once

#include "pool.hpp"
#include "simd.hpp"

namespace convkit {

// One output along an axis has stride 1 there, and one tap dilation 1 (bind_conv.cpp sees to it). So P and Q cannot be worked
// out from the rest: an image may go on behind the last window.
struct Conv {
  int64_t N, C, H, W, K, R, S, stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w,
      groups, P, Q;

  int64_t c_group() const { return C / groups; }
  int64_t k_group() const { return K / groups; }
  int64_t c_blocks() const { return ceil_div(c_group(), BLOCK); }  // of a group
  int64_t k_blocks() const { return ceil_div(k_group(), BLOCK); }
};

// Scratch memory, handed out from the front. With no memory behind it, it only counts.
class Scratch {
 public:
  explicit Scratch(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  float* floats(int64_t count) {
    // An odd number of lines between two buffers keeps them from falling on the same cache sets.
    const int64_t at = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(float)), 64) + 5 * 64;
    return base_ ? reinterpret_cast<float*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_ + 64; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// f(begin, end) on ranges of `grain` units, on up to `threads` threads; what a unit gives must not depend on its range.
template <class F>
void parallel_ranges(int threads, int64_t units, int64_t grain, const F& f) {
  parallel_for(threads, ceil_div(units, grain),
               [&](int64_t i) { f(i * grain, least(units, (i + 1) * grain)); });
}

// What is done to an output before it is stored.
struct Epilogue {
  const float* bias = nullptr;  // per output channel, in whole blocks, or none
  bool relu = false;
  const float* mask = nullptr;  // blocked like the output, or none: where it is not positive, 0 is stored
};

// All bits of the lanes below `count`, which are channels; the others are spare and stay zero, also beside a NaN.
CK_INLINE VI lanes_below(int64_t count) {
  VI keep = VI{};
  for (int l = 0; l < LANES; ++l) keep[l] = l < count ? -1 : 0;
  return keep;
}

// The epilogue for one register of channels.
struct Finish {
  V bias;
  bool relu;
  VI keep;

  // `channel` counts from the epilogue's first; `left` channels exist from there on.
  Finish(const Epilogue& e, int64_t channel, int64_t left)
      : bias(e.bias ? load(e.bias + channel) : V{}), relu(e.relu), keep(lanes_below(left)) {}

  // mask: where it lies for this output, or nullptr.
  CK_INLINE V operator()(V v, const float* mask) const {
    v += bias;
    if (relu) v = convkit::relu(v);
    if (mask) v = where_positive(load(mask), v);
    return reinterpret_cast<V>(reinterpret_cast<VI>(v) & keep);
  }
};

// A bias of (groups * k) as whole blocks for each group; zeros where there is none.
inline void pad_bias(const float* b, int64_t groups, int64_t k, float* to) {
  const int64_t padded = round_up(k, BLOCK);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < padded; ++i) to[g * padded + i] = b && i < k ? b[g * k + i] : 0.0f;
}

// Where weight (k, c, r, s) of a pass lies: k comes out, c goes in, whichever the pass is.
struct Weights {
  const float* at;
  int64_t k_step, c_step, r_step, s_step;
};

// conv2d_fprop and conv2d_dgrad, each with the workspace that it wants, in bytes. x, y, dx, dy are NCHW or blocked as
// the flags say; w is always (K, C/groups, R, S). x_mask: dx is zero where x is not positive.
struct Layouts {
  bool x_blocked, y_blocked;
};

namespace winograd {
// Why it cannot do the problem, or nullptr.
const char* refusal(const Conv& g);
int64_t fprop_workspace(const Conv& g, Layouts l);
int64_t dgrad_workspace(const Conv& g, Layouts l);
int64_t wgrad_workspace(const Conv& g, Layouts l);
void fprop(const Conv& g, Layouts l, const float* x, const float* w, const float* b, float* y, bool relu,
           void* workspace, int threads);
void dgrad(const Conv& g, Layouts l, const float* dy, const float* w, const float* x_mask, float* dx, void* workspace,
           int threads);
void wgrad(const Conv& g, Layouts l, const float* x, const float* dy, float* dw, void* workspace, int threads);
}  // namespace winograd

namespace direct {
const char* refusal(const Conv& g);
int64_t fprop_workspace(const Conv& g, Layouts l);
int64_t dgrad_workspace(const Conv& g, Layouts l);
int64_t wgrad_workspace(const Conv& g, Layouts l);
void fprop(const Conv& g, Layouts l, const float* x, const float* w, const float* b, float* y, bool relu,
           void* workspace, int threads);
void dgrad(const Conv& g, Layouts l, const float* dy, const float* w, const float* x_mask, float* dx, void* workspace,
           int threads);
void wgrad(const Conv& g, Layouts l, const float* x, const float* dy, float* dw, void* workspace, int threads);
}  // namespace direct

namespace narrow_groups {  // NCHW alone, and no workspace
const char* refusal(const Conv& g);
void fprop(const Conv& g, const float* x, const float* w, const float* b, float* y, bool relu, int threads);
void dgrad(const Conv& g, const float* dy, const float* w, const float* x_mask, float* dx, int threads);
void wgrad(const Conv& g, const float* x, const float* dy, float* dw, int threads);
}  // namespace narrow_groups

namespace few_channels {  // NCHW alone; wgrad
const char* refusal(const Conv& g);
int64_t wgrad_workspace(const Conv& g);
void wgrad(const Conv& g, const float* x, const float* dy, float* dw, void* workspace, int threads);
}  // namespace few_channels

namespace pointwise {  // NCHW alone; fprop and dgrad
const char* refusal(const Conv& g);
int64_t workspace(const Conv& g);
void fprop(const Conv& g, const float* x, const float* w, const float* b, float* y, bool relu, void* scratch, int threads);
void dgrad(const Conv& g, const float* dy, const float* w, const float* x_mask, float* dx, void* scratch, int threads);
}  // namespace pointwise

}  // namespace convkit
