// crop_images_columns
//   x[n,c,i,j] = (images[n, top + i, left + k, c] - mean + shift[n,c]) * factor[c], k = j or size - 1 - j;
//   0 where the crop is outside the image. top, left, flipped = crops[n], which may be any integers.
//
// Tiling   a thread makes one column of ROWS pixels of all channels, so that what does not depend on the row
//          or the channel (the image, its crop, whether the column is inside) is worked out once for C * ROWS
//          elements. Neighbouring threads make neighbouring columns. The ROWS bytes and means of a channel
//          are loaded before the first of them is stored.
// Traffic  in fp32 for each element 4 bytes written, 1 read; the mean stays in L2, and is read from there: 4.
// Access   32 threads read 32 pixels of 3 bytes: 96 bytes in a row, of 1 or 2 lines, three times (once for
//          each channel), of which DRAM sees the first. With 4 elements a thread and 128-bit stores the same
//          bytes would lie in 4 lines for each load, and so would the means of a crop that is not aligned: 33
//          line accesses of L1 for 128 elements (16 for bytes, 13 for means, 4 for the stores), where
//          neighbouring columns make 17 (7, 6, 4). Bytes by way of shared memory would save 3 of them for a
//          barrier and a second address; words of 4 bytes are not there to be read where a row begins
//          anywhere.
// Bound    DRAM bandwidth in fp32: 17 accesses for 128 elements are 7.5 elements a clock for each SM, and
//          bandwidth allows some 4 (4.8 TB/s, 132 SMs at 1.8 GHz, 5 bytes each). Predicted: 80 % of the copy
//          rate; in the 16-bit types (3 bytes, 7 elements a clock) L1 is as tight: 60 %. All of this
//          unmeasured.
//
// /// kernel
// op     = "crop_images"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ROWS = 4 }
// tune   = { THREADS = [128, 256, 512], ROWS = [2, 4, 8] }
// grid   = ["ceil_div(N * ceil_div(size, ROWS) * size, THREADS)"]
// block  = ["THREADS"]
// rank   = 10
// [dividers]
// by_columns = "size"
// by_strips  = "ceil_div(size, ROWS)"
// ///

#include "divider.cuh"
#include "storage.cuh"

extern "C" __launch_bounds__(THREADS) __global__
    void crop_images_columns(GEOMETRY(CropImages), const unsigned char* __restrict__ images,
                             const int* __restrict__ crops, const float* __restrict__ mean,
                             const float* __restrict__ shift, const float* __restrict__ factor,
                             storage_t* __restrict__ x) {
  const long long index = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  const long long line = index / g.by_columns, n = line / g.by_strips;
  if (n >= g.N) return;
  const int j = static_cast<int>(index % g.by_columns);
  const int i = static_cast<int>(line % g.by_strips) * ROWS;
  const int rows = min(ROWS, g.size - i);

  // In 64 bits: top + i may be beyond 32.
  const long long top = crops[3 * n] + static_cast<long long>(i);
  const long long column = crops[3 * n + 1] + static_cast<long long>(crops[3 * n + 2] ? g.size - 1 - j : j);
  const bool column_inside = column >= 0 && column < g.W;
  bool inside[ROWS];
  long long pixel[ROWS];  // of the image; only where it is inside
#pragma unroll
  for (int q = 0; q < ROWS; ++q) {
    const long long r = top + q;
    inside[q] = column_inside && q < rows && r >= 0 && r < g.H;
    pixel[q] = inside[q] ? r * g.W + column : 0;
  }

  const unsigned char* const image = images + n * g.H * g.W * g.C;
  const bool constant = static_cast<long long>(g.mean_h) * g.mean_w == 1;
  const long long plane = static_cast<long long>(g.size) * g.size;
  const long long place = static_cast<long long>(i) * g.size + j;
  storage_t* to = x + n * g.C * plane + place;
  for (int c = 0; c < g.C; ++c, to += plane) {
    const int channel = g.reverse ? g.C - 1 - c : c;
    const float* const own = mean + static_cast<long long>(c) * g.mean_h * g.mean_w;
    const float added = shift ? shift[n * g.C + c] : 0.0f, times = factor ? factor[c] : 1.0f;
    float value[ROWS];
#pragma unroll
    for (int q = 0; q < ROWS; ++q) {
      if (!inside[q]) continue;
      const long long at = constant ? 0 : g.moves ? pixel[q] : place + static_cast<long long>(q) * g.size;
      value[q] = static_cast<float>(image[pixel[q] * g.C + channel]) - own[at];
    }
#pragma unroll
    for (int q = 0; q < ROWS; ++q)
      if (q < rows)
        to[static_cast<long long>(q) * g.size] = from_float(inside[q] ? (value[q] + added) * times : 0.0f);
  }
}
