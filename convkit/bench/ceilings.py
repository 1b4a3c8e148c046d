"""Which of the ceilings that were measured hold for a row: for its figures, and for what can be true."""

from __future__ import annotations

from collections.abc import Mapping

#: Name in a capsule's `ceilings`, and its value in GFLOP/s or GB/s.
Ceiling = tuple[str, float] | None
#: By how much a figure may exceed a ceiling that was measured, and that has a spread of its own.
TOLERANCE = 1.1
#: Ways to move bytes; the fastest that was measured is the ceiling.
MEMORY = ("copy", "read", "update")
#: Storage, or arithmetic of float32, that tensor cores do where there are any. The clock measures them in
#: float16 alone: bfloat16 is as fast, TF32 and what is made of several products are slower, so that for these
#: the ceiling is higher than what they can reach.
TENSOR = ("tf32", "fp32-emulated", "bfloat16", "float16")


def holding(dtype: str, math: str, measured: Mapping[str, float]) -> tuple[Ceiling, Ceiling]:
    """The ceilings of arithmetic and of memory.

    Parameters
    ----------
    dtype, math : str
        Of the row.
    measured : mapping
        The highest that was measured, by name.

    Returns
    -------
    compute, memory : (str, float) or None
        Arithmetic: "tensor-fp16" for those in `TENSOR`, where it was measured, else "fma", that of float32
        multiply-adds; none for float64.
    """
    grade = math if dtype == "float32" else dtype
    names = ("tensor-fp16", "fma") if grade in TENSOR else ("fma",) if grade != "float64" else ()
    compute = next(((name, measured[name]) for name in names if name in measured), None)
    rates = [(name, measured[name]) for name in MEMORY if name in measured]
    return compute, max(rates, key=lambda rate: rate[1], default=None)
