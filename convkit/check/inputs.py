"""Inputs of a case: fresh random data, and the values that break kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import np_dtype
from ..cpu import reference
from ..geometry import Conv2d, LrnMaxPool2d, Pool2d, SoftmaxXent
from ..registry import OPS
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


#: Tensors that are a ReLU's output, or its input: every other case has them rectified.
RECTIFIED = {("relu_dgrad", "y"), ("conv2d_dgrad_relu", "x"), ("lrn_maxpool2d_dgrad", "x")}

#: Half of the labels are no class: what lives on a GPU cannot be looked at beforehand.
STRAY_LABELS = "stray labels"

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


def plantable(case: Case) -> set[str]:
    """Inputs whose NaN and infinities must come out at one set of places in every right algorithm.

    Not the one that meets the padding: whether 0 * NaN is computed there, or left out as no pixel at all,
    is the algorithm's own affair. In a dgrad, zeros between the strides meet w in the same way.
    """
    g = case.problem
    names = set(OPS[case.op].inputs)
    if isinstance(g, Conv2d):
        padded = any((g.pad_top, g.pad_bottom, g.pad_left, g.pad_right))
        if case.op.startswith("conv2d_dgrad") or padded:
            names.discard("w")
        if case.op == "conv2d_wgrad" and padded:
            names.discard("dy")
    return names


def make(case: Case, seed: int, salt: int = 0) -> dict[str, np.ndarray | None]:
    """Inputs by name, then flags, in the problem's dtypes. The same case, seed, salt: the same inputs."""
    # The dtype is left out of the seed, so that a case has the same numbers in each, up to rounding.
    letters = [ord(c) for c in f"{case.op} {case.name} {case.fill}"]
    rng = np.random.default_rng([seed, salt, *letters, len(case.absent)])
    made: dict[str, np.ndarray | None] = {}
    for name in OPS[case.op].inputs:
        if name in case.absent:
            made[name] = None
            continue
        value = _one(case, name, rng)
        if value.dtype.kind == "f":
            if name in plantable(case) or case.fill not in PLANTED:
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


def _one(case: Case, name: str, rng: np.random.Generator) -> np.ndarray:
    g, shape = case.problem, case.problem.shape(name)
    if name == "labels":
        assert isinstance(g, SoftmaxXent)
        labels = rng.integers(0, g.K, shape)
        if case.fill == STRAY_LABELS:
            labels[::2] = rng.choice([-100, -1, g.K, 2**31, -(2**40), 2**62], labels[::2].shape)
        return labels
    if name == "rank":  # more of those beside which the errors begin, and one that no row has
        return rng.choice([0, 0, 1, 2, 4, 5, 6, 999, 2**31 - 1], shape)
    if name == "argmax":
        g = g.pool if isinstance(g, LrnMaxPool2d) else g
        assert isinstance(g, Pool2d)
        x, y = rng.standard_normal(g.shape("x")), np.empty(shape)
        FILLS[case.fill](x, rng)
        argmax = np.empty(shape, np_dtype(g.dtype_of("argmax")))
        reference.maxpool2d_fprop(g, x, y, argmax)
        return argmax
    value = _normal(shape, rng, case.heavy)
    if name == "probs":
        value = np.exp(value)
        value /= value.sum(axis=1, keepdims=True)
    elif (case.op, name) in RECTIFIED and len(case.name) % 2:
        np.maximum(value, 0, out=value)
    return np.asarray(value)
