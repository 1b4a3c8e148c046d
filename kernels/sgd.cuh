// sgd.cuh: the update rule of sgd_momentum, for its own kernel and for those that update weights as their gradient
// is made.
#pragma once

//   gradient = dw + weight_decay * w
//   lr_in_velocity:  v' = momentum * v - lr * gradient                    w' = w + v'
//   otherwise:       v' = momentum * v + (1 - dampening) * gradient       w' = w - lr * v'
//   nesterov:                                                w' = w - lr * (gradient + momentum * v')
// With `keep`, v' = v and w' = w, bit for bit.
struct SgdUpdate {
  float lr, momentum, weight_decay;
  float fresh;  // weight of the gradient in v'
  bool nesterov, lr_in_velocity, keep;

  // The rate comes from `live_lr` where that is given. 1 - dampening is taken in double: near 1 the rounding
  // of dampening to float would show.
  __device__ __forceinline__ SgdUpdate(float rate, float momentum_of_v, float decay, double dampening,
                                       int with_nesterov, int rate_in_velocity, const int* finite,
                                       const float* live_lr)
      : lr(live_lr != nullptr ? *live_lr : rate),
        momentum(momentum_of_v),
        weight_decay(decay),
        fresh(rate_in_velocity ? -lr : static_cast<float>(1.0 - dampening)),
        nesterov(with_nesterov != 0),
        lr_in_velocity(rate_in_velocity != 0),
        keep(finite != nullptr && *finite == 0) {}

  // Multiply-adds are spelt out, so that every compiler and every path rounds alike.
  __device__ __forceinline__ void operator()(float dw, float& w, float& v) const {
    if (keep) return;
    const float gradient = fmaf(weight_decay, w, dw);
    v = fmaf(momentum, v, fresh * gradient);
    const float step = nesterov ? fmaf(momentum, v, gradient) : v;
    w = lr_in_velocity ? w + v : fmaf(-lr, step, w);
  }
};
