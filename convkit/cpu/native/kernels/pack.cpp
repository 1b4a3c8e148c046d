#include "pack.hpp"

#include "transpose.hpp"

// Traffic   Each element is read and written once. A register's worth of pixels of as many channels is
//           transposed in registers; the ends of rows go element by element.
// Bound     Memory: NCHW's channels are whole maps apart, so that a block reads 16 streams.

namespace convkit {

void block_row(const float* from, int64_t pitch, int64_t channels, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int part = 0; part < PARTS; ++part) {
      V r[LANES];
      CK_UNROLL
      for (int l = 0; l < LANES; ++l) {
        const int64_t c = part * LANES + l;
        r[l] = c < channels ? load(from + c * pitch + i) : V{};
      }
      transpose(r);
      CK_UNROLL
      for (int l = 0; l < LANES; ++l) store(to + (i + l) * BLOCK + part * LANES, r[l]);
    }
  }
  for (; i < count; ++i)
    for (int64_t c = 0; c < BLOCK; ++c) to[i * BLOCK + c] = c < channels ? from[c * pitch + i] : 0.0f;
}

void unblock_row(const float* from, int64_t pitch, int64_t channels, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int part = 0; part < PARTS; ++part) {
      V r[LANES];
      CK_UNROLL
      for (int l = 0; l < LANES; ++l) r[l] = load(from + (i + l) * BLOCK + part * LANES);
      transpose(r);
      CK_UNROLL
      for (int l = 0; l < LANES; ++l) {
        const int64_t c = part * LANES + l;
        if (c < channels) store(to + c * pitch + i, r[l]);
      }
    }
  }
  for (; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) to[c * pitch + i] = from[i * BLOCK + c];
}

namespace {

// Rows of a task: some 64 KB.
int64_t grain(int64_t row_floats) { return most(1, 16384 / most(1, row_floats)); }

void zero(float* p, int64_t count) { std::memset(p, 0, static_cast<size_t>(count) * sizeof(float)); }

// to[w * BLOCK + i] = from[w * step + i] for i < count, where low <= w * step + i < high; else, and without
// from, 0.
void spread(const float* from, int64_t step, int64_t count, int64_t low, int64_t high, int64_t pixels,
            float* to) {
  for (int64_t w = 0; w < pixels; ++w, to += BLOCK) {
    const int64_t first = w * step;
    if (from && count == 4 && first >= low && first + 4 <= high) {
      std::memcpy(to, from + first, 4 * sizeof(float));
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const bool inside = from && first + i >= low && first + i < high;
        to[i] = inside ? from[first + i] : 0.0f;
      }
    }
  }
}

// Calls row(n, g, block, first pixel, count, to) for the rows that hold image; zeros elsewhere. A frame may
// also crop the image: top and left are then negative.
template <class Row>
void framed(const Maps& m, int64_t H, int64_t W, int64_t top, int64_t left, int threads, const Row& row) {
  const int64_t rows = m.images * m.groups * m.blocks() * m.H;
  parallel_ranges(threads, rows, grain(m.W * BLOCK), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t h = i % m.H - top, plane = i / m.H;
      float* to = m.data + i * m.W * BLOCK;
      if (h < 0 || h >= H) {
        zero(to, m.W * BLOCK);
        continue;
      }
      const int64_t before = least(m.W, most(0, left)), skipped = most(0, -left);
      const int64_t inside = most(0, least(W - skipped, m.W - before));
      zero(to, before * BLOCK);
      row(plane / m.blocks() / m.groups, plane / m.blocks() % m.groups, plane % m.blocks(), h * W + skipped,
          inside, to + before * BLOCK);
      zero(to + (before + inside) * BLOCK, (m.W - before - inside) * BLOCK);
    }
  });
}

}  // namespace

void pack(const float* x, int64_t n0, int64_t H, int64_t W, const Maps& m, int64_t top, int64_t left,
          int threads) {
  framed(m, H, W, top, left, threads,
         [&](int64_t n, int64_t g, int64_t block, int64_t pixel, int64_t count, float* to) {
           const int64_t c = block * BLOCK;
           const float* from = x + (((n0 + n) * m.groups + g) * m.channels + c) * H * W + pixel;
           block_row(from, H * W, least(BLOCK, m.channels - c), count, to);
         });
}

void frame(const float* x, int64_t n0, int64_t H, int64_t W, const Maps& m, int64_t top, int64_t left,
           int threads) {
  framed(m, H, W, top, left, threads,
         [&](int64_t n, int64_t g, int64_t block, int64_t pixel, int64_t count, float* to) {
           const float* from = x + ((((n0 + n) * m.groups + g) * m.blocks() + block) * H * W + pixel) * BLOCK;
           std::memcpy(to, from, static_cast<size_t>(count * BLOCK) * sizeof(float));
         });
}

void unpack(const Maps& m, int64_t n0, float* y, int threads) {
  const int64_t rows = m.images * m.groups * m.blocks() * m.H;
  parallel_ranges(threads, rows, grain(m.W * BLOCK), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t h = i % m.H, plane = i / m.H, c = plane % m.blocks() * BLOCK, map = plane / m.blocks();
      float* to = y + (((n0 * m.groups + map) * m.channels + c) * m.H + h) * m.W;
      unblock_row(m.data + i * m.W * BLOCK, m.H * m.W, least(BLOCK, m.channels - c), m.W, to);
    }
  });
}

void space_to_depth(const float* x, int64_t n0, int64_t C, int64_t H, int64_t W, int64_t s, const Maps& m,
                    int64_t top, int64_t left, int threads) {
  const int64_t used = C * s * s, spare = m.blocks() * BLOCK - used;
  parallel_ranges(threads, m.images * m.H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t h = unit % m.H, n = unit / m.H, at = h * m.W * BLOCK;
      for (int64_t c = 0; spare && c < spare; ++c)
        for (int64_t w = 0; w < m.W; ++w)
          m.at(n, 0, (used + c) / BLOCK)[at + w * BLOCK + (used + c) % BLOCK] = 0.0f;
      for (int64_t line = 0; line < C * s; ++line) {  // channel line / s, row line % s of its s x s pixels
        const int64_t row = h * s + line % s - top, channel = line * s;
        const float* from = x + (((n0 + n) * C + line / s) * H + row) * W - left;
        const bool there = row >= 0 && row < H;
        for (int64_t j = 0; j < s;) {  // s channels; they may end in another block than they begin in
          const int64_t block = (channel + j) / BLOCK, lane = (channel + j) % BLOCK,
                        count = least(s - j, BLOCK - lane);
          spread(there ? from + j : nullptr, s, count, left - j, W + left - j, m.W,
                 m.at(n, 0, block) + at + lane);
          j += count;
        }
      }
    }
  });
}

void depth_to_space(const Maps& m, int64_t n0, float* x, int64_t C, int64_t H, int64_t W, int64_t s,
                    int64_t top, int64_t left, int threads) {
  parallel_ranges(threads, m.images * C * H, 8, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit % H + top, c = unit / H % C, n = unit / H / C;
      float* to = x + ((n0 * C * H) + unit) * W;
      for (int64_t w = 0; w < W; ++w) {
        const int64_t column = w + left, channel = (c * s + row % s) * s + column % s;
        const bool there = row / s < m.H && column / s < m.W;
        const float* from =
            m.at(n, 0, channel / BLOCK) + (row / s * m.W + column / s) * BLOCK + channel % BLOCK;
        to[w] = there ? *from : 0.0f;
      }
    }
  });
}

}  // namespace convkit
