"""Does its work."""

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="honest", rank=-99)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
