// Convolution in narrow groups, every pass: up to 8 channels in and out of each group, such as depthwise (1 and 1), on
// users' NCHW maps
//
//   y[n,k,p,q] = b[k] + sum over c of k's group, r, s of x[n, c, p*stride + r*dilation, q*stride + s*dilation] w[k,c,r,s]
//
// Idea      A map at a time, registers along the columns; a register of channels would mostly hold those of other groups.
//           The maps of a group are copied into frames of zeros in this thread's scratch, their rows cut into stride_w
//           phases (columns 0, stride, 2 stride, ...; then 1, ...): for any stride, dilation and padding each tap is then
//           a contiguous, unaligned load. dgrad is the same with turned filters, or, with a stride, adds into such
//           a frame, and reads its dx out of it; wgrad holds a register of partial sums for each of 9 taps.
// Tiling    fprop: 4 filters by 2 registers of columns, or 1 by 4; registers of several rows where rows are short.
// Traffic   x and y once each, the frames (50 KB for 112 x 112) from L2.
// Bound     Memory for large batches; depthwise, 9 FMAs and 9 loads for each register of y (3 x 3), from L1/L2.
// Order     wgrad: one thread does all of an input channel; pixels of a map, then maps, in order.
#include <vector>

#include "conv.hpp"
#include "transpose.hpp"

namespace convkit {
namespace narrow_groups {
namespace {

constexpr int TAPS = 9;   // sums that wgrad holds in registers at a time
constexpr int64_t NARROW = 8;  // channels of a group at the most
constexpr int64_t MOST = 1 << 24;  // floats of a frame, which each thread keeps

// The frame of one map: rows, of `phases` parts of `width` floats each.
struct Frame {
  int64_t rows, phases, width;
  int64_t P, Q;  // Q in whole registers
  int64_t step;  // from an output row's taps to the next one's
  std::vector<int64_t> taps;  // where each tap of the first output row begins

  explicit Frame(const Conv& g)
      : rows((g.P - 1) * g.stride_h + (g.R - 1) * g.dilation_h + 1), phases(g.stride_w), P(g.P),
        Q(round_up(g.Q, LANES)) {
    width = Q + ((g.S - 1) * g.dilation_w) / g.stride_w + LANES;
    step = row(g.stride_h);
    for (int64_t r = 0; r < g.R; ++r) {
      for (int64_t s = 0; s < g.S; ++s) {
        const int64_t column = s * g.dilation_w;
        taps.push_back(row(r * g.dilation_h) + column % g.stride_w * width + column / g.stride_w);
      }
    }
  }
  int64_t floats() const { return rows * phases * width; }
  int64_t row(int64_t h) const { return h * phases * width; }
};

// This thread's scratch; it grows to the largest map, once.
float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(static_cast<size_t>(floats));
  return memory.data();
}

// Calls f(column of the image, place in the frame's row) for one phase: count columns, `phases` apart.
struct Columns {
  int64_t first, to, count;
};
Columns columns_of(const Conv& g, const Frame& f, int64_t phase) {
  // Frame column i of this phase is image column i * stride + phase - pad.
  const int64_t offset = phase - g.pad_left, begin = offset < 0 ? ceil_div(-offset, g.stride_w) : 0;
  const int64_t first = begin * g.stride_w + offset;
  const int64_t count = first < g.W ? least(ceil_div(g.W - first, g.stride_w), f.width - begin) : 0;
  return {first, begin, most(0, count)};
}

// even[i], odd[i] = from[2 i], from[2 i + 1].
void split_pairs(const float* from, int64_t count, float* even, float* odd) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    V a = load(from + 2 * i), b = load(from + 2 * i + LANES);
    split(a, b);
    store(even + i, a);
    store(odd + i, b);
  }
  for (; i < count; ++i) even[i] = from[2 * i], odd[i] = from[2 * i + 1];
}

