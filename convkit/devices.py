"""Where kernels run: on the GPU that holds the arrays, or in its place, by the same launch code.

`convkit.cuda` says how a GPU's executor is made (`gpu_executor`): what stands below it only asks which one is
current.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from . import arrays
from .errors import NoImplementation, OptionError

#: The executor that takes NumPy arrays in the place of a GPU in this context, or None.
_instead: ContextVar[Any] = ContextVar("convkit_executor", default=None)


#: The compiled kernels of the CPU backend, once they are chosen (`cpu.extension`). A call that is bound to
#: one build of them is not valid for another.
cpu_kernels: Any = None


def _no_gpu() -> Any:
    raise NoImplementation("CUDA kernels need convkit.cuda")


#: Returns the executor of CuPy's current device.
gpu_executor: Callable[[], Any] = _no_gpu


def current() -> Any:
    """The executor of this context (`cuda.launch.Executor`); on a GPU, that of CuPy's current device."""
    executor = _instead.get()
    return executor if executor is not None else gpu_executor()


@contextlib.contextmanager
def instead(executor: Any) -> Iterator[None]:
    """Inside a `with` block, run CUDA kernels on NumPy arrays, by this executor."""
    token = _instead.set(executor)
    try:
        yield
    finally:
        _instead.reset(token)


def emulating() -> bool:
    """Whether CUDA kernels run on NumPy arrays in this context."""
    return _instead.get() is not None


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
    return cupy.cuda.Device(number)
