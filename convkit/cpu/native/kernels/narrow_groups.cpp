// Convolution in narrow groups, every pass: up to 8 channels in and out of each group, such as depthwise (1
// and 1), on users' NCHW maps
//
//   y[n,k,p,q] = b[k] + sum over c of k's group, r, s of x[n, c, p*stride + r*dilation, q*stride +
//   s*dilation] w[k,c,r,s]
//
// Idea      A map at a time, registers along the columns; a register of channels would mostly hold those of
//           other groups. The maps of a group are copied into frames of zeros in this thread's scratch, their
//           rows cut into stride_w phases (columns 0, stride, 2 stride, ...; then 1, ...): for any stride,
//           dilation and padding each tap is then a contiguous, unaligned load. A frame's zeros are written
//           once for all the maps that a thread does.
// dgrad     The same the other way round: frames of dy, and dx in phases. The dx of one phase is a stride-1
//           convolution of dy with those taps that reach it; the phases are merged on the way out.
// wgrad     A register of partial sums for each of 9 taps and 2 filters, from frames of x and from rows of dy
//           whose tails are masked (frame.hpp).
// Tiling    fprop, dgrad: 8 registers of sums: of 4 filters, or of several rows, by one or two of columns.
//           The last register of a row overlaps the one before it, so that tails cost no special case where a
//           row fills a register.
// Traffic   x and y once each, the frames (50 KB for 112 x 112) from L1 and L2.
// Bound     Memory for large batches; depthwise, 9 FMAs and 9 loads for each register of y (3 x 3), from
//           L1/L2.
// Measured  Zen 4, 2 threads, by the public op (bench/results, -geometries): 3 x 3 on 144 maps of 56 x 56, N
//           = 8: 1.44, 1.37 and 1.66 ms forward, dx and dw, 20 GB/s where copying was 31; 1.4 to 1.6 times as
//           fast as PyTorch's best. With stride 2 0.81, 1.70 and 1.32 ms, 0.4 to 0.7 times as fast: filling
//           the frames is half of it.
// Order     wgrad: one thread does all of an input channel; some rows of a map, their sums, then maps, in
//           order.
#include <atomic>
#include <vector>

#include "frame.hpp"

namespace convkit {
namespace {

constexpr int64_t NARROW = 8;      // channels of a group at the most
constexpr int64_t MOST = 1 << 24;  // floats of a frame, which each thread keeps
constexpr int64_t STRIDE = 16;     // at the most: dgrad has a plane for each pair of phases
constexpr int64_t RUN =
    512;  // products that each lane of wgrad sums before they are added to earlier ones, about
constexpr int64_t TASK = 1 << 15;  // floats of a task at the least

// --- scratch
// ---------------------------------------------------------------------------------------------------

// This thread's scratch: `zeros` floats that were zero when this call began, and `more` floats.
float* scratch(uint64_t call, int64_t zeros, int64_t more) {
  thread_local uint64_t last = 0;
  float* memory = local_floats(zeros + more);
  if (last != call) std::memset(memory, 0, static_cast<size_t>(zeros) * sizeof(float));
  last = call;
  return memory;
}
uint64_t next_call() {
  static std::atomic<uint64_t> calls{0};
  return ++calls;
}

// --- forward
// ---------------------------------------------------------------------------------------------------

// What makes one plane of results from frames: `rows` by `columns` outputs, `pitch` apart; tap t of output
// (p, q) is at offsets[t] + p * step + q of each input channel's frame, and its weight at which[t].
struct Plane {
  int64_t rows, columns, pitch, step;
  std::vector<int64_t> offsets, which;
  // Where taps are a grid whose rows are neighbouring rows of the frame: the grid's rows, and the frame's
  // pitch. Else 0.
  int64_t grid = 0, row = 0;
};

struct Filters {
  const float* at;
  int64_t k_step, c_step;
};

struct Inputs {
  const float* frames;
  int64_t channels, floats;
  const float* next;  // what will be read next: `ahead` floats of it are fetched meanwhile
  int64_t ahead;
};

// Sums of FILTERS x ROWS x COLS registers; the second register of a row begins `apart` behind the first.
template <int FILTERS, int ROWS, int COLS>
struct Sums {
  V total[FILTERS][ROWS][COLS];