// One row of the image into the phases of a row of the frame, which is zero.
void fill_row(const Conv& g, const Frame& f, const float* from, float* to) {
  // Pairs of columns that lie wholly in the image; pair i is columns 2 i - pad and 2 i + 1 - pad.
  int64_t begin = 0, end = 0;
  if (g.stride_w == 2) {
    begin = least(ceil_div(most(0, g.pad_left), 2), f.width);
    end = most(begin, least((g.W + g.pad_left) / 2, f.width));
    split_pairs(from + 2 * begin - g.pad_left, end - begin, to + begin, to + f.width + begin);
  }
  for (int64_t phase = 0; phase < f.phases; ++phase) {
    const Columns c = columns_of(g, f, phase);
    float* at = to + phase * f.width + c.to;
    if (g.stride_w == 1) {
      std::memcpy(at, from + c.first, static_cast<size_t>(c.count) * sizeof(float));
      continue;
    }
    for (int64_t j = 0; j < c.count; ++j) {
      if (c.to + j == begin && end > begin) j = most(j, end - c.to);
      if (j < c.count) at[j] = from[c.first + j * g.stride_w];
    }
  }
}

void fill(const Conv& g, const Frame& f, const float* x, float* frame) {
  std::memset(frame, 0, static_cast<size_t>(f.floats()) * sizeof(float));
  for (int64_t i = most(0, g.pad_top); i < least(f.rows, g.pad_top + g.H); ++i)
    fill_row(g, f, x + (i - g.pad_top) * g.W, frame + f.row(i));
}

void read_out(const Conv& g, const Frame& f, const float* frame, float* dx) {
  for (int64_t h = 0; h < g.H; ++h) {
    float* to = dx + h * g.W;
    std::memset(to, 0, static_cast<size_t>(g.W) * sizeof(float));
    if (h + g.pad_top >= f.rows) continue;  // no tap reaches it
    for (int64_t phase = 0; phase < f.phases; ++phase) {
      const Columns c = columns_of(g, f, phase);
      const float* from = frame + f.row(h + g.pad_top) + phase * f.width + c.to;
      for (int64_t j = 0; j < c.count; ++j) to[c.first + j * g.stride_w] = from[j];
    }
  }
}

CK_INLINE void store_columns(V v, int64_t left, float* to) {
  if (left >= LANES) {
    store(to, v);
  } else if (left > 0) {
    float lanes[LANES];
    store(lanes, v);
    std::memcpy(to, lanes, static_cast<size_t>(left) * sizeof(float));
  }
}

// UNITS registers of FILTERS maps of y, from register `first` of the map on: enough sums at a time to hide the latency of
// the FMA, also where a row is a register or two.
template <int FILTERS, int UNITS>
CK_INLINE void forward(const Conv& g, const Frame& f, const float* frames, const float* w, const float* b, bool relu,
                       int64_t first, float* y) {
  const int64_t taps = g.R * g.S, filter = g.c_group() * taps, per_row = f.Q / LANES;
  int64_t from[UNITS], to[UNITS], left[UNITS];
  V total[FILTERS][UNITS];
  CK_UNROLL
  for (int u = 0; u < UNITS; ++u) {
    const int64_t p = (first + u) / per_row, q = (first + u) % per_row * LANES;
    from[u] = p * f.step + q, to[u] = p * g.Q + q, left[u] = g.Q - q;
    CK_UNROLL
    for (int k = 0; k < FILTERS; ++k) total[k][u] = splat(b ? b[k] : 0.0f);
  }
  for (int64_t c = 0; c < g.c_group(); ++c) {
    const float* frame = frames + c * f.floats();
    for (int64_t t = 0; t < taps; ++t) {
      const float *at = frame + f.taps[t], *tap = w + c * taps + t;
      CK_UNROLL
      for (int u = 0; u < UNITS; ++u) {
        const V columns = load(at + from[u]);
        CK_UNROLL
        for (int k = 0; k < FILTERS; ++k) total[k][u] += columns * splat(tap[k * filter]);
      }
    }
  }
  CK_UNROLL
  for (int k = 0; k < FILTERS; ++k) {
    CK_UNROLL
    for (int u = 0; u < UNITS; ++u)
      store_columns(relu ? convkit::relu(total[k][u]) : total[k][u], left[u], y + k * g.P * g.Q + to[u]);
  }
}

