"""Swap implementations: for a block of code, for one call, or for one layer of a network.

Run it with `python examples/swap.py`. Nothing else changes: the same arrays, the same call.
"""

import numpy as np

import convkit as ck


def difference(a, b):
    """Relative RMS difference."""
    return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))


rng = np.random.default_rng(0)
x = rng.standard_normal((2, 32, 27, 27), dtype=np.float32)
w = rng.standard_normal((48, 32, 3, 3), dtype=np.float32)

print("conv2d_fprop on this CPU, the preferred first:")
for one in ck.implementations("conv2d_fprop", device="cpu"):
    state = (one.missing and one.missing()) or "ready"
    print(f"  {one.name:13} rank {one.rank:4}, declares an error of {one.error:g}: {state}")

# For a block of code: every call in it, those of networks too.
with ck.use(conv2d_fprop="reference"):
    exact = ck.conv2d_fprop(x, w, padding=1)

# For one call.
y = ck.conv2d_fprop(x, w, padding=1, impl="im2col_gemm")
print(f"im2col_gemm differs from the reference by {difference(y, exact):.1e}")


# One of our own. From here on it may be named wherever relu_fprop runs.
@ck.implements("relu_fprop", name="mine", rank=-1)
def relu(problem, x, y):
    relu.calls += 1
    np.maximum(x, 0, out=y)


relu.calls = 0

# For one layer of a network. Its ReLU then runs alone, no longer as a part of the convolution. It has not
# passed the gate (`convkit check FILE`), so convkit warns where it is first chosen.
images, labels = rng.standard_normal((2, 3, 32, 32), dtype=np.float32), np.array([3, 7])
losses = []
for swapped in (False, True):
    net = ck.AlexNet("small", seed=0)
    if swapped:
        net.use("relu2", relu_fprop="mine")
    (row,) = [row for row in net.plan(batch=2).rows() if "relu2" in row[0] and row[1].endswith("fprop")]
    print(f"the plan: layer {row[0]}, op {row[1]}, implementation {row[2]}, layout {row[3]}")
    losses.append(net.step(images, labels, lr=0.01))
print(f"loss {losses[0]:.6f} as planned, {losses[1]:.6f} with our ReLU, which ran {relu.calls} time(s)")
assert np.isclose(*losses, rtol=1e-5)