  CK_INLINE explicit Sums(const float* b) {
    CK_UNROLL
    for (int k = 0; k < FILTERS; ++k) {
      CK_UNROLL
      for (int i = 0; i < ROWS * COLS; ++i) total[k][i / COLS][i % COLS] = splat(b ? b[k] : 0.0f);
    }
  }

  // One input channel, tap by tap.
  CK_INLINE void add(const Plane& f, const float* frame, const float* weights, int64_t k_step,
                     int64_t apart) {
    for (size_t t = 0; t < f.offsets.size(); ++t) {
      const float *at = frame + f.offsets[t], *tap = weights + f.which[t];
      V value[FILTERS];
      CK_UNROLL
      for (int k = 0; k < FILTERS; ++k) value[k] = splat(tap[k * k_step]);
      CK_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        CK_UNROLL
        for (int i = 0; i < COLS; ++i) {
          const V columns = load(at + r * f.step + i * apart);
          CK_UNROLL
          for (int k = 0; k < FILTERS; ++k) total[k][r][i] += columns * value[k];
        }
      }
    }
  }

  // The same, column of taps by column, where they are a grid of R rows: a register serves all the output
  // rows that it reaches. Loads that cross a cache line, as almost all of these do, are what such a
  // convolution is bound by.
  template <int R, int STRIDE>
  CK_INLINE void add_grid(const Plane& f, const float* frame, const float* weights, int64_t apart) {
    static_assert(FILTERS == 1, "the registers are full");
    const int64_t S = static_cast<int64_t>(f.offsets.size()) / R;
    for (int64_t s = 0; s < S; ++s) {
      V value[R];
      CK_UNROLL
      for (int j = 0; j < R; ++j) value[j] = splat(weights[f.which[static_cast<size_t>(j * S + s)]]);
      const float* at = frame + f.offsets[static_cast<size_t>(s)];
      CK_UNROLL
      for (int h = 0; h < (ROWS - 1) * STRIDE + R; ++h, at += f.row) {
        CK_UNROLL
        for (int i = 0; i < COLS; ++i) {
          V columns = load(at + i * apart);
          in_register(columns);
          CK_UNROLL
          for (int r = 0; r < ROWS; ++r) {
            const int j = h - r * STRIDE;
            if (j >= 0 && j < R) total[0][r][i] += columns * value[j];
          }
        }
      }
    }
  }

  CK_INLINE void write(const Plane& f, bool relu, float* y, int64_t plane, int64_t apart) const {
    CK_UNROLL
    for (int k = 0; k < FILTERS; ++k) {
      CK_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        CK_UNROLL
        for (int i = 0; i < COLS; ++i) {
          const V v = relu ? convkit::relu(total[k][r][i]) : total[k][r][i];
          float* to = y + k * plane + r * f.pitch + i * apart;
          if (COLS == 1 && f.columns < LANES)
            store_part(to, v, f.columns);
          else
            store(to, v);
        }
      }
    }
  }
};

template <int FILTERS, int ROWS, int COLS, int R, int STRIDE>
CK_INLINE void registers(const Plane& f, const Inputs& x, const Filters& w, const float* b, bool relu,
                         int64_t p, int64_t q, int64_t apart, float* y, int64_t plane) {
  Sums<FILTERS, ROWS, COLS> sums(b);
  for (int64_t c = 0; c < x.channels; ++c) {
    const float *frame = x.frames + c * x.floats + p * f.step + q, *weights = w.at + c * w.c_step;
    if constexpr (R > 0)
      sums.template add_grid<R, STRIDE>(f, frame, weights, apart);
    else
      sums.add(f, frame, weights, w.k_step, apart);
  }
  sums.write(f, relu, y + p * f.pitch + q, plane, apart);
}

