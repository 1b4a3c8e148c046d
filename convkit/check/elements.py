"""Which elements of an output are wrong, and how: the last row, channels from 32 on, twice the right value.

Only ever run after a failure. What is found does not depend on how large the case is ("the last row", not
"row 12"), so that one pattern shows in many cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray

#: What the axes of a tensor count, by its name; other tensors have "axis 0", and so on.
_MAPS = ("image", "channel", "row", "column")
_AXES: dict[int, tuple[str, ...]] = {4: _MAPS, 2: ("image", "feature"), 1: ("element",), 0: ()}
_FILTERS = {
    4: ("filter", "input channel", "window row", "window column"),
    2: ("output", "input"),
}
#: Sizes that a block of threads or of data may have, largest first.
_BLOCKS = (1024, 512, 256, 128, 64, 32)
#: Elements beyond which an output is not looked at.
_MOST = 4_000_000


@dataclass(frozen=True)
class Place:
    """The wrong elements of one output.

    Attributes
    ----------
    output : str
    wrong, size : int
        So many elements are wrong, of so many.
    where : tuple of str
        Where they lie, in words: "all elements", "the last row". If several are true, such as "rows from 7
        on" and "the last 2 rows", the first is what one would say. Empty where they show no pattern.
    values : str
        What they hold instead, or empty.
    """

    output: str
    wrong: int
    size: int
    where: tuple[str, ...] = ()
    values: str = ""

    def __str__(self) -> str:
        if not self.wrong:
            return f"{self.output} is right"
        what = f", {self.values}" if self.values else ""
        if not self.where:
            return f"{self.output} is wrong in {self.wrong} of {self.size} elements{what}"
        return f"{self.output} is wrong in {self.where[0]} ({self.wrong} of {self.size}){what}"


def look(output: str, got: Array, wanted: Array | None, wrong: Array, said: str = "") -> Place:
    """Describe the wrong elements of an output.

    Parameters
    ----------
    output : str
        Name of the output.
    got : ndarray
    wanted : ndarray, optional
        The right answer; None where only the place is of interest.
    wrong : ndarray of bool
        Which elements are wrong.
    said : str
        What the elements hold, where that is known.
    """
    got, wrong = np.atleast_1d(got), np.atleast_1d(wrong)
    count = int(wrong.sum())
    if not count or got.size > _MOST:
        return Place(output, count, got.size, values=said)
    with np.errstate(all="ignore"):
        value = None if wanted is None else np.atleast_1d(wanted)
        values = said or ("" if value is None else _values(got, value, wrong))
        return Place(output, count, got.size, tuple(_where(output, value, wrong)), values)


def common(places: Iterable[Sequence[Place]]) -> list[str]:
    """What the failing cases' wrong elements have in common, a line for each output.

    Parameters
    ----------
    places : iterable of sequence of Place
        For each failing case, the places of its outputs.
    """
    cases = [p for p in places if p]
    lines = []
    for output in dict.fromkeys(place.output for case in cases for place in case):
        mine = [place for case in cases for place in case if place.output == output]
        bad = [place for place in mine if place.wrong]
        lines.append(_in_common(output, bad) if bad else f"{output} is right")
    return lines


def _in_common(output: str, bad: list[Place]) -> str:
    if len(bad) == 1:
        return str(bad[0])
    telling = [p for p in bad if p.size > 1] or bad  # one element is all elements, the last row, anything
    wheres = Counter(words for place in telling for words in place.where)
    values = Counter(place.values for place in telling if place.values)
    shares = [100 * p.wrong / p.size for p in telling]
    line = f"{output} is wrong"
    # "all elements" and the like are true of much; what says more wins where it is frequent.
    weight = {"all elements": 0.5, "elements that should not be 0": 0.4, "one element": 0.5}
    best = max(wheres.items(), key=lambda item: item[1] * weight.get(item[0], 1), default=("", 0))
    if best[1] >= max(2, 0.5 * len(telling)):
        line += f" in {best[0]} ({best[1]} of {len(telling)} failing cases)"
    else:
        low, high = (f"{share:.0f} %" if share >= 1 else "< 1 %" for share in (min(shares), max(shares)))
        line += f" in {low} of its elements" if low == high else f" in {low} to {high} of its elements"
    what = values.most_common(1)
    if what and what[0][1] >= max(2, 0.5 * len(telling)):
        line += f", {what[0][0]}" + ("" if what[0][1] == best[1] else f" ({what[0][1]} of {len(telling)})")
    return line


# ---------------------------------------------------------------------------------------------------
# Where
# ---------------------------------------------------------------------------------------------------
def _names(output: str, rank: int) -> tuple[str, ...]:
    table = _FILTERS if output in ("dw", "w_new", "v_new") else _AXES
    found = table.get(rank)
    return found if found is not None else tuple(f"index {axis}" for axis in range(rank))


def _where(output: str, wanted: Array | None, wrong: Array) -> Iterator[str]:
    size, count = wrong.size, int(wrong.sum())
    if count == size:
        yield "all elements"
        if size in _BLOCKS:
            yield f"the last block of {size}"
        return
    if count == 1:
        index = int(np.argmax(wrong.reshape(-1)))
        yield "the last element" if index == size - 1 else "the first element" if not index else "one element"
        if index == size - 1:
            yield from _flat(wrong.reshape(-1))
        return
    if special := _of_right_values(wanted, wrong):
        yield special
    names = _names(output, wrong.ndim)
    boxes = _in_box(wrong, names) if wrong.ndim > 1 else []
    yield from boxes
    if not boxes and wrong.ndim == 4 and (found := _border(wrong)):
        yield found
    yield from _flat(wrong.reshape(-1))


def _of_right_values(wanted: Array | None, wrong: Array) -> str:
    """Whether the elements are those whose right value is NaN, infinite, or zero."""
    if wanted is None or wanted.dtype.kind != "f":
        return ""
    for text, holds in (
        ("elements that should be NaN", np.isnan(wanted)),
        ("elements that should be infinite", np.isinf(wanted)),
        ("elements that should be 0", wanted == 0),
        ("elements that should not be 0", wanted != 0),
    ):
        if not holds.all() and not (wrong & ~holds).any() and 2 * wrong.sum() > holds.sum():
            every = (wrong == holds).all() or (text.endswith("not be 0") and wrong.sum() > 0.9 * holds.sum())
            if text.endswith("not be 0") and not every:
                continue
            return text
    return ""


def _run(indices: Array, extent: int, name: str) -> list[str]:
    """A set of indices along an axis in words; nothing where it shows no pattern."""
    first, last, count = int(indices[0]), int(indices[-1]), len(indices)
    if count == 1:
        if first == extent - 1:
            return [f"the last {name}", f"{name}s from {first} on"]
        return [f"the first {name}" if first == 0 else f"{name} {first}"]
    if last - first + 1 == count:
        if last == extent - 1:
            return [f"{name}s from {first} on", f"the last {count} {name}s"]
        return [f"the first {count} {name}s" if first == 0 else f"{name}s {first} to {last}"]
    if count % 2 == 0:
        half = count // 2
        if indices.tolist() == [*range(half), *range(extent - half, extent)]:
            return [f"the first and the last {name}" if half == 1 else f"the first and last {half} {name}s"]
    steps = np.diff(indices)
    if count >= 3 and (steps == steps[0]).all() and last + steps[0] >= extent:
        return [f"every {_ordinal(int(steps[0]))} {name} from {first} on"]
    return []


def _ordinal(n: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(n, f"{n}th")


def _in_box(wrong: Array, names: tuple[str, ...]) -> list[str]:
    """Restrictions along the axes: the wrong elements fill a product of index sets, or much of it."""
    sets, box = [], 1
    for axis in range(wrong.ndim):
        others = tuple(a for a in range(wrong.ndim) if a != axis)
        indices = np.flatnonzero(wrong.any(axis=others))
        sets.append(indices)
        box *= len(indices)
    count = int(wrong.sum())
    parts: list[list[str]] = []
    for axis, indices in enumerate(sets):
        extent = wrong.shape[axis]
        if len(indices) == extent or extent == 1:
            continue
        words = _run(indices, extent, names[axis])
        if words and (count >= 0.3 * box or count >= 6 * len(indices)):
            parts.append(words)
    if len(parts) == 1:
        return parts[0]
    found = [" of ".join(words[0] for words in reversed(parts))] if len(parts) == 2 else []
    return found + [word for words in parts for word in words] if len(parts) <= 2 else []


def _border(wrong: Array) -> str:
    """The outermost rows and columns of each map, or those of two sides."""
    H, W = wrong.shape[2:]
    maps = wrong.any(axis=(0, 1))
    for text, rows, columns in (
        ("the first row and the first column", slice(1, None), slice(1, None)),
        ("the last row and the last column", slice(None, -1), slice(None, -1)),
    ):
        outside = np.ones((H, W), bool)
        outside[rows, columns] = False
        if not (maps & ~outside).any() and maps.sum() >= 0.5 * outside.sum():
            return text
    for width in range(1, (min(H, W) + 1) // 2):
        outside = np.ones((H, W), bool)
        outside[width : H - width, width : W - width] = False
        if not (maps & ~outside).any() and maps.sum() >= 0.5 * outside.sum():
            return f"the border of width {width}"
    return ""


def _flat(wrong: Array) -> list[str]:
    """A range, or every so-manieth element, as memory has them."""
    indices = np.flatnonzero(wrong)
    first, last, count, size = int(indices[0]), int(indices[-1]), len(indices), len(wrong)
    span = last - first + 1
    if count == span or (count >= 0.6 * span and 16 < span <= 0.75 * size):
        if first == 0:
            return [f"the first {last + 1} elements"]
        if last < size - 1:
            return [f"elements {first} to {last}"]
        block = next((b for b in _BLOCKS if first % b == 0), 0)
        if not block:
            return [f"elements from {first} on"]
        whole = [f"the last block of {block}"] if size - first <= block else []
        return [*whole, f"elements from {first} on, a multiple of {block}"]
    step = int(np.gcd.reduce(np.diff(indices)))
    if count >= 3 and step > 1 and count >= 0.3 * -(-(size - first % step) // step):
        return [f"every {_ordinal(step)} element from {first % step} on"]
    return []


# ---------------------------------------------------------------------------------------------------
# What they hold
# ---------------------------------------------------------------------------------------------------
def _values(got: Array, wanted: Array, wrong: Array) -> str:
    g, w = got[wrong].astype(np.float64), wanted[wrong].astype(np.float64)
    if np.isnan(g).all():
        return "" if np.isnan(w).all() else "which are NaN"
    if (g == 0).all():
        return "which are 0"
    if np.isinf(g).all():
        return "which are infinite"
    if len(g) > 1 and (g == g[0]).all() and not (w == w[0]).all():
        return f"which all hold {g[0]:.4g}"
    finite = np.isfinite(g) & np.isfinite(w)
    if not finite.all() and finite.sum() < 0.5 * len(g):
        return ""
    g, w = g[finite], w[finite]
    if got.dtype.kind in "iu":
        step = g - w
        return f"which are {abs(step[0]):g} too {'large' if step[0] > 0 else 'small'}" if _one(step) else ""
    scale = float(np.sqrt(np.mean(w**2)))
    if len(g) > 1 and scale > 0:
        if text := _imprecise(g, w, got):
            return text
        plain = np.abs(w) > 0.01 * scale
        if plain.sum() > 1 and _one(ratio := g[plain] / w[plain]):
            factor = float(np.median(ratio))
            if abs(factor + 1) < 1e-3:
                return "which have the wrong sign"
            if abs(factor - 1) > 2e-3:
                return f"which are {factor:.4g} times what they should be"
        if _one(step := g - w, scale):
            way = "large" if step[0] > 0 else "small"
            return f"which are {abs(float(np.median(step))):.3g} too {way}"
    return _copy(got.astype(np.float64), wanted.astype(np.float64), wrong)


def _one(values: Array, scale: float = 0.0) -> bool:
    """Whether all are one number, up to rounding."""
    middle = float(np.median(values))
    return bool((np.abs(values - middle) <= 1e-3 * max(abs(middle), 0.01 * scale)).all()) and middle != 0


def _imprecise(g: Array, w: Array, got: Array) -> str:
    """Errors that are small everywhere: of the arithmetic's precision, not of its logic."""
    error = float(np.sqrt(np.mean((g - w) ** 2)) / np.sqrt(np.mean(w**2)))
    worst = float(np.abs(g - w).max() / np.abs(w).max())
    most = 1e-3 if got.dtype.itemsize > 2 else 2e-2
    if worst > 10 * most or error > most or error == 0:
        return ""
    if got.dtype == np.float64:
        found = "float32 arithmetic" if 1e-10 < error < 1e-6 else ""
    else:
        found = "16-bit or TF32 arithmetic" if error > 1e-5 else ""
    order = f"off by some {10 ** np.round(np.log10(error)):.0e} of their size"
    return f"{order}, as from {found} or from a small term that is missing" if found else order


