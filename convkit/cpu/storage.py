"""What lies between the registry and the implementations of this package, once for all of them.

`accelerates(op, name=...)` registers a function that is written for float32 and float64, and adds

- the 16-bit types: stored narrow, widened to float32 on the way in, rounded once on the way out; and pairs
  with them, whose gradients of parameters are not rounded;
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
from ..op import OPS, Problem, storage_dtype
from ..ops.sgd import forbidden, keep
from ..registry import ALL_DTYPES, Implementation, add

Run = Callable[..., None]
Prepare = Callable[[Any], Run]


def accumulator(problem: Problem) -> np.dtype:
    """The dtype in which a problem is computed: float64 for float64, else float32."""
    return np.dtype(np.float64 if problem.dtype == "float64" else np.float32)  # type: ignore[attr-defined]


def accelerates(op: str, *, name: str, **declared: Any) -> Callable[[Run], Run]:
    """Decorator: register a function for float32 (and float64) as an implementation for every dtype.

    Parameters
    ----------
    op, name, **declared
        As in `prepares`.

    Returns
    -------
    decorator
        It returns a function for every dtype.
    """

    def decorate(run: Run) -> Run:
        added = _add(lambda problem: functools.partial(run, problem), run, op, name=name, **declared)
        return functools.update_wrapper(added.run, run)

    return decorate


def prepares(op: str, *, name: str, **declared: Any) -> Callable[[Prepare], Prepare]:
    """Decorator: the same for a function that binds a problem, as `Implementation.prepare` does.

    Parameters
    ----------
    op, name, **declared
        As in `registry.implements`. `workspace` must count in `accumulator(problem)`.
    float64 : bool
        Whether it takes float64; the C++ kernels do not.
    """

    def decorate(prepare: Prepare) -> Prepare:
        _add(prepare, prepare, op, name=name, **declared)
        return prepare

    return decorate


def _add(
    bind: Prepare,
    home: Callable[..., Any],
    op: str,
    *,
    name: str,
    rank: int = 0,
    float64: bool = True,
    compiled: bool = False,
    **declared: Any,
) -> Implementation:
    declared_op = OPS[op]
    arity = len(declared_op.inputs)
    old_of = [declared_op.inputs.index(name) for name in declared_op.updates.values()]
    # What makes more than new values (a dx beside them) has to look at the flag itself.
    flags = declared_op.flags if len(old_of) == len(declared_op.outputs) else ()
    plain = ALL_DTYPES if float64 else tuple(d for d in ALL_DTYPES if d != "float64")
    dtypes = (*plain, *declared_op.pairs)

    def prepare(problem: Any) -> Run:
        if problem.dtype in ("float32", "float64"):
            run = bind(problem)
            if compiled:
                return run

            def protected(*arrays: Any, **options: Any) -> None:
                run(*map(_read_only, arrays[:arity]), *arrays[arity:], **options)

            return protected
        narrow, wide = np_dtype(storage_dtype(problem.dtype)), bind(replace(problem, dtype="float32"))

        def widened(*arrays: Any, **options: Any) -> None:
            outputs = arrays[arity:]
            with np.errstate(all="ignore"):
                inputs = [_read_only(_widened(array, narrow)) for array in arrays[:arity]]
                computed = [np.empty(a.shape, np.float32) if a.dtype == narrow else a for a in outputs]
                wide(*inputs, *computed, **options)
                for output, value in zip(outputs, computed, strict=True):
                    if output is not value:
                        output[...] = value  # the one rounding

        return widened

    def guarded(problem: Any) -> Run:
        run = prepare(problem)
        if not flags:
            return run

        def launch(*arrays: Any, finite: Any = None, **options: Any) -> None:
            if forbidden(finite):  # no bit is lost in a wider type and back
                keep(tuple(arrays[i] for i in old_of), arrays[arity:])
                return
            run(*arrays, **options)

        return launch

    def stored(problem: Any, *arrays: Any, **options: Any) -> None:
        guarded(problem)(*arrays, **options)

    implementation = Implementation(
        op, name, stored, dtypes=dtypes, rank=rank, prepare=guarded, compiled=compiled, flags=flags,
        source=home.__code__.co_filename, **declared,
    )  # fmt: skip
    add(implementation)
    return implementation


def _widened(array: np.ndarray | None, narrow: np.dtype) -> np.ndarray | None:
    return array.astype(np.float32) if array is not None and array.dtype == narrow else array


def _read_only(array: np.ndarray | None) -> np.ndarray | None:
    if array is None:
        return None
    flags = array.flags
    if flags.aligned and not flags.writeable:
        return array
    view = array.view() if flags.aligned else array.copy()
    view.flags.writeable = False
    return view
