// avgpool2d_fprop_window
//   y[n,c,p,q] = sum over r,s of x[n, c, p*stride_h + r*dilation_h - pad_top, q*stride_w + s*dilation_w - pad_left]
//                / the number of taps that count: those on the padded image (count_include_pad), or on the image
// Pixels outside the image add nothing. A window in which no tap counts gives 0.
//
// Tiling   a thread makes ROWS outputs below each other, so that the divisions of its index are paid once, and
//          its columns are found once; neighbouring threads make neighbouring q. Pixels that windows share come
//          from L1.
// Traffic  x is read once from DRAM, y written once: in fp32 4 * stride_h * stride_w + 4 bytes for each output.
// Bound    3 x 3 at stride 2: DRAM bandwidth. A tap costs an address, a load and an addition, some 4 instructions:
//          about 50 for each output, against some 140 that fit into the time of its 20 bytes in fp32. The loads of
//          a row wait for each other only where the compiler does not unroll. Predicted: 70 % of the copy rate.
//          A window on the whole map: 1 output for each map, too few threads for a small batch; 30 % and less.
//
// /// kernel
// op     = "avgpool2d_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ROWS = 4 }
// tune   = { THREADS = [128, 256], ROWS = [1, 2, 4, 8] }
// grid   = ["ceil_div(N*C * ceil_div(P, ROWS) * Q, THREADS)"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "avgpool2d.cuh"

extern "C" __launch_bounds__(THREADS) __global__
    void avgpool2d_fprop_window(GEOMETRY(AvgPool2d), const storage_t* __restrict__ x,
                                storage_t* __restrict__ y) {
  const Strip strip = strip_of_thread(g, g.P, g.Q, ROWS);
  if (!strip.any) return;
  const storage_t* const image = x + strip.plane * g.H * g.W;
  const Taps columns = taps_of_column(g, strip.column);
  const int end = min(strip.row + ROWS, g.P);
  long long i = (strip.plane * g.P + strip.row) * g.Q + strip.column;
  for (int p = strip.row; p < end; ++p, i += g.Q) {
    const Taps rows = taps_of_row(g, p);
    float sum = 0.0f;
    for (int r = rows.first; r < rows.end; ++r) {
      const storage_t* const row = image + static_cast<long long>(rows.begin + r * g.dilation_h) * g.W;
      for (int s = columns.first; s < columns.end; ++s)
        sum += to_float(row[columns.begin + s * g.dilation_w]);
    }
    y[i] = from_float(sum / divisor(rows, columns));
  }
}
