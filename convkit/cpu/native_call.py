"""What the implementations in C++ share: how they are declared, and how they are called."""

from __future__ import annotations

from typing import Any

from .. import native
from . import threads

#: Storage types of the kernels that are templates of it.
STORAGE = ("float32", "float16", "bfloat16")
#: What each of them declares.
NATIVE: dict[str, Any] = {"rank": 20, "missing": native.kernels_missing}


def kernels() -> Any:
    """The module of kernels; `missing` has made sure that there is one."""
    return native.kernels()


def call(function: str, *arguments: Any, **options: Any) -> None:
    """Run a kernel on every thread."""
    getattr(kernels(), function)(*arguments, **options, threads=threads.count())