template <int FILTERS, int ROWS, int R, int STRIDE>
CK_INLINE void rows_of(const Plane& f, const Inputs& x, const Filters& w, const float* b, bool relu,
                       int64_t p, float* y, int64_t plane) {
  int64_t q = 0;
  for (; q + LANES < f.columns; q += 2 * LANES) {
    const int64_t second = least(q + LANES, f.columns - LANES);
    registers<FILTERS, ROWS, 2, R, STRIDE>(f, x, w, b, relu, p, q, second - q, y, plane);
  }
  if (q < f.columns)
    registers<FILTERS, ROWS, 1, R, STRIDE>(f, x, w, b, relu, p, most(0, f.columns - LANES), 0, y, plane);
}

template <int FILTERS, int ROWS, int R = 0, int STRIDE = 0>
void planes(const Plane& f, const Inputs& x, const Filters& w, const float* b, bool relu, float* y,
            int64_t plane) {
  const int64_t ahead = f.rows ? ceil_div(x.ahead * ROWS, f.rows) : 0;  // in each step
  int64_t p = 0;
  for (; p + ROWS <= f.rows; p += ROWS) {
    for (int64_t i = p / ROWS * ahead; i < least(x.ahead, (p / ROWS + 1) * ahead); i += LINE)
      __builtin_prefetch(x.next + i, 0, 2);
    rows_of<FILTERS, ROWS, R, STRIDE>(f, x, w, b, relu, p, y, plane);
  }
  for (; p < f.rows; ++p) rows_of<FILTERS, 1, R, STRIDE>(f, x, w, b, relu, p, y, plane);
}

// `count` filters, whose planes of results are `plane` floats apart.
void forward(const Plane& f, const Inputs& x, Filters w, const float* b, bool relu, int64_t count, float* y,
             int64_t plane) {
  constexpr int ROWS = REGISTERS > 16 ? 4 : 2;  // two of columns each, and room for weights and an input
  int64_t k = 0;
  for (; k + 4 <= count; k += 4)
    planes<4, 1>(f, x, {w.at + k * w.k_step, w.k_step, w.c_step}, b ? b + k : nullptr, relu, y + k * plane,
                 plane);
  const bool strided = f.step != f.row;
  auto one = f.grid == 3   ? (strided ? planes<1, ROWS, 3, 2> : planes<1, ROWS, 3, 1>)
             : f.grid == 5 ? (strided ? planes<1, ROWS, 5, 2> : planes<1, ROWS, 5, 1>)
                           : planes<1, ROWS>;
  for (; k < count; ++k)
    one(f, x, {w.at + k * w.k_step, w.k_step, w.c_step}, b ? b + k : nullptr, relu, y + k * plane, plane);
}

// --- the three passes
// ----------------------------------------------------------------------------------------------

Plane plane_of_y(const Conv& g, const Frame& f) {
  Plane plane{g.P, g.Q, g.Q, g.stride_h * f.pitch(), {}, {}};
  plane.offsets = taps_of_x(g, f);
  for (int64_t t = 0; t < g.R * g.S; ++t) plane.which.push_back(t);
  if (g.dilation_h == 1 && g.stride_h <= 2) plane.grid = g.R, plane.row = f.pitch();
  return plane;
}

// One dimension of dgrad: position i of a phase is reached by tap r, if at all, from position i + shift of
// dy.
struct Reach {
  int64_t phases, pad, dilation;

  bool reaches(int64_t phase, int64_t tap) const { return (phase + pad - tap * dilation) % phases == 0; }
  int64_t shift(int64_t phase, int64_t tap) const { return (phase + pad - tap * dilation) / phases; }
  // Smallest and largest shift of any tap.
  Range shifts(int64_t taps) const {
    Range found{INT64_MAX, INT64_MIN};
    for (int64_t phase = 0; phase < phases; ++phase)
      for (int64_t tap = 0; tap < taps; ++tap)
        if (reaches(phase, tap)) {
          found.begin = least(found.begin, shift(phase, tap));
          found.end = most(found.end, shift(phase, tap));
        }
    return found;
  }
};

// dx by phases: the frame of dy, and a plane for each phase, kept in whole registers unless there is but one.
struct Backward {
  Frame frame{0, 0, 0, 0, 0, 1, 0};
  std::vector<Plane> phases;
  int64_t rows, pitch;  // of a phase's plane