def _close(a: Array, b: Array, scale: float) -> Array:
    same: Array = np.abs(a - b) <= 2e-3 * np.abs(b) + 1e-4 * scale
    return same | (np.isnan(a) & np.isnan(b))


def _copy(got: Array, wanted: Array, wrong: Array) -> str:
    """Whether the output is the right answer, put elsewhere."""
    if got.ndim < 2 or got.size < 8:
        return ""
    finite = wanted[np.isfinite(wanted)]
    scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    if not scale:
        return ""
    for text, moved, seen in _moved(wanted):
        if seen.sum() < 4 or (wrong & seen).sum() < max(2, 0.4 * wrong.sum()):
            continue
        if _close(got, moved, scale)[seen].mean() > 0.95 and _close(got, moved, scale)[wrong & seen].all():
            return f"which hold {text}"
    return ""


def _moved(wanted: Array) -> Iterator[tuple[str, Any, Array]]:
    """(words, the right answer elsewhere, where that is to be seen)."""
    everywhere = np.ones(wanted.shape, bool)
    rank = wanted.ndim
    if wanted.shape[-1] == wanted.shape[-2] > 1:
        yield "the right answer with rows and columns exchanged", wanted.swapaxes(-1, -2), everywhere
    for axis, name in ((-2, "rows"), (-1, "columns")):
        if wanted.shape[axis] > 1:
            yield f"the right answer with its {name} in reverse", np.flip(wanted, axis), everywhere
    if rank == 4:
        for axis, name in ((0, "image"), (1, "channel")):
            if wanted.shape[axis] > 1:
                first = np.broadcast_to(np.take(wanted, [0], axis), wanted.shape)
                yield f"the right answer of the first {name}", first, everywhere
                for period in (2, 3, 4, 8, 16, 32):
                    if period < wanted.shape[axis]:
                        again = np.take(wanted, np.arange(wanted.shape[axis]) % period, axis)
                        yield f"the right answer of {name} index % {period}", again, everywhere
    labels = _MAPS if rank == 4 else tuple(f"index {a}" for a in range(rank))
    for axis in range(rank):
        for shift in (1, -1, 2, -2, 3, -3):
            if abs(shift) >= wanted.shape[axis]:
                continue
            seen = np.ones(wanted.shape, bool)
            edge = [slice(None)] * rank
            edge[axis] = slice(0, shift) if shift > 0 else slice(shift, None)
            seen[tuple(edge)] = False
            words = f"the right answer, shifted by {abs(shift)} {labels[axis]}{'s' if abs(shift) > 1 else ''}"
            yield words, np.roll(wanted, shift, axis), seen
