"""An item's memory, its inputs, and what right outputs are, part by part.

Every timed call gets inputs that no call had before. To draw normal numbers for each call would take longer
than the call; so each round draws two pools for each input, somewhat larger than it, and each call gets the
sum of a window of each, which begin at random places. With one window the inputs of a round would be
shifted copies of each other, and so would most of the outputs. Nothing is seeded: what an entry can
predict, it can compute beforehand.

A part is a slice of the problem that the float64 reference can be asked about alone: some images, or, where
the op sums over images, some filters. One part is cheap enough to look at between calls; all of them are the
whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ... import arrays
from ...arrays import np_dtype
from ...check.guarded import NAN, Guarded
from ...check.tolerance import Expected, expected
from ...op import OPS, Problem, Tensors

#: Places at which the window of a pool may begin.
SLACK = 4096
#: Taken before any entry is there, which might put others in their place.
_Generator, _Bits = np.random.Generator, np.random.PCG64
#: Elements by which the pool of an input that is no random numbers is larger, about: by whole rows, at least
#: `ROWS` of them.
MORE, ROWS = 2**18, 8
#: Elements of one part of a whole comparison, about.
PART = 2**21


# ---------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------
class Memory:
    """The tensors of an item, between guard bands on a CPU, in memory that `empty` gives (NumPy's).

    Attributes
    ----------
    inputs, outputs : dict of str to array
        What entries bind; inputs are read-only, an absent one is None.
    """

    def __init__(
        self, item: Any, device: str = "cpu", empty: Callable[[int], np.ndarray] | None = None
    ) -> None:
        op, problem = OPS[item.op], item.problem
        self._empty = empty
        self.item, self.device = item, device
        self._guarded: dict[str, Guarded] = {}
        self._pools: dict[str, list[np.ndarray]] = {}
        self._device_pools: dict[str, list[Any]] = {}
        self._start: dict[tuple[str, int], int] = {}
        self._windows: dict[str, list[np.ndarray]] = {}
        # Tensors that mean something only by whole rows, and by how many of these their pools are larger.
        self._rows: dict[str, int] = {}
        self._rng = _Generator(_Bits(secrets.randbits(128)))
        self._own = {name: self._tensor(problem, name) for name in item.inputs}
        self.outputs = {name: self._tensor(problem, name) for name in op.outputs}
        self.inputs: dict[str, Any] = dict.fromkeys(op.inputs)
        for name, array in self._own.items():
            self.inputs[name] = array
            if device == "cpu":
                self.inputs[name] = array.view()
                self.inputs[name].flags.writeable = False

    def _tensor(self, problem: Problem, name: str) -> Any:
        shape, dtype = problem.shape(name), problem.dtype_of(name)
        if self.device != "cpu":
            return arrays.empty(shape, dtype, self.device)
        try:
            self._guarded[name] = Guarded(shape, dtype, NAN, empty=self._empty)
        except MemoryError:
            arrays.empty(shape, dtype)  # says how much was asked for
            raise
        return self._guarded[name].array

    def draw(self) -> None:
        """New pools: once a round."""
        self._pools = {name: self._draw(name) for name in self.item.inputs}
        if self.device != "cpu":  # so that a call's windows are added within the device
            import cupy

            self._device_pools = {
                name: [cupy.asarray(p) for p in pools] for name, pools in self._pools.items()
            }

    def _draw(self, name: str) -> list[np.ndarray]:
        problem = self.item.problem
        shape, dtype = problem.shape(name), np_dtype(problem.dtype_of(name))
        if name in self._rows:  # what is no random number is dear, and the values beside it change
            return self._pools[name]
        if (special := self._special(name)) is not None:
            return [np.ascontiguousarray(special, dtype)]
        pools = [self._rng.standard_normal(prod(shape) + SLACK, np.float32) for _ in range(2)]
        # Their sum shall have a standard deviation of 1.
        return [(pool * np.float32(0.5**0.5)).astype(dtype, copy=False) for pool in pools]

    def _special(self, name: str) -> np.ndarray | None:
        """Values of an input that is no random numbers, in some rows more than the item's; else None."""
        op, problem = OPS[self.item.op], self.item.problem
        shape = problem.shape(name)
        more = max(ROWS, min(SLACK, MORE // max(1, prod(shape[1:]))))
        wider = rows_of(self.item.op, problem, shape[0] + more) if op.slices != "filters" else problem
        found = op.cases.values(name, wider, self._rng, "normal", lambda array: None)
        if found is not None:
            self._rows[name] = len(found) - shape[0]
        return found

    def refresh(self) -> None:
        """New values for every input."""
        for name, pools in self._pools.items():
            shape = self.item.problem.shape(name)
            places = self._rows.get(name, SLACK)
            self._windows[name], given = [], []
            for number, pool in enumerate(pools):
                # Anywhere but where it began last.
                start = (self._start.get((name, number), 0) + int(self._rng.integers(1, places))) % places
                self._start[name, number] = start
                window = slice(start, start + (shape[0] if name in self._rows else prod(shape)))
                self._windows[name].append(pool[window].reshape(shape))
                if self._device_pools:
                    given.append(self._device_pools[name][number][window].reshape(shape))
            _add(given or self._windows[name], self._own[name])

    def _now(self, name: str) -> np.ndarray:
        """An input as it was written, on the host."""
        windows = self._windows[name]
        if len(windows) == 1:
            return windows[0]
        now = np.empty_like(windows[0])
        _add(windows, now)
        return now

    def poison(self) -> None:
        """NaN in the outputs; 255 in integers."""
        for array in self.outputs.values():
            fill_nan(array)

    @property
    def values(self) -> Tensors:
        """The inputs as they were written, on the host, in the op's order."""
        inputs = OPS[self.item.op].inputs
        return {name: self._now(name) if name in self._windows else None for name in inputs}

    def changed(self) -> str:
        """An input that is not what was written, bit for bit; or an empty string."""
        for name in self._windows:
            if not np.array_equal(bits(host(self._own[name])), bits(self._now(name))):
                return name
        return ""

    def restore(self) -> None:
        """Write the inputs and the bands again, for the next entry."""
        for name in self._windows:
            arrays.assign(self._own[name], self._now(name))
        for memory in self._guarded.values():
            memory.before.fill(memory.band)
            memory.behind.fill(memory.band)

    def trespass(self) -> str:
        """Where the guard bands were written to, or an empty string."""
        for name, memory in self._guarded.items():
            if where := memory.trespass():
                return f"{name}: {where}"
        return ""


def _add(windows: list[Any], to: Any) -> None:
    """to = the one window, or the sum of the two."""
    if len(windows) == 1:
        arrays.assign(to, windows[0])
    elif isinstance(to, np.ndarray):
        np.add(windows[0], windows[1], out=to)
    else:
        import cupy

        cupy.add(windows[0], windows[1], out=to)


def host(array: Any) -> np.ndarray:
    """The array as NumPy's: itself, or a copy of what lies on a device."""
    return array if isinstance(array, np.ndarray) else array.get()


def bits(array: np.ndarray) -> np.ndarray:
    """The array as unsigned integers, flat."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def fill_nan(array: Any) -> None:
    """All bits ones: a NaN that no arithmetic makes, so that it shows what was left as it was."""
    if array.size:
        array.reshape(-1).view(np.uint8).fill(255)


def nan_like(array: np.ndarray) -> np.ndarray:
    """One element of that NaN."""
    return np.full(array.itemsize, 255, np.uint8).view(array.dtype)


# ---------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------
#: Where tensors of a part lie in the whole ones, by name; those that are not named are whole.
Places = Mapping[str, "tuple[slice, ...]"]


@dataclass(frozen=True)
class Part:
    """A slice of an item's problem, with the places of its tensors in the whole ones."""

    op: str
    problem: Problem
    options: Mapping[str, Any]
    inputs: Places
    outputs: Places

    def expected(self, values: Tensors) -> dict[str, Expected]:
        """What the outputs should be there, with the bounds of the gate."""
        mine = {
            name: None if array is None else np.ascontiguousarray(array[self.inputs.get(name, ())])
            for name, array in values.items()
        }
        return expected(self.op, self.problem, mine, dict(self.options))

    def of(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of the outputs that are given, there."""
        return {name: array[self.outputs[name]] for name, array in outputs.items() if name in self.outputs}


def extent(item: Any) -> int:
    """How many slices there are: images, filters, or 1 where the op is not cut (dropout counts elements)."""
    slices = OPS[item.op].slices
    if slices == "rows":
        return int(item.problem.shape(OPS[item.op].outputs[0])[0])
    return int(item.problem.K) if slices == "filters" else 1


def part(item: Any, start: int, stop: int) -> Part:
    """Slices start to stop; fewer where a group of filters ends."""
    g, op = item.problem, OPS[item.op]
    here = slice(start, stop)
    if op.slices == "rows":
        rows: Places = {name: (here,) for name in item.inputs if name not in op.whole}
        problem = rows_of(item.op, g, stop - start)
        return Part(item.op, problem, item.options, rows, dict.fromkeys(op.outputs, (here,)))
    if op.slices == "filters":
        return _filters(item, g, here)
    return Part(item.op, g, item.options, {}, dict.fromkeys(op.outputs, ()))


def _filters(item: Any, g: Any, here: slice) -> Part:
    every = slice(None)
    inputs: Places = {"dy": (every, here), "w": (here,), "v": (here,)}
    if getattr(g, "groups", 1) > 1:
        size, channels = g.K // g.groups, g.C // g.groups
        group = here.start // size
        here = slice(here.start, min(here.stop, (group + 1) * size))
        inputs = {"dy": (every, here), "x": (every, slice(group * channels, (group + 1) * channels))}
        g = replace(g, C=channels, groups=1)
    problem = replace(g, K=here.stop - here.start)
    return Part(item.op, problem, item.options, inputs, dict.fromkeys(OPS[item.op].outputs, (here,)))


def rows_of(op: str, g: Any, count: int) -> Problem:
    """The problem with so many images, or rows."""
    stretch = OPS[op].cases.extents.get("N")
    return stretch(g, count) if stretch else replace(g, dims=(count, *g.dims[1:]))


def parts(item: Any) -> Iterator[Part]:
    """The whole, in parts of a bearable size."""
    total = extent(item)
    sizes = [prod(item.problem.shape(name)) for name in (*item.inputs, *OPS[item.op].outputs)]
    step = max(1, int(total * PART / max(sizes)))
    start = 0
    while start < total:
        found = part(item, start, min(start + step, total))
        yield found
        start += max(1, _length(found, total))


def any_part(item: Any, rng: Any) -> Part:
    """One slice, anywhere; at least a thousand elements of output, so that an RMS says something."""
    total = extent(item)
    size = prod(item.problem.shape(OPS[item.op].outputs[0]))
    step = min(total, max(1, -(-1000 * total // max(1, size))))
    start = rng.randrange(total - step + 1)
    return part(item, start, start + step)


def _length(found: Part, total: int) -> int:
    place = next(iter(found.outputs.values()))
    return place[0].stop - place[0].start if place else total
