// A network's input from stored images: bytes HWC to planes, a crop, mirrored or not, less a mean, shifted,
// scaled.
//
// Idea      A row of a crop at a time. Its bytes are first split into a row for each channel, by byte shuffles
//           where there are three channels, 16 pixels at a time; the rows stay in L1. Then each channel's row
//           is widened, LANES pixels at a time, and a mirrored one turned around in the register.
// Tasks     An image, or a band of the rows of its crop.
// Bits      (pixel - mean + shift) * factor, each rounded once, in this order: no product comes before a sum,
//           so there is nothing to fuse.
// Bound     Memory: for 224 x 224 x 3 in float32 602 KB are written (and read before, by a cache that fetches
//           what is written), 151 KB of bytes read, and the mean, which stays in L2.
#include <utility>

#include "half.hpp"
#include "local.hpp"

namespace convkit {
namespace {

using Byte = std::uint8_t;
constexpr int64_t PIXELS = 16;  // that are split at a time
typedef Byte Bytes __attribute__((vector_size(PIXELS)));
typedef Byte LaneBytes __attribute__((vector_size(LANES)));

template <class T>
CK_INLINE T load_bytes(const Byte* from) {
  T bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return bytes;
}

// Bytes 3p + CHANNEL of a, b, c, one behind the other.
template <int CHANNEL, int... P>
CK_INLINE Bytes every_third(Bytes a, Bytes b, Bytes c, std::integer_sequence<int, P...>) {
  const Bytes low = __builtin_shufflevector(a, b, (3 * P + CHANNEL < 32 ? 3 * P + CHANNEL : 0)...);
  return __builtin_shufflevector(low, c, (3 * P + CHANNEL < 32 ? P : 3 * P + CHANNEL - 16)...);
}

template <int CHANNEL>
CK_INLINE void split_three(Bytes a, Bytes b, Bytes c, Byte* to) {
  const Bytes found = every_third<CHANNEL>(a, b, c, std::make_integer_sequence<int, PIXELS>());
  std::memcpy(to, &found, sizeof found);
}

// `count` pixels of C bytes each to C rows that begin `step` bytes apart.
inline void split_channels(const Byte* from, int64_t count, int64_t C, Byte* rows, int64_t step) {
  if (C == 1) {
    std::memcpy(rows, from, size_t(count));
  } else if (C == 3 && count >= PIXELS) {
    for (int64_t done = 0; done < count; done += PIXELS) {
      const int64_t p = least(done, count - PIXELS);  // the last ones again, rather than fewer
      const Byte* const at = from + 3 * p;
      const Bytes a = load_bytes<Bytes>(at), b = load_bytes<Bytes>(at + PIXELS),
                  c = load_bytes<Bytes>(at + 2 * PIXELS);
      split_three<0>(a, b, c, rows + p);
      split_three<1>(a, b, c, rows + step + p);
      split_three<2>(a, b, c, rows + 2 * step + p);
    }
  } else {
    for (int64_t c = 0; c < C; ++c)
      for (int64_t p = 0; p < count; ++p) rows[c * step + p] = from[p * C + c];
  }
}

template <int... L>
CK_INLINE V turned(V v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, (LANES - 1 - L)...);
}
CK_INLINE V turned(V v) { return turned(v, std::make_integer_sequence<int, LANES>()); }

CK_INLINE V widened(const Byte* from) {
  return __builtin_convertvector(__builtin_convertvector(load_bytes<LaneBytes>(from), VI), V);
}

enum class Mean { CHANNEL, CROP, IMAGE };

// A row of a channel: `count` pixels, which have LANES bytes of anything before and behind them. The mean of
// the image is in the order of the pixels, that of the crop in the order of x.
template <Mean MEAN, bool FLIPPED, class S>
void fill_row(const Byte* pixels, int64_t count, const float* mean, float shift, float factor, S* x) {
  const V added = splat(shift), times = splat(factor), whole = splat(*mean);
  for (int64_t j = 0; j < count; j += LANES) {
    const int64_t some = least(LANES, count - j);
    // Of the mirrored pixels those that end where the ones before began; of the last ones too few are there,
    // and they are the register's last.
    const int64_t first = FLIPPED ? count - j - LANES : j;
    V v = widened(pixels + first);
    if constexpr (MEAN == Mean::IMAGE) {
      if (some == LANES) {
        v -= load(mean + first);
      } else {
        float own[LANES] = {};
        std::memcpy(own + (FLIPPED ? LANES - some : 0), mean + (FLIPPED ? 0 : first),
                    size_t(some) * sizeof(float));
        v -= load(own);
      }
    }
    if constexpr (FLIPPED) v = turned(v);
    if constexpr (MEAN == Mean::CROP) v -= some == LANES ? load(mean + j) : load_part(mean + j, some);
    if constexpr (MEAN == Mean::CHANNEL) v -= whole;
    v = (v + added) * times;
    if (some == LANES)
      store(x + j, v);
    else
      store_part(x + j, v, some);
  }
}

template <class S>
using FillRow = void (*)(const Byte*, int64_t, const float*, float, float, S*);
template <Mean MEAN, class S>
FillRow<S> filler(bool flipped) {
  return flipped ? fill_row<MEAN, true, S> : fill_row<MEAN, false, S>;
}

}  // namespace

