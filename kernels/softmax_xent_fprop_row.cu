// softmax_xent_fprop_row
//   probs[n,k] = exp(logits[n,k] - max_n) / total_n,  total_n = sum over k of exp(logits[n,k] - max_n)
//   loss[n] = log(total_n) - (logits[n,labels[n]] - max_n), NaN where labels[n] is not one of 0 to K - 1
//
// Tiling   a block makes a row, in three passes: maximum, sum of exponentials, quotients. A thread adds up
//          every THREADS-th element, a fixed tree the threads: some K/THREADS + 10 roundings in a row rather
//          than K.
// Traffic  DRAM: logits once, probs once; the second and third pass find the row in L1 while it is within
//          some 100 KB, else in L2. 8 bytes for each logit in fp32, 4 in the 16-bit types.
// Bound    for AlexNet's 128 rows of 1,000 the launch and the latency of three passes: predicted about 5 us,
//          far from any bandwidth. For thousands of rows: two exponentials and some 25 instructions for each
//          logit; predicted 75 % of the copy rate in fp32.
//
// /// kernel
// op     = "softmax_xent_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256 }
// tune   = { THREADS = [64, 128, 256, 512, 1024] }
// grid   = ["N"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "reduce.cuh"
#include "storage.cuh"

static_assert(THREADS % 32 == 0, "whole warps reduce");

extern "C" __launch_bounds__(THREADS) __global__
    void softmax_xent_fprop_row(GEOMETRY(SoftmaxXent), const storage_t* __restrict__ logits,
                                const long long* __restrict__ labels, float* __restrict__ loss,
                                storage_t* __restrict__ probs) {
  __shared__ float maxima[THREADS / 32], sums[THREADS / 32];
  const long long n = blockIdx.x, start = n * g.K;

  float largest = -__int_as_float(0x7f800000);
  for (int k = threadIdx.x; k < g.K; k += THREADS) largest = fmaxf(largest, to_float(logits[start + k]));
  // fmaxf passes a NaN over; its exponential makes the sum, and so the whole row, NaN.
  largest = block_max<THREADS / 32>(largest, maxima);

  float total = 0.0f;
  for (int k = threadIdx.x; k < g.K; k += THREADS) total += expf(to_float(logits[start + k]) - largest);
  total = block_sum<THREADS / 32>(total, sums);

  const float share = 1.0f / total;
  for (int k = threadIdx.x; k < g.K; k += THREADS)
    probs[start + k] = from_float(expf(to_float(logits[start + k]) - largest) * share);
  if (threadIdx.x == 0) {
    const long long label = labels[n];
    const bool known = label >= 0 && label < g.K;
    loss[n] = known ? logf(total) - (to_float(logits[start + label]) - largest) : __int_as_float(0x7fffffff);
  }
}
