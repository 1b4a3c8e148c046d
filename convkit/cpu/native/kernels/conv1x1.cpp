// 1 x 1 convolution ("pointwise"), forward and backward to the input: stride 1, no padding, on users' NCHW
// maps
//
//   y[n,k,i] = b[k] + sum over c of w[k,c] x[n,c,i]        dx[n,c,i] = sum over k of w[k,c] dy[n,k,i]
//
// Idea      A matrix product whose one operand, and whose result, lie along the pixels: registers of pixels
//           against broadcast weights, so that no map is packed or unpacked. Those two passes over memory are
//           what a blocked kernel would spend most of its time on where channels are few (MobileNet's first
//           layers).
// Tiling    2 registers of pixels by up to 14 output channels. A task is one run of 4 such columns of pixels
//           of an image. It is copied first, each column as [c][pixels] (c * 32 floats, 64 KB for c = 512),
//           which stays in L1/L2 while all tiles of output channels pass: rows of a map lie pages apart, and
//           often on the same few sets of L1.
// Traffic   x and y once; the next run's rows are asked for evenly while this one is multiplied. Weights,
//           packed [tile of k][c][14] once for a call, stream from L2.
// Ends      The last register of a map begins early, so that it ends with the map: some pixels are computed
//           twice, to the same bits. Maps must have a register's worth of pixels.
// Bound     Memory for few channels, FMA for many.
// Measured  Zen 4, 2 threads, batch 8, 56 x 56 pixels: 256 to 64 channels 5.6 ms, 64 to 256 5.1, 144 to 24
//           2.1; read from the maps themselves, without asking ahead, they took 8.1, 6.1 and 3.4.
#include <utility>

#include "conv.hpp"
#include "linear.hpp"
#include "local.hpp"

namespace convkit {
namespace {

constexpr int64_t WIDE = TILE_M;   // pixels of a column
constexpr int64_t RUN = 4 * WIDE;  // pixels of a task

// A pass: c channels in, k channels out, of each group.
struct Pass {
  int64_t N, groups, c, k, pixels;
  const float* w;
  int64_t k_step, c_step, group_step;  // where weight (k, c) of a group lies
  float* packed;

  int64_t group_floats() const { return round_up(k, TILE_N) * c; }
};

void pack(const Pass& p, int threads) {
  const int64_t tiles = ceil_div(p.k, TILE_N);
  parallel_ranges(threads, p.groups * tiles, 4, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t tile = unit % tiles, g = unit / tiles;
      float* to = p.packed + g * p.group_floats() + tile * TILE_N * p.c;
      const float* from = p.w + g * p.group_step + tile * TILE_N * p.k_step;
      const int64_t count = least(TILE_N, p.k - tile * TILE_N);
      for (int64_t c = 0; c < p.c; ++c)
        for (int64_t j = 0; j < TILE_N; ++j)
          to[c * TILE_N + j] = j < count ? from[j * p.k_step + c * p.c_step] : 0.0f;
    }
  });
}

struct Place {
  const float *column, *w, *bias, *mask;
  float* y;
  bool relu;
};

// NV registers of pixels of NJ output channels.
template <int NV, int NJ>
void outputs(const Pass& p, const Place& at) {
  Tile<NV, NJ> tile;
  CK_UNROLL
  for (int j = 0; j < NJ; ++j) {
    CK_UNROLL
    for (int v = 0; v < NV; ++v) tile.acc[j][v] = V{};
  }
  tile.run(at.column, NV * LANES, LANES, at.w, TILE_N, 1, p.c);
  CK_UNROLL
  for (int j = 0; j < NJ; ++j) {
    const V bias = splat(at.bias ? at.bias[j] : 0.0f);
    CK_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int64_t to = j * p.pixels + v * LANES;
      V result = tile.acc[j][v] + bias;
      if (at.relu) result = convkit::relu(result);
      if (at.mask) result = where_positive(load(at.mask + to), result);
      store(at.y + to, result);
    }
  }
}

using Outputs = void (*)(const Pass&, const Place&);
template <int NV, int... J>
Outputs choose(int64_t channels, std::integer_sequence<int, J...>) {
  static constexpr Outputs table[] = {outputs<NV, J + 1>...};
  return table[channels - 1];
}

