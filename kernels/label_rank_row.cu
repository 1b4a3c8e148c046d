// label_rank_row
//   rank[n] = number of k with logits[n,k] > own, or logits[n,k] == own and k < label, where label =
//   labels[n] and own = logits[n,label]; K where a logit of the row is NaN, or label is not one of 0 to K - 1
//
// Tiling   a block makes a row, in one pass. A thread counts what stands before the label among every
//          THREADS-th element, and the block adds up the counts, which are integers: any order gives the
//          same. A second barrier carries whether any thread has met a NaN.
// Traffic  logits once: 4 bytes for each in fp32, 2 in the 16-bit types; of a row 8 bytes in and 4 out.
//          Behind softmax_xent_fprop AlexNet's 512 KB of logits lie in L2.
// Bound    for AlexNet's 128 rows of 1,000 the launch, and two loads in a row: the label, then its logit, on
//          which all comparisons wait. Predicted about 3 us, far from any bandwidth. For thousands of rows:
//          some 6 instructions for each logit, loaded 4 bytes at a time; predicted 80 % of the copy rate in
//          fp32.
//
// /// kernel
// op     = "label_rank"
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
    void label_rank_row(GEOMETRY(SoftmaxXent), const storage_t* __restrict__ logits,
                        const long long* __restrict__ labels, int* __restrict__ rank) {
  __shared__ int counts[THREADS / 32];
  const long long n = blockIdx.x, start = n * g.K;
  const long long label = labels[n];
  const bool known = label >= 0 && label < g.K;
  const float own = known ? to_float(logits[start + label]) : 0.0f;

  int before = 0;
  bool nan = false;
  for (int k = threadIdx.x; k < g.K; k += THREADS) {
    const float value = to_float(logits[start + k]);
    before += value > own || (value == own && k < label);
    nan |= value != value;
  }
  before = block_sum<THREADS / 32>(before, counts);
  nan = __syncthreads_or(nan);
  if (threadIdx.x == 0) rank[n] = known && !nan ? before : g.K;
}
