// linear_dgrad_wgrad_sgd_gemm
//   dx[n,c] = sum_k dy[n,k] * w[k,c], with relu 0 where x <= 0; dw[k,c] = sum_n dy[n,k] * x[n,c], and the update
//   of w and v by it, as sgd_momentum has it. dx is made of the weights before the update. dw is not stored.
//
// Tiling   two GEMMs, one launch each, since every weight must have been read before one is updated: the first
//          as linear_dgrad_gemm, the second as linear_wgrad_gemm (linear_grads.cuh has what they share). Each is
//          cut into slices where it has few tiles, as there; the launch that adds up the slices then applies the
//          ReLU's gradient, or updates.
// Traffic  dy, w and x as in these two; of w and v 16 bytes for each weight, where the kernels apart move 24: dw
//          written, then five arrays of sgd_momentum. The ReLU's gradient reads x and nothing else: 4 bytes for
//          each element of dx, where relu_dgrad moves 12.
// Bound    FP32 FMA and DRAM alike at a batch of 128: in fc6 a tile's multiply-adds take some 8 us of an SM,
//          and so do its weights' bytes at its share of the bandwidth. An SM holds two blocks, so that one
//          multiplies while the other updates. On sm_90a the main loop is that of linear_wgrad_gemm; 236
//          registers, no spills. Predicted at batch 128: 80 % of the time of the kernels apart.
//
// /// kernel
// op      = "linear_dgrad_wgrad_sgd"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 128 }
// rank    = 20
// live    = ["lr"]
// workspace = """4*max(N*C*DGRAD_SLICES if DGRAD_SLICES > 1 else 0, \
//                  K*C*WGRAD_SLICES if WGRAD_SLICES > 1 else 0)"""
// [options]
// relu = "int"
// lr = "float"
// momentum = "float"
// weight_decay = "float"
// dampening = "double"
// nesterov = "int"
// lr_in_velocity = "int"
// finite = "const int*"
// [tune]
// TILE_M   = [64, 128]
// TILE_K   = [8, 16]
// THREAD_N = [8, 16]
// PER_SM   = [1, 2, 3]
// DEPTH    = [64, 128, 256]
// # Places for blocks on an H200.
// [let]
// FILL          = "132*PER_SM"
// DGRAD_TILES_M = "ceil_div(N, TILE_M)"
// DGRAD_BLOCKS  = "DGRAD_TILES_M * ceil_div(C, TILE_N)"
// DGRAD_SLICES  = "max(1, min(K//DEPTH, FILL//max(1, DGRAD_BLOCKS)))"
// WGRAD_TILES_M = "ceil_div(K, TILE_M)"
// WGRAD_BLOCKS  = "WGRAD_TILES_M * ceil_div(C, TILE_N)"
// WGRAD_SLICES  = "max(1, min(N//DEPTH, FILL//WGRAD_BLOCKS))"
// [dividers]
// by_dgrad_tiles_m = "DGRAD_TILES_M"
// by_dgrad_slices  = "DGRAD_SLICES"
// by_wgrad_tiles_m = "WGRAD_TILES_M"
// by_wgrad_slices  = "WGRAD_SLICES"
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm_dgrad"
// grid    = ["DGRAD_BLOCKS", "1", "DGRAD_SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm_dgrad_reduce"
// grid    = ["min(ceil_div(N*C, 256), 1056) if DGRAD_SLICES > 1 else 0"]
// block   = ["256"]
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm"
// grid    = ["WGRAD_BLOCKS", "1", "WGRAD_SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm_reduce"
// grid    = ["min(ceil_div(K*C, 256), 1056) if WGRAD_SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_grads.cuh"

