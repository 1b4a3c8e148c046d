// Max pooling, blocked: a row of outputs from rows of inputs, and a row of dx from rows of dy and argmax.
//
// Idea      A register holds 16 neighbouring channels of a pixel, so that a window is R x S loads,
//           comparisons and selections, with no branch but for the loops. The winner is kept as an int32 in a
//           register beside the maximum and stored as the smallest type.
// NaN       A tap wins where it is larger than the best or is NaN, unless the best is NaN already: !(v <=
//           best) and best == best. So the first NaN wins, and the first of equal values. The first tap
//           inside the image starts.
// dgrad     Gathered, not scattered: for each pixel, the windows that it lies in, in a fixed order, each
//           compared with the tap that it is there. Nothing is read before it is written, and rows are
//           independent.
// Usual     Window 3, stride 2, no padding: loops unrolled; forward, a sum over the window tells of NaNs (or
//           opposed infinities), and a row that has any is done again; backward, a dy serves its three pixels
//           of a row.
// Traffic   x is read, y and argmax written; backward the other way: 4 HW + 5 PQ bytes a map.
// Measured  Zen 4, AVX-512, one thread, window 3 and stride 2: 16 elements of x take 8 cycles forward and 7
//           backward; from memory, N = 16, 9-14 and 7-8, 20-30 GB/s.
#pragma once

#include "half.hpp"
#include "local.hpp"

namespace convkit {

// The usual window has 9 taps: no wider type than the smallest numbers them.
template <class Index>
constexpr bool may_be_usual = sizeof(Index) == 1;

// Taps [begin, end) of a window that lie inside, along one axis; `first` is where tap 0 is.
CK_INLINE Range taps_inside(int64_t first, int64_t dilation, int64_t taps, int64_t extent) {
  const int64_t begin = first < 0 ? ceil_div(-first, dilation) : 0;
  const int64_t end = first >= extent ? 0 : least(taps, (extent - 1 - first) / dilation + 1);
  return {begin, most(begin, end)};
}

// Windows in which position `at` (from the padding's start) of an axis is a tap: f(window, tap), windows
// ascending.
template <class F>
CK_INLINE void each_window(int64_t at, int64_t stride, int64_t dilation, int64_t taps, int64_t windows,
                           const F& f) {
  const int64_t span = (taps - 1) * dilation;
  const int64_t first = at > span ? ceil_div(at - span, stride) : 0;
  const int64_t last = least(windows - 1, at / stride);
  // Windows between those whose taps meet here are many: taps are asked instead, last to first.
  if (dilation > stride) {
    for (int64_t tap = least(taps - 1, at / dilation); tap >= 0; --tap) {
      const int64_t start = at - tap * dilation;
      if (start > last * stride) return;
      if (start % stride == 0) f(start / stride, tap);
    }
    return;
  }
  for (int64_t i = first; i <= last; ++i) {
    const int64_t offset = at - i * stride;
    if (dilation == 1)
      f(i, offset);
    else if (offset % dilation == 0)
      f(i, offset / dilation);
  }
}

// ---------------------------------------------------------------------------------------------------
// Registers
// ---------------------------------------------------------------------------------------------------
// Winners of LANES channels in memory. uint8 goes by uint16: GCC 12 has instructions for halving and doubling
// alone.
template <class Index>
struct Winners {
  typedef Index Vector __attribute__((vector_size(sizeof(Index) * LANES)));
  typedef std::uint16_t Half __attribute__((vector_size(2 * LANES)));
  static CK_INLINE VI load(const Index* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    if constexpr (sizeof(Index) == 1) return __builtin_convertvector(__builtin_convertvector(v, Half), VI);
    return __builtin_convertvector(v, VI);
  }
  static CK_INLINE void store(Index* p, VI winner) {
    Vector v;
    if constexpr (sizeof(Index) == 1)
      v = __builtin_convertvector(__builtin_convertvector(winner, Half), Vector);
    else
      v = __builtin_convertvector(winner, Vector);
    std::memcpy(p, &v, sizeof v);
  }
  static void store_part(Index* p, VI winner, int64_t count) {
    Index taps[LANES];
    store(taps, winner);
    std::memcpy(p, taps, size_t(count) * sizeof(Index));
  }
};

// A maximum and its tap, of each lane.
struct Best {
  V value;
  VI tap;
  CK_INLINE void see(V v, VI t) {
    const VI wins = ~(v <= value) & (value == value);
    value = wins ? v : value;
    tap = wins ? t : tap;
  }
  CK_INLINE void see(V v, int t) { see(v, VI{} + t); }
};

// ---------------------------------------------------------------------------------------------------
// Blocked
// ---------------------------------------------------------------------------------------------------
// Rows of a block of an image, or a ring of some: pixel (h, w) is at p + (h % period) * pitch + w * BLOCK.
struct RowRing {
  const float* p;
  int64_t period, pitch;
  int64_t ahead = 0;  // how far to ask for what comes next: each row is a new stream to the hardware
  const float* row(int64_t h) const { return p + h % period * pitch; }
};

// Row p of y and argmax, of one block; `spare`: of the last block, some of whose channels do not exist.
template <class Index>
void maxpool2d_fprop_row(const MaxPool& g, int64_t p, bool spare, const RowRing& x, float* y, Index* argmax);

// Row h of dx, of one block; dy and argmax point at that block's plane.
template <class Index>
void maxpool2d_dgrad_row(const MaxPool& g, int64_t h, const float* dy, const Index* argmax, float* dx);

}  // namespace convkit
