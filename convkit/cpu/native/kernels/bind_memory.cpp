#include "bind.hpp"

namespace convkit {

void bind_memory(py::module_& m) { (void)m; }

}  // namespace convkit
