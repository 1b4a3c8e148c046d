"""In nChw16c, where the gate's pointwise cases have none: the gate itself fails."""

import numpy as np

import convkit as ck


@ck.implements("relu_fprop", name="breaks_the_gate", layout="nChw16c", rank=-99)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)
