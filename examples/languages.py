"""Candidates in other languages, each in one place: C++, PyTorch, and a function that returns its result.

Run it with `python examples/languages.py`. docs/kernels.md has the rest (Numba, CUDA, CuPy, Triton, JAX), and
`convkit new OP FILE --lang LANGUAGE` writes a whole file in each.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

import convkit as ck
from convkit import check

# C++: a file with a header, compiled on the first call.
CPP = """
// /// kernel
// op   = "relu_fprop"
// rank = -1
// ///
extern "C" void relu_fprop_cpp(const Elementwise& g, const float* x, float* y) {
  for (long long i = 0; i < g.size; ++i) y[i] = x[i] < 0 ? 0 : x[i];  // a NaN passes
}
"""
folder = tempfile.TemporaryDirectory()  # the gate loads the file in a process of its own: it must stay
path = Path(folder.name, "relu_fprop_cpp.cpp")
path.write_text(CPP)
ck.register(path)
names = {"cpp": "C++"}


# A function that returns its result: it is not given the output.
@ck.implements("relu_fprop", name="plain", returns=True, rank=-1)
def plain(problem, x):
    return np.maximum(x, 0)


names["plain"] = "plain"

if importlib.util.find_spec("torch"):
    import torch

    # PyTorch: tensors over the caller's memory. JAX is the same, with arrays="jax", returns=True.
    @ck.implements("relu_fprop", name="pytorch", arrays="torch", rank=-1)
    def relu(problem, x, y):
        torch.clamp(x, min=0, out=y)

    names["pytorch"] = "PyTorch"

for name, language in names.items():
    verdicts = check.check("relu_fprop", name, quick=True)
    print(f"{language:8} {'passes' if all(v.ok for v in verdicts) else 'FAILS'}, {len(verdicts)} cases")
