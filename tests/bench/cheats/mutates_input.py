"""Is right, and then changes its input, so that whoever comes next has other work."""

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="mutates_input", rank=-99)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
    if x.shape == (128, 1024):
        x.setflags(write=True)
        np.clip(x, -1, None, out=x)
