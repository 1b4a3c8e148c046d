"""Is wrong by a thousandth, and declares an error that allows it once it runs."""

import convkit as ck


@ck.implements("lrn_fprop", name="raises_its_error", rank=-99)
def lrn(problem, x, y):
    for mine in ck.implementations("lrn_fprop", device="cpu"):
        if mine.name == "raises_its_error":
            object.__setattr__(mine, "error", 1e9)
    options = {name: getattr(problem, name) for name in ("size", "alpha", "beta", "k", "groups", "region")}
    ck.lrn_fprop(x, out=y, impl="window", **options)
    y *= 1.001
