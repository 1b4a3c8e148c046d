"""CUDA kernels: from a kernel file to a launch, on a GPU or in the place of one.

`header` reads a kernel file, `source` makes its translation unit, `prepare` binds its launches to a problem.
`launch` says what an executor is; there are four: `gpu`, `emulator`, `ptx`, which runs NVRTC's PTX on the
CPU, and `null`, which launches nothing. `graph` captures a row of calls. `nvrtc` compiles for a GPU; `sass`
and `budget` look at the machine code. To import this needs no GPU.
"""

from __future__ import annotations

from .. import devices
from ..errors import NoImplementation
from .launch import Executor


def _gpu_executor() -> Executor:
    try:
        from . import gpu
    except ImportError as error:
        raise NoImplementation(
            f"CUDA kernels need a GPU and CuPy, or `with convkit.emulate():` ({error})"
        ) from None
    return gpu.executor()


devices.gpu_executor = _gpu_executor