// The first GEMM: dx, or a slice of it.
extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_dgrad_wgrad_sgd_gemm_dgrad(GEOMETRY(Linear), const float* __restrict__ dy, const float* w,
                                           const float* __restrict__ x, const float* v,
                                           float* __restrict__ dx, float* w_new, float* v_new,
                                           float* __restrict__ workspace, int relu, float lr, float momentum,
                                           float weight_decay, double dampening, int nesterov,
                                           int lr_in_velocity, const int* finite, const float* live_lr) {
  __shared__ GemmShared shared;
  __shared__ Block block;

  if (threadIdx.x == 0) block.set(g.by_dgrad_tiles_m, g.N, g.C, g.K, g.by_dgrad_slices);
  __syncthreads();

  float sum[THREAD_M][THREAD_N] = {};
  dgrad_sums(block, g.C, g.K, dy, w, shared, sum);
  const auto place = [&](int n, long long (&offset)[4]) { block.place(n, offset); };
  const bool masked = relu && gridDim.z == 1;
  float* const out = slice_or_output(dx, workspace, static_cast<long long>(g.N) * g.C);
  const long long first = block.first_m * g.C + block.first_n;
  each_quad(block.rows, place, sum, NoFetch(),
            [&](int, int m, int, const long long (&offset)[4], float (&v)[4]) {
              const long long row = first + m * static_cast<long long>(g.C);
              if (masked) {
                float of_x[4];
                load_quad(x + row, offset, of_x);
#pragma unroll
                for (int e = 0; e < 4; ++e) v[e] = of_x[e] <= 0.0f ? 0.0f : v[e];
              }
              store_quad(out + row, offset, v);
            });
}

// Adds up its slices, if there are several.
extern "C" __launch_bounds__(256) __global__ void linear_dgrad_wgrad_sgd_gemm_dgrad_reduce(
    GEOMETRY(Linear), const float* __restrict__ dy, const float* w, const float* __restrict__ x,
    const float* v, float* __restrict__ dx, float* w_new, float* v_new, float* __restrict__ workspace,
    int relu, float lr, float momentum, float weight_decay, double dampening, int nesterov,
    int lr_in_velocity, const int* finite, const float* live_lr) {
  add_slices(workspace, dx, static_cast<long long>(g.N) * g.C, g.by_dgrad_slices.divisor,
             [&](long long i, float sum) { return relu && x[i] <= 0.0f ? 0.0f : sum; });
}

// The second GEMM: new weights, or a slice of their gradient.
extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_dgrad_wgrad_sgd_gemm(GEOMETRY(Linear), const float* __restrict__ dy, const float* w,
                                     const float* __restrict__ x, const float* v, float* __restrict__ dx,
                                     float* w_new, float* v_new, float* __restrict__ workspace, int relu,
                                     float lr, float momentum, float weight_decay, double dampening,
                                     int nesterov, int lr_in_velocity, const int* finite,
                                     const float* live_lr) {
  __shared__ GemmShared shared;
  __shared__ Block block;

  if (threadIdx.x == 0) block.set(g.by_wgrad_tiles_m, g.K, g.C, g.N, g.by_wgrad_slices);
  __syncthreads();

  float sum[THREAD_M][THREAD_N] = {};
  wgrad_sums(block, g.C, g.K, x, dy, shared, sum);
  update_tile(block, g.C, g.K, sum, {w, v, w_new, v_new}, workspace,
              SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}

// Adds up its slices, if there are several, and updates.
extern "C" __launch_bounds__(256) __global__
    void linear_dgrad_wgrad_sgd_gemm_reduce(GEOMETRY(Linear), const float* __restrict__ dy, const float* w,
                                            const float* __restrict__ x, const float* v,
                                            float* __restrict__ dx, float* w_new, float* v_new,
                                            float* __restrict__ workspace, int relu, float lr, float momentum,
                                            float weight_decay, double dampening, int nesterov,
                                            int lr_in_velocity, const int* finite, const float* live_lr) {
  update_slices(workspace, static_cast<long long>(g.K) * g.C, g.by_wgrad_slices.divisor, {w, v, w_new, v_new},
                SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}
