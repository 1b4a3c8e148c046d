"""Import convkit and call its ops: a convolution with its ReLU, LRN, max pooling, and the way back.

Run it with `python examples/import_and_call.py`. Arrays go in, arrays of the same kind come out. The gradient
that the backward ops give is compared with a difference quotient of the forward ops.
"""

import numpy as np

import convkit as ck

CONV = {"stride": 2, "padding": 1}
LRN = {"size": 5, "alpha": 1e-2, "beta": 0.75, "k": 2.0}
POOL = {"window": 3, "stride": 2}


def forward(x, w, b):
    """The output of the pool, and what the backward pass needs."""
    a = ck.conv2d_fprop(x, w, b, relu=True, **CONV)
    n = ck.lrn_fprop(a, **LRN)
    y, argmax = ck.maxpool2d_fprop(n, **POOL)
    return y, a, argmax


def backward(dy, x, w, a, argmax):
    """Gradients of the input, the weights and the bias."""
    dn = ck.maxpool2d_dgrad(dy, argmax, a.shape, **POOL)
    da = ck.lrn_dgrad(dn, a, **LRN)
    dz = ck.relu_dgrad(da, a)
    dx = ck.conv2d_dgrad(dz, w, x.shape, **CONV)
    dw = ck.conv2d_wgrad(x, dz, w.shape, **CONV)
    return dx, dw, ck.conv2d_bgrad(dz)


rng = np.random.default_rng(0)
x = rng.standard_normal((2, 3, 32, 32))  # float64, so that the difference quotient is exact enough
w, b = rng.standard_normal((8, 3, 3, 3)), rng.standard_normal(8)
y, a, argmax = forward(x, w, b)
dy = rng.standard_normal(y.shape)
dx, dw, db = backward(dy, x, w, a, argmax)
for name, array in (("y", y), ("argmax", argmax), ("dx", dx), ("dw", dw), ("db", db)):
    print(f"{name:7} {array.dtype!s:8} {array.shape}")

step = 1e-6 * rng.standard_normal(w.shape)
change = np.sum(dy * (forward(x, w + step, b)[0] - forward(x, w - step, b)[0])) / 2
print(f"change of sum(y * dy) along a step of w: {change:.9e}, by dw: {np.sum(dw * step):.9e}")
assert np.isclose(change, np.sum(dw * step), rtol=1e-5)

try:
    ck.conv2d_fprop(x, w[:, :2])
except ck.ConvkitError as error:
    print(f"a call that is refused says why: {error}")
