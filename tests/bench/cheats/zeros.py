"""Writes zeros, which a check of sizes or of NaN lets pass."""

import convkit as ck


@ck.implements("relu_fprop", name="zeros", rank=-99)
def relu(problem, x, y):
    y.fill(0)
