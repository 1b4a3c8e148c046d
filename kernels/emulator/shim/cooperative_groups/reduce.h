// CUDA's <cooperative_groups/reduce.h> for a kernel on the CPU. Values meet in the order of CUDA's own: half of
// the tile's size apart, then a quarter, and so on. Integers of a tile of 16 or 32 take one instruction there,
// with the same result.
#pragma once

#include "../cooperative_groups.h"

namespace cooperative_groups {

#define CONVKIT_OPERATION(name, expression)                \
  template <class T>                                       \
  struct name {                                            \
    T operator()(T a, T b) const { return T(expression); } \
  };
CONVKIT_OPERATION(plus, a + b)
CONVKIT_OPERATION(less, b < a ? b : a)
CONVKIT_OPERATION(greater, a < b ? b : a)
CONVKIT_OPERATION(bit_and, a& b)
CONVKIT_OPERATION(bit_or, a | b)
CONVKIT_OPERATION(bit_xor, a ^ b)
#undef CONVKIT_OPERATION

template <unsigned Size, class Parent, class T, class Operation>
T reduce(const thread_block_tile<Size, Parent>& group, T value, Operation operation, CONVKIT_SITE) {
  for (unsigned apart = Size / 2; apart > 0; apart /= 2)
    value = operation(value, group.shfl_xor(value, apart, file, line));
  return value;
}
template <class T, class Operation>
T reduce(const coalesced_group&, T value, Operation) {
  return value;
}

}  // namespace cooperative_groups
