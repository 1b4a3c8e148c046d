// linear_wgrad_sgd_gemm
//   dw[k,c] = sum_n dy[n,k] * x[n,c], and the update of w and v by it, as sgd_momentum has it. dw is not stored.
//
// Tiling   as linear_wgrad_gemm (linear_grads.cuh has what both share): the block that has made a tile of sums
//          updates the weights of that tile. Where both matrices are small, the sum is cut into slices, and the
//          launch that adds them up updates.
// Traffic  x and dy as in linear_wgrad_gemm; w and v are read once and written once: 16 bytes for each weight,
//          where the two kernels apart move 24: dw written, then five arrays of sgd_momentum. 128 bits at a time
//          where the rows' alignment permits; a thread loads the 8 rows of four columns before it stores one.
// Bound    FP32 FMA and DRAM alike at a batch of 128: in fc6 a tile's multiply-adds take some 8 us of an SM,
//          and so do its weights' bytes at its share of the bandwidth. An SM holds two blocks, so that one
//          multiplies while the other updates. On sm_90a the main loop is that of linear_wgrad_gemm; 236
//          registers, no spills. Predicted at batch 128: 65 % of the time of the two kernels apart.
//
// /// kernel
// op      = "linear_wgrad_sgd"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 8, THREAD_M = 8, THREAD_N = 16, PER_SM = 2, DEPTH = 128 }
// rank    = 20
// live    = ["lr"]
// workspace = "4*SIZE*SLICES if SLICES > 1 else 0"
// [options]
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
// FILL    = "132*PER_SM"
// SIZE    = "K*C"
// TILES_M = "ceil_div(K, TILE_M)"
// BLOCKS  = "TILES_M * ceil_div(C, TILE_N)"
// SLICES  = "max(1, min(N//DEPTH, FILL//BLOCKS))"
// [dividers]
// by_tiles_m = "TILES_M"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "linear_wgrad_sgd_gemm"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["TILE_M*TILE_N//(THREAD_M*THREAD_N)"]
// [[launch]]
// entry   = "linear_wgrad_sgd_gemm_reduce"
// grid    = ["min(ceil_div(SIZE, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_grads.cuh"

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_wgrad_sgd_gemm(GEOMETRY(Linear), const float* __restrict__ x, const float* __restrict__ dy,
                               const float* w, const float* v, float* w_new, float* v_new,
                               float* __restrict__ workspace, float lr, float momentum, float weight_decay,
                               double dampening, int nesterov, int lr_in_velocity, const int* finite,
                               const float* live_lr) {
  __shared__ GemmShared shared;
  __shared__ Block block;

  if (threadIdx.x == 0) block.set(g.by_tiles_m, g.K, g.C, g.N, g.by_slices);
  __syncthreads();

  float sum[THREAD_M][THREAD_N] = {};
  wgrad_sums(block, g.C, g.K, x, dy, shared, sum);
  update_tile(block, g.C, g.K, sum, {w, v, w_new, v_new}, workspace,
              SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_wgrad_sgd_gemm_reduce(GEOMETRY(Linear), const float* __restrict__ x,
                                      const float* __restrict__ dy, const float* w, const float* v,
                                      float* w_new, float* v_new, float* __restrict__ workspace, float lr,
                                      float momentum, float weight_decay, double dampening, int nesterov,
                                      int lr_in_velocity, const int* finite, const float* live_lr) {
  update_slices(workspace, static_cast<long long>(g.K) * g.C, g.by_slices.divisor, {w, v, w_new, v_new},
                SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}