// f(first pixel, its place in the run, registers) for each column of a run: 2 registers, or 1 at the map's
// end.
template <class F>
void for_columns(const Pass& p, Range run, const F& f) {
  for (int64_t i = run.begin; i < run.end;) {
    const bool two = i + WIDE <= p.pixels;
    f(two ? i : least(i, p.pixels - LANES), i - run.begin, two ? TILE_M_REGISTERS : 1);
    i += two ? WIDE : LANES;
  }
}

// Copies a run into columns, [c][pixels of the column].
void gather(const Pass& p, const float* x, Range run, float* columns) {
  for_columns(p, run, [&](int64_t first, int64_t at, int registers) {
    float* to = columns + at * p.c;
    for (int64_t c = 0; c < p.c; ++c) {
      for (int v = 0; v < registers; ++v, to += LANES) store(to, load(x + c * p.pixels + first + v * LANES));
    }
  });
}

void run(const Pass& p, const float* x, const float* bias, bool relu, const float* mask, float* y,
         int threads) {
  const auto sizes = std::make_integer_sequence<int, TILE_N>();
  const int64_t runs = ceil_div(p.pixels, RUN), tiles = ceil_div(p.k, TILE_N);
  parallel_for(threads, p.N * p.groups * runs, [&](int64_t task) {
    const int64_t map = task / runs, g = map % p.groups;
    const Range run{task % runs * RUN, least(p.pixels, (task % runs + 1) * RUN)};
    const float* image = x + map * p.c * p.pixels;
    float* columns = local_floats(p.c * RUN);
    gather(p, image, run, columns);
    // The next run's rows are asked for evenly meanwhile.
    const int64_t lines = ceil_div(least(RUN, p.pixels - run.end) * 4, 64);
    Ahead<float> ahead{image + run.end, nullptr, p.pixels, lines ? p.c : 0, lines};
    const int64_t share = ceil_div(p.c * lines, tiles * (RUN / WIDE));
    for_columns(p, run, [&](int64_t first, int64_t at, int registers) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t k = tile * TILE_N, channels = least(TILE_N, p.k - k),
                      out = (map * p.k + k) * p.pixels + first;
        const Place place{columns + at * p.c,
                          p.packed + g * p.group_floats() + k * p.c,
                          bias ? bias + g * p.k + k : nullptr,
                          mask ? mask + out : nullptr,
                          y + out,
                          relu};
        ahead.some(share);
        (registers == TILE_M_REGISTERS ? choose<TILE_M_REGISTERS>(channels, sizes)
                                       : choose<1>(channels, sizes))(p, place);
      }
    });
  });
}

// Of both passes: whichever asks, the same memory serves.
int64_t packed_bytes(const Conv& g) {
  return (round_up(g.k_group(), TILE_N) * g.c_group() + round_up(g.c_group(), TILE_N) * g.k_group()) *
         g.groups * 4;
}

}  // namespace

const char* conv2d_pointwise_refusal(const Conv& g) {
  const bool plain = g.R == 1 && g.S == 1 && g.stride_h == 1 && g.stride_w == 1;
  // An only output has stride 1, wherever the image ends: the maps' extents say whether each pixel has an
  // output.
  const bool same = g.P == g.H && g.Q == g.W && !g.pad_top && !g.pad_left;
  if (!plain || !same) return "needs 1 x 1 filters, stride 1, no padding";
  return g.H * g.W < 8 * LANES ? "needs maps of some registers' worth of pixels" : nullptr;
}

int64_t conv2d_fprop_pointwise_workspace(const Conv& g) { return packed_bytes(g); }
int64_t conv2d_dgrad_pointwise_workspace(const Conv& g) { return packed_bytes(g); }

void conv2d_fprop_pointwise(const Conv& g, const float* x, const float* w, const float* b, float* y,
                            bool relu, void* workspace, int threads) {
  const int64_t c = g.c_group(), k = g.k_group();
  const Pass p{g.N, g.groups, c, k, g.H * g.W, w, c, 1, c * k, static_cast<float*>(workspace)};
  pack(p, threads);
  run(p, x, b, relu, nullptr, y, threads);
}

void conv2d_dgrad_pointwise(const Conv& g, const float* dy, const float* w, const float* x_mask, float* dx,
                            void* workspace, int threads) {
  const int64_t c = g.c_group(), k = g.k_group();
  const Pass p{g.N, g.groups, k, c, g.H * g.W, w, 1, c, c * k, static_cast<float*>(workspace)};
  pack(p, threads);
  run(p, dy, nullptr, false, x_mask, dx, threads);
}

}  // namespace convkit
