"""The gate's guarded memory on a GPU: every byte goes there and comes back, guard bands included.

They lie on CuPy's current device, on which the call is then run. Written to CuPy 14's
documentation and source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..arrays import np_dtype

#: Widest access of a kernel that could tell one address from another, and more.
ALIGNMENT = 128


class Memory(Protocol):
    """A tensor somewhere in a block of memory: `raw` is the whole block, `start` where the tensor begins."""

    raw: np.ndarray
    start: int
    array: np.ndarray


@dataclass
class Placed:
    """A tensor in a block of memory that another process fills and looks at."""

    raw: np.ndarray
    start: int
    array: np.ndarray


class Twins:
    """Copies of blocks on the GPU, at addresses of the same alignment."""

    def __init__(self, memories: Iterable[Memory]) -> None:
        import cupy

        self.pairs: dict[int, tuple[np.ndarray, Any, int]] = {}
        for memory in memories:
            raw = memory.raw
            if raw.ctypes.data in self.pairs:
                continue  # an output in an input's place
            buffer = cupy.empty(raw.size + ALIGNMENT, np.uint8)
            # CuPy's allocations are aligned to more than this: only the offset counts.
            shift = (raw.ctypes.data - buffer.data.ptr) % ALIGNMENT
            buffer[shift : shift + raw.size].set(raw)
            self.pairs[raw.ctypes.data] = (raw, buffer, shift)

    def array(self, memory: Memory) -> Any:
        """The tensor itself, between its bands."""
        _, buffer, shift = self.pairs[memory.raw.ctypes.data]
        start = shift + memory.start
        flat = buffer[start : start + memory.array.nbytes]
        return flat.view(np_dtype(memory.array.dtype.name)).reshape(memory.array.shape)

    def bring_back(self) -> None:
        """Wait for the GPU, and copy every byte back."""
        for raw, buffer, shift in self.pairs.values():
            raw[...] = buffer[shift : shift + raw.size].get()
