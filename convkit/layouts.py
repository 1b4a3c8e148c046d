"""Layouts of activations: NCHW, and nChw16c, in which the CPU's fast kernels compute.

nChw16c cuts the channels into blocks of 16 that lie side by side for each pixel: (N, ceil(C/16), H, W, 16).
A vector register then holds neighbouring channels of one pixel, and no kernel needs a shuffle. Channels
beyond C, in the last block, are zeros: whoever writes such a tensor writes them.

A network's plan keeps its activations so; arrays that a user passes stay NCHW.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from . import arrays
from .errors import OptionError
from .geometry import Shape

NCHW, BLOCKED = "NCHW", "nChw16c"
#: Channels in a block.
BLOCK = 16

#: What an implementation may declare: one for all, or its input's and its output's.
DECLARED = (NCHW, BLOCKED, f"{NCHW}>{BLOCKED}", f"{BLOCKED}>{NCHW}")
#: Tensors on the input's side of an op, and on its output's; all others (weights, sums) have one layout.
_SIDES = {"x": 0, "dx": 0, "y": 1, "dy": 1, "argmax": 1}


@dataclass(frozen=True, eq=False)
class Blocked:
    """A tensor in nChw16c.

    Attributes
    ----------
    data : ndarray, (N, ceil(C/16), H, W, 16)
    C : int
        Channels; those beyond them in the last block are zeros.
    """

    data: np.ndarray
    C: int

    @property
    def shape(self) -> Shape:
        """Logical shape, (N, C, H, W)."""
        N, _, H, W, _ = self.data.shape
        return N, self.C, H, W

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @classmethod
    def empty(cls, shape: Shape, dtype: str) -> Blocked:
        """A new tensor of that logical shape, not filled."""
        return cls(arrays.empty(physical(shape), dtype), shape[1])

    @classmethod
    def of(cls, array: np.ndarray) -> Blocked:
        """A copy of an NCHW array."""
        return cls(block(array), array.shape[1])

    def nchw(self) -> np.ndarray:
        """A copy in NCHW."""
        return unblock(self.data, self.C)


def physical(shape: Shape) -> Shape:
    """Shape of the memory of a blocked tensor whose logical shape is (N, C, H, W)."""
    N, C, H, W = shape
    return N, -(-C // BLOCK), H, W, BLOCK


def block(array: np.ndarray) -> np.ndarray:
    """NCHW to nChw16c, with zeros in the spare channels; the plain definition, not a fast one."""
    C = array.shape[1]
    target = arrays.empty(physical(array.shape), array.dtype.name)
    if C % BLOCK:
        target[:, -1] = 0
    for first in range(0, C, BLOCK):
        part = array[:, first : first + BLOCK]
        target[:, first // BLOCK, :, :, : part.shape[1]] = part.transpose(0, 2, 3, 1)
    return target


def unblock(data: np.ndarray, C: int) -> np.ndarray:
    """nChw16c to NCHW."""
    N, blocks, H, W, _ = data.shape
    return np.ascontiguousarray(data.transpose(0, 1, 4, 2, 3).reshape(N, blocks * BLOCK, H, W)[:, :C])


def of(layout: str, tensor: str) -> str:
    """Layout of one tensor of an implementation that declares "NCHW", "nChw16c", or "input>output"."""
    side = _SIDES.get(tensor)
    if side is None:
        return NCHW
    first, _, second = layout.partition(">")
    return second if side and second else first


def named(tensors: dict[str, bool]) -> str:
    """The layout that an implementation must declare, where these tensors are blocked or not."""
    sides: list[str | None] = [None, None]
    for tensor, is_blocked in tensors.items():
        side, layout = _SIDES.get(tensor), BLOCKED if is_blocked else NCHW
        if side is None:
            if is_blocked:
                raise OptionError(f"{tensor} has one layout: it must be an array, not {BLOCKED}")
        elif sides[side] not in (None, layout):
            raise OptionError(f"{tensor} must be in {sides[side]}, as the others are, not in {layout}")
        else:
            sides[side] = layout
    first, second = sides
    return joined(first or second or NCHW, second or first or NCHW)


def joined(x_layout: str, y_layout: str) -> str:
    """The declaration for an input and an output in these layouts."""
    return x_layout if x_layout == y_layout else f"{x_layout}>{y_layout}"


def same(layout: str, other: str) -> bool:
    """Whether two declarations mean the same: "NCHW" is "NCHW>NCHW"."""
    return all(of(layout, tensor) == of(other, tensor) for tensor in ("x", "y"))
