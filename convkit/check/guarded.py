"""Memory of one tensor between two guard bands, which show what was written outside of it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from .. import layouts
from ..arrays import np_dtype

#: Bytes before and behind each tensor: a row, or a small plane.
GUARD = 16 * 1024
#: The same, to see where a write goes that misses these bands and spoils whatever else is there.
WIDE = 4 * 2**20
NAN, LARGE, SMALL = 0xFF, 0x5A, 0x40


class Guarded:
    """Memory of one tensor between two guard bands.

    `put` and `get` speak NCHW; the memory is in the layout that the implementation reads and writes. `empty`
    returns bytes, in whatever state; NumPy's by default.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        band: int,
        *,
        aligned: bool = True,
        layout: layouts.Layout = layouts.NCHW,
        empty: Callable[[int], np.ndarray] | None = None,
        guard: int = GUARD,
    ) -> None:
        kind = np_dtype(dtype)
        self.layout, self.shape = layout, shape
        shape = layout.physical(shape)
        size = prod(shape) * kind.itemsize
        whole = size + 2 * guard + 128
        self.raw = raw = np.empty(whole, np.uint8) if empty is None else empty(whole)
        self.start = start = guard + -(raw.ctypes.data + guard) % 64 + (0 if aligned else kind.itemsize)
        self.before, self.bytes, self.behind = raw[:start], raw[start : start + size], raw[start + size :]
        self.before.fill(band)
        self.behind.fill(band)
        self.band = band
        self.array = self.bytes.view(kind).reshape(shape)

    def put(self, array: np.ndarray) -> None:
        """Fill the memory with an NCHW array."""
        self.layout.pack(array, self.array)

    def get(self, copy: bool = True) -> np.ndarray:
        """The memory in NCHW; a copy, unless that is not asked for."""
        array = self.layout.unpack(self.array, self.shape)
        return array.copy() if copy and array is self.array else array

    def spare(self) -> str:
        """What is wrong with the channels beyond the last, which must be zeros; or an empty string."""
        if self.array.dtype.kind in "iu" or not self.array.size:
            return ""
        spare = self.layout.padding(self.array, self.shape)
        return "left its spare channels other than zero" if spare is not None and np.any(spare) else ""

    def trespass(self) -> str:
        """Where the bands were written to, or an empty string."""
        for place, band in (("before its start", self.before[::-1]), ("past its end", self.behind)):
            if band.tobytes() == bytes([self.band]) * band.size:  # a few microseconds
                continue
            changed = np.flatnonzero(band != self.band)
            if changed.size:
                return f"{changed.size} bytes {place}, the nearest {int(changed[0]) + 1} bytes away"
        return ""
