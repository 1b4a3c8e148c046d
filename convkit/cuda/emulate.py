"""`convkit.emulate`: the CUDA kernels on the CPU, by the emulator, in the place of a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import devices
from ..errors import OptionError
from ..options import integer
from ..paths import kernels_dir
from .launch import Argument, Bound, Executor, Extent


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
    with devices.instead(emulator):
        yield emulator
