"""`convkit.emulate`: the CUDA kernels on the CPU, by the emulator or as PTX, in the place of a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import devices
from ..errors import OptionError, unknown
from ..options import flag, integer
from ..paths import kernels_dir
from .launch import Argument, Bound, Executor, Extent

#: What runs a kernel's CUDA source, and what runs the PTX that NVRTC makes of it.
ENGINES = ("emulator", "ptx")


@dataclass(eq=False)
class Emulator(Executor):
    """Runs kernels on the CPU (`convkit.emulate`).

    `counted` has, for each line of each launch since the beginning, how it used memory
    (`emulator.Counter`), where `counters` asks for it.
    """

    check: bool = False
    seed: int | None = None
    timeout: float = 60.0
    counters: bool = False
    counted: list[Any] = field(default_factory=list)
    engine = "emulator"

    def told(self, timeout: float) -> tuple[Any, ...]:
        """What makes one like it in another process (`made`), with a timeout that may be shorter."""
        return self.engine, self.check, self.seed, min(self.timeout, timeout), self.counters

    def __post_init__(self) -> None:
        super().__init__()

    def _compile(self, source: str, entry: str, include: tuple[Path, ...], name: str) -> _Emulated:
        from . import emulator as engine  # on first use: it takes a compiler along

        include = (*include, kernels_dir())
        return _Emulated(engine.compile(source, entry, include=include, check=self.check), self)


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


def made(told: tuple[Any, ...]) -> Executor:
    """The executor that `told` describes."""
    engine, *options = told
    if engine == Emulator.engine:
        return Emulator(*options)
    from .ptx.executor import PtxRunner  # on first use, as the emulator's engine

    return PtxRunner.again(*options)


@contextlib.contextmanager
def emulate(
    *,
    engine: str = "emulator",
    check: bool = False,
    seed: int | None = None,
    timeout: float = 60.0,
    counters: bool = False,
    arch: str = "sm_80",
) -> Iterator[Any]:
    """Run the CUDA kernels on the CPU inside a `with` block: NumPy arrays in, NumPy arrays out.

    Parameters
    ----------
    engine : {"emulator", "ptx"}
        "emulator" compiles the CUDA source for the CPU. "ptx" runs what NVRTC makes of the source for a GPU,
        and looks at the bounds and the alignment of each access; it needs the wheels of the extra `[static]`.
    check : bool
        Report out-of-bounds accesses, races, uninitialised reads and more, with file and line; some ten to
        twenty times slower. The emulator's alone.
    seed : int, optional
        Order in which threads and blocks run; None is in order. A kernel that is right gives the same bits
        for every seed. With "ptx" an odd one also has the lanes of a warp run apart.
    timeout : float
        Seconds after which a launch counts as hung. With "ptx" a count of instructions decides as well.
    counters : bool
        Count bank conflicts and 32-byte sectors by line, which implies `check`; see `Emulator.counted`.
    arch : str
        The architecture that "ptx" compiles for, such as "sm_90a".

    Yields
    ------
    Emulator or ptx.executor.PtxRunner

    Raises
    ------
    OptionError
        An option outside its range, or one that the engine does not have.
    MissingExtra
        With "ptx", if the wheels are not installed.
    KernelError
        With "ptx", if there is no C++ compiler.

    Examples
    --------
    >>> with ck.emulate(check=True):
    ...     y = ck.conv2d_fprop(x, w)
    >>> with ck.emulate(engine="ptx"):
    ...     z = ck.conv2d_fprop(x, w)
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if seed is not None:
        seed = integer("seed", seed, 0)
    check, counters = flag("check", check), flag("counters", counters)
    if not isinstance(timeout, (int, float)) or not timeout > 0:
        raise OptionError(f"timeout must be positive, not {timeout!r}")
    executor: Executor
    if engine == "ptx":
        if check or counters:
            raise OptionError(
                "check and counters are the emulator's; engine='ptx' looks at each access anyway"
            )
        from .ptx.executor import PtxRunner

        executor = PtxRunner.of(arch, seed, timeout)
    else:
        executor = Emulator(check or counters, seed, timeout, counters)
    with devices.instead(executor):
        yield executor
