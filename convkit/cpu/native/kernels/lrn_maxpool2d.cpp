// Local response normalisation and the max pooling that follows, blocked, as one pass: what lies between is
// not stored.
//
// Forward   Rows of LRN's output go into a ring of as many rows as a window reaches over (AlexNet: 3, 64 KB,
//           in L2); a row of the pool is taken as soon as its last row is there.
// Backward  For each row of x, the pool's gradient is gathered from the few rows of dy and argmax whose
//           windows reach it, d is computed anew from x, and dx is written, with the gradient of the ReLU
//           before it where that is wanted.
// Tasks     A band of rows of an image: the whole image from 16 images on. A band of outputs computes the
//           rows that it shares with the next one a second time: 2012's first layer has 6 bands for one
//           image, 8 % more work.
// Traffic   forward reads x and writes y and argmax, 4 HW + 5 PQ bytes of a channel; backward reads those of
//           dy and argmax, and x, and writes dx, 8 HW + 5 PQ.
// Bound     Arithmetic, with memory close behind: 16 elements take 23 + 9 cycles forward (LRN, pool) and 41 +
//           7 backward, where memory would give 10 and 19 to one thread at 28 GB/s.
// Measured  Zen 4, AVX-512, one thread, CPU time, N = 16: 33 cycles and 55 for 16 elements, on either of
//           AlexNet's layers: 2.6 and 4.3 ms on (96, 55, 55), 1.7 and 2.8 ms on (256, 27, 27) at 3.7 GHz. Two
//           threads on two busy cores, against PyTorch's local_response_norm and max_pool2d: 50 times as fast
//           and more, both ways.
#include "lrn.hpp"
#include "maxpool2d.hpp"
namespace convkit {

template <class Index>
void lrn_maxpool2d_fprop_rows_blocked(const Lrn& lrn, const MaxPool& pool, const float* x, float* y,
                                      Index* argmax, int threads) {
  const int64_t cut = bands(pool.N, pool.P, 4), blocks = pool.blocks(), row = pool.W * BLOCK;
  const int64_t pitch = blocks * row, period = least(pool.H, pool.span());
  parallel_for(workers(threads, 4 * pool.N * (pool.x_image() + pool.y_image())), pool.N * cut,
               [&](int64_t task) {
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
                     rows.fprop({x + n * pool.x_image() + next * row, pool.H * row},
                                {ring + next % period * pitch, row});
                   for (int64_t b = 0; b < blocks; ++b) {
                     const int64_t at = n * pool.y_image() + (b * pool.P + p) * pool.Q * BLOCK;
                     maxpool2d_fprop_row(pool, p, pool.spare(b), RowRing{ring + b * row, period, pitch},
                                         y + at, argmax + at);
                   }
                 }
               });
}

template <class Index>
void lrn_maxpool2d_dgrad_rows_blocked(const Lrn& lrn, const MaxPool& pool, const float* dy,
                                      const Index* argmax, const float* x, float* dx, bool relu,
                                      int threads) {
  const int64_t cut = bands(pool.N, pool.H, 4), blocks = pool.blocks(), row = pool.W * BLOCK;
  const int64_t plane = pool.P * pool.Q * BLOCK;
  parallel_for(
      workers(threads, 8 * pool.N * (pool.x_image() + pool.y_image())), pool.N * cut, [&](int64_t task) {
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

#define CK_LRN_POOL(Index)                                                                                 \
  template void lrn_maxpool2d_fprop_rows_blocked(const Lrn&, const MaxPool&, const float*, float*, Index*, \
                                                 int);                                                     \
  template void lrn_maxpool2d_dgrad_rows_blocked(const Lrn&, const MaxPool&, const float*, const Index*,   \
                                                 const float*, float*, bool, int);
CK_LRN_POOL(std::uint8_t)
CK_LRN_POOL(std::uint16_t)
CK_LRN_POOL(std::uint32_t)
#undef CK_LRN_POOL

}  // namespace convkit
