#include "kernels.hpp"
#include "simd.hpp"

namespace convkit {

int lanes() { return LANES; }

}  // namespace convkit
