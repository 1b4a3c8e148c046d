"""What a step or an evaluation gives back: the outputs of `loss_summary`, read by the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ... import arrays
from ...arrays import Array


class Summary(NamedTuple):
    """The losses of a batch.

    Attributes
    ----------
    total : float
        Sum of the images' losses.
    errors, top5_errors : int
    finite : bool
        Whether every loss is finite.
    """

    total: float
    errors: int
    top5_errors: int
    finite: bool


#: Where each output of `loss_summary` lies in the memory of a `Results`: bytes, and their dtype.
_PARTS = {"total": (0, 8, np.float64), "errors": (8, 24, np.int64), "finite": (24, 28, np.int32)}


class Results:
    """Memory of the outputs of `loss_summary`: one piece, so that one copy brings them to the host.

    Parameters
    ----------
    device : str
    """

    def __init__(self, device: str, memory: Array | None = None) -> None:
        self._memory = arrays.empty((28,), "uint8", device) if memory is None else memory
        self._device = device
        #: The outputs by name, as parts of that memory.
        self.arrays = _parts(self._memory)

    def copy(self) -> Results:
        """A copy of what is queued by now; on a GPU the host does not wait for it."""
        with arrays.on(self._memory):
            return Results(self._device, self._memory.copy())

    def read(self) -> Summary:
        """The values; on a GPU the host waits for them."""
        here = self._memory if isinstance(self._memory, np.ndarray) else self._memory.get()
        parts = (here[start:stop].view(kind).tolist() for start, stop, kind in _PARTS.values())
        (total,), (first, five), (finite,) = parts
        return Summary(total, first, five, bool(finite))


def _parts(memory: Array) -> dict[str, Array]:
    return {name: memory[start:stop].view(kind) for name, (start, stop, kind) in _PARTS.items()}
