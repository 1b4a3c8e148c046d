"""What a GPU has room for: as it says itself, or from NVIDIA's tables where there is none."""

from __future__ import annotations

from dataclasses import dataclass

from .. import arrays


@dataclass(frozen=True)
class Gpu:
    """Limits of a GPU, in the units of the CUDA programming guide.

    Attributes
    ----------
    name, arch : str
    sms : int
        Streaming multiprocessors.
    shared : int
        Bytes of shared memory that a block may have, when it asks.
    shared_sm, registers_sm, threads_sm : int
        Shared memory, registers and threads of an SM.
    """

    name: str
    arch: str
    sms: int
    shared: int
    shared_sm: int
    registers_sm: int = 65536
    threads_sm: int = 2048


#: Registers of a thread, and threads of a block, on every architecture so far.
MOST_REGISTERS, MOST_THREADS = 255, 1024
#: Registers are given out to a warp by so many a thread.
GRAIN = 8
#: What the model of waves is of, and what stands in where there is no GPU.
H200 = Gpu("H200", "sm_90a", 132, 227 << 10, 228 << 10)


def here() -> Gpu:
    """CuPy's current device, by its own words."""
    from ..cuda.gpu import executor

    runtime = arrays._cupy().cuda.runtime
    found = runtime.getDeviceProperties(runtime.getDevice())
    name = found["name"].decode() if isinstance(found["name"], bytes) else str(found["name"])
    return Gpu(
        name,
        executor().arch,
        int(found.get("multiProcessorCount", H200.sms)),
        int(found.get("sharedMemPerBlockOptin", 48 << 10)),
        int(found.get("sharedMemPerMultiprocessor", 48 << 10)),
        int(found.get("regsPerMultiprocessor", H200.registers_sm)),
        int(found.get("maxThreadsPerMultiProcessor", H200.threads_sm)),
    )
