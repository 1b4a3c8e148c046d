// patch.cuh: the gradient of 3 x 3 max pooling at stride 2 in NHWC, as a lane makes it: for a patch of 2 x 2 pixels
// of CHANNELS channels, from the four windows that any of them lies in.
//
// A patch is rows 2p and 2p + 1, columns 2q and 2q + 1 of the padded image. Windows begin at every second row
// and column, so that the patch lies in the windows p - 1 and p, q - 1 and q: its pixels have these positions
// (r*3 + s) in them:
//
//               window p-1,q-1   p-1,q   p,q-1   p,q
//    pixel 0,0        8            6       2      0
//          0,1                     7              1
//          1,0                             5      3
//          1,1                                    4
//
// So each window is loaded once for four pixels, where one pixel at a time would load it 2.25 times; a window
// that does not exist has a position that is none. No atomics: each pixel's sum has a fixed order.
// A Geometry has the members of Pool2d, and dividers by_bands and by_columns: rows and columns of patches.
#pragma once

#include "channels.cuh"

struct Patch {
  long long n;
  int p, q;
  int row, column;  // of its first pixel, which may lie outside the image
};

// Patches are numbered along the columns, then along the rows, then along the images.
template <class Geometry>
__device__ __forceinline__ Patch patch_at(const Geometry& g, int i) {
  const int line = i / g.by_columns;
  Patch patch;
  patch.n = line / g.by_bands;
  patch.p = g.pad_top / 2 + line % g.by_bands;
  patch.q = g.pad_left / 2 + i % g.by_columns;
  patch.row = 2 * patch.p - g.pad_top;
  patch.column = 2 * patch.q - g.pad_left;
  return patch;
}

struct Window {
  float gradients[CHANNELS];
  Positions winners;
};

// Gradients of the `count` channels from `channel` on, of the windows [p - 1, p] x [q - 1, q] of a patch.
struct Windows {
  Window at[2][2];

  template <class Geometry>
  __device__ __forceinline__ void load(const Geometry& g, const Patch& patch, int channel, int count,
                                       const storage_t* __restrict__ dy,
                                       const unsigned char* __restrict__ argmax, bool vector_dy,
                                       bool vector_argmax) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int p = patch.p - 1 + i, q = patch.q - 1 + j;
        if (count > 0 && p >= 0 && p < g.P && q >= 0 && q < g.Q) {
          const long long window = ((patch.n * g.P + p) * g.Q + q) * g.C + channel;
          Run gradients = load_run(dy + window, count, vector_dy);
#pragma unroll
          for (int c = 0; c < CHANNELS; ++c) at[i][j].gradients[c] = gradients.value(c);
          at[i][j].winners = load_positions(argmax + window, count, vector_argmax);
        } else {
#pragma unroll
          for (int c = 0; c < CHANNELS; ++c) at[i][j].gradients[c] = 0.0f;
          at[i][j].winners = {{0xffffffffu, 0xffffffffu}};
        }
      }
  }

  // Adds what window (i, j) gives to the pixel at this position in it.
  __device__ __forceinline__ void add(float& sum, int i, int j, unsigned position, int c) {
    if (at[i][j].winners[c] == position) sum += at[i][j].gradients[c];
  }

  // The gradient of pixel (r, s) of the patch, in channel c of the run.
  __device__ __forceinline__ float gradient(int r, int s, int c) {
    const unsigned position = 3 * r + s;
    float sum = 0.0f;
    add(sum, 1, 1, position, c);
    if (s == 0) add(sum, 1, 0, position + 2, c);
    if (r == 0) add(sum, 0, 1, position + 6, c);
    if (r == 0 && s == 0) add(sum, 0, 0, position + 8, c);
    return sum;
  }
};
