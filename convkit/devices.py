"""Where kernels run: on the GPU that holds the arrays, or in its place, by the same launch code."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import arrays
from .errors import NoImplementation, OptionError
from .executors import Argument, Bound, Executor, Extent, Launch
from .executors.null import Null
from .geometry import integer
from .paths import kernels_dir


@dataclass(eq=False)
class Emulator(Executor):
    """Runs kernels on the CPU (`convkit.emulate`).

    `counted` has, for each line of each launch since the beginning, how it used memory
    (`convkit.executors.emulator.Counter`), where `counters` asks for it.
    """

    check: bool = False
    seed: int | None = None
    timeout: float = 60.0
    counters: bool = False
    counted: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def _compile(self, source: str, entry: str, include: tuple[Path, ...], name: str) -> _Emulated:
        from .executors import emulator

        include = (*include, kernels_dir())
        return _Emulated(emulator.compile(source, entry, include=include, check=self.check), self)


class _Emulated:
    """An emulated function with the options of `emulate`."""

    def __init__(self, function: Any, options: Emulator) -> None:
        self.function, self.options = function, options

    def bind(self, grid: Extent, block: Extent, shared: int, parameters: Sequence[Argument]) -> Bound:
        how = self.options

        def launch(values: tuple[Any, ...]) -> None:
            arguments = [p.given(value) for p, value in zip(parameters, values, strict=True)]
            self.function.launch(
                grid, block, arguments,
                shared=shared, seed=how.seed, timeout=how.timeout, counters=how.counters,
            )  # fmt: skip
            if how.counters:
                how.counted += self.function.counters()

        return launch


#: What NumPy arrays are given to here, in the place of a GPU.
_emulator: ContextVar[Executor | None] = ContextVar("convkit_emulator", default=None)


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


@contextlib.contextmanager
def nulled(launch: Launch | None = None) -> Iterator[Null]:
    """Do all the host's work for kernels inside a `with` block, and launch nothing.

    NumPy arrays stand for arrays on a GPU; outputs are left as they are. For measuring (`bench/host.py`).

    Parameters
    ----------
    launch : callable, optional
        As in `convkit.executors.null.Null`.
    """
    executor = Null(launch)
    token = _emulator.set(executor)
    try:
        yield executor
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
    instead = _emulator.get()
    if instead is not None:
        return instead
    try:
        from .executors import cuda
    except ImportError as error:
        raise NoImplementation(
            f"CUDA kernels need a GPU and CuPy, or `with convkit.emulate():` ({error})"
        ) from None
    return cuda.executor()
