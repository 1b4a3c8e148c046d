// Direct convolution: what its passes share.
#pragma once

#include "conv.hpp"
#include "gemm.hpp"
#include "pack.hpp"

namespace convkit {
namespace direct {

constexpr int64_t PACKED = 4 << 20;  // bytes of images in a frame at a time
constexpr int MAX_CLASSES = 64;      // of residues of dx, stride_h x stride_w

// Images at a time, in even shares.
CK_INLINE int64_t images_of(int64_t N, int64_t floats_per_image) {
  const int64_t at_a_time = least(N, most(1, PACKED / 4 / most(1, floats_per_image)));
  return ceil_div(N, ceil_div(N, at_a_time));
}

// The frame that every tap of every output pixel lies in.
CK_INLINE int64_t frame_extent(int64_t outputs, int64_t stride, int64_t taps, int64_t dilation) {
  return (outputs - 1) * stride + (taps - 1) * dilation + 1;
}

}  // namespace direct
}  // namespace convkit