template <class S>
void crop_images_rows(const CropImages& g, const Byte* images, const std::int32_t* crops, const float* mean,
                      const float* shift, const float* factor, S* x, int threads) {
  const Mean of = g.mean_h * g.mean_w == 1 ? Mean::CHANNEL : g.moves ? Mean::IMAGE : Mean::CROP;
  const int64_t parts = bands(g.N, g.size, 16), pixels = g.size * g.size;
  const int64_t bytes = g.N * g.C * pixels * int64_t(sizeof(S));
  parallel_for(workers(threads, bytes), g.N * parts, [&](int64_t task) {
    const int64_t n = task / parts;
    const Range rows = piece(task % parts, parts, g.size);
    const int64_t top = crops[3 * n], left = crops[3 * n + 1];
    const bool flipped = crops[3 * n + 2] != 0;
    // Columns of the crop that are inside the image: as the pixels come, and in x.
    const int64_t begin = least(most(-left, 0), g.size), end = most(begin, least(g.W - left, g.size));
    const int64_t count = end - begin, first = flipped ? g.size - end : begin;
    const FillRow<S> fill = of == Mean::CHANNEL ? filler<Mean::CHANNEL, S>(flipped)
                            : of == Mean::CROP  ? filler<Mean::CROP, S>(flipped)
                                                : filler<Mean::IMAGE, S>(flipped);
    const int64_t step = round_up(count, LINE) + 2 * LANES;
    Byte* const split = reinterpret_cast<Byte*>(local_floats(ceil_div(g.C * step, 4)));
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t r = top + i;
      S* const row = x + n * g.C * pixels + i * g.size;
      if (r < 0 || r >= g.H || count == 0) {
        for (int64_t c = 0; c < g.C; ++c) std::memset(row + c * pixels, 0, size_t(g.size) * sizeof(S));
        continue;
      }
      split_channels(images + ((n * g.H + r) * g.W + left + begin) * g.C, count, g.C, split + LANES, step);
      for (int64_t c = 0; c < g.C; ++c) {
        S* const to = row + c * pixels;
        std::memset(to, 0, size_t(first) * sizeof(S));
        std::memset(to + first + count, 0, size_t(g.size - first - count) * sizeof(S));
        const float* const own = of == Mean::CHANNEL ? mean + c
                                 : of == Mean::CROP  ? mean + (c * g.size + i) * g.size + first
                                                     : mean + (c * g.H + r) * g.W + left + begin;
        fill(split + (g.reverse ? g.C - 1 - c : c) * step + LANES, count, own, shift ? shift[n * g.C + c] : 0,
             factor ? factor[c] : 1, to + first);
      }
    }
  });
}

template void crop_images_rows(const CropImages&, const Byte*, const std::int32_t*, const float*,
                               const float*, const float*, float*, int);
template void crop_images_rows(const CropImages&, const Byte*, const std::int32_t*, const float*,
                               const float*, const float*, BFloat16*, int);
template void crop_images_rows(const CropImages&, const Byte*, const std::int32_t*, const float*,
                               const float*, const float*, Float16*, int);

}  // namespace convkit
