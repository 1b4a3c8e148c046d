// lrn_maxpool2d.hpp argues the kernels.
#include "lrn_maxpool2d.hpp"

namespace convkit {

template <class Index>
void lrn_maxpool2d_fprop_blocked(const Lrn& lrn, const Pool& pool, const float* x, float* y, Index* argmax,
                                 int threads) {
  const int64_t cut = bands(pool.N, pool.P, 4), blocks = pool.blocks(), row = pool.W * BLOCK;
  const int64_t pitch = blocks * row, period = least(pool.H, pool.span());
  parallel_for(workers(threads, 4 * pool.N * (pool.x_image() + pool.y_image())), pool.N * cut, [&](int64_t task) {
    LrnRows rows(lrn);
    const int64_t n = task / cut;
    float* ring = local_floats(period * pitch + rows.floats());
    rows.prepare(ring + period * pitch);
    const Range band = piece(task % cut, cut, pool.P);
    int64_t next = 0;  // rows before it are in the ring, or will not be wanted
    for (int64_t p = band.begin; p < band.end; ++p) {
      const int64_t top = pool.top(p);
      next = most(next, top);
      for (; next < least(pool.H, top + pool.span()); ++next)
        rows.fprop({x + n * pool.x_image() + next * row, pool.H * row}, {ring + next % period * pitch, row});
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = n * pool.y_image() + (b * pool.P + p) * pool.Q * BLOCK;
        maxpool2d_fprop_row(pool, p, pool.spare(b), RowRing{ring + b * row, period, pitch}, y + at, argmax + at);
      }
    }
  });
}

template <class Index>
void lrn_maxpool2d_dgrad_blocked(const Lrn& lrn, const Pool& pool, const float* dy, const Index* argmax, const float* x,
                                 float* dx, bool relu, int threads) {
  const int64_t cut = bands(pool.N, pool.H, 4), blocks = pool.blocks(), row = pool.W * BLOCK;
  const int64_t plane = pool.P * pool.Q * BLOCK;
  parallel_for(workers(threads, 8 * pool.N * (pool.x_image() + pool.y_image())), pool.N * cut, [&](int64_t task) {
    LrnRows rows(lrn);
    const int64_t n = task / cut, out = n * pool.y_image();
    float* gathered = local_floats(blocks * row + rows.floats());
    rows.prepare(gathered + blocks * row);
    const Range band = piece(task % cut, cut, pool.H);
    for (int64_t h = band.begin; h < band.end; ++h) {
      const int64_t at = n * pool.x_image() + h * row;
      for (int64_t b = 0; b < blocks; ++b)
        maxpool2d_dgrad_row(pool, h, dy + out + b * plane, argmax + out + b * plane, gathered + b * row);
      rows.dgrad({gathered, row}, {x + at, pool.H * row}, {dx + at, pool.H * row}, relu);
    }
  });
}

#define CK_LRN_POOL(Index)                                                                                           \
  template void lrn_maxpool2d_fprop_blocked(const Lrn&, const Pool&, const float*, float*, Index*, int);             \
  template void lrn_maxpool2d_dgrad_blocked(const Lrn&, const Pool&, const float*, const Index*, const float*, float*, \
                                            bool, int);
CK_LRN_POOL(std::uint8_t)
CK_LRN_POOL(std::uint16_t)
CK_LRN_POOL(std::uint32_t)
#undef CK_LRN_POOL

}  // namespace convkit
