"""What becomes of a candidate in a process of its own, as errors."""

from __future__ import annotations

from ..cuda.launch import KernelError
from ..errors import ConvkitError, MissingExtra

#: Kinds of errors that say nothing about a candidate: what the machine or the emulator lacks.
LACKING = ("unsupported", "no compiler", "missing package")


def kind_of(error: BaseException) -> str:
    """The kind of a `KernelError`; "missing package" of a `MissingExtra`; else nothing."""
    if isinstance(error, MissingExtra):
        return "missing package"
    return error.kind if isinstance(error, KernelError) else ""


class Lost(ConvkitError):
    """A candidate's process that gave no answer; the message is what became of it."""


class Raised(ConvkitError):
    """What a candidate raised, in one line, with its place.

    Attributes
    ----------
    kind : str
        As `kind_of` says it.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


class Misdeclared(ConvkitError):
    """What a candidate declares of a problem and cannot be so; the message is whole."""
