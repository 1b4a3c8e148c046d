"""A candidate in Numba: LRN across channels, registered as an implementation and put through the gate.

Run it with `python examples/numba_candidate.py`. The commands take the file as it is:

    convkit check examples/numba_candidate.py
    convkit bench --kernel examples/numba_candidate.py --layers norm1 --directions fwd

Any function that fills NumPy arrays can be registered in the same way.
"""

import numba
import numpy as np

import convkit as ck
from convkit import check


@numba.njit
def normalise(x, y, behind, ahead, group, k, scale, beta):
    """y = x * (k + scale * sum of x^2 over the window)^-beta, on arrays (images, channels, pixels)."""
    images, channels, pixels = x.shape
    total = np.empty(pixels, x.dtype)
    for n in range(images):
        for c in range(channels):
            first = c - c % group  # a window stays in its group of channels
            total[:] = 0
            for other in range(max(first, c - behind), min(first + group, c + ahead + 1)):
                for i in range(pixels):
                    total[i] += x[n, other, i] * x[n, other, i]
            for i in range(pixels):
                y[n, c, i] = x[n, c, i] * (k + scale * total[i]) ** -beta


def across_channels(g):
    """Why the candidate does not take a problem, or None where it does."""
    return None if g.region == "across_channels" else "takes windows across channels only"


# A rank below those of convkit's own: it runs where it is named.
@ck.implements("lrn_fprop", name="numba", dtypes=("float32", "float64"), rank=-1, when=across_channels)
def lrn_fprop(g, x, y):
    """`g` is the problem (convkit/ops/lrn.py); x and y are contiguous, (N, C, H, W)."""
    real = x.dtype.type  # float32 numbers keep the arithmetic in float32
    numbers = real(g.k), real(g.alpha / g.taps), real(g.beta)
    flat = (g.N, g.C, g.H * g.W)
    normalise(x.reshape(flat), y.reshape(flat), g.behind, g.ahead, g.C // g.groups, *numbers)


if __name__ == "__main__":
    verdicts = check.check("lrn_fprop", "numba", quick=True)
    print(check.summary(verdicts))
    with ck.use(lrn_fprop="numba"):
        y = ck.lrn_fprop(np.ones((1, 8, 4, 4), np.float32), size=5, alpha=1.0)
    print(f"LRN of ones, channel by channel: {y[0, :, 0, 0]}")
    assert all(v.ok for v in verdicts)
