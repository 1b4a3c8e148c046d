"""A stand-in for CuPy, so that the way to the GPU is walked where there is none.

Arrays are NumPy's behind a wrapper that is no NumPy array; kernels run under the emulator. Streams are times
until which they are busy: what is queued costs nothing until somebody waits. What this cannot show is
whether CuPy behaves as it is written to here: a GPU has the last word.
"""

from __future__ import annotations

import time
import types
from dataclasses import replace
from typing import Any

import numpy as np


class ndarray:
    """Device memory: only `get` and `set` cross to the host."""

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)

    @property
    def flags(self) -> Any:
        return types.SimpleNamespace(c_contiguous=self._host.flags.c_contiguous)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._host.ctypes.data)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit conversion of device memory, as CuPy refuses it")

    def get(self) -> np.ndarray:
        return self._host.copy()

    def set(self, values: np.ndarray) -> None:
        assert isinstance(values, np.ndarray) and values.dtype == self.dtype and values.shape == self.shape
        self._host[...] = values

    def fill(self, value: Any) -> None:
        self._host.fill(value)

    def copy(self) -> ndarray:
        return ndarray(self._host.copy())

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._host.view(dtype))

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self._host.reshape(*shape))

    def mean(self, **options: Any) -> ndarray:
        return ndarray(np.asarray(self._host.mean(**options)))

    def max(self) -> ndarray:
        queue(1e-4)
        return ndarray(self._host.reshape(-1)[:1].max())

    def astype(self, dtype: Any) -> ndarray:
        return ndarray(self._host.astype(dtype))

    def __float__(self) -> float:
        return float(self._host)

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(self._host[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        assert not isinstance(value, np.ndarray), "host memory assigned to device memory"
        self._host[index] = value._host if isinstance(value, ndarray) else value


ndarray.__module__ = "cupy"


#: Seconds, where time is simulated: each look at it takes a microsecond, and waiting takes no time at all.
simulated: list[float] = []


def now() -> float:
    """Seconds of the host, or simulated ones, which no other process can hold up."""
    if not simulated:
        return time.perf_counter()
    simulated[0] += 1e-6
    return simulated[0]


class Stream:
    """Work in its order; `until` is when the last of it ends, in seconds of the host."""

    current: list[Stream] = []
    every: list[Stream] = []

    def __init__(self, non_blocking: bool = False) -> None:
        self.until = 0.0
        self.captured: list[tuple[float, Any]] | None = None
        Stream.every.append(self)

    def __enter__(self) -> Stream:
        Stream.current.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        Stream.current.pop()

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Any:
        work, self.captured = self.captured or [], None
        return types.SimpleNamespace(launch=lambda: [queue(*one) for one in work])


def queue(seconds: float, work: Any = None) -> None:
    """Work on the current stream; done at once, unless it is captured."""
    stream = Stream.current[-1]
    if stream.captured is not None:
        stream.captured.append((seconds, work))
        return
    if work is not None:
        work()
    stream.until = max(now(), stream.until) + seconds


def synchronize() -> None:
    """Wait for every stream, to the microsecond: a sleep would overshoot."""
    end = max(stream.until for stream in Stream.every)
    if simulated:
        simulated[0] = max(simulated[0], end)
    while now() < end:
        pass


class Event:
    def record(self) -> None:
        self.at = max(now(), Stream.current[-1].until)


#: Seconds of an elementwise kernel.
KERNEL = [2e-3]


def _maximum(a: ndarray, b: float, out: ndarray) -> None:
    queue(KERNEL[0], lambda: np.maximum(a._host, b, out=out._host))


def _random(shape: Any, dtype: Any = np.float32) -> ndarray:
    return ndarray(np.random.default_rng(0).standard_normal(shape, dtype))


def module() -> types.ModuleType:
    """The module to put in the place of `cupy`."""
    cupy = types.ModuleType("cupy")
    limits: dict[int, int] = {}
    Stream.every.clear()
    Stream.current[:] = [Stream()]
    runtime = types.SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceProperties=lambda device: {
            "name": b"no GPU at all", "major": 9, "minor": 0, "multiProcessorCount": 1, "l2CacheSize": 4096,
        },
        driverGetVersion=lambda: 0,
        runtimeGetVersion=lambda: 0,
        deviceSynchronize=synchronize,
        deviceSetLimit=limits.__setitem__,
        limits=limits,
    )  # fmt: skip
    members = {
        "ndarray": ndarray,
        "__version__": "stand-in",
        "empty": lambda shape, dtype=np.float32: ndarray(np.empty(shape, dtype)),
        "empty_like": lambda a: ndarray(np.empty_like(a._host)),
        "ones": lambda shape, dtype: ndarray(np.ones(min(shape, 2**16), dtype)),
        "asarray": lambda a: ndarray(np.array(a)),
        "ascontiguousarray": lambda a, dtype: (
            a if a.flags.c_contiguous and a.dtype == dtype else ndarray(np.ascontiguousarray(a._host, dtype))
        ),
        "copyto": lambda target, source: target.__setitem__(..., source),
        "matmul": lambda a, b, out: queue(1e-3),
        "maximum": _maximum,
        "add": lambda a, b, out: np.add(a._host, b._host, out=out._host),
        "RawKernel": lambda source, name: lambda grid, block, arguments: queue(1e-3),
        "random": types.SimpleNamespace(standard_normal=lambda shape, dtype: _random((4, 4), dtype)),
        "cuda": types.SimpleNamespace(
            is_available=lambda: True,
            runtime=runtime,
            Event=Event,
            Stream=Stream,
            get_elapsed_time=lambda a, b: (b.at - a.at) * 1e3,
        ),
    }
    cupy.__dict__.update(members)
    return cupy


class Executor:
    """Launches on device arrays, by the emulator."""

    def __init__(self, emulator: Any) -> None:
        self.emulator = emulator

    def function(self, kernel: Any, problem: Any, entry: str) -> Any:
        function = self.emulator.function(kernel, problem, entry)

        def launch(grid: Any, block: Any, arguments: Any, *, shared: int = 0) -> None:
            for argument in arguments:
                value = argument.value
                tensor = isinstance(value, np.ndarray) and value.ndim and value.dtype.names is None
                assert not tensor, f"{argument.name} is host memory"
            found = [
                replace(a, value=a.value._host) if isinstance(a.value, ndarray) else a for a in arguments
            ]
            function.launch(grid, block, found, shared=shared)

        return types.SimpleNamespace(launch=launch)
