"""The result of a step or an evaluation: the loss, and counts of errors."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Loss(float):
    """A mean loss: a float, with counts of errors of the same batch.

    Attributes
    ----------
    errors, top5_errors : int
        Images for which the label is not the network's first class, or not among its first five.
    images : int
    finite : bool
        Whether every image's loss is finite. If not, the step has changed no weight and no velocity.
    overflow : bool
        Whether a gradient of a step in float16 is not finite though the loss is. The step has then changed no
        weight and no velocity, and halved the loss scale: now and then, that is as it should be.
    """

    errors: int
    top5_errors: int
    images: int
    finite: bool
    overflow: bool

    def __new__(
        cls, value: float, errors: int = 0, top5_errors: int = 0, images: int = 0, finite: bool = True,
        overflow: bool = False,
    ) -> Loss:  # fmt: skip
        loss = super().__new__(cls, value)
        loss.errors, loss.top5_errors, loss.images = errors, top5_errors, images
        loss.finite, loss.overflow = finite, overflow
        return loss

    def __getnewargs__(  # type: ignore[override]  # for copies
        self,
    ) -> tuple[float, int, int, int, bool, bool]:
        return float(self), self.errors, self.top5_errors, self.images, self.finite, self.overflow


class PendingLoss:
    """The loss of a step that a GPU may still have to do: what `Network.step` returns for ``sync=False``.

    It is this step's own, whatever the network does afterwards. ``float(pending)`` waits as well.
    """

    def __init__(self, read: Callable[[], Loss]) -> None:
        self._read: Callable[[], Loss] | None = read
        self._loss: Loss | None = None
        self._reading = threading.Lock()

    def wait(self) -> Loss:
        """The loss; the host waits until the GPU has done the step, and for no later one.

        Returns
        -------
        loss : Loss
        """
        with self._reading:
            if self._read is not None:
                self._loss, self._read = self._read(), None  # what it has read is kept on the GPU no longer
            assert self._loss is not None
            return self._loss

    def __float__(self) -> float:
        return float(self.wait())

    def __repr__(self) -> str:
        return "PendingLoss()" if self._loss is None else f"PendingLoss({self._loss!r})"
