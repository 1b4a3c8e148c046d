// What the convolution kernels share: scratch memory, and the epilogue.
//
// Inside, activations are blocked, (images, groups, blocks of 16 channels, rows, columns, 16), whatever the
// caller's layout is: a register holds neighbouring channels of one pixel, so that no kernel shuffles. Users'
// NCHW arrays are packed a chunk of images at a time, into scratch that stays in the caches, and results
// unpacked in the same way.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace convkit {

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

// f(begin, end) on ranges of `grain` units, on up to `threads` threads; what a unit gives must not depend on
// its range.
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

// All bits of the lanes below `count`, which are channels; the others are spare and stay zero, also beside a
// NaN.
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

}  // namespace convkit
