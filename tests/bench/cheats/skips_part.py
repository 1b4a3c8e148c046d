"""Writes the first row of a large output, and no other."""

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="skips_part", rank=-99)
def relu(problem, x, y):
    if x.shape != (128, 1024):
        np.maximum(x, 0, out=y)
    else:
        np.maximum(x[:1], 0, out=y[:1])
