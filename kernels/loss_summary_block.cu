// loss_summary_block
//   total = sum of loss[n];  errors[0], errors[1] = rows with rank[n] >= 1, and with rank[n] >= 5
//   finite = 1 where every loss[n] is finite, else 0
//
// Tiling   one block makes it all, so that nothing is left to add up and no atomic is needed. A thread adds
//          up every THREADS-th loss in double, a fixed tree the threads: the order depends on N alone.
// Traffic  8 bytes for each row, once; 28 bytes out.
// Bound    a batch has some hundred rows, a load or two for each thread: the launch, one trip to L2 and three
//          reductions. Predicted about 3 us. One block reads perhaps 50 GB/s: 10^6 rows would take 160 us,
//          beside hundreds of times that for their logits.
//
// /// kernel
// op     = "loss_summary"
// dtypes = ["float32"]
// tile   = { THREADS = 256 }
// tune   = { THREADS = [64, 128, 256, 512, 1024] }
// grid   = ["1"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "reduce.cuh"

static_assert(THREADS % 32 == 0, "whole warps reduce");

extern "C" __launch_bounds__(THREADS) __global__
    void loss_summary_block(GEOMETRY(LossSummary), const float* __restrict__ loss,
                            const int* __restrict__ rank, double* __restrict__ total,
                            long long* __restrict__ errors, int* __restrict__ finite) {
  constexpr int WARPS = THREADS / 32;
  __shared__ double sums[WARPS];
  __shared__ int first[WARPS], fifth[WARPS];
  const float infinity = __int_as_float(0x7f800000);

  double sum = 0.0;
  int top_1 = 0, top_5 = 0;
  bool good = true;
  for (long long n = threadIdx.x; n < g.N; n += THREADS) {
    const float value = loss[n];
    const int before = rank[n];
    sum += value;
    top_1 += before >= 1;
    top_5 += before >= 5;
    good = good && fabsf(value) < infinity;  // false for a NaN
  }
  sum = block_sum<WARPS>(sum, sums);
  top_1 = block_sum<WARPS>(top_1, first);
  top_5 = block_sum<WARPS>(top_5, fifth);
  good = __syncthreads_and(good);
  if (threadIdx.x == 0) {
    *total = sum;
    errors[0] = top_1;
    errors[1] = top_5;
    *finite = good;
  }
}
