"""The gate's guarded memory on a GPU: every byte goes there and comes back, guard bands included.

They lie on CuPy's current device, on which the call is then run. Written to CuPy 14's
documentation and source.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..arrays import np_dtype
from .guarded import Guarded

#: Widest access of a kernel that could tell one address from another, and more.
ALIGNMENT = 128


class Twins:
    """Copies of guarded buffers on the GPU, at addresses of the same alignment."""

    def __init__(self, memories: Iterable[Guarded]) -> None:
        import cupy

        self.pairs: dict[int, tuple[Guarded, Any, int]] = {}
        for memory in memories:
            if id(memory) in self.pairs:
                continue  # an output in an input's place
            buffer = cupy.empty(memory.raw.size + ALIGNMENT, np.uint8)
            # CuPy's allocations are aligned to more than this: only the offset counts.
            shift = (memory.raw.ctypes.data - buffer.data.ptr) % ALIGNMENT
            buffer[shift : shift + memory.raw.size].set(memory.raw)
            self.pairs[id(memory)] = (memory, buffer, shift)

    def array(self, memory: Guarded) -> Any:
        """The tensor itself, between its bands."""
        _, buffer, shift = self.pairs[id(memory)]
        start = shift + memory.start
        flat = buffer[start : start + memory.bytes.size]
        return flat.view(np_dtype(memory.array.dtype.name)).reshape(memory.array.shape)

    def bring_back(self) -> None:
        """Wait for the GPU, and copy every byte back."""
        for memory, buffer, shift in self.pairs.values():
            memory.raw[...] = buffer[shift : shift + memory.raw.size].get()
