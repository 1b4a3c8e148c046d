// Every kernel that Python calls, by the name that it has there, and the problems that they take.
//
// A name is that of the op and that of the idea: conv2d_fprop_winograd. "_blocked" stands for nChw16c.
// Nothing here depends on the instruction set: bindings/ is compiled once, and linked with each set's
// kernels.
#pragma once

#include "integers.hpp"

namespace convkit {

// Storage types. half.hpp loads and stores them.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// Floats in a register of this module's instruction set.
int lanes();

// ---------------------------------------------------------------------------------------------------
// Convolution
// ---------------------------------------------------------------------------------------------------
// One output along an axis has stride 1 there, and one tap dilation 1 (bindings/conv2d.cpp sees to it). So P
// and Q cannot be worked out from the rest: an image may go on behind the last window.
struct Conv {
  int64_t N, C, H, W, K, R, S, stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h,
      dilation_w, groups, P, Q;

  int64_t c_group() const { return C / groups; }
  int64_t k_group() const { return K / groups; }
  int64_t c_blocks() const { return ceil_div(c_group(), BLOCK); }  // of a group
  int64_t k_blocks() const { return ceil_div(k_group(), BLOCK); }
};

// conv2d_fprop and conv2d_dgrad, each with the workspace that it wants, in bytes. x, y, dx, dy are NCHW or
// blocked as the flags say; w is always (K, C/groups, R, S). x_mask: dx is zero where x is not positive.
// Kernels that take no Layouts are for NCHW alone. refusal: why the problem cannot be done so, or nullptr.
struct Layouts {
  bool x_blocked, y_blocked;
};

const char* conv2d_winograd_refusal(const Conv& g);
int64_t conv2d_fprop_winograd_workspace(const Conv& g, Layouts l);
int64_t conv2d_dgrad_winograd_workspace(const Conv& g, Layouts l);
int64_t conv2d_wgrad_winograd_workspace(const Conv& g, Layouts l);
void conv2d_fprop_winograd(const Conv& g, Layouts l, const float* x, const float* w, const float* b, float* y,
                           bool relu, void* workspace, int threads);
void conv2d_dgrad_winograd(const Conv& g, Layouts l, const float* dy, const float* w, const float* x_mask,
                           float* dx, void* workspace, int threads);
void conv2d_wgrad_winograd(const Conv& g, Layouts l, const float* x, const float* dy, float* dw,
                           void* workspace, int threads);

const char* conv2d_direct_refusal(const Conv& g);
int64_t conv2d_fprop_direct_workspace(const Conv& g, Layouts l);
int64_t conv2d_dgrad_direct_workspace(const Conv& g, Layouts l);
int64_t conv2d_wgrad_direct_workspace(const Conv& g, Layouts l);
void conv2d_fprop_direct(const Conv& g, Layouts l, const float* x, const float* w, const float* b, float* y,
                         bool relu, void* workspace, int threads);
void conv2d_dgrad_direct(const Conv& g, Layouts l, const float* dy, const float* w, const float* x_mask,
                         float* dx, void* workspace, int threads);
void conv2d_wgrad_direct(const Conv& g, Layouts l, const float* x, const float* dy, float* dw,
                         void* workspace, int threads);

const char* conv2d_narrow_groups_refusal(const Conv& g);
void conv2d_fprop_narrow_groups(const Conv& g, const float* x, const float* w, const float* b, float* y,
                                bool relu, int threads);
void conv2d_dgrad_narrow_groups(const Conv& g, const float* dy, const float* w, const float* x_mask,
                                float* dx, int threads);
void conv2d_wgrad_narrow_groups(const Conv& g, const float* x, const float* dy, float* dw, int threads);

const char* conv2d_pointwise_refusal(const Conv& g);
int64_t conv2d_fprop_pointwise_workspace(const Conv& g);
int64_t conv2d_dgrad_pointwise_workspace(const Conv& g);
void conv2d_fprop_pointwise(const Conv& g, const float* x, const float* w, const float* b, float* y,
                            bool relu, void* workspace, int threads);
void conv2d_dgrad_pointwise(const Conv& g, const float* dy, const float* w, const float* x_mask, float* dx,
                            void* workspace, int threads);

const char* conv2d_few_channels_refusal(const Conv& g);
int64_t conv2d_wgrad_few_channels_workspace(const Conv& g);
void conv2d_wgrad_few_channels(const Conv& g, const float* x, const float* dy, float* dw, void* workspace,
                               int threads);

template <class S>
void conv2d_bgrad_registers(int64_t N, int64_t K, int64_t pixels, const S* dy, S* db, int threads);
void conv2d_bgrad_registers_blocked(int64_t N, int64_t K, int64_t pixels, const float* dy, float* db,
                                    int threads);

// ---------------------------------------------------------------------------------------------------
// Fully connected layers. x is (N, C), w (K, C), y (N, K), row by row, of one storage type S.
// ---------------------------------------------------------------------------------------------------
// The update rule, as ops.sgd_momentum has it.
struct Sgd {
  float lr, momentum, weight_decay, undamped;
  bool nesterov, lr_in_velocity;
};

struct LinearShape {
  int64_t N, C, K;
};

// Floats of scratch memory that linear_fprop_panels wants.
int64_t linear_fprop_panels_floats(const LinearShape& g);

template <class S>
void linear_fprop_panels(const LinearShape& g, const S* x, const S* w, const S* b, S* y, bool relu,
                         float* scratch, int threads);

// One pass backward. What is null is not wanted: dx, dw, or the update (w_new and v_new, which may be w and
// v).
template <class S>
struct LinearBackward {
  LinearShape g;
  const S *dy, *w, *x, *v;
  S *dx, *dw, *w_new, *v_new;
  bool relu;  // dx is 0 where x <= 0
  Sgd sgd;
  float* scratch;  // for dx
};
// Floats of scratch memory that linear_backward_panels wants if dx is wanted.
int64_t linear_backward_panels_floats(const LinearShape& g);

template <class S>
void linear_backward_panels(const LinearBackward<S>& job, int threads);

template <class S>
void linear_bgrad_registers(int64_t N, int64_t K, const S* dy, S* db, int threads);

// ---------------------------------------------------------------------------------------------------
// LRN across channels, and max pooling
// ---------------------------------------------------------------------------------------------------
struct Lrn {
  int64_t N, C, H, W, groups, behind, ahead;
  float k, scale, beta, coefficient;  // scale = alpha/n, coefficient = 2 alpha beta/n