template <int FILTERS, int UNITS>
void forward_maps(const Conv& g, const Frame& f, const float* frames, const float* w, const float* b, bool relu, float* y) {
  const int64_t units = g.P * f.Q / LANES;
  int64_t u = 0;
  for (; u + UNITS <= units; u += UNITS) forward<FILTERS, UNITS>(g, f, frames, w, b, relu, u, y);
  for (; u < units; ++u) forward<FILTERS, 1>(g, f, frames, w, b, relu, u, y);
}

// A map of dy with its rows in whole registers, zeros behind their ends: itself, or in `padded`.
const float* whole_rows(const Conv& g, const Frame& f, const float* dy, float* padded) {
  if (g.Q == f.Q) return dy;
  for (int64_t p = 0; p < g.P; ++p) {
    float* row = padded + p * f.Q;
    std::memcpy(row, dy + p * g.Q, static_cast<size_t>(g.Q) * sizeof(float));
    std::memset(row + g.Q, 0, static_cast<size_t>(f.Q - g.Q) * sizeof(float));
  }
  return padded;
}

// Adds the products of dy with the taps [first, first + TAPS) of the frame to sums.
void correlate(const Conv& g, const Frame& f, const float* dy, const float* frame, int64_t first, V* sums) {
  const int64_t last = g.R * g.S - 1;
  const float* at[TAPS];
  for (int64_t i = 0; i < TAPS; ++i) at[i] = frame + f.taps[least(first + i, last)];
  for (int64_t p = 0; p < g.P; ++p) {
    for (int64_t q = 0; q < f.Q; q += LANES) {
      const V d = load(dy + p * f.Q + q);
      CK_UNROLL
      for (int i = 0; i < TAPS; ++i) sums[i] += d * load(at[i] + p * f.step + q);
    }
  }
}

// The forward pass whose result is dx, where the stride is 1: of dy, with turned filters, c and k exchanged.
Conv turned_problem(const Conv& g) {
  Conv t = g;
  t.C = g.K, t.K = g.C, t.H = g.P, t.W = g.Q, t.P = g.H, t.Q = g.W;
  t.pad_top = (g.R - 1) * g.dilation_h - g.pad_top;
  t.pad_left = (g.S - 1) * g.dilation_w - g.pad_left;
  return t;
}
std::vector<float> turned_weights(const Conv& g, const float* w) {
  const int64_t c = g.c_group(), k = g.k_group(), taps = g.R * g.S;
  std::vector<float> turned(static_cast<size_t>(g.K * c * taps));
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t j = 0; j < k; ++j)
      for (int64_t i = 0; i < c; ++i)
        for (int64_t t = 0; t < taps; ++t)
          turned[static_cast<size_t>(((group * c + i) * k + j) * taps + taps - 1 - t)] =
              w[((group * k + j) * c + i) * taps + t];
  return turned;
}

// dx of one map where there is a stride: the taps add into a frame, one after the other, each over the whole map, since
// neighbouring taps write to addresses that overlap, and a load of what was just stored in parts has to wait.
void scatter(const Conv& g, const Frame& f, const float* dy, const float* w, float* frame, float* padded) {
  const float* gradient = whole_rows(g, f, dy, padded);
  for (int64_t t = 0; t < g.R * g.S; ++t) {
    const V tap = splat(w[t]);
    for (int64_t p = 0; p < g.P; ++p) {
      float* to = frame + f.taps[t] + p * f.step;
      for (int64_t q = 0; q < f.Q; q += LANES) store(to + q, load(to + q) + load(gradient + p * f.Q + q) * tap);
    }
  }
}

}  // namespace

const char* refusal(const Conv& g) {
  if (g.groups == 1 || g.c_group() > NARROW || g.k_group() > NARROW) return "needs groups of up to 8 channels in and out";
  return Frame(g).floats() * g.c_group() > MOST ? "takes groups of up to 16 million pixels" : nullptr;
}

