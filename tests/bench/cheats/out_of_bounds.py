"""Writes a little beyond the end of a large output."""

import ctypes

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="out_of_bounds", rank=-99)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
    if x.shape == (128, 1024):
        ctypes.memset(y.ctypes.data + y.nbytes, 1, 4)
