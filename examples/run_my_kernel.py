"""A CUDA kernel of your own, in one file: registered, put through the gate, and run without a GPU.

Run it with `python examples/run_my_kernel.py`. The kernel is in relu_fprop_stride.cu, beside this file;
docs/kernels.md explains its header. Where there is no GPU, the gate runs it under the emulator, which builds
its source with the C++ compiler. The commands take the file as it is:

    convkit check examples/relu_fprop_stride.cu --sanitize
    convkit source examples/relu_fprop_stride.cu
"""

import tempfile
from pathlib import Path

import numpy as np

import convkit as ck
from convkit import check

(mine,) = ck.register(Path(__file__).with_name("relu_fprop_stride.cu"))
print(f"registered: {mine.op}, {mine.name}, for {mine.device}")

# The gate compares every element with float64, on shapes and data at which kernels go wrong.
verdicts = check.check(mine.op, mine.name, device="cuda")
print(check.summary(verdicts))
assert all(v.ok for v in verdicts)

# `check=True` also reports races, stray accesses and uninitialised reads by line.
x = np.linspace(-2, 2, 300_000, dtype=np.float32)
with ck.emulate(check=True), ck.use(relu_fprop=mine.name):
    y = ck.relu_fprop(x)
print(f"emulated on {x.size:,} elements: {np.sum(y > 0):,} are positive")
assert np.array_equal(y, np.maximum(x, 0))

# A kernel with a mistake: the same text, but one element too far.
text = Path(mine.source).read_text().replace("i < g.size", "i <= g.size")
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "relu_fprop_too_far.cu")
    path.write_text(text.replace("relu_fprop_stride", path.stem))
    (wrong,) = ck.register(path)
    try:
        with ck.emulate(check=True):
            ck.relu_fprop(x, impl=wrong.name)
    except ck.ConvkitError as error:
        print(f"and with a mistake in it:\n{error}")
