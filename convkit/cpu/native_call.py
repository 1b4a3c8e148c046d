"""What the implementations in C++ share: how they are declared, and how they are called."""

from __future__ import annotations

from math import prod
from typing import Any

from .. import native
from ..geometry import Problem
from . import threads

#: Storage types of the kernels that are templates of it.
STORAGE = ("float32", "float16", "bfloat16")
#: What each of them declares.
NATIVE: dict[str, Any] = {"rank": 20, "missing": native.kernels_missing}


#: An implementation wants no more scratch memory than so many times the tensors' size, and so many bytes.
#: A block of 16 channels may hold one, which is half of that.
FOLD, FLOOR = 32, 64 << 20


def excess(bytes: int, problem: Problem, *tensors: str) -> str | None:
    """Why so much scratch memory is too much for a problem of these tensors, or None."""
    own = 4 * sum(prod(problem.shape(name)) for name in tensors)
    if bytes <= FOLD * own + FLOOR:
        return None
    return f"would take {bytes / 2**20:.0f} MB of scratch memory for tensors of {own / 2**20:.1f} MB"


def kernels() -> Any:
    """The module of kernels; `missing` has made sure that there is one."""
    return native.kernels()


def call(function: str, *arguments: Any, **options: Any) -> None:
    """Run a kernel on every thread."""
    getattr(kernels(), function)(*arguments, **options, threads=threads.count())
