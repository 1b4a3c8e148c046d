// Convolution of few channels, such as a network's first, backward to the weights, on users' NCHW maps
//
//   dw[k,c,r,s] = sum over n, p, q of dy[n,k,p,q] x[n, c, p*stride + r*dilation, q*stride + s*dilation]
//
// Idea      Blocks of 16 channels would be empty for the most part (3 of 16), and dy, which is large, would
//           be copied into them. Here registers lie along the columns, so that dy is read as it is; x is
//           small, and copied into frames (frame.hpp), where each tap is a contiguous load.
// Tiling    9 taps of a channel by 2 filters, summed over some rows: 9 + 2 loads for 18 FMAs.
// Traffic   dy once, in parts that stay in L1 while all taps pass over them; x's frames for every two
//           filters, from L2.
// Bound     FMA; taps are padded to a multiple of 9.
// Measured  Zen 4, 2 threads (bench/results, -geometries): 3 x 3 from 3 to 64 channels on 224 x 224, N = 4:
//           4.6 ms by the public op, 151 GFLOP/s, 65 % of the FMA probe; Winograd took 12.
// Order     Rows of a part, then parts and images in order, a register of partial sums for each weight: the
//           same bits for any number of threads.
#include <vector>

#include "frame.hpp"

namespace convkit {
namespace {

constexpr int64_t FEW = 4;           // channels at the most
constexpr int64_t FRAMES = 4 << 20;  // bytes of frames at a time
constexpr int64_t PART = 16 << 10;   // bytes of dy that all taps pass over

struct Problem {
  Frame f;
  int64_t images, shares, rows;  // images at a time; groups of taps; rows of dy at a time
  float *frames, *sums;
  int64_t bytes;

  Problem(const Conv& g, void* workspace) : f(frame_of_x(g)), shares(ceil_div(g.R * g.S, TAPS)) {
    images = least(g.N, most(1, FRAMES / 4 / (g.C * f.floats())));
    rows = most(1, PART / 4 / (WGRAD_K * g.Q));
    Scratch scratch(workspace);
    frames = scratch.floats(images * g.C * f.floats());
    sums = scratch.floats(round_up(g.K, WGRAD_K) * per_filter(g));
    bytes = scratch.used();
  }
  int64_t per_filter(const Conv& g) const { return g.C * shares * TAPS * LANES; }
};

}  // namespace

const char* conv2d_few_channels_refusal(const Conv& g) {
  return g.groups > 1 || g.C > FEW ? "takes up to 4 channels in, and one group" : nullptr;
}

int64_t conv2d_wgrad_few_channels_workspace(const Conv& g) { return Problem(g, nullptr).bytes; }

void conv2d_wgrad_few_channels(const Conv& g, const float* x, const float* dy, float* dw, void* workspace,
                               int threads) {
  const Problem p(g, workspace);
  const Frame& f = p.f;
  const std::vector<int64_t> at = taps_of_x(g, f);
  const int64_t step = g.stride_h * f.pitch(), taps = g.R * g.S, map = g.P * g.Q;
  parallel_for(threads, p.images * g.C, [&](int64_t i) {
    std::memset(p.frames + i * f.floats(), 0, static_cast<size_t>(f.floats()) * sizeof(float));
  });
  for (int64_t n = 0; n < g.N; n += p.images) {
    const int64_t count = least(p.images, g.N - n);
    parallel_for(threads, count * g.C,
                 [&](int64_t i) { f.fill(x + (n * g.C + i) * g.H * g.W, p.frames + i * f.floats()); });
    parallel_for(threads, ceil_div(g.K, WGRAD_K), [&](int64_t task) {
      const int64_t k = task * WGRAD_K, filters = least(WGRAD_K, g.K - k);
      const auto add = filters == WGRAD_K ? correlate<WGRAD_K> : correlate<1>;
      float* sums = p.sums + k * p.per_filter(g);  // [c][share][filter][tap]
      if (n == 0) std::memset(sums, 0, static_cast<size_t>(WGRAD_K * p.per_filter(g)) * sizeof(float));
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t row = 0; row < g.P; row += p.rows) {
          for (int64_t c = 0; c < g.C; ++c) {
            for (int64_t share = 0; share < p.shares; ++share)
              add(g, at, step, dy + ((n + i) * g.K + k) * map, p.frames + (i * g.C + c) * f.floats(), row,
                  least(g.P, row + p.rows), share * TAPS, Soon(),
                  sums + (c * p.shares + share) * WGRAD_K * TAPS * LANES);
          }
        }
      }
      if (n + count < g.N) return;
      for (int64_t i = 0; i < filters; ++i)
        for (int64_t e = 0; e < g.C * taps; ++e) {
          const int64_t c = e / taps, t = e % taps;
          const int64_t from = ((c * p.shares + t / TAPS) * WGRAD_K + i) * TAPS + t % TAPS;
          dw[(k + i) * g.C * taps + e] = sum(load(sums + from * LANES));
        }
    });
  }
}

}  // namespace convkit