  int64_t blocks() const { return ceil_div(C, BLOCK); }
  int64_t plane() const { return H * W * BLOCK; }
  int64_t image() const { return blocks() * plane(); }
  int64_t group() const { return C / groups; }
  Lrn clamped() const {  // the window never leaves its group
    Lrn g = *this;
    g.behind = least(behind, most(1, group()) - 1);
    g.ahead = least(ahead, most(1, group()) - 1);
    return g;
  }
  bool five() const { return behind == 2 && ahead == 2; }
  bool root() const { return beta == 0.75f && k >= 0x1p-100f; }  // what inverse_fourth_root is good for
};

struct MaxPool {
  int64_t N, C, H, W, P, Q, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;

  int64_t blocks() const { return ceil_div(C, BLOCK); }
  int64_t x_image() const { return blocks() * H * W * BLOCK; }
  int64_t y_image() const { return blocks() * P * Q * BLOCK; }
  bool spare(int64_t block) const { return (block + 1) * BLOCK > C; }
  int64_t top(int64_t p) const { return p * stride_h - pad_top; }
  int64_t left(int64_t q) const { return q * stride_w - pad_left; }
  int64_t span() const { return (R - 1) * dilation_h + 1; }  // rows that a window reaches over
  bool usual() const {                                       // AlexNet's
    return R == 3 && S == 3 && stride_h == 2 && stride_w == 2 && !pad_top && !pad_left && dilation_h == 1 &&
           dilation_w == 1;
  }
};

template <class S>
void lrn_fprop_rows(const Lrn& g, const S* x, S* y, int threads);
template <class S>
void lrn_dgrad_rows(const Lrn& g, const S* dy, const S* x, S* dx, int threads);
void lrn_fprop_rows_blocked(const Lrn& g, const float* x, float* y, int threads);
void lrn_dgrad_rows_blocked(const Lrn& g, const float* dy, const float* x, float* dx, int threads);

// Index: the smallest type that holds every tap's number. A window of 3 x 3 has std::uint8_t.
template <class S, class Index>
void maxpool2d_fprop_rows(const MaxPool& g, const S* x, S* y, Index* argmax, int threads);
template <class S, class Index>
void maxpool2d_dgrad_rows(const MaxPool& g, const S* dy, const Index* argmax, S* dx, int threads);
template <class Index>
void maxpool2d_fprop_rows_blocked(const MaxPool& g, const float* x, float* y, Index* argmax, int threads);
template <class Index>
void maxpool2d_dgrad_rows_blocked(const MaxPool& g, const float* dy, const Index* argmax, float* dx,
                                  int threads);

template <class Index>
void lrn_maxpool2d_fprop_rows_blocked(const Lrn& lrn, const MaxPool& pool, const float* x, float* y,
                                      Index* argmax, int threads);
// With relu, dx is 0 where x is not positive.
template <class Index>
void lrn_maxpool2d_dgrad_rows_blocked(const Lrn& lrn, const MaxPool& pool, const float* dy,
                                      const Index* argmax, const float* x, float* dx, bool relu, int threads);

// ---------------------------------------------------------------------------------------------------
// Elementwise ops; an output may be an input
// ---------------------------------------------------------------------------------------------------
template <class S>
void relu_fprop_vectors(int64_t size, const S* x, S* y, int threads);
template <class S>
void relu_dgrad_vectors(int64_t size, const S* dy, const S* y, S* dx, int threads);

// x (N, C, size, size) from images (N, H, W, C) and crops (N, 3): top, left, flipped, of any values. The mean
// is (C, mean_h, mean_w): of the image where it moves with the crop, else of the crop, or one number for a
// channel. shift (N, C) and factor (C) may be null.
struct CropImages {
  int64_t N, H, W, C, size, mean_h, mean_w;
  bool moves, reverse;
};
template <class S>
void crop_images_rows(const CropImages& g, const std::uint8_t* images, const std::int32_t* crops,
                      const float* mean, const float* shift, const float* factor, S* x, int threads);

struct Dropout {
  std::uint64_t seed, offset, limit;  // words below the limit are dropped: at most 2^32
  float scale;
};
// dropout_dgrad too: the gradient is dropped and scaled as the input was.
template <class S>
void dropout_fprop_vectors(const Dropout& o, int64_t size, const S* x, S* y, int threads);

template <class S>
void sgd_momentum_vectors(const Sgd& o, int64_t size, const S* w, const S* dw, const S* v, S* w_new, S* v_new,
                          int threads);

// ---------------------------------------------------------------------------------------------------
// The loss
// ---------------------------------------------------------------------------------------------------
template <class S>
void softmax_xent_fprop_vectors(int64_t N, int64_t K, const S* logits, const int64_t* labels, float* loss,
                                S* probs, int threads);
template <class S>
void softmax_xent_dgrad_vectors(int64_t N, int64_t K, const S* probs, const int64_t* labels,
                                const float* dloss, S* dlogits, int threads);
// rank[n] = K where a logit is NaN, or the label no class.
template <class S>
void label_rank_vectors(int64_t N, int64_t K, const S* logits, const int64_t* labels, std::int32_t* rank,
                        int threads);
// total = sum of loss; errors[0], errors[1] = rows with rank >= 1, and with rank >= 5; finite = 1 or 0. L:
// float, double.
template <class L>
void loss_summary_vectors(int64_t N, const L* loss, const std::int32_t* rank, double* total, int64_t* errors,
                          std::int32_t* finite);

// ---------------------------------------------------------------------------------------------------
// Between layouts: y = x, N images of C channels of `pixels` pixels; spare channels of a blocked y are zeros
// ---------------------------------------------------------------------------------------------------
void reorder_transpose_block(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads);
void reorder_transpose_unblock(int64_t N, int64_t C, int64_t pixels, const float* x, float* y, int threads);

}  // namespace convkit
