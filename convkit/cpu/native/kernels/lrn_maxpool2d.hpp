#pragma once

#include "lrn.hpp"
#include "pool2d.hpp"

namespace convkit {

template <class Index>
void lrn_maxpool2d_fprop_blocked(const Lrn& lrn, const Pool& pool, const float* x, float* y, Index* argmax, int threads);
template <class Index>
void lrn_maxpool2d_dgrad_blocked(const Lrn& lrn, const Pool& pool, const float* dy, const Index* argmax, const float* x,
                                 float* dx, bool relu, int threads);

}  // namespace convkit