void fprop(const Conv& g, const float* x, const float* w, const float* b, float* y, bool relu, int threads) {
  const Frame f(g);
  const int64_t c = g.c_group(), k = g.k_group(), filter = c * g.R * g.S;
  parallel_for(threads, g.N * g.groups, [&](int64_t unit) {
    const int64_t first = unit % g.groups * k;  // filter
    float* frames = scratch(c * f.floats());
    for (int64_t i = 0; i < c; ++i) fill(g, f, x + (unit * c + i) * g.H * g.W, frames + i * f.floats());
    for (int64_t i = 0; i < k;) {
      const float *taps = w + (first + i) * filter, *bias = b ? b + first + i : nullptr;
      float* to = y + (unit * k + i) * g.P * g.Q;
      if (k - i >= 4) {
        forward_maps<4, 2>(g, f, frames, taps, bias, relu, to);
        i += 4;
      } else {
        forward_maps<1, 4>(g, f, frames, taps, bias, relu, to);
        i += 1;
      }
    }
  });
}

void dgrad(const Conv& g, const float* dy, const float* w, const float* x_mask, float* dx, int threads) {
  const int64_t c = g.c_group(), k = g.k_group(), taps = g.R * g.S;
  if (g.stride_h == 1 && g.stride_w == 1) {
    fprop(turned_problem(g), dy, turned_weights(g, w).data(), nullptr, dx, false, threads);
  } else {
    const Frame f(g);
    parallel_for(threads, g.N * g.C, [&](int64_t map) {
      const int64_t n = map / g.C, channel = map % c, first = map % g.C / c * k;
      float* frame = scratch(f.floats() + f.P * f.Q);
      std::memset(frame, 0, static_cast<size_t>(f.floats()) * sizeof(float));
      for (int64_t i = 0; i < k; ++i)
        scatter(g, f, dy + (n * g.K + first + i) * g.P * g.Q, w + ((first + i) * c + channel) * taps, frame,
                frame + f.floats());
      read_out(g, f, frame, dx + map * g.H * g.W);
    });
  }
  if (x_mask)
    parallel_ranges(threads, g.N * g.C, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * g.H * g.W; i < end * g.H * g.W; ++i) dx[i] = x_mask[i] <= 0.0f ? 0.0f : dx[i];
    });
}

void wgrad(const Conv& g, const float* x, const float* dy, float* dw, int threads) {
  const Frame f(g);
  const int64_t c = g.c_group(), k = g.k_group(), taps = g.R * g.S, shares = ceil_div(taps, TAPS);
  const int64_t kept_floats = k * shares * TAPS * LANES;
  parallel_for(threads, g.C, [&](int64_t unit) {
    const int64_t channel = unit % c, first = unit / c * k;
    float *frame = scratch(f.floats() + f.P * f.Q + kept_floats), *padded = frame + f.floats(), *kept = padded + f.P * f.Q;
    std::memset(kept, 0, static_cast<size_t>(kept_floats) * sizeof(float));
    for (int64_t n = 0; n < g.N; ++n) {
      fill(g, f, x + (n * g.C + unit) * g.H * g.W, frame);
      for (int64_t i = 0; i < k; ++i) {
        const float* gradient = whole_rows(g, f, dy + (n * g.K + first + i) * g.P * g.Q, padded);
        for (int64_t share = 0; share < shares; ++share) {
          V sums[TAPS];
          CK_UNROLL
          for (int t = 0; t < TAPS; ++t) sums[t] = V{};
          correlate(g, f, gradient, frame, share * TAPS, sums);
          CK_UNROLL
          for (int t = 0; t < TAPS; ++t) {
            float* to = kept + ((i * shares + share) * TAPS + t) * LANES;
            store(to, load(to) + sums[t]);
          }
        }
      }
    }
    for (int64_t i = 0; i < k; ++i)
      for (int64_t t = 0; t < taps; ++t)
        dw[((first + i) * c + channel) * taps + t] = sum(load(kept + (i * shares * TAPS + t) * LANES));
  });
}

}  // namespace narrow_groups
}  // namespace convkit
