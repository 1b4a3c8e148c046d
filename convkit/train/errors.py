"""Errors of training: its data, its recipe, its output."""

from __future__ import annotations

from ..errors import ConvkitError


class DataError(ConvkitError, ValueError):
    """Labelled images that cannot be used: no such folder, no class, a damaged store, ..."""


class RunError(ConvkitError, ValueError):
    """A run's folder that cannot be used: not writable, in use, of another network, ..."""


class BadImage(DataError):
    """One file that is no image, or a damaged one; the message is the reason, without the file's name."""


class NotFinite(RunError):
    """A loss that is not finite: the run has ended with the weights before that step, which are saved."""


def one_line(message: object) -> str:
    """A message whose further lines list something, in one line."""
    first, *more = (line.strip() for line in str(message).splitlines() or [""])
    return " ".join([first, "; ".join(more)]) if more else first
