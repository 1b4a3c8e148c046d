// Unlocked: Python's lock is let go of while it lives; for kernels' calls, in the place of
// py::gil_scoped_release.
//
// A daemon thread may be at work in here while the interpreter ends. When it wants the lock back, Python
// (before 3.14) ends the thread by unwinding its stack, and the destructor of pybind11's class, which nothing
// may unwind through, aborts the whole process instead. Here the thread stays where it is until the process
// is gone, as in 3.14.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace convkit {

class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) ::pause();
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace convkit
