"""Right in the gate's small cases, wrong where the time is taken: it does a half."""

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="wrong_when_large", rank=-99)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
    if x.size >= 2**17:
        y[len(y) // 2 :] *= 0.999
