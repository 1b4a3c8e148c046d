// Between users' NCHW arrays and the blocked maps of the convolution kernels.
#pragma once

#include "conv.hpp"

namespace convkit {

// Blocked maps of some images: (images, groups, blocks, H, W, 16). A group begins with a new block.
struct Maps {
  float* data;
  int64_t images, groups, channels, H, W;  // channels of a group

  int64_t blocks() const { return ceil_div(channels, BLOCK); }
  int64_t plane() const { return H * W * BLOCK; }
  int64_t image() const { return groups * blocks() * plane(); }
  int64_t floats() const { return images * image(); }
  float* at(int64_t n, int64_t g, int64_t block) const {
    return data + ((n * groups + g) * blocks() + block) * plane();
  }
};

// One row of one block: `count` pixels of up to 16 channels, which lie `pitch` floats apart; spare channels
// are 0.
void block_row(const float* from, int64_t pitch, int64_t channels, int64_t count, float* to);
// The way back, for the channels that exist.
void unblock_row(const float* from, int64_t pitch, int64_t channels, int64_t count, float* to);

// maps = images [n0, n0 + maps.images) of x, an NCHW array; inside a frame of zeros, `top` rows and `left`
// columns. The image is H x W; the frame is what maps has beyond it.
void pack(const float* x, int64_t n0, int64_t H, int64_t W, const Maps& maps, int64_t top, int64_t left,
          int threads);
// The same from a blocked tensor.
void frame(const float* x, int64_t n0, int64_t H, int64_t W, const Maps& maps, int64_t top, int64_t left,
           int threads);
// y, an NCHW array = maps.
void unpack(const Maps& maps, int64_t n0, float* y, int threads);

// Space to depth: channel (c, i, j) of pixel (h, w) is pixel (h * s + i - top, w * s + j - left) of channel
// c.
void space_to_depth(const float* x, int64_t n0, int64_t C, int64_t H, int64_t W, int64_t s, const Maps& maps,
                    int64_t top, int64_t left, int threads);
void depth_to_space(const Maps& maps, int64_t n0, float* x, int64_t C, int64_t H, int64_t W, int64_t s,
                    int64_t top, int64_t left, int threads);

}  // namespace convkit
