"""The result of a step or an evaluation: the loss, and counts of errors."""

from __future__ import annotations


class Loss(float):
    """A mean loss: a float, with counts of errors of the same batch.

    Attributes
    ----------
    errors, top5_errors : int
        Images for which the label is not the network's first class, or not among its first five.
    images : int
    finite : bool
        Whether every image's loss is finite. If not, the step has changed no weight and no velocity.
    """

    errors: int
    top5_errors: int
    images: int
    finite: bool

    def __new__(
        cls, value: float, errors: int = 0, top5_errors: int = 0, images: int = 0, finite: bool = True
    ) -> Loss:
        loss = super().__new__(cls, value)
        loss.errors, loss.top5_errors, loss.images, loss.finite = errors, top5_errors, images, finite
        return loss

    def __getnewargs__(self) -> tuple[float, int, int, int, bool]:  # type: ignore[override]  # for copies
        return float(self), self.errors, self.top5_errors, self.images, self.finite
