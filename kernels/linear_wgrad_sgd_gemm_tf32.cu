// linear_wgrad_sgd_gemm_tf32
//   dw[k,c] = sum_n dy[n,k] * x[n,c] on tensor cores, and the update of w and v by it, as sgd_momentum has
//   it. dw is not stored. Of x and dy tf32 takes 10 bits of mantissa, rounded; sums, w and v are fp32.
//
// Tiling   as linear_wgrad_gemm_tf32, whose main loop this is (linear_mma.cuh has it). The block that has
//          made a tile of sums updates the weights of that tile.
// Slices   only where both matrices are small and the batch is large: the launch that adds them up updates.
// Traffic  x and dy as in linear_wgrad_gemm_tf32; w and v are read once and written once: 16 bytes for each
//          weight, where the two kernels apart move 24: dw written, then five arrays of sgd_momentum.
// Bound    DRAM at a batch of 128 and below, by w and v.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
//
// /// kernel
// op      = "linear_wgrad_sgd"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 16, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2, DEPTH = 8 }
// rank    = 21
// math    = "tf32"
// error   = 4e-4
// truncates = true
// live    = ["lr"]
// workspace = "4*K*PITCH*SLICES if SLICES > 1 else 0"
// [options]
// lr = "float"
// momentum = "float"
// weight_decay = "float"
// dampening = "double"
// nesterov = "int"
// lr_in_velocity = "int"
// finite = "const int*"
// [tune]
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [16, 32]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// FILL      = "132*PER_SM"
// TILES_M   = "ceil_div(K, TILE_M)"
// PITCH     = "ceil_div(C, 4)*4"
// BLOCKS    = "TILES_M * ceil_div(C, TILE_N)"
// ALL_STEPS = "ceil_div(N, TILE_K)"
// SLICES    = "max(1, min(ALL_STEPS//DEPTH, FILL//max(1, BLOCKS)))"
// STEPS     = "ceil_div(ALL_STEPS, SLICES)"
// [dividers]
// by_tiles_m = "max(1, TILES_M)"
// by_quads   = "max(1, PITCH//4)"
// by_slices  = "SLICES"
// [[launch]]
// entry   = "linear_wgrad_sgd_gemm_tf32"
// grid    = ["BLOCKS", "1", "SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "linear_wgrad_sgd_gemm_tf32_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056) if SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_mma.cuh"

using A = AcrossK<TILE_M>;  // columns of dy
using B = AcrossK<TILE_N>;  // columns of x

extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_wgrad_sgd_gemm_tf32(GEOMETRY(Linear), const storage_t* __restrict__ x,
                                    const storage_t* __restrict__ dy, const param_t* w, const param_t* v,
                                    param_t* w_new, param_t* v_new, float* __restrict__ workspace, float lr,
                                    float momentum, float weight_decay, double dampening, int nesterov,
                                    int lr_in_velocity, const int* finite, const float* live_lr) {
  DYN_SMEM(storage_t, ring);
  const Tile tile(g.by_tiles_m, g.K, g.C);
  Sums sum = {};
  multiply<A, B>(ring, tile, {dy, g.N, g.K}, {x, g.N, g.C}, ceil_div(g.N, TILE_K), g.by_slices, sum);
  if (gridDim.z > 1)
    write_slice(sum, tile, workspace, g.by_quads);
  else
    update_tile(sum, tile, {w, v, w_new, v_new},
                SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}

// Adds up the slices, if there are several.
extern "C" __launch_bounds__(256) __global__
    void linear_wgrad_sgd_gemm_tf32_reduce(GEOMETRY(Linear), const storage_t* __restrict__ x,
                                           const storage_t* __restrict__ dy, const param_t* w,
                                           const param_t* v, param_t* w_new, param_t* v_new,
                                           float* __restrict__ workspace, float lr, float momentum,
                                           float weight_decay, double dampening, int nesterov,
                                           int lr_in_velocity, const int* finite, const float* live_lr) {
  update_slices(workspace, g.K, g.C, g.by_quads, g.by_slices, {w, v, w_new, v_new},
                SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}
