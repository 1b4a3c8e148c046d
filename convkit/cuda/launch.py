"""What runs a kernel: `cuda` on a GPU, `emulator` on the CPU, `null` not at all. Here is what they share.

An executor compiles translation units to functions. A function is bound once to a grid, a block and the names
of its parameters; what is bound is then called with the arguments that the executor has packed.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from ..errors import ConvkitError

Extent = tuple[int, int, int]
#: A function with its grid, block and shared memory: takes the packed arguments.
Bound = Callable[[tuple[Any, ...]], None]
#: CuPy's `Function`, or what stands in its place: takes grid, block, arguments and bytes of shared memory.
Launch = Callable[[Extent, Extent, tuple[Any, ...], int], None]
T = TypeVar("T")

#: Prepared launches that an executor keeps; a network has some seventy.
KEPT = 1024


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

    def given(self, value: Any) -> Argument:
        """The same parameter with another value."""
        return replace(self, value=value)


class Kept(Generic[T]):
    """The values that were asked for last, by key. Several threads may ask: each value is made once.

    Parameters
    ----------
    most : int
        How many are kept; the one that was used least recently goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value under a key; made now if there is none, unless another thread is making it."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot()
                if len(self._slots) > self._most:
                    self._slots.popitem(last=False)
            else:
                self._slots.move_to_end(key)
        if not slot.made:
            with slot.lock:  # not the lock of all: a kernel takes seconds, and others' values are there
                if not slot.made:
                    slot.value = make()
                    slot.made = True
        return slot.value  # a slot holds values of any type


@dataclass
class _Slot:
    value: Any = None
    made: bool = False
    lock: Any = field(default_factory=threading.RLock)


class Function(Protocol):
    """One kernel, compiled."""

    def bind(self, grid: Extent, block: Extent, shared: int, parameters: Sequence[Argument]) -> Bound:
        """Fix everything of a launch but the values.

        Parameters
        ----------
        grid, block : three extents
        shared : int
            Bytes of dynamic shared memory.
        parameters : sequence of Argument
            Without values: what reports call them, and what the kernel may do with them.

        Returns
        -------
        callable
            Takes what `Executor.pack` has made of the values, and runs the kernel; on a GPU, it queues it on
            CuPy's current stream.
        """


class Executor(ABC):
    """Something that compiles translation units and runs their kernels.

    Attributes
    ----------
    prepared : Kept
        Prepared launches (`prepare.Prepared`), by kernel file and problem. A function lives
        as long as one of them has it.
    captures : bool
        Whether it has `capture`.
    """

    captures = False

    def __init__(self) -> None:
        self.prepared: Kept[Any] = Kept(KEPT)
        self._functions: weakref.WeakValueDictionary[tuple[str, str], Any] = weakref.WeakValueDictionary()
        self._compiling = threading.RLock()

    def function(self, source: str, entry: str, *, include: Sequence[Path] = (), name: str = "") -> Function:
        """A kernel of a translation unit, compiled; the same one as long as it is in use.

        Parameters
        ----------
        source : str
            The translation unit (`source.translation_unit`).
        entry : str
            Name of the `extern "C" __global__` function.
        include : sequence of Path
            Folders searched before `kernels/`.
        name : str
            What messages and files of the cache call it; by default the entry's name.
        """
        with self._compiling:
            found = self._functions.get((source, entry))
            if found is None:
                found = self._compile(source, entry, tuple(include), name or entry)
                self._functions[source, entry] = found
            return found  # of a dictionary of any

    @abstractmethod
    def _compile(self, source: str, entry: str, include: tuple[Path, ...], name: str) -> Function:
        """A new function; from the disk cache where the same source has been compiled before."""

    def pack(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The values of a launch (arrays, None, NumPy scalars) as the functions here take them."""
        return tuple(values)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """The launches that `run` makes as one graph, none of them done: what is returned queues it."""
        raise NotImplementedError(f"{type(self).__name__} has no graphs")


_NULL = np.uint64(0)


def device_arguments(values: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of a launch as CuPy's functions take them.

    CuPy takes the pointer of an array itself. A struct by value is an `np.void`: of an array CuPy would ask
    for the `__array_interface__`, at 17 us a launch.
    """
    return tuple([_NULL if value is None else value for value in values])


def device_launch(function: Launch, grid: Extent, block: Extent, shared: int) -> Bound:
    """One of CuPy's functions with everything but its arguments."""

    def launch(arguments: tuple[Any, ...]) -> None:
        function(grid, block, arguments, shared)

    return launch


class KernelError(ConvkitError, RuntimeError):
    """A kernel that does not compile, or that did what it must not; what it was to write is as it was before.

    Attributes
    ----------
    kernel, kind : str
        The entry point; what happened, in a few words ("out of bounds", "race", "timeout", ...). Of kind
        "unsupported" is a kernel that is right as far as is known, and uses what the emulator does not have.
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
