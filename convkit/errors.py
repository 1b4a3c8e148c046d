"""Every error that convkit raises on purpose, under one base class."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvkitError(Exception):
    """Base of all errors that convkit raises on purpose.

    Each one is also a `ValueError`, a `TypeError` or a `MemoryError`, so that callers who do not know
    convkit catch what they expect. A call that raises it has written nothing.

    Attributes
    ----------
    op : str
        Name of the op that was called, shown before the message; empty outside an op.
    """

    op: str = ""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.op}: {message}" if self.op else message


class ShapeError(ConvkitError, ValueError):
    """A rank, an extent or a size that does not fit."""


class DtypeError(ConvkitError, TypeError):
    """A dtype, an array kind or a device that does not fit."""


class OptionError(ConvkitError, ValueError):
    """An option (stride, momentum, preset, ...) outside its range, or a name that is not known."""


class NoImplementation(ConvkitError, ValueError):
    """No registered implementation accepts the problem; the message has each one's reason."""


class MissingExtra(ConvkitError, ImportError):
    """An optional package that is not installed; the message names the extra that brings it."""

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'convkit[{extra}]'")


class NotChecked(ConvkitError, ValueError):
    """An implementation that was to be used only if it has passed the gate, and has not."""


class OutOfMemory(ConvkitError, MemoryError):
    """The machine could not provide the memory; the message says how much was asked for."""


class ConvkitWarning(UserWarning):
    """Base of convkit's warnings."""


class UncheckedWarning(ConvkitWarning):
    """An implementation runs that has not passed the gate as it is now: `convkit check`."""


def unknown(what: str, name: object, known: Iterable[str]) -> OptionError:
    """The error for a name that is not known: lists the known ones and suggests the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return OptionError(f"unknown {what} {name!r}{hint} Known: {', '.join(names) or 'none'}")
