// sgd_momentum_vectorized
//   gradient = dw + weight_decay * w lr_in_velocity:  v' = momentum * v - lr * gradient                    w'
//   = w + v' otherwise:       v' = momentum * v + (1 - dampening) * gradient       w' = w - lr * v' nesterov:
//   w' = w - lr * (gradient + momentum * v') where finite is given and holds 0:  v' = v, w' = w, bit for bit
//
// Tiling   as relu_fprop_vectorized: a thread makes ELEMENTS elements in packs of 16 bytes, THREADS packs
//          apart, and issues the loads of all three arrays before its first store.
// Traffic  reads w, dw and v once, writes w_new and v_new once: 20 bytes for each element in fp32, 10 in the
//          16-bit types. The flag is 4 bytes, the same for all, from L1 or L2; so is a live rate. They are
//          loaded last, so that nothing waits for them alone; in place, a flag of 0 costs no store.
// Bound    DRAM bandwidth; some 8 instructions for each element, against about 130 that fit into its time.
//          Predicted: 95 % of the copy rate on parameters beyond the L2.
//
// /// kernel
// op     = "sgd_momentum"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 256, ELEMENTS = 8 }
// tune   = { THREADS = [128, 256, 512], ELEMENTS = [8, 16] }
// grid   = ["ceil_div(size, THREADS * ELEMENTS)"]
// block  = ["THREADS"]
// rank   = 10
// live   = ["lr"]
// [options]
// lr = "float"
// momentum = "float"
// weight_decay = "float"
// dampening = "double"
// nesterov = "int"
// lr_in_velocity = "int"
// finite = "const int*"
// ///

#include "sgd.cuh"
#include "storage.cuh"

static_assert(ELEMENTS % PACK == 0, "a thread moves whole packs of 16 bytes");

// w_new and v_new may be w, dw or v, hence no __restrict__: each thread loads all it needs before it stores.
extern "C" __launch_bounds__(THREADS) __global__
    void sgd_momentum_vectorized(GEOMETRY(Elementwise), const storage_t* w, const storage_t* dw,
                                 const storage_t* v, storage_t* w_new, storage_t* v_new, float lr,
                                 float momentum, float weight_decay, double dampening, int nesterov,
                                 int lr_in_velocity, const int* finite, const float* live_lr) {
  constexpr int CHUNKS = ELEMENTS / PACK;
  const bool vector = aligned(w) && aligned(dw) && aligned(v) && aligned(w_new) && aligned(v_new);
  Pack weights[CHUNKS], gradients[CHUNKS], velocities[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const long long i = chunk_start(c, ELEMENTS);
    weights[c] = load_pack(w, i, g.size, vector);
    gradients[c] = load_pack(dw, i, g.size, vector);
    velocities[c] = load_pack(v, i, g.size, vector);
  }
  // Not earlier: the loads above do not wait for those of the flag and of the rate.
  const SgdUpdate update(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr);
  if (update.keep && w_new == w && v_new == v) return;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const long long i = chunk_start(c, ELEMENTS);
    if (!update.keep) {
#pragma unroll
      for (int j = 0; j < PACK; ++j) {
        float weight = to_float(weights[c][j]), velocity = to_float(velocities[c][j]);
        update(to_float(gradients[c][j]), weight, velocity);
        weights[c][j] = from_float(weight);
        velocities[c][j] = from_float(velocity);
      }
    }
    store_pack(w_new, i, g.size, vector, weights[c]);
    store_pack(v_new, i, g.size, vector, velocities[c]);
  }
}
