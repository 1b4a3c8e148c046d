"""CUDA kernels on a GPU: NVRTC's CUBIN for the device's own architecture, launched through CuPy.

Status: written against CuPy 14's documentation and source; no GPU has run it yet.
"""

from __future__ import annotations

import functools
from typing import Any

import cupy
import numpy as np

from ..kernel import KernelFile
from ..nvrtc import cached_cubin
from . import Argument, KernelError

Extent = tuple[int, int, int]


class Cuda:
    """Compiles for one device, which must be current, and launches on CuPy's current stream."""

    def __init__(self, device: int) -> None:
        self.device = device
        major, minor = divmod(int(cupy.cuda.Device(device).compute_capability), 10)
        # The "a" of Hopper and Blackwell names features of that architecture alone, such as wgmma.
        self.arch = f"sm_{major}{minor}" + ("a" if major in (9, 10) else "")
        self._functions: dict[tuple[str, str], _Loaded] = {}

    def function(self, kernel: KernelFile, source: str, entry: str) -> _Loaded:
        key = (source, entry)
        if key not in self._functions:
            self._functions[key] = _Loaded(self._module(kernel, source).get_function(entry), entry)
        return self._functions[key]

    def _module(self, kernel: KernelFile, source: str) -> Any:
        cubin = cached_cubin(source, self.arch, include=(kernel.path.parent,), name=kernel.stem)
        module = cupy.cuda.function.Module()
        module.load(cubin)
        return module


class _Loaded:
    """A function on the device."""

    def __init__(self, function: Any, name: str) -> None:
        self.function, self.name = function, name
        self._allowed = 0  # bytes of dynamic shared memory that a launch may ask for

    def launch(self, grid: Extent, block: Extent, arguments: list[Argument], *, shared: int = 0) -> None:
        if shared > self._allowed:
            self._allow(shared)
        values = tuple(np.uint64(0) if a.value is None else a.value for a in arguments)
        self.function(grid, block, values, shared_mem=shared)

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
