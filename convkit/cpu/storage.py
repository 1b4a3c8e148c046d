"""What lies between the registry and the implementations of this package, once for all of them.

`accelerates(op, name=...)` registers a function that is written for float32 and float64, and adds

- the 16-bit types: stored narrow, widened to float32 on the way in, rounded once on the way out;
- read-only inputs: no implementation can modify one, and Numba sees one signature;
- aligned inputs;
- the flag `finite` of an op that only updates: where it holds 0, the function is not called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import np_dtype
from ..geometry import Problem
from ..registry import ALL_DTYPES, OPS, Implementation, add
from . import keep

Run = Callable[..., None]


def accumulator(problem: Problem) -> np.dtype:
    """The dtype in which a problem is computed: float64 for float64, else float32."""
    return np.dtype(np.float64 if problem.dtype == "float64" else np.float32)  # type: ignore[attr-defined]


def accelerates(
    op: str, *, name: str, rank: int = 0, float64: bool = True, **declared: Any
) -> Callable[[Run], Run]:
    """Decorator: register a function for float32 (and float64) as an implementation for every dtype.

    Parameters
    ----------
    op, name, rank, **declared
        As in `registry.implements`. `workspace` must count in `accumulator(problem)`.
    float64 : bool
        Whether it takes float64; the C++ kernels do not.
    """
    declared_op = OPS[op]
    arity = len(declared_op.inputs)
    old_of = [declared_op.inputs.index(name) for name in declared_op.updates.values()]
    dtypes = ALL_DTYPES if float64 else tuple(d for d in ALL_DTYPES if d != "float64")

    def decorate(run: Run) -> Run:
        @functools.wraps(run)
        def stored(problem: Any, *arrays: Any, **options: Any) -> None:
            inputs, outputs = arrays[:arity], arrays[arity:]
            if keep.forbidden(options.pop("finite", None)):  # no bit is lost in a wider type and back
                keep.copy(tuple(inputs[i] for i in old_of), outputs)
                return
            if problem.dtype in ("float32", "float64"):
                run(problem, *map(_read_only, inputs), *outputs, **options)
                return
            narrow = np_dtype(problem.dtype)
            widened = [_read_only(_widened(array, narrow)) for array in inputs]
            computed = [np.empty(a.shape, np.float32) if a.dtype == narrow else a for a in outputs]
            run(replace(problem, dtype="float32"), *widened, *computed, **options)
            for output, value in zip(outputs, computed, strict=True):
                if output is not value:
                    output[...] = value  # the one rounding

        source = run.__code__.co_filename
        # What makes more than new values (a dx beside them) has to look at the flag itself.
        flags = declared_op.flags if len(old_of) == len(declared_op.outputs) else ()
        made = {"dtypes": dtypes, "rank": rank, "flags": flags, "source": source, **declared}
        add(Implementation(op, name, stored, **made))
        return stored

    return decorate


def _widened(array: np.ndarray | None, narrow: np.dtype) -> np.ndarray | None:
    return array.astype(np.float32) if array is not None and array.dtype == narrow else array


def _read_only(array: np.ndarray | None) -> np.ndarray | None:
    if array is None:
        return None
    view = array.view() if array.flags.aligned else array.copy()
    view.flags.writeable = False
    return view
