"""The same, as soon as it is registered."""

import time

import numpy as np

import convkit as ck

TRUE = time.perf_counter


@ck.implements("relu_fprop", name="patches_timer_at_import", rank=-99)
def relu(problem, x, y):
    np.maximum(x, 0, out=y)


def slow():
    return TRUE() / 10


time.perf_counter = slow
