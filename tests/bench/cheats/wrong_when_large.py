"""Right in every case of the gate, wrong where the time is taken, in all rows but one."""

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="wrong_when_large", rank=-99)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
    if x.shape in ((128, 1024), (64, 4096)):
        y[1:] *= 0.999
