"""Layouts: how the elements of a tensor lie in memory, as rows of one table.

Users' arrays are NCHW, and weights KCRS: the axes in the order of the logical shape. Implementations may
declare others, a network's plan chooses among them, and `Tensor` is an array together with its layout.

In nChw16c the channels are cut into blocks of 16 that lie side by side for each pixel: a vector register
then holds neighbouring channels of one pixel. Its last block may have padding channels, beyond C: they are
zeros, and whatever writes such a tensor writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import overload

import numpy as np

from . import arrays
from .arrays import Array, GpuArray
from .errors import OptionError, ShapeError, unknown
from .op import Shape


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes
    ----------
    name : str
    axes : tuple of int
        Axes of the logical shape in the order of memory, the innermost last. Empty for the logical order
        itself, which fits a tensor of any rank.
    block : int
        Channels (axis 1) in a block, which is then one more axis, the innermost; 0 for none. The last block
        is padded with zeros.
    """

    name: str
    axes: tuple[int, ...] = ()
    block: int = 0

    def physical(self, shape: Shape) -> Shape:
        """Shape of the memory of a tensor of that logical shape."""
        if not self.axes:
            return tuple(shape)
        if len(shape) != len(self.axes):
            raise ShapeError(
                f"a tensor in {self.name} must have {len(self.axes)} dimensions, not {len(shape)}: {shape}"
            )
        extents = list(shape)
        if self.block:
            extents[1] = -(-shape[1] // self.block)
        return (*(extents[axis] for axis in self.axes), *((self.block,) if self.block else ()))

    def moves(self, shape: Shape) -> bool:
        """Whether a tensor of that shape lies in another order than the logical one.

        It does not where all but one of the axes that change places have one element, or where it is empty.
        """
        order = [axis for axis in self.axes if shape[axis] != 1]
        return 0 not in shape and (bool(self.block) or order != sorted(order))

    def pack(self, array: Array, memory: Array) -> None:
        """Fill memory of `physical` shape from an array in the logical order, on the same device."""
        if not self.axes:
            memory[...] = array
        elif not self.block:
            memory[...] = array.transpose(self.axes)
        else:
            C = array.shape[1]
            if C % self.block:
                memory[:, -1] = 0
            for first in range(0, C, self.block):
                part = array[:, first : first + self.block]
                memory[:, first // self.block, ..., : part.shape[1]] = part.transpose(0, 2, 3, 1)

    def packed(self, array: np.ndarray) -> np.ndarray:
        """New memory with the values of a NumPy array in the logical order."""
        memory = arrays.empty(self.physical(array.shape), array.dtype.name)
        self.pack(array, memory)
        return memory

    @overload
    def unpack(self, memory: np.ndarray, shape: Shape) -> np.ndarray: ...

    @overload
    def unpack(self, memory: GpuArray, shape: Shape) -> GpuArray: ...

    def unpack(self, memory: Array, shape: Shape) -> Array:
        """The elements in the logical order: a view where the layout is that, else a copy."""
        if not self.axes:
            return memory
        if not self.block:
            back = tuple(int(i) for i in np.argsort(self.axes))
            return arrays.contiguous(memory.transpose(back), memory.dtype.name)
        N, C, H, W = shape
        whole = memory.transpose(0, 1, 4, 2, 3).reshape(N, memory.shape[1] * self.block, H, W)
        return arrays.contiguous(whole[:, :C], memory.dtype.name)

    @overload
    def padding(self, memory: np.ndarray, shape: Shape) -> np.ndarray | None: ...

    @overload
    def padding(self, memory: GpuArray, shape: Shape) -> GpuArray | None: ...

    def padding(self, memory: Array, shape: Shape) -> Array | None:
        """The padding channels, which are to be zeros; None where there are none."""
        used = shape[1] % self.block if self.block else 0
        return memory[:, -1][..., used:] if used else None


NCHW = Layout("NCHW")
NHWC = Layout("NHWC", (0, 2, 3, 1))
NCHW16C = Layout("nChw16c", (0, 1, 2, 3), 16)
KCRS = Layout("KCRS")
KRSC = Layout("KRSC", (0, 2, 3, 1))

ACTIVATIONS = {layout.name: layout for layout in (NCHW, NHWC, NCHW16C)}
WEIGHTS = {layout.name: layout for layout in (KCRS, KRSC)}

#: The group of tensors that a tensor of an op belongs to; those of a group have one layout. All others (sums,
#: rows) have their logical order.
_GROUPS = {"x": "x", "dx": "x", "y": "y", "dy": "y", "argmax": "y", "w": "w", "dw": "w"}


@dataclass(frozen=True)
class Declared:
    """The layouts in which an implementation computes: of its input's side, its output's, and its weights."""

    x: Layout
    y: Layout
    w: Layout

    def of(self, tensor: str) -> Layout:
        """Layout of one tensor of the op."""
        group = _GROUPS.get(tensor)
        return NCHW if group is None else getattr(self, group)

    def __str__(self) -> str:
        sides = self.x.name if self.x == self.y else f"{self.x.name}>{self.y.name}"
        return sides if self.w == KCRS else f"{sides}, {self.w.name}"


@lru_cache(maxsize=1024)
def declared(text: str) -> Declared:
    """What an implementation declares: "NCHW", "NCHW>nChw16c" (input>output), "NHWC, KRSC" (and weights).

    Raises
    ------
    OptionError
        If a layout is not known; lists those that are.
    """
    sides, _, weights = text.partition(",")
    x, _, y = sides.partition(">")
    found = []
    for name, rows in ((x, ACTIVATIONS), (y or x, ACTIVATIONS), (weights or KCRS.name, WEIGHTS)):
        if name.strip() not in rows:
            raise unknown("layout", name.strip(), rows)
        found.append(rows[name.strip()])
    return Declared(*found)


def of(text: str, tensor: str) -> Layout:
    """Layout of one tensor of an implementation that declares `text`."""
    return declared(text).of(tensor)


def joined(x: Layout, y: Layout, w: Layout = KCRS) -> str:
    """The declaration for an input, an output and weights in these layouts."""
    return str(Declared(x, y, w))


def same(text: str, other: str) -> bool:
    """Whether two declarations mean the same: "NCHW" is "NCHW>NCHW"."""
    return text == other or declared(text) == declared(other)


def named(tensors: Mapping[str, Layout]) -> str:
    """The declaration that fits tensors in these layouts; a side that has none follows the other."""
    sides: dict[str, Layout] = {}
    for tensor, layout in tensors.items():
        group = _GROUPS.get(tensor)
        if group is None:
            if layout.axes:
                raise OptionError(f"{tensor} has one layout: it must be an array, not {layout.name}")
            continue
        fits = WEIGHTS if group == "w" else ACTIVATIONS
        if layout.axes and layout.name not in fits:
            raise OptionError(f"{tensor} cannot be in {layout.name}: known are {', '.join(fits)}")
        if sides.setdefault(group, layout) != layout:
            raise OptionError(
                f"{tensor} must be in {sides[group].name}, as the others are, not in {layout.name}"
            )
    x = sides.get("x") or sides.get("y") or NCHW
    w = sides.get("w", KCRS)
    return joined(x, sides.get("y") or x, w if w.axes else KCRS)


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array in a layout.

    Attributes
    ----------
    data : Array
        NumPy's or CuPy's, of `layout.physical(shape)`.
    layout : Layout
    shape : tuple of int
        The logical shape, (N, C, H, W).
    """

    data: Array
    layout: Layout
    shape: Shape

    def __post_init__(self) -> None:
        if row_of(self.layout.name) != self.layout:  # implementations go by the name
            raise OptionError(f"{self.layout} is not the layout of that name")
        wanted = self.layout.physical(self.shape)
        if tuple(self.data.shape) != wanted:
            raise OptionError(
                f"a tensor {self.shape} in {self.layout.name} has memory {wanted}, not {self.data.shape}"
            )

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its memory, padding channels among them."""
        return int(self.data.nbytes)

    @property
    def size(self) -> int:
        """Elements of its logical shape."""
        return prod(self.shape)

    @classmethod
    def empty(cls, shape: Shape, dtype: str, layout: str, device: str = "cpu") -> Tensor:
        """A new tensor of that logical shape, not filled.

        Parameters
        ----------
        shape : (N, C, H, W)
        dtype : str
        layout : str
            Its name: "NHWC", "nChw16c", "KRSC", ...
        device : {"cpu", "cuda", "cuda:1", ...}
        """
        row = row_of(layout)
        return cls(arrays.empty(row.physical(shape), dtype, device), row, tuple(shape))

    @classmethod
    def of(cls, array: Array, layout: str) -> Tensor:
        """A copy of an array in the logical order: NumPy's, CuPy's, or an object with DLPack."""
        array = arrays.view("array", array)
        tensor = cls.empty(array.shape, array.dtype.name, layout, arrays.place(array))
        with arrays.on(array):
            tensor.layout.pack(array, tensor.data)
        return tensor

    def logical(self) -> Array:
        """The elements in the logical order (NCHW): an array, a copy unless the layout is that."""
        with arrays.on(self.data):
            return self.layout.unpack(self.data, self.shape)


def row_of(name: str) -> Layout:
    """The layout of that name.

    Raises
    ------
    OptionError
        If there is none; lists those that there are.
    """
    rows = {**ACTIVATIONS, **WEIGHTS}
    if name not in rows:
        raise unknown("layout", name, rows)
    return rows[name]
