"""How far an output element may be from the float64 reference: a bound for each element.

Sums
----
    |y - ref| <= 4 u sqrt(L) (s + |ref|) + storage

u is the unit roundoff of the accumulation (2^-24 for float32, which the 16-bit types accumulate in too;
2^-53 for float64), L the length of the reduction, s = sqrt(sum of the squared products), which the
reference computes from squared inputs. Where it comes from: adding up L products in any order rounds each
partial sum, with an error of some 0.4 u times its size, and of either sign. A partial sum is, as a random
walk and a trend, no larger than s + |ref|; L of them give 0.4 u sqrt(L) (s + |ref|) at the very most, and
for the plain sequential sum of centred data 0.3 u sqrt(L) s. The factor 4 is thus some ten standard
deviations: every order of summation, fused or not, passes, and so it should. A lost term does not: with
unit normal data a product is about 1, while the bound is

    ========================================  ======  ==========  ==================================
    reduction                                      L    bound      of the outputs, a lost term fails
    ========================================  ======  ==========  ==================================
    3 x 3 window on 1 channel                     10     4e-6      100 %
    conv1, 3 x 11 x 11                           364     2e-4      99.98 %
    conv3, 256 x 3 x 3                         2,305     1e-3      99 %
    fc6                                        9,217     4e-3      99 %
    ========================================  ======  ==========  ==================================

and an output tensor has more than one element. float16 accumulation is off by some 200 times the bound.
tests/check/test_gate.py measures both sides.

Sums that are cut
-----------------
Tensor cores do not round a partial sum to nearest: what float32 does not hold is cut off, which is always
towards zero, so that L such errors add up. An implementation that says so (`truncates`) is held to

    |y - ref| <= 2 u L (s + |ref|) + storage

since each addition loses less than a unit in the last place of the partial sum, at most 2 u times its size.
How many products a tensor core adds before it cuts is not promised, and may be one. What is typical of such
sums of centred data, 0.3 to 0.4 u L s, is a sixth of that. A lost term fails in 99 % of conv1's outputs, 93 %
of conv3's and 66 % of fc6's.

Other ops
---------
LRN, softmax: first-order conditioning, written out beside the ops. ReLU, max-pooling and argmax have nothing
to round: they are exact. Dropout's and the update rule's few operations get a few u of the magnitudes added.

Storage adds half a unit in the last place of a 16-bit type, and whatever a subnormal loses: the 16-bit
float16 in full, the others may flush theirs to zero.

float64: the reference rounds as much as the implementation, so the arithmetic part counts twice. That is
honest as long as the reference itself is held to other oracles, which the tests do.

Fast algorithms
---------------
An implementation that declares a relative RMS error above `PLAIN` (Winograd) may be off by ten times its
declared error, relative to the element or to the typical element, in any one element. And in every case
with enough elements to tell, the RMS of its error is held to the declared error, or to a quarter of the
bound above where that is more. Such an algorithm mixes the pixels of a tile, so that a NaN or an infinity
may spread up to `SPREAD` pixels; it must not vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arrays import np_dtype
from ..op import OPS, Problem, Tensors
from ..ops.rounding import sums
from ..ops.sgd import forbidden
from ..registry import Implementation

Array = np.ndarray

#: Declared relative RMS error of plain float32 arithmetic: up to this, sums are held to the bound above.
PLAIN = 1e-6
#: How far a fast algorithm may spread a NaN or an infinity, along each of the last two axes.
SPREAD = 8
#: Elements from which on the RMS of the errors says something.
ENOUGH = 64
#: (unit roundoff of storage, where it adds to the accumulation's; largest loss of a subnormal)
_STORAGE = {
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-126),
    "float32": (0.0, 2.0**-126),
    "float64": (0.0, 2.0**-1022),
}


@dataclass(frozen=True)
class Expected:
    """What one output should be.

    Attributes
    ----------
    value : ndarray
        The reference's output: float64, or the integers themselves.
    rounding : ndarray
        Bound of the arithmetic's error, for each element. NaN or infinite where the data are.
    storage : ndarray
        Bound of the rounding to the storage type.
    scale : ndarray
        What a declared error is relative to; 0 where the op has nothing to round.
    length : int
        Terms of the longest sum.
    """

    value: Array
    rounding: Array
    storage: Array
    scale: Array
    accepts: Callable[[Array], Array] | None = None
    """For a choice that rounding may decide: whether each of these integers is as good as `value`."""
    exact: bool = False
    """Whether there is nothing to round."""
    length: int = 1

    @property
    def touched(self) -> Array:
        """Where a NaN or an infinity of the inputs took part."""
        return ~np.isfinite(self.rounding) | ~np.isfinite(self.value)

    def arithmetic(self, truncates: bool = False) -> Array:
        """`rounding`, or what it is for sums that are cut: 2 L in place of 4 sqrt(L)."""
        return self.rounding * max(1.0, np.sqrt(self.length) / 2) if truncates else self.rounding

    def bound(self, error: float = 0.0, truncates: bool = False) -> Array:
        """The bound of each element, for an implementation that declares this."""
        arithmetic = self.arithmetic(truncates)
        if error > PLAIN:
            typical = _rms(self.scale[np.isfinite(self.scale)])
            arithmetic = np.maximum(arithmetic, 10 * error * np.maximum(self.scale, typical))
        return arithmetic + self.storage

    def rms_limit(self, good: Array, error: float, truncates: bool = False) -> float:
        """What the RMS of the errors of the elements `good` may be."""
        natural = _rms(self.arithmetic(truncates)[good]) / 4 + _rms(self.storage[good])
        return max(natural, error * _rms(self.scale[good]) + _rms(self.storage[good]))


def _rms(a: Array) -> float:
    return float(np.sqrt(np.mean(np.square(a)))) if a.size else 0.0


def expected(op: str, problem: Problem, inputs: Tensors, options: dict[str, Any]) -> dict[str, Expected]:
    """The reference's outputs with their bounds, by name.

    Parameters
    ----------
    op : str
    problem : Problem
    inputs : dict
        By name, in the op's order; an optional one may be None. Flags that are given come behind them.
    options : dict
    """
    with np.errstate(all="ignore"):
        declared = OPS[op]
        values = declared.evaluate(problem, inputs, options)
        dtype: str = problem.dtype  # type: ignore[attr-defined]
        u = 2.0**-53 if dtype == "float64" else 2.0**-24
        arithmetic = declared.rounding(declared, problem, inputs, options, values)
        found = {}
        for name, value in values.items():
            relative, least = _STORAGE.get(problem.dtype_of(name), (0.0, 0.0))
            weight, scale = arithmetic[name]
            if weight is None:  # nothing to round, but where a cast is all there is
                if value.dtype.kind == "f":
                    value = value.astype(np_dtype(problem.dtype_of(name))).astype(np.float64)
                rounding, storage = np.zeros(value.shape), np.zeros(value.shape)
                if not (finite := np.isfinite(value)).all():
                    rounding[~finite] = np.nan
            else:
                rounding = (2 if dtype == "float64" else 1) * u * weight
                # An infinity among the inputs may leave the value finite, and then it is stored as any other.
                size = np.abs(value) + np.nan_to_num(rounding, posinf=0.0)
                storage = np.nan_to_num(relative * size, posinf=0.0) + least
            length = problem.reduction(op)
            found[name] = Expected(value, rounding, storage, scale, exact=weight is None, length=length)
        for name, accepts in declared.accepts(problem, inputs, u).items() if declared.accepts else ():
            found[name] = replace(found[name], accepts=accepts)
        return found


def kept(inputs: Tensors) -> bool:
    """Whether the inputs forbid an update, so that its new values are the old ones, bit for bit."""
    return forbidden(inputs.get("finite"))


# ---------------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Comparison:
    """One output beside what was expected of it.

    Attributes
    ----------
    reason : str
        Empty, or what is wrong.
    ratio : float
        Largest error over bound; infinite where a NaN is lost or made, or an exact value missed.
    rms : float
        RMS of the errors over the RMS of the reference; NaN where there is nothing to measure.
    index : tuple of int, optional
        The worst element.
    wrong : ndarray of bool, optional
        Which elements are wrong, where some are.
    """

    reason: str
    ratio: float = 0.0
    rms: float = float("nan")
    index: tuple[int, ...] | None = None
    got: float = float("nan")
    wanted: float = float("nan")
    wrong: Array | None = None


def compare(name: str, got: Array, want: Expected, implementation: Implementation, op: str) -> Comparison:
    """Hold one output against its bounds.

    Parameters
    ----------
    name : str
        Name of the output, for the reason.
    got : ndarray
    want : Expected
    implementation : Implementation
        For what it declares of its errors.
    op : str
    """
    if got.size == 0:
        return Comparison("")
    if got.ndim == 0:
        parts = (want.value, want.rounding, want.storage, want.scale)
        got, want = got.reshape(1), Expected(*(np.reshape(a, 1) for a in parts))  # type: ignore[arg-type]
    error_declared, truncates = implementation.error, implementation.truncates
    with np.errstate(all="ignore"):
        if want.exact and np.array_equal(want.value.astype(got.dtype).view(np.uint8), got.view(np.uint8)):
            return Comparison("", rms=0.0)
        value, y = want.value, got.astype(np.float64)
        reference_value = value.astype(np.float64)
        bound = want.bound(error_declared, truncates)
        # Data at infinity leave no scale: what comes out finite there (relu of -inf) is as good as exact, and
        # is rounded to storage as everything else is. Where infinity comes out, nothing else will do.
        untold = np.where(np.isfinite(reference_value), 2.0**-20 * np.abs(reference_value) + want.storage, 0)
        bound = np.where(np.isfinite(bound), bound, untold)
        error = np.abs(y - reference_value)
        error[y == reference_value] = 0  # also infinities
        wrong = np.asarray(np.logical_not(error <= bound))
        if want.accepts is not None:
            wrong = ~want.accepts(got) & (got != want.value)
            error[~wrong] = 0
        nan_got, nan_wanted = np.isnan(y), np.isnan(reference_value)
        wrong[nan_got & nan_wanted] = False
        if want.value.dtype.kind == "f" and got.dtype.itemsize == 2:  # beyond 65504, float16 has infinity
            stored = (reference_value + np.copysign(bound, reference_value)).astype(got.dtype)
            wrong &= ~(np.isinf(y) & (stored == got))
        if error_declared > PLAIN and OPS[op].rounding is sums:
            wrong &= ~(_spread(want.touched) & ~np.isfinite(y))
            wrong |= ~np.isfinite(reference_value) & np.isfinite(y)
        if wrong.any():
            return _worst(name, got, want, wrong, error, bound)
        good = (
            np.isfinite(error)
            & ~nan_wanted
            & np.isfinite(y)
            & np.isfinite(want.rounding)
            & np.isfinite(want.scale)
        )
        ratio = np.where(error > 0, error / bound, 0)[good]
        worst = float(ratio.max()) if ratio.size else 0.0
        measured = _rms(error[good])
        base = _rms(reference_value[good])
        relative = measured / base if base > 0 else 0.0
        index = None
        if ratio.size:
            index = tuple(int(i[np.argmax(ratio)]) for i in np.nonzero(good))
        at = (float(y[index]), float(reference_value[index])) if index is not None else (np.nan, np.nan)
        limit = want.rms_limit(good, error_declared, truncates)
        if int(good.sum()) >= ENOUGH and measured > limit:
            reason = (
                f"the relative RMS error of {name} is {relative:.2g}, more than the declared "
                f"{error_declared:g} and than what rounding explains ({limit / base if base else 0:.2g})"
            )
            return Comparison(reason, worst, relative, index, *at)
        return Comparison("", worst, relative, index, *at)


def _spread(mask: Array) -> Array:
    """The mask, grown by `SPREAD` along each of the last two axes (of four)."""
    for axis in range(-2, 0) if mask.ndim == 4 else ():
        padded = np.pad(
            mask, [(SPREAD, SPREAD) if a == mask.ndim + axis else (0, 0) for a in range(mask.ndim)]
        )
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * SPREAD + 1, axis)
        mask = np.asarray(windows.any(axis=-1))
    return mask


def _worst(name: str, got: Array, want: Expected, wrong: Array, error: Array, bound: Array) -> Comparison:
    y, value = got.astype(np.float64), want.value.astype(np.float64)
    excess = np.where(wrong, np.where(np.isfinite(error), error / np.maximum(bound, 2.0**-1000), np.inf), -1)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), got.shape))
    ratio = float(excess[index])
    here = f"{name}[{', '.join(map(str, index))}]"
    count = f"; {int(wrong.sum())} of {got.size} elements are wrong"
    a, b = _number(got[index], got.dtype), _number(want.value[index], want.value.dtype)
    if np.isnan(y[index]):
        what = f"{here} is NaN, expected {b}"
    elif np.isnan(value[index]):
        what = f"{here} is {a}, expected NaN: a NaN (or infinity) of the inputs is lost"
    elif want.value.dtype.kind != "f" or not np.isfinite(error[index]):
        what = f"{here} is {a}, expected {b}"
    else:
        limit = "0 (there is nothing to round)" if bound[index] == 0 else f"{bound[index]:.2g}"
        what = f"{here} is {a}, expected {b}: off by {error[index]:.2g}, where the bound is {limit}"
    good = np.isfinite(error) & np.isfinite(value)
    base = _rms(value[good])
    return Comparison(
        what + count,
        ratio,
        _rms(error[good]) / base if base > 0 else np.nan,
        index,
        float(y[index]),
        float(value[index]),
        wrong,
    )


def _number(value: Any, dtype: np.dtype) -> str:
    return str(int(value)) if dtype.kind in "iu" else f"{float(value):.9g}"


def relative_rms(got: Array, wanted: Array) -> float:
    """RMS of the difference over that of what was wanted (over 1, where that is all zeros)."""
    with np.errstate(all="ignore"):
        difference = got.astype(np.float64) - wanted
        scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))) or 1.0
        return float(np.sqrt(np.mean(np.square(difference)))) / scale


__all__ = [
    "ENOUGH", "PLAIN", "SPREAD", "Comparison", "Expected", "compare", "expected", "kept", "relative_rms",
]  # fmt: skip
