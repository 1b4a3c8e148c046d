"""Where kernels run: on the GPU that holds the arrays, or under the emulator, by the same launch code."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import arrays
from .errors import NoImplementation, OptionError
from .executors import Argument
from .geometry import integer
from .kernel import KernelFile
from .paths import kernels_dir

Extent = tuple[int, int, int]


class Function(Protocol):
    """One kernel, compiled."""

    def launch(self, grid: Extent, block: Extent, arguments: list[Argument], *, shared: int = 0) -> None:
        """Run it; on a GPU, queue it on the caller's stream."""


class Executor(Protocol):
    """Something that compiles and runs translation units."""

    def function(self, kernel: KernelFile, source: str, entry: str) -> Function:
        """A kernel of a translation unit, compiled; from memory or the disk cache where it was before."""


@dataclass
class Emulator:
    """Runs kernels on the CPU (`convkit.emulate`).

    `counted` has, for each line of each launch since the beginning, how it used memory
    (`convkit.executors.emulator.Counter`), where `counters` asks for it.
    """

    check: bool = False
    seed: int | None = None
    timeout: float = 60.0
    counters: bool = False
    counted: list[Any] = field(default_factory=list)
    _functions: dict[tuple[str, str], Any] = field(default_factory=dict)

    def function(self, kernel: KernelFile, source: str, entry: str) -> Function:
        from .executors import emulator

        key = (source, entry)
        if key not in self._functions:
            include = (kernel.path.parent, kernels_dir())
            self._functions[key] = emulator.compile(source, entry, include=include, check=self.check)
        return _Emulated(self._functions[key], self)


@dataclass(frozen=True)
class _Emulated:
    """An emulated function with the options of `emulate`."""

    function: Any
    options: Emulator

    def launch(self, grid: Extent, block: Extent, arguments: list[Argument], *, shared: int = 0) -> None:
        how = self.options
        self.function.launch(
            grid, block, arguments, shared=shared, seed=how.seed, timeout=how.timeout, counters=how.counters
        )
        if how.counters:
            how.counted += self.function.counters()


_emulator: ContextVar[Emulator | None] = ContextVar("convkit_emulator", default=None)


@contextlib.contextmanager
def emulate(
    *, check: bool = False, seed: int | None = None, timeout: float = 60.0, counters: bool = False
) -> Iterator[Emulator]:
    """Run the CUDA kernels on the CPU inside a `with` block: NumPy arrays in, NumPy arrays out.

    Parameters
    ----------
    check : bool
        Report out-of-bounds accesses, races, uninitialised reads and more, with file and line; some ten to
        twenty times slower.
    seed : int, optional
        Order in which threads and blocks run; None is in order. A kernel that is right gives the same bits
        for every seed.
    timeout : float
        Seconds after which a launch counts as hung.
    counters : bool
        Count bank conflicts and 32-byte sectors by line, which implies `check`; see `Emulator.counted`.

    Examples
    --------
    >>> with ck.emulate(check=True):
    ...     y = ck.conv2d_fprop(x, w)
    """
    if seed is not None:
        seed = integer("seed", seed, 0)
    if not timeout > 0:
        raise OptionError(f"timeout must be positive, not {timeout!r}")
    emulator = Emulator(check or counters, seed, timeout, counters)
    token = _emulator.set(emulator)
    try:
        yield emulator
    finally:
        _emulator.reset(token)


def emulating() -> bool:
    """Whether NumPy arrays are given to the CUDA kernels here."""
    return _emulator.get() is not None


@functools.lru_cache
def gpu_found(device: str = "cuda") -> bool:
    """Whether CuPy, 14 or newer, is installed and sees a GPU; for "cuda:1", whether it sees a second one."""
    index = device.partition(":")[2] or "0"
    try:
        cupy = arrays._cupy()
        return bool(cupy.cuda.is_available() and int(index) < cupy.cuda.runtime.getDeviceCount())
    except Exception:  # a broken installation is no GPU
        return False


def on_gpu(device: str, instead: str) -> contextlib.AbstractContextManager[Any]:
    """A block in which "cuda:1" is CuPy's current GPU; "cuda" leaves it as it is.

    Parameters
    ----------
    device : str
    instead : str
        What a user may do where there is no GPU, for the error.

    Raises
    ------
    OptionError
        Where there is no such name, or CuPy sees no such GPU.
    """
    if not re.fullmatch(r"cuda(:[0-9]{1,4})?", device):
        raise OptionError(f"unknown device {device!r}: a GPU is cuda, or with its number cuda:1")
    if not gpu_found():
        raise OptionError(
            "no GPU was found (CuPy, 14 or newer, is not installed, or sees none); "
            f"{instead}, `convkit doctor` says what is missing"
        )
    if device == "cuda":
        return contextlib.nullcontext()
    import cupy

    number, count = int(device.removeprefix("cuda:")), cupy.cuda.runtime.getDeviceCount()
    if number >= count:
        raise OptionError(f"there is no {device}: CuPy sees {count}, from cuda:0 to cuda:{count - 1}")
    return cupy.cuda.Device(number)  # type: ignore[no-any-return]


def current() -> Executor:
    """The executor of this context; on a GPU, that of CuPy's current device."""
    emulator = _emulator.get()
    if emulator is not None:
        return emulator
    try:
        from .executors import cuda
    except ImportError as error:
        raise NoImplementation(
            f"CUDA kernels need a GPU and CuPy, or `with convkit.emulate():` ({error})"
        ) from None
    return cuda.executor()
