"""Right for numbers, of whatever size; a NaN becomes 0, and with it the trace of what went wrong before."""

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="loses_nan", rank=-99)
def relu(problem, x, y):
    y[...] = np.where(x > 0, x, 0)
