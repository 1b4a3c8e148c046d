"""What the PTX runner says of a text that it does not take."""

from __future__ import annotations

from ..launch import KernelError


def refused(what: str, line: int) -> KernelError:
    """The error for PTX that is not known here, by its name and its line in the PTX."""
    return KernelError(f"the PTX runner does not know {what} (line {line} of the PTX)", kind="unsupported")
