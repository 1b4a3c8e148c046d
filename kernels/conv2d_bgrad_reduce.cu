// conv2d_bgrad_reduce
//   db[k] = sum over n,p,q of dy[n,k,p,q]
//
// Tiling   two levels, each in a fixed order. The first launch cuts the N*P*Q elements of a channel into
//          SPLITS runs, one block each; a thread adds up every THREADS-th element of its run, UNROLL loads at
//          a time, and a fixed tree adds up the threads. The second launch adds up the SPLITS parts of each
//          channel. A sum of L terms thus passes some L/(SPLITS*THREADS) + 20 roundings rather than L. A run
//          crosses from image to image by additions alone: n and the pixel advance with their element.
// Traffic  dy once, coalesced; 4 * SPLITS * K bytes of parts written and read. Planes of odd size (55, 27, 13
//          squared) are not aligned for wider accesses, and which element a thread adds must not depend on
//          alignment: it would change the last bits of db.
// Bound    DRAM bandwidth in fp32: 13 instructions for each element (counted in the code for sm_90a), against
//          about 26 that fit into its time; 16 against 13 in the 16-bit types. Predicted: 80 % of the read
//          rate, and 60 %.
//
// /// kernel
// op        = "conv2d_bgrad"
// dtypes    = ["float32", "float16", "bfloat16", "bfloat16/float32", "float16/float32"]
// tile      = { THREADS = 256, SPLITS = 16, UNROLL = 4 }
// tune      = { THREADS = [128, 256, 512], SPLITS = [4, 8, 16, 32], UNROLL = [4, 8] }
// workspace = "4 * K * SPLITS"
// when      = "P*Q < 2147483648"
// rank      = 10
// launch    = [
//     { entry = "conv2d_bgrad_reduce_parts", grid = ["K * SPLITS"], block = ["THREADS"] },
//     { entry = "conv2d_bgrad_reduce", grid = ["ceil_div(K, THREADS)"], block = ["THREADS"] },
// ]
// dividers  = { by_pixels = "P*Q" }
// ///

#include "divider.cuh"
#include "reduce.cuh"
#include "storage.cuh"

static_assert(THREADS % 32 == 0, "whole warps reduce");

// workspace[k*SPLITS + split]: the sum of a run of channel k.
extern "C" __launch_bounds__(THREADS) __global__
    void conv2d_bgrad_reduce_parts(GEOMETRY(ChannelSum), const storage_t* __restrict__ dy,
                                   param_t* __restrict__ db, float* __restrict__ workspace) {
  __shared__ float partial[THREADS / 32];
  const int k = static_cast<int>(blockIdx.x / SPLITS), split = static_cast<int>(blockIdx.x % SPLITS);
  const unsigned pixels = static_cast<unsigned>(g.P) * g.Q;
  const long long elements = static_cast<long long>(pixels) * g.N;
  const long long run = (elements + SPLITS - 1) / SPLITS;
  const long long end = min((split + 1) * run, elements);

  // Element e of the channel is pixel e % pixels of image e / pixels. The next one of this thread is THREADS
  // further: `images` images and `rest` pixels, and one image more where that passes the last pixel.
  const int images = THREADS / g.by_pixels, rest = THREADS % g.by_pixels;
  const long long step = static_cast<long long>(images) * g.K * pixels + rest;
  const long long wrap = (g.K - 1) * static_cast<long long>(pixels);
  const long long first = split * run + threadIdx.x;
  unsigned pixel = static_cast<unsigned>(first % g.by_pixels);
  const storage_t* from = dy + (first / g.by_pixels * g.K + k) * pixels + pixel;

  float sums[UNROLL] = {};
  for (long long left = (end - first + THREADS - 1) / THREADS; left > 0; left -= UNROLL) {
    const int now = static_cast<int>(min(left, static_cast<long long>(UNROLL)));
    float values[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      values[u] = u < now ? to_float(*from) : 0.0f;
      from += step;
      pixel += rest;
      if (pixel >= pixels) {
        pixel -= pixels;
        from += wrap;
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) sums[u] += values[u];
  }
  float sum = 0.0f;
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) sum += sums[u];
  sum = block_sum<THREADS / 32>(sum, partial);
  if (threadIdx.x == 0) workspace[blockIdx.x] = sum;
}

extern "C" __launch_bounds__(THREADS) __global__
    void conv2d_bgrad_reduce(GEOMETRY(ChannelSum), const storage_t* __restrict__ dy, param_t* __restrict__ db,
                             float* __restrict__ workspace) {
  const int k = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (k >= g.K) return;
  float sum = 0.0f;
#pragma unroll
  for (int split = 0; split < SPLITS; ++split) sum += workspace[static_cast<long long>(k) * SPLITS + split];
  db[k] = to_param(sum);
}
