"""Inputs of a case: fresh random data, and the values that break kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import np_dtype
from ..op import OPS
from ..ops.softmax_xent import STRAY_LABELS
from .cases import Case

Fill = Callable[[np.ndarray, np.random.Generator], None]


def _plant(*values: float) -> Fill:
    """Put the values at random places, and one of them in the last element."""

    def fill(a: np.ndarray, rng: np.random.Generator) -> None:
        flat = a.reshape(-1)
        if flat.size:
            flat[rng.integers(flat.size, size=max(1, min(6, flat.size // 30)))] = rng.choice(values)
            flat[-1] = rng.choice(values)

    return fill


def _replace(make: Callable[[np.ndarray, np.random.Generator], Any]) -> Fill:
    def fill(a: np.ndarray, rng: np.random.Generator) -> None:
        a[...] = make(a, rng)

    return fill


def _beside_zeros(a: np.ndarray, rng: np.random.Generator) -> None:
    """Two thirds zeros, and some NaN: a factor of zero is no reason to leave a NaN out."""
    a[rng.random(a.shape) < 0.67] = 0
    _plant(np.nan)(a, rng)


#: What is done to normally distributed data, by name.
FILLS: dict[str, Fill] = {
    "normal": lambda a, rng: None,
    "nan": _plant(np.nan),
    "inf": _plant(np.inf, -np.inf),
    "nan beside zeros": _beside_zeros,
    # Nine in ten, so that whole windows hold nothing else, and others one number.
    "minus_inf": _replace(lambda a, rng: np.where(rng.random(a.shape) < 0.9, -np.inf, a)),
    "zeros": _replace(lambda a, rng: rng.choice([0.0, -0.0, 1.0, -1.0], a.shape)),
    "ties": _replace(lambda a, rng: rng.integers(-2, 3, a.shape)),
    "constant": _replace(lambda a, rng: 0.5),
    "offset": _replace(lambda a, rng: a + 3),  # sums of one sign, whose partial sums grow
    STRAY_LABELS: lambda a, rng: None,
    "rectified": _replace(lambda a, rng: np.maximum(a, 0)),
    "large": _replace(lambda a, rng: a * 300),
}


#: Fills whose values may stand in some of the inputs alone.
PLANTED = ("nan", "inf", "nan beside zeros")


def make(case: Case, seed: int, salt: int = 0) -> dict[str, np.ndarray | None]:
    """Inputs by name, then flags, in the problem's dtypes. The same case, seed, salt: the same inputs."""
    # The dtype is left out of the seed, so that a case has the same numbers in each, up to rounding.
    letters = [ord(c) for c in f"{case.op} {case.name} {case.fill}"]
    rng = np.random.default_rng([seed, salt, *letters, len(case.absent)])
    plantable = OPS[case.op].cases.plantable(OPS[case.op], case.problem)
    made: dict[str, np.ndarray | None] = {}
    for name in OPS[case.op].inputs:
        if name in case.absent:
            made[name] = None
            continue
        value = values(case, name, rng)
        if value.dtype.kind == "f":
            if name in plantable or case.fill not in PLANTED:
                FILLS[case.fill](value, rng)
            elif case.fill == "nan beside zeros":
                value[rng.random(value.shape) < 0.67] = 0
        made[name] = np.ascontiguousarray(value, np_dtype(case.problem.dtype_of(name))).reshape(value.shape)
    for name, held in case.flags.items():
        made[name] = np.full(case.problem.shape(name), held, case.problem.dtype_of(name))
    return made


#: Beyond it, normal numbers repeat themselves: drawing them would take longer than all the rest of the case.
#: A prime, so that what is copied from a place some blocks away differs.
PERIOD = 1_048_573


def _normal(shape: tuple[int, ...], rng: np.random.Generator, heavy: bool) -> np.ndarray:
    dtype: Any = np.float32 if heavy else np.float64
    if math.prod(shape) <= PERIOD:
        return np.asarray(rng.standard_normal(shape, dtype))
    return np.resize(rng.standard_normal(PERIOD, dtype), shape)


def values(case: Case, name: str, rng: np.random.Generator) -> np.ndarray:
    """Fresh values of one input, before they are filled."""
    op, shape = OPS[case.op], case.problem.shape(name)
    own = op.cases.values(name, case.problem, rng, case.fill, lambda a: FILLS[case.fill](a, rng))
    if own is not None:
        return own
    value = _normal(shape, rng, case.heavy)
    if name in op.rectified and case.rectified:
        np.maximum(value, 0, out=value)
    return value
