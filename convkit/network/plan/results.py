"""What a step or an evaluation gives back: the outputs of `loss_summary`, read by the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ... import arrays
from ...arrays import Array
from .graph import FINITE, SOUND


class Summary(NamedTuple):
    """The losses of a batch.

    Attributes
    ----------
    total : float
        Sum of the images' losses.
    errors, top5_errors : int
    finite : bool
        Whether every loss is finite.
    sound : bool
        Whether all gradients of the last step are, too; the same as `finite` where the loss is not scaled.
    """

    total: float
    errors: int
    top5_errors: int
    finite: bool
    sound: bool


#: Where each output of `loss_summary` lies in the memory of a `Results`: bytes, and their dtype. Behind them
#: is the flag that a step with a loss scale has besides.
_PARTS = {
    "total": (0, 8, np.float64), "errors": (8, 24, np.int64), FINITE: (24, 28, np.int32),
    SOUND: (28, 32, np.int32),
}  # fmt: skip


class Results:
    """Memory of the outputs of `loss_summary`: one piece, so that one copy brings them to the host.

    Parameters
    ----------
    device : str
    flag : str
        The value that updates read.
    """

    def __init__(self, device: str, flag: str = FINITE, memory: Array | None = None) -> None:
        self._memory = arrays.empty((32,), "uint8", device) if memory is None else memory
        self._device, self._flag = device, flag
        #: Of a copy on a GPU: what says that it is there, and a stream that waits for nothing else.
        self._ready: Any = None
        self._side: Any = None
        #: The outputs by name, as parts of that memory.
        self.arrays = _parts(self._memory)

    def copy(self) -> Results:
        """A copy of what is queued by now; on a GPU the host does not wait for it.

        To `read` it waits for that, and not for what is queued later.
        """
        with arrays.on(self._memory):
            copy = Results(self._device, self._flag, self._memory.copy())
            if not isinstance(self._memory, np.ndarray):
                import cupy

                self._side = self._side or cupy.cuda.Stream(non_blocking=True)
                copy._side, copy._ready = self._side, cupy.cuda.Event(block=True, disable_timing=True)
                copy._ready.record()
        return copy

    def read(self) -> Summary:
        """The values; on a GPU the host waits for them."""
        here = self._host()
        parts = {name: here[start:stop].view(kind).tolist() for name, (start, stop, kind) in _PARTS.items()}
        (total,), (first, five) = parts["total"], parts["errors"]
        return Summary(total, first, five, bool(parts[FINITE][0]), bool(parts[self._flag][0]))

    def _host(self) -> np.ndarray:
        if isinstance(self._memory, np.ndarray):
            return self._memory
        with arrays.on(self._memory):
            if self._ready is None:
                return self._memory.get()
            with self._side:
                self._side.wait_event(self._ready)
                return self._memory.get()


def _parts(memory: Array) -> dict[str, Array]:
    return {name: memory[start:stop].view(kind) for name, (start, stop, kind) in _PARTS.items()}
