"""Numba, imported when the first kernel runs and not before.

`kernel` marks a function that Numba compiles on its first call; until then it costs nothing, so that every
module of this package can be imported at the registry's first look. What keeps compile time down (1-3 s per
kernel and signature, cached on disk): kernels take float32 or float64 only (`storage` widens the rest), all
their inputs are read-only arrays (Numba compiles read-only and writable arrays apart), and their scalars are
passed in the dtype of the arrays, which also keeps float32 loops from becoming float64 ones.

Inner loops index flat arrays by `a[uint(i)]`. For a signed index Numba adds Python's "from the end" where it
is negative; unless LLVM can prove that it is not, the loop is not vectorised (im2col took three times as
long).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import NoImplementation

#: The type of an index that is known not to be negative.
uint = np.uintp
_broken: str | None = None


@functools.lru_cache(maxsize=1)
def _absent() -> str | None:
    # Asked without importing, which takes half a second.
    return "numba is not installed" if importlib.util.find_spec("numba") is None else None


def missing() -> str | None:
    """None, or why kernels cannot be compiled here: for `Implementation.missing`."""
    return _broken or _absent()


class Kernel:
    """A function that Numba compiles when it is first called, without the GIL.

    Attributes
    ----------
    function : callable
        The Python function.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._compiled: Callable[..., None] | None = None
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> None:
        if self._compiled is None:
            self._compiled = _jit(self.function)
        self._compiled(*arguments)


#: The decorator. Of IEEE arithmetic nothing is given up: NaN and infinity come out as the reference has them.
kernel = Kernel


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    global _broken
    try:
        import numba
    except ImportError as error:
        # It is there, but does not fit the rest, such as a NumPy newer than it knows.
        _broken = f"numba is installed, but cannot be imported: {error}"
        raise NoImplementation(f"{_broken}; from now on dispatch passes it over") from error
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **settings)
    except RuntimeError:  # no folder for the cache is writable: neither the source's nor the user's
        return numba.njit(function, **settings)