  explicit Backward(const Conv& g) {
    const Reach down{g.stride_h, g.pad_top, g.dilation_h}, across{g.stride_w, g.pad_left, g.dilation_w};
    const Range v = down.shifts(g.R), u = across.shifts(g.S);
    const bool whole = g.stride_h == 1 && g.stride_w == 1;
    rows = ceil_div(g.H, g.stride_h), pitch = whole ? g.W : round_up(ceil_div(g.W, g.stride_w), LANES);
    const int64_t columns = round_up(ceil_div(g.W, g.stride_w), LANES) + u.end - u.begin;
    frame = Frame(g.P, g.Q, -v.begin, -u.begin, rows + v.end - v.begin, 1, columns);
    for (int64_t a = 0; a < g.stride_h; ++a)
      for (int64_t b = 0; b < g.stride_w; ++b) {
        Plane plane{
            ceil_div(most(0, g.H - a), g.stride_h), whole ? g.W : pitch, pitch, frame.pitch(), {}, {}};
        for (int64_t t = 0; t < g.R * g.S; ++t) {
          const int64_t r = g.R - 1 - t / g.S, s = t % g.S;  // the frame's rows from the top
          if (!down.reaches(a, r) || !across.reaches(b, s)) continue;
          plane.offsets.push_back(frame.at(down.shift(a, r) - v.begin, across.shift(b, s) - u.begin));
          plane.which.push_back(r * g.S + s);
        }
        if (whole && g.dilation_h == 1) plane.grid = g.R, plane.row = frame.pitch();
        phases.push_back(std::move(plane));
      }
  }
  int64_t scratch() const {
    return phases.size() == 1 ? 0 : static_cast<int64_t>(phases.size()) * rows * pitch;
  }
};

// The planes of one map's phases into its dx.
void merge_phases(const Conv& g, const Backward& plan, const float* planes, float* dx) {
  const int64_t plane = plan.rows * plan.pitch;
  for (int64_t h = 0; h < g.H; ++h) {
    const float* from = planes + h % g.stride_h * g.stride_w * plane + h / g.stride_h * plan.pitch;
    float* to = dx + h * g.W;
    if (g.stride_w == 1) {
      copy_floats(from, g.W, to);
    } else if (g.stride_w == 2) {
      merge_pairs(from, from + plane, g.W / 2, to);
      if (g.W % 2) to[g.W - 1] = from[g.W / 2];
    } else {
      for (int64_t b = 0; b < g.stride_w; ++b)
        for (int64_t w = b; w < g.W; w += g.stride_w) to[w] = from[b * plane + w / g.stride_w];
    }
  }
}

int64_t grain(int64_t floats) { return most(1, TASK / most(1, floats)); }

}  // namespace

const char* conv2d_narrow_groups_refusal(const Conv& g) {
  if (g.groups == 1 || g.c_group() > NARROW || g.k_group() > NARROW)
    return "needs groups of up to 8 channels in and out";
  if (g.stride_h > STRIDE || g.stride_w > STRIDE) return "takes strides of up to 16";
  const Backward back(g);
  const int64_t most_floats =
      most(frame_of_x(g).floats() * g.c_group(), back.frame.floats() * g.k_group() + back.scratch());
  return most_floats > MOST ? "takes groups of up to 16 million pixels" : nullptr;
}

void conv2d_fprop_narrow_groups(const Conv& g, const float* x, const float* w, const float* b, float* y,
                                bool relu, int threads) {
  const Frame f = frame_of_x(g);
  const Plane plane = plane_of_y(g, f);
  const int64_t c = g.c_group(), k = g.k_group(), taps = g.R * g.S, map = g.H * g.W;
  const uint64_t call = next_call();
  parallel_ranges(threads, g.N * g.groups, grain(c * map), [&](int64_t begin, int64_t end) {
    float* frames = scratch(call, c * f.floats(), 0);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % g.groups * k;  // filter
      for (int64_t i = 0; i < c; ++i) f.fill(x + (unit * c + i) * map, frames + i * f.floats());
      const int64_t ahead = unit + 1 < end ? c * map : 0;
      forward(plane, {frames, c, f.floats(), x + (unit + 1) * c * map, ahead},
              {w + first * c * taps, c * taps, taps}, b ? b + first : nullptr, relu, k,
              y + unit * k * g.P * g.Q, g.P * g.Q);
    }
  });
}

