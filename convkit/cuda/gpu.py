"""CUDA kernels on a GPU: NVRTC's CUBIN for the device's own architecture, launched through CuPy.

Written to CuPy 14's documentation and source; `convkit.bench.status` says what a GPU has run.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cupy

from . import graph
from .launch import Argument, Bound, Executor, Extent, KernelError, device_arguments, device_launch
from .nvrtc import cached_cubin


class Cuda(Executor):
    """Compiles for one device, which must be current, and launches on CuPy's current stream."""

    pack = staticmethod(device_arguments)
    captures, capture = True, staticmethod(graph.capture)

    def __init__(self, device: int) -> None:
        super().__init__()
        self.device = device
        major, minor = divmod(int(cupy.cuda.Device(device).compute_capability), 10)
        # The "a" of Hopper and Blackwell names features of that architecture alone, such as wgmma.
        self.arch = f"sm_{major}{minor}" + ("a" if major in (9, 10) else "")

    def _compile(self, source: str, entry: str, include: tuple[Path, ...], name: str) -> _Loaded:
        module = cupy.cuda.function.Module()
        module.load(cached_cubin(source, self.arch, include=include, name=name))
        return _Loaded(module.get_function(entry), entry)


class _Loaded:
    """A function on the device."""

    def __init__(self, function: Any, name: str) -> None:
        self.function, self.name = function, name
        self._allowed = 0  # bytes of dynamic shared memory that a launch may ask for
        self._allowing = threading.Lock()  # of two threads that bind it, the one with less must not come last

    def bind(self, grid: Extent, block: Extent, shared: int, parameters: Sequence[Argument]) -> Bound:
        with self._allowing:
            if shared > self._allowed:
                self._allow(shared)
        return device_launch(self.function, grid, block, shared)

    def _allow(self, shared: int) -> None:
        """Ask for so much dynamic shared memory: together with the static one, 48 KB come unasked."""
        driver = cupy.cuda.driver
        attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        try:
            driver.funcSetAttribute(self.function.ptr, attribute, shared)
        except driver.CUDADriverError as error:
            message = f"{self.name} asks for {shared} bytes of shared memory, which this GPU refuses: {error}"
            raise KernelError(message, kernel=self.name, kind="shared memory") from error
        self._allowed = shared


@functools.cache
def _executor(device: int) -> Cuda:
    return Cuda(device)


def executor() -> Cuda:
    """The executor of CuPy's current device."""
    return _executor(cupy.cuda.runtime.getDevice())
