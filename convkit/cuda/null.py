"""Launches that do nothing, so that the host's work for a GPU can be measured without one.

Everything up to CuPy's own call is what a GPU gets: the same prepared launches, by the same
`device_arguments` and `device_launch`. Nothing is compiled. Outputs are left as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import devices
from .launch import Argument, Bound, Executor, Extent, Launch, device_arguments, device_launch


class Null(Executor):
    """Binds functions that call `launch` in the place of CuPy's; by default, one that does nothing.

    Parameters
    ----------
    launch : callable, optional
        `launch(grid, block, arguments, shared)`: to count launches, or to look at what they are given.
    """

    pack = staticmethod(device_arguments)
    captures = True

    def __init__(self, launch: Launch | None = None) -> None:
        super().__init__()
        self.launch = launch or _nothing

    def _compile(self, source: str, entry: str, include: tuple[Path, ...], name: str) -> _Unloaded:
        return _Unloaded(self.launch)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return lambda: None


def _nothing(grid: Extent, block: Extent, arguments: tuple[Any, ...], shared: int) -> None:
    pass


class _Unloaded:
    """A function that was never compiled."""

    def __init__(self, function: Launch) -> None:
        self.function = function

    def bind(self, grid: Extent, block: Extent, shared: int, parameters: Sequence[Argument]) -> Bound:
        return device_launch(self.function, grid, block, shared)


@contextlib.contextmanager
def nulled(launch: Launch | None = None) -> Iterator[Null]:
    """Do all the host's work for kernels inside a `with` block, and launch nothing.

    NumPy arrays stand for arrays on a GPU; outputs are left as they are. For measuring (`bench/host.py`).

    Parameters
    ----------
    launch : callable, optional
        As in `Null`.
    """
    executor = Null(launch)
    with devices.instead(executor):
        yield executor
