"""What the implementations in C++ share: how they are declared, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from ..op import Problem
from ..registry import Implementation, add
from . import extension, threads

#: Storage types of the kernels that are templates of it.
STORAGE = ("float32", "float16", "bfloat16")
#: What each of them declares.
NATIVE: dict[str, Any] = {"rank": 20, "missing": extension.kernels_missing}


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
    return extension.kernels()


def kernel(function: str, *bound: Any) -> Callable[..., None]:
    """A kernel with its first arguments; the further ones are its arrays. It runs on every thread."""
    run, count = getattr(kernels(), function), threads.count

    def launch(*arguments: Any) -> None:
        run(*bound, *arguments, count())

    return launch


Prepare = Callable[[Any], Callable[..., None]]


def compiled(op: str, *, name: str, **declared: Any) -> Callable[[Prepare], Prepare]:
    """Decorator: register an implementation in C++ by its `prepare`, which binds a kernel to a problem.

    Parameters
    ----------
    op, name, **declared
        As in `registry.implements`.
    """

    def decorate(prepare: Prepare) -> Prepare:
        def run(problem: Any, *arrays: Any, **options: Any) -> None:
            prepare(problem)(*arrays, **options)

        source = prepare.__code__.co_filename
        fields = {**NATIVE, **declared}
        add(Implementation(op, name, run, prepare=prepare, compiled=True, source=source, **fields))
        return prepare

    return decorate
