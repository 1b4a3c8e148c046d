// linear_dgrad_wgrad_sgd_gemm_tf32
//   dx[n,c] = sum_k dy[n,k] * w[k,c], with relu 0 where x <= 0; dw[k,c] = sum_n dy[n,k] * x[n,c], and the
//   update of w and v by it, as sgd_momentum has it: on tensor cores. dx is made of the weights before the
//   update. dw is not stored. Of each factor tf32 takes 10 bits of mantissa, rounded; sums, w and v are fp32.
//
// Tiling   two GEMMs, one launch each, since every weight must have been read before one is updated: the
//          first as linear_dgrad_gemm_tf32, the second as linear_wgrad_sgd_gemm_tf32 (linear_mma.cuh has what
//          they share). Each is cut into slices where it has few tiles, as there; the launch that adds up the
//          slices then applies the ReLU's gradient, or updates.
// Traffic  dy, w and x as in these two; of w and v 16 bytes for each weight, where the kernels apart move 24:
//          dw written, then five arrays of sgd_momentum. The ReLU's gradient reads x and nothing else: 4
//          bytes for each element of dx, where relu_dgrad moves 12.
// Bound    DRAM at a batch of 128 and below: 20 bytes for each weight, of which dgrad reads 4. By the rates
//          in docs/kernels.md, in fc6 at a batch of 128 these take 2.8 times as long as the products of both
//          GEMMs.
// Error    rounding a factor is off by up to 2^-11 of it; over a sum of centred data some 3e-4 of its size.
// Lacking  as linear_dgrad_gemm_tf32.
//
// /// kernel
// op      = "linear_dgrad_wgrad_sgd"
// dtypes  = ["float32"]
// tile    = { TILE_M = 128, TILE_N = 128, TILE_K = 16, WARP_M = 64, WARP_N = 64, STAGES = 4, PER_SM = 2, DEPTH = 8 }
// rank    = 21
// math    = "tf32"
// error   = 4e-4
// truncates = true
// live    = ["lr"]
// workspace = """4*PITCH*max(N*DGRAD_SLICES if DGRAD_SLICES > 1 else 0, \
//                        K*WGRAD_SLICES if WGRAD_SLICES > 1 else 0)"""
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
// TILE_M = [64, 128, 256]
// TILE_N = [64, 128]
// TILE_K = [16, 32]
// STAGES = [3, 4]
// # Places for blocks on an H200. A slice has DEPTH steps or more.
// [let]
// FILL          = "132*PER_SM"
// PITCH         = "ceil_div(C, 4)*4"
// TILES_N       = "ceil_div(C, TILE_N)"
// DGRAD_TILES_M = "ceil_div(N, TILE_M)"
// DGRAD_BLOCKS  = "DGRAD_TILES_M * TILES_N"
// DGRAD_SLICES  = "max(1, min(ceil_div(K, TILE_K)//DEPTH, FILL//max(1, DGRAD_BLOCKS)))"
// WGRAD_TILES_M = "ceil_div(K, TILE_M)"
// WGRAD_BLOCKS  = "WGRAD_TILES_M * TILES_N"
// WGRAD_SLICES  = "max(1, min(ceil_div(N, TILE_K)//DEPTH, FILL//max(1, WGRAD_BLOCKS)))"
// [dividers]
// by_quads         = "max(1, PITCH//4)"
// by_dgrad_tiles_m = "max(1, DGRAD_TILES_M)"
// by_dgrad_slices  = "DGRAD_SLICES"
// by_wgrad_tiles_m = "max(1, WGRAD_TILES_M)"
// by_wgrad_slices  = "WGRAD_SLICES"
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm_tf32_dgrad"
// grid    = ["DGRAD_BLOCKS", "1", "DGRAD_SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm_tf32_dgrad_reduce"
// grid    = ["min(ceil_div(N*PITCH//4, 256), 1056) if DGRAD_SLICES > 1 else 0"]
// block   = ["256"]
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm_tf32"
// grid    = ["WGRAD_BLOCKS", "1", "WGRAD_SLICES"]
// block   = ["32 * (TILE_M//WARP_M) * (TILE_N//WARP_N)"]
// shared  = "4 * STAGES * (TILE_M + TILE_N) * TILE_K"
// [[launch]]
// entry   = "linear_dgrad_wgrad_sgd_gemm_tf32_reduce"
// grid    = ["min(ceil_div(K*PITCH//4, 256), 1056) if WGRAD_SLICES > 1 else 0"]
// block   = ["256"]
// ///

