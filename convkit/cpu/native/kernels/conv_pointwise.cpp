// Pointwise convolution, forward and backward to the input: 1 x 1 filters, stride 1, no padding, on users' NCHW maps
//
//   y[n,k,i] = b[k] + sum over c of w[k,c] x[n,c,i]        dx[n,c,i] = sum over k of w[k,c] dy[n,k,i]
//
// Idea      A matrix product whose one operand, and whose result, lie along the pixels: registers of pixels against
//           broadcast weights, so that no map is packed or unpacked. Those two passes over memory are what a blocked
//           kernel would spend most of its time on where channels are few (MobileNet's first layers).
// Tiling    2 registers of pixels by up to 14 output channels. A task is one run of pixels of one image; its
//           channels (c * 32 floats, 64 KB for c = 512) stay in L1/L2 while all tiles of output channels pass.
// Traffic   x and y once. Weights, packed [tile of k][c][14] once for a call, stream from L2.
// Ends      The last register of a map begins early, so that it ends with the map: some pixels are computed twice, to
//           the same bits. Maps must have a register's worth of pixels.
// Bound     Memory for few channels, FMA for many.
#include "conv.hpp"
#include "tile.hpp"

namespace convkit {
namespace pointwise {
namespace {

constexpr int RUN = 4;  // register tiles of a task

// A pass: c channels in, k channels out, of each group.
struct Pass {
  int64_t N, groups, c, k, pixels;
  const float* w;
  int64_t k_step, c_step, group_step;  // where weight (k, c) of a group lies
  float* packed;

  int64_t group_floats() const { return round_up(k, TILE_J) * c; }
};

void pack(const Pass& p, int threads) {
  const int64_t tiles = ceil_div(p.k, TILE_J);
  parallel_ranges(threads, p.groups * tiles, 4, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t tile = unit % tiles, g = unit / tiles;
      float* to = p.packed + g * p.group_floats() + tile * TILE_J * p.c;
      const float* from = p.w + g * p.group_step + tile * TILE_J * p.k_step;
      const int64_t count = least(TILE_J, p.k - tile * TILE_J);
      for (int64_t c = 0; c < p.c; ++c)
        for (int64_t j = 0; j < TILE_J; ++j) to[c * TILE_J + j] = j < count ? from[j * p.k_step + c * p.c_step] : 0.0f;
    }
  });
}

struct Place {
  const float *x, *w, *bias, *mask;
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
  tile.run(at.x, p.pixels, LANES, at.w, TILE_J, 1, p.c);
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

void run(const Pass& p, const float* x, const float* bias, bool relu, const float* mask, float* y, int threads) {
  const auto sizes = std::make_integer_sequence<int, TILE_J>();
  const int64_t wide = TILE_V * LANES, step = RUN * wide, runs = ceil_div(p.pixels, step), tiles = ceil_div(p.k, TILE_J);
  parallel_for(threads, p.N * p.groups * runs, [&](int64_t task) {
    const int64_t run = task % runs, g = task / runs % p.groups, map = task / runs;
    const int64_t end = least(p.pixels, (run + 1) * step);
    for (int64_t i = run * step; i < end;) {
      const bool two = i + wide <= p.pixels;
      const int64_t first = two ? i : least(i, p.pixels - LANES);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t k = tile * TILE_J, channels = least(TILE_J, p.k - k), out = (map * p.k + k) * p.pixels + first;
        const Place at{x + map * p.c * p.pixels + first, p.packed + g * p.group_floats() + k * p.c,
                       bias ? bias + g * p.k + k : nullptr, mask ? mask + out : nullptr, y + out, relu};
        (two ? choose<TILE_V>(channels, sizes) : choose<1>(channels, sizes))(p, at);
      }
      i += two ? wide : LANES;
    }
  });
}

}  // namespace

const char* refusal(const Conv& g) {
  const bool plain = g.R == 1 && g.S == 1 && g.stride_h == 1 && g.stride_w == 1;
  if (!plain || g.pad_top || g.pad_bottom || g.pad_left || g.pad_right) return "needs 1 x 1 filters, stride 1, no padding";
  return g.H * g.W < 8 * LANES ? "needs maps of some registers' worth of pixels" : nullptr;
}

int64_t workspace(const Conv& g) {
  return (round_up(g.k_group(), TILE_J) * g.c_group() + round_up(g.c_group(), TILE_J) * g.k_group()) * g.groups * 4;
}

void fprop(const Conv& g, const float* x, const float* w, const float* b, float* y, bool relu, void* scratch, int threads) {
  const int64_t c = g.c_group(), k = g.k_group();
  const Pass p{g.N, g.groups, c, k, g.H * g.W, w, c, 1, c * k, static_cast<float*>(scratch)};
  pack(p, threads);
  run(p, x, b, relu, nullptr, y, threads);
}

void dgrad(const Conv& g, const float* dy, const float* w, const float* x_mask, float* dx, void* scratch, int threads) {
  const int64_t c = g.c_group(), k = g.k_group();
  const Pass p{g.N, g.groups, k, c, g.H * g.W, w, 1, c, c * k, static_cast<float*>(scratch)};
  pack(p, threads);
  run(p, dy, nullptr, false, x_mask, dx, threads);
}

}  // namespace pointwise
}  // namespace convkit
