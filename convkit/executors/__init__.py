"""What runs a kernel: `cuda` on a GPU, `emulator` on the CPU. Here is what both have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConvkitError


@dataclass(frozen=True)
class Argument:
    """An argument of a launch.

    Attributes
    ----------
    name : str
        The kernel's parameter, as reports call it.
    value : array, scalar or None
        A contiguous array is passed as a pointer, None as the null pointer; a NumPy scalar, or a structured
        NumPy array of size one, by value.
    output : bool
        Whether the kernel may write to the array. Under the emulator's check mode it may then read only what
        this launch has written, or what an earlier one has left in the same array object.
    reads : bool
        Of an output: whether its old content matters to the kernel (a sum that goes on, an update in place).
    """

    name: str
    value: Any
    output: bool = False
    reads: bool = False


class KernelError(ConvkitError, RuntimeError):
    """A kernel that does not compile, or that did what it must not; what it was to write is as it was before.

    Attributes
    ----------
    kernel, kind : str
        The entry point; what happened, in a few words ("out of bounds", "race", "timeout", ...).
    file, line : str, int
        Where in the user's source; "" and 0 where that is not known.
    other_file, other_line : str, int
        The second place, where two are concerned: a race's earlier access, the other barrier.
    block, thread : tuple of int or None
    argument : str
        Name of the argument concerned, or "".
    bytes_past_end : int or None
        How far beyond the argument's last byte an access begins (0: right behind it); negative: how far
        before its first byte.
    log : str
        The compiler's whole output.
    """

    def __init__(
        self,
        message: str,
        *,
        kernel: str = "",
        kind: str = "",
        file: str = "",
        line: int = 0,
        other_file: str = "",
        other_line: int = 0,
        block: tuple[int, ...] | None = None,
        thread: tuple[int, ...] | None = None,
        argument: str = "",
        bytes_past_end: int | None = None,
        log: str = "",
    ) -> None:
        super().__init__(message)
        self.kernel = kernel
        self.kind = kind
        self.file = file
        self.line = line
        self.other_file = other_file
        self.other_line = other_line
        self.block = block
        self.thread = thread
        self.argument = argument
        self.bytes_past_end = bytes_past_end
        self.log = log
