"""What becomes of a candidate in a process of its own, as errors."""

from __future__ import annotations

from ..errors import ConvkitError


class Lost(ConvkitError):
    """A candidate's process that gave no answer; the message is what became of it."""


class Raised(ConvkitError):
    """What a candidate raised, in one line, with its place.

    Attributes
    ----------
    kind : str
        Of a `KernelError`: its kind; else empty.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


class Misdeclared(ConvkitError):
    """What a candidate declares of a problem and cannot be so; the message is whole."""
