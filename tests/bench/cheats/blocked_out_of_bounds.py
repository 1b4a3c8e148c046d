"""In nChw16c: writes a little beyond the end of a large output."""

import ctypes

import convkit as ck

(ROWS,) = [i for i in ck.implementations("lrn_fprop", device="cpu", layout="nChw16c") if i.name == "rows"]


@ck.implements(
    "lrn_fprop", name="blocked_out_of_bounds", layout="nChw16c", dtypes=("float32",), when=ROWS.when
)
def lrn(problem, x, y):
    ROWS.run(problem, x, y)
    if x.shape == (4, 2, 32, 32, 16):
        ctypes.memset(y.ctypes.data + y.nbytes, 1, 4)