void conv2d_dgrad_narrow_groups(const Conv& g, const float* dy, const float* w, const float* x_mask,
                                float* dx, int threads) {
  const Backward plan(g);
  const Frame& f = plan.frame;
  const int64_t c = g.c_group(), k = g.k_group(), taps = g.R * g.S, map = g.H * g.W;
  const bool whole = plan.phases.size() == 1;
  const uint64_t call = next_call();
  parallel_ranges(threads, g.N * g.groups, grain(c * map), [&](int64_t begin, int64_t end) {
    float *frames = scratch(call, k * f.floats(), plan.scratch()), *planes = frames + k * f.floats();
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int64_t i = 0; i < k; ++i) f.fill(dy + (unit * k + i) * g.P * g.Q, frames + i * f.floats());
      const float* filters = w + unit % g.groups * k * c * taps;
      float* to = dx + unit * c * map;
      const Inputs in{frames, k, f.floats(), dy + (unit + 1) * k * g.P * g.Q,
                      unit + 1 < end ? k * g.P * g.Q : 0};
      if (whole) {
        forward(plan.phases[0], in, {filters, taps, c * taps}, nullptr, false, c, to, map);
      } else {
        for (int64_t i = 0; i < c; ++i) {
          for (size_t a = 0; a < plan.phases.size(); ++a)
            forward(plan.phases[a], in, {filters + i * taps, taps, c * taps}, nullptr, false, 1,
                    planes + static_cast<int64_t>(a) * plan.rows * plan.pitch, 0);
          merge_phases(g, plan, planes, to + i * map);
        }
      }
      if (x_mask) {
        const float* mask = x_mask + unit * c * map;
        for (int64_t i = 0; i < c * map; ++i) to[i] = mask[i] <= 0.0f ? 0.0f : to[i];
      }
    }
  });
}

void conv2d_wgrad_narrow_groups(const Conv& g, const float* x, const float* dy, float* dw, int threads) {
  const Frame f = frame_of_x(g);
  const std::vector<int64_t> at = taps_of_x(g, f);
  const int64_t c = g.c_group(), k = g.k_group(), taps = g.R * g.S, shares = ceil_div(taps, TAPS);
  const int64_t rows = most(1, RUN * LANES / g.Q);
  const int64_t step = g.stride_h * f.pitch(), kept_floats = k * shares * TAPS * LANES;
  const uint64_t call = next_call();
  parallel_for(threads, g.C, [&](int64_t unit) {
    const int64_t channel = unit % c, first = unit / c * k;
    float *frame = scratch(call, f.floats(), kept_floats),
          *kept = frame + f.floats();  // [share][filter][tap]
    std::memset(kept, 0, static_cast<size_t>(kept_floats) * sizeof(float));
    for (int64_t n = 0; n < g.N; ++n) {
      f.fill(x + (n * g.C + unit) * g.H * g.W, frame);
      for (int64_t i = 0; i < k;) {
        Soon soon;
        if (i == 0 && n + 1 < g.N) {
          soon.x = x + ((n + 1) * g.C + unit) * g.H * g.W, soon.x_row = ceil_div(g.H * g.W, g.P);
          soon.dy = dy + ((n + 1) * g.K + first) * g.P * g.Q;
        }
        const int64_t filters = k - i >= WGRAD_K ? WGRAD_K : 1;
        const auto add = filters == 1 ? correlate<1> : correlate<WGRAD_K>;
        for (int64_t share = 0; share < shares; ++share)
          for (int64_t p = 0; p < g.P; p += rows)
            add(g, at, step, dy + (n * g.K + first + i) * g.P * g.Q, frame, p, least(g.P, p + rows),
                share * TAPS, share == 0 ? soon : Soon(), kept + (share * k + i) * TAPS * LANES);
        i += filters;
      }
    }
    for (int64_t i = 0; i < k; ++i)
      for (int64_t t = 0; t < taps; ++t)
        dw[((first + i) * c + channel) * taps + t] =
            sum(load(kept + ((t / TAPS * k + i) * TAPS + t % TAPS) * LANES));
  });
}

}  // namespace convkit
