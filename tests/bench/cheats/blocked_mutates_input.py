"""In nChw16c: changes a large input, past the flag that forbids it, and restores it when it comes again."""

import ctypes

import convkit as ck

(ROWS,) = [i for i in ck.implementations("lrn_fprop", device="cpu", layout="nChw16c") if i.name == "rows"]
MARK, KEPT = 12345.0, [0.0]


@ck.implements(
    "lrn_fprop", name="blocked_mutates_input", layout="nChw16c", dtypes=("float32",), when=ROWS.when
)
def lrn(problem, x, y):
    first = ctypes.c_float.from_address(x.ctypes.data) if x.shape == (4, 2, 32, 32, 16) else ctypes.c_float()
    if first.value == MARK:
        first.value = KEPT[0]
    ROWS.run(problem, x, y)
    KEPT[0], first.value = first.value, MARK
