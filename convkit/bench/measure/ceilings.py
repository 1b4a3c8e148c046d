"""Which of the ceilings that were measured hold for a row: for its figures, and for what can be true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .defences import on

#: Name in a result file's `ceilings`, and its value in GFLOP/s or GB/s.
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


def above_ceiling(
    item: Any, facts: dict[str, Any], ms: float, ceilings: dict[str, float], cache: str = "cold"
) -> str:
    """Why a time cannot be true, or an empty string.

    Parameters
    ----------
    item : work.Item
    facts : dict
        Of the entry: "algorithm_flops" where its algorithm does with fewer than the definition.
    ms : float
    ceilings : dict of str to float
        The highest that was measured, by name: GFLOP/s and GB/s.
    cache : str
        Warm caches are faster than memory, so that no rate of memory bounds anything.
    """
    if not on("ceilings"):
        return ""
    if ms <= 0:
        return f"above the ceiling: it took {ms:g} ms"
    flops = facts.get("algorithm_flops") or item.flops
    compute, memory = holding(item.dtype, item.math, ceilings)
    bounds = [(flops / ms / 1e6, compute, "GFLOP/s")]
    if cache == "cold":
        bounds.append((item.bytes / ms / 1e6, memory, "GB/s"))
    for rate, ceiling, unit in bounds:
        if ceiling and rate > TOLERANCE * ceiling[1]:
            name, most = ceiling
            return f"above the ceiling: {rate:.4g} {unit}, where {name} was measured at {most:.4g}"
    return ""


def unbelievable(item: Any, facts: Mapping[str, Any]) -> str:
    """Why the operations that an entry declares cannot be, or an empty string."""
    declared = facts.get("algorithm_flops")
    if not on("ceilings") or declared is None or declared >= item.fast_flops:
        return ""
    return f"declares {declared} FLOPs, fewer than any algorithm needs for its window ({item.fast_flops})"
