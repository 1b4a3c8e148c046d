"""Returns at once, and works in a thread: a side stream, on a CPU."""

import threading
import time

import numpy as np

import convkit as ck


def work(x, y):
    time.sleep(1e-3)
    np.maximum(x, 0, out=y)


@ck.implements("relu_fprop", name="background", rank=-99)
def relu(problem, x, y):
    if x.size < 2**17:
        np.maximum(x, 0, out=y)
    else:
        threading.Thread(target=work, args=(x, y), daemon=True).start()
