"""Returns at once, and works in a thread: a side stream, on a CPU."""

import threading

import numpy as np

import convkit as ck

#: Seconds after which the work is done.
LATE = 1e-3


def later(seconds, work):
    """Tests put something in the place of this that does not depend on which thread gets a core first."""
    threading.Timer(seconds, work).start()


@ck.implements("relu_fprop", name="background", rank=-99)
def relu(problem, x, y):
    if x.shape != (128, 1024):
        np.maximum(x, 0, out=y)
    else:
        later(LATE, lambda: np.maximum(x, 0, out=y))
