// softmax_xent_dgrad_rows
//   dlogits[n,k] = (probs[n,k] - (k == labels[n])) * dloss[n], NaN where labels[n] is not one of 0 to K - 1
//
// Tiling   a block makes a row, so that label and dloss are read once and nothing is divided; a thread makes
//          packs of 16 bytes, THREADS packs apart, where the row begins at a multiple of 16 bytes, else the
//          same elements one by one.
// Traffic  probs once, dlogits once: 8 bytes for each logit in fp32, 4 in the 16-bit types.
// Bound    for AlexNet's 128 rows of 1,000 the launch. For large matrices DRAM bandwidth: predicted 90 % of
//          the copy rate.
//
// /// kernel
// op     = "softmax_xent_dgrad"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 128 }
// tune   = { THREADS = [64, 128, 256] }
// grid   = ["N"]
// block  = ["THREADS"]
// rank   = 10
// ///

#include "storage.cuh"

extern "C" __launch_bounds__(THREADS) __global__
    void softmax_xent_dgrad_rows(GEOMETRY(SoftmaxXent), const storage_t* __restrict__ probs,
                                 const long long* __restrict__ labels, const float* __restrict__ dloss,
                                 storage_t* __restrict__ dlogits) {
  const long long n = blockIdx.x, label = labels[n];
  const float factor = label >= 0 && label < g.K ? dloss[n] : __int_as_float(0x7fffffff);
  const storage_t* const from = probs + n * g.K;
  storage_t* const to = dlogits + n * g.K;
  const bool vector = aligned(from) && aligned(to);
  for (long long k = static_cast<long long>(threadIdx.x) * PACK; k < g.K; k += THREADS * PACK) {
    Pack pack = load_pack(from, k, g.K, vector);
#pragma unroll
    for (int j = 0; j < PACK; ++j)
      pack[j] = from_float((to_float(pack[j]) - (k + j == label ? 1.0f : 0.0f)) * factor);
    store_pack(to, k, g.K, vector, pack);
  }
}