#include "linear_mma.cuh"

// The first GEMM: rows of dy by columns of w.
extern "C" __launch_bounds__(THREADS, PER_SM) __global__ void linear_dgrad_wgrad_sgd_gemm_tf32_dgrad(
    GEOMETRY(Linear), const float* __restrict__ dy, const float* w, const float* __restrict__ x,
    const float* v, float* __restrict__ dx, float* w_new, float* v_new, float* __restrict__ workspace,
    int with_relu, float lr, float momentum, float weight_decay, double dampening, int nesterov,
    int lr_in_velocity, const int* finite, const float* live_lr) {
  DYN_SMEM(storage_t, ring);
  const Tile tile(g.by_dgrad_tiles_m, g.N, g.C);
  Sums sum = {};
  multiply<AlongK<TILE_M>, AcrossK<TILE_N>>(ring, tile, {dy, g.N, g.K}, {w, g.K, g.C}, ceil_div(g.K, TILE_K),
                                            g.by_dgrad_slices, sum);
  if (gridDim.z > 1) {
    write_slice(sum, tile, workspace, g.by_quads);
    return;
  }
  if (with_relu) mask(sum, tile, x);
  write_tile(ring, sum, tile, dx);
}

// Adds up its slices, if there are several.
extern "C" __launch_bounds__(256) __global__ void linear_dgrad_wgrad_sgd_gemm_tf32_dgrad_reduce(
    GEOMETRY(Linear), const float* __restrict__ dy, const float* w, const float* __restrict__ x,
    const float* v, float* __restrict__ dx, float* w_new, float* v_new, float* __restrict__ workspace,
    int with_relu, float lr, float momentum, float weight_decay, double dampening, int nesterov,
    int lr_in_velocity, const int* finite, const float* live_lr) {
  add_masked_slices(workspace, with_relu ? x : nullptr, dx, g.N, g.C, g.by_quads, g.by_dgrad_slices);
}

// The second GEMM: columns of dy by columns of x.
extern "C" __launch_bounds__(THREADS, PER_SM) __global__
    void linear_dgrad_wgrad_sgd_gemm_tf32(GEOMETRY(Linear), const float* __restrict__ dy, const float* w,
                                          const float* __restrict__ x, const float* v, float* __restrict__ dx,
                                          float* w_new, float* v_new, float* __restrict__ workspace,
                                          int with_relu, float lr, float momentum, float weight_decay,
                                          double dampening, int nesterov, int lr_in_velocity,
                                          const int* finite, const float* live_lr) {
  DYN_SMEM(storage_t, ring);
  const Tile tile(g.by_wgrad_tiles_m, g.K, g.C);
  Sums sum = {};
  multiply<AcrossK<TILE_M>, AcrossK<TILE_N>>(ring, tile, {dy, g.N, g.K}, {x, g.N, g.C}, ceil_div(g.N, TILE_K),
                                             g.by_wgrad_slices, sum);
  if (gridDim.z > 1)
    write_slice(sum, tile, workspace, g.by_quads);
  else
    update_tile(sum, tile, {w, v, w_new, v_new},
                SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}

// Adds up its slices, if there are several, and updates.
extern "C" __launch_bounds__(256) __global__ void linear_dgrad_wgrad_sgd_gemm_tf32_reduce(
    GEOMETRY(Linear), const float* __restrict__ dy, const float* w, const float* __restrict__ x,
    const float* v, float* __restrict__ dx, float* w_new, float* v_new, float* __restrict__ workspace,
    int with_relu, float lr, float momentum, float weight_decay, double dampening, int nesterov,
    int lr_in_velocity, const int* finite, const float* live_lr) {
  update_slices(workspace, g.K, g.C, g.by_quads, g.by_wgrad_slices, {w, v, w_new, v_new},
                SgdUpdate(lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity, finite, live_lr));
}
