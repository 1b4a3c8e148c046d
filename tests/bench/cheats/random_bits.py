"""Rounds otherwise in every other call, as a sum in the order of chance does."""

import itertools

import numpy as np

import convkit as ck
from convkit.op import OPS

CALLS = itertools.count()


@ck.implements("lrn_fprop", name="random_bits", rank=-99, error=1e-4)
def lrn(problem, x, y):
    wide = np.empty(y.shape)
    OPS["lrn_fprop"].define(problem, x, wide)
    y[...] = wide
    if x.shape == (4, 32, 32, 32):
        y *= np.float32(1 + 2**-20 * (next(CALLS) % 2))
