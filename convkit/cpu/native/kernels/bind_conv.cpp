#include "bind.hpp"

namespace convkit {

void bind_conv(py::module_& m) { (void)m; }

}  // namespace convkit
