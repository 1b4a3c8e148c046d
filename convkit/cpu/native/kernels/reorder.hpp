// Activations from NCHW to nChw16c and back; a range of images at a time. The rows are pack.hpp's.
//
// Idea      LANES pixels of LANES channels are transposed in registers (transpose.hpp).
// Tasks     A block of 16 channels of an image, and a piece of its pixels where maps are large: 16 streams of NCHW.
// Bound     Memory: each element is read and written once, 8 bytes. No image needs scratch.
// Measured  Zen 4, AVX-512, two threads, N = 16: 25-33 GB/s, where np.copyto reaches 25-32.
#pragma once

#include "simd.hpp"

namespace convkit {

// y = x, N images of C channels of `pixels` pixels; spare channels of y are zeros.
void reorder_block(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads);
void reorder_unblock(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads);

}  // namespace convkit
