"""Clocks: how long one call takes, on a CPU and on a GPU, with cold caches, and what the device could do.

A candidate in a process of its own reaches none of this. A CUDA kernel of a user's runs in this process:
for its wall clock there is `independent`, the system's clock by another way than Python's timers.

On a GPU a call lies between two events in a stream that is held back until all of it is queued (`hold`), so
that the host's time is not in it; that is told apart. The wall clock runs from the end of the hold until the
whole device is idle: what was put on another stream lies outside the events, but not outside the device, and
`gap_ms` shows it, unless it was over while the stream was still held, which `early` shows.

`CudaClock` is written to CuPy's documentation and walked on a stand-in.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...cpu import probe
from ...errors import unknown
from . import hold
from .conditions import last_level_cache
from .entry import Clock

_ns = time.perf_counter_ns
#: Times a copy of DRAM must be larger than the last cache to evict it, whatever the replacement.
EVICT = 3
#: Least bytes that a GPU's L2 is flushed with.
CUDA_FLUSH = 256 * 2**20


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def _independent() -> Callable[[], float]:
    """Seconds by the system's raw clock, called through ctypes; by `os.times` where there is none."""
    elapsed = os.times
    try:
        call, raw = ctypes.CDLL(None).clock_gettime, 4  # CLOCK_MONOTONIC_RAW, on Linux and on macOS
        call.argtypes = [ctypes.c_int, ctypes.POINTER(_Timespec)]
        if call(raw, ctypes.byref(_Timespec())) != 0:
            raise OSError
    except (OSError, TypeError, AttributeError):
        return lambda: elapsed().elapsed

    def now() -> float:
        spec = _Timespec()
        call(raw, ctypes.byref(spec))
        return float(spec.seconds + spec.nanoseconds * 1e-9)

    return now


#: A second clock, in seconds.
independent = _independent()


def elapsed_ms(run: Callable[[], Any], wait: Callable[[], Any] = lambda: None) -> float:
    """Milliseconds that a call takes, and the wait for what it has started."""
    start = _ns()
    result = run()
    wait()
    end = _ns()
    del result  # freeing what was returned is not part of the call
    return (end - start) / 1e6


class CpuClock:
    """Wall time of calls on this machine's CPUs.

    Parameters
    ----------
    threads : int, optional
        Threads of the probes and of the flush: by default as many as convkit uses.
    flush_bytes : int, optional
        What `cold` reads: by default three times the last cache, at least 64 MB.
    """

    name, device = "perf_counter_ns", "cpu"
    slack_ms = 0.02

    def __init__(self, threads: int | None = None, flush_bytes: int | None = None) -> None:
        from ...cpu import threads as pool

        self.threads = threads or pool.count()
        size = flush_bytes or max(64 * 10**6, EVICT * last_level_cache())
        # Each thread reads its share: the inner caches of every core that works are flushed too.
        self._shares = [np.ones(max(1, size // 4 // self.threads), np.float32) for _ in range(self.threads)]
        self._readers = ThreadPoolExecutor(self.threads)

    def cold(self) -> None:
        """Evict the caches, by reading: so that no dirty lines are left to write back either."""
        list(self._readers.map(np.max, self._shares))

    def time(self, run: Callable[[], Any]) -> float:
        """Milliseconds of one call."""
        return elapsed_ms(run)

    def synchronize(self) -> None:
        """Nothing: a call that returns while its work goes on is caught by looking at its outputs."""

    def probe(self) -> dict[str, float]:
        """ "fma" in GFLOP/s and "copy" in GB/s, just now; some 60 ms."""
        return {
            "fma": probe.peak_gflops(self.threads, 0.03).gflops,
            "copy": probe.copy_gbs(self.threads, 128, 0.03).gbs,
        }

    def ceilings(self, repeats: int = 5) -> dict[str, dict[str, Any]]:
        """The arithmetic peak, and rates of copying, reading and changing in place; a second or two."""
        peaks = [probe.peak_gflops(self.threads, 0.1) for _ in range(repeats)]
        copies = [probe.copy_gbs(self.threads, 256, 0.1) for _ in range(repeats)]
        found = {
            "fma": ceiling("GFLOP/s", [p.gflops for p in peaks], peaks[0].method, dtype="float32"),
            "copy": ceiling("GB/s", [c.gbs for c in copies], copies[0].method),
        }
        for name, rates in memory_rates(self.threads, repeats=repeats).items():
            found[name] = ceiling("GB/s", rates, "NumPy, each thread its share")
        return found


def ceiling(unit: str, samples: list[float], method: str, **more: Any) -> dict[str, Any]:
    """A record of "ceilings": the best sample counts, for a ceiling is what can be reached."""
    return {"unit": unit, "value": max(samples), "samples": samples, **more, "method": method}


def memory_rates(threads: int, megabytes: float = 256, repeats: int = 3) -> dict[str, list[float]]:
    """GB/s of reading, and of changing in place (each byte counts twice), by NumPy on several threads.

    Copying is no ceiling for these: a copy must also fetch the lines that it is about to overwrite.
    """
    parts = [np.ones(int(megabytes * 1e6 / 4 / threads), np.float32) for _ in range(threads)]
    size = sum(part.nbytes for part in parts)
    works: dict[str, tuple[int, Callable[[np.ndarray], Any]]] = {
        "read": (size, np.max),
        "update": (2 * size, lambda a: np.add(a, 1, out=a)),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            for name, (moved, work) in works.items():
                start = _ns()
                list(pool.map(work, parts))
                rates[name].append(moved / (_ns() - start))
    return rates


# ---------------------------------------------------------------------------------------------------
# GPU
# ---------------------------------------------------------------------------------------------------
class Persisting:
    """L2 lines that are set aside for some accesses, and would survive a flush; by the driver's calls."""

    _LIMIT = 0x06  # CU_LIMIT_PERSISTING_L2_CACHE_SIZE

    def __init__(self) -> None:
        try:
            self._driver: Any = ctypes.CDLL("libcuda.so.1")
        except OSError:
            self._driver = None

    def reset(self) -> None:
        """All persisting lines become ordinary ones."""
        if self._driver is not None:
            self._driver.cuCtxResetPersistingL2Cache()

    def set_aside(self) -> int:
        """Bytes of L2 that persisting accesses may take."""
        size = ctypes.c_size_t(0)
        if self._driver is not None:
            self._driver.cuCtxGetLimit(ctypes.byref(size), self._LIMIT)
        return size.value

    def forbid(self) -> None:
        """Let them take none."""
        if self._driver is not None:
            self._driver.cuCtxSetLimit(self._LIMIT, ctypes.c_size_t(0))


class CudaClock:
    """The device's time of what a call queues on the current stream, by CUDA events.

    The stream is held back until all of the call is queued (see `hold`), so that neither the host's time nor
    that of the launches lies between the events. A call that waits for the device cannot be queued so: it
    returns only when the hold has run out. After some longer holds it is timed with the host included, and
    `held` says so.

    Parameters
    ----------
    index : int, optional
        Number of the GPU; by default CuPy's current one.

    Attributes
    ----------
    held : bool
        Whether the last sample was held back, and so is the device's time alone.
    host_us : float
        Microseconds that the host needed to queue the last call; where it was not held, that the call took.
    early : bool
        What was looked at changed while the last sample was held: by work that did not wait for the stream.
    gap_ms : float
        By how much the wall clock, from the end of the hold to the idle device, exceeded the events in the
        last call: work on another stream, or events that lie.
    """

    name, device = "CUDA events", "cuda"
    slack_ms = 0.1

    def __init__(self, index: int | None = None) -> None:
        import cupy

        self._cupy = cupy
        cuda = cupy.cuda
        # Taken now: an entry may replace them in the module.
        self._event, self._elapsed, self._gpu = cuda.Event, cuda.get_elapsed_time, cuda.Device
        self._wait = cuda.runtime.deviceSynchronize
        self.index = cuda.runtime.getDevice() if index is None else index
        with self.here():
            properties = cuda.runtime.getDeviceProperties(self.index)
            size = max(CUDA_FLUSH, 4 * int(properties.get("l2CacheSize", 0)))
            self._flush = cupy.empty(size // 4, np.float32)
            self._flush.fill(1)
            self.persisting = Persisting()
            self.persisting.forbid()
            self._flush.max()  # compiles and loads it: within a hold, that would make samples void
            self._sampler = hold.Sampler(cupy, lambda: independent(), self._flush)
        self._limit, self._cold = hold.FIRST, False
        self._blocked: Any = None
        self.held, self.early, self.host_us, self.gap_ms = False, False, 0.0, 0.0

    @property
    def watches(self) -> bool:
        """Whether it can look at memory while a stream is held: see `hold.Sampler`."""
        return self._sampler.sees

    def here(self) -> Any:
        """A block in which this clock's GPU is the current one."""
        return self._gpu(self.index)

    def cold(self) -> None:
        """Have L2 evicted before the next call, by reading: in the stream, while that is held."""
        self._cold = True

    def time(
        self,
        run: Callable[[], Any],
        *,
        hold_back: bool = True,
        again: Callable[[], Callable[[], Any]] | None = None,
        look: Callable[[], Any] | None = None,
    ) -> float:
        """Milliseconds of one call: `held` says whether of the device alone.

        Parameters
        ----------
        run : callable
            Queues work on the current stream.
        hold_back : bool
            False for one of which it is known that it waits for the device.
        again : callable, optional
            Prepares a repetition, and gives what is to be run then: a sample is void where its hold ran out
            before all was queued, and what has run once may have kept something.
        look : callable, optional
            Values that nothing may change before the stream goes on; see `early`.
        """
        cold, self._cold = self._cold, False
        with self.here():
            limit, known = self._limit, self._blocked
            same = run is known or (isinstance(run, types.MethodType) and run == known)
            for _ in range(hold.ATTEMPTS if hold_back and not same else 0):
                sample = self._sample(run, limit, cold, look)
                if sample.held:
                    self._limit = limit
                    return self._note(sample)
                limit = min(hold.LONGEST, max(limit, hold.LONGER * sample.host_us / 1e6))
                run = again() if again else run
            self._blocked = run
            return self._note(self._sample(run, 0.0, cold, None))

    def _sample(
        self, run: Callable[[], Any], limit: float, cold: bool, look: Callable[[], Any] | None
    ) -> hold.Sample:
        if cold:  # lines that were set aside are given back at once: it may wait for what is held
            self.persisting.reset()
        return self._sampler.sample(run, limit, self._flush.max if cold else None, look)

    def _note(self, sample: hold.Sample) -> float:
        self.held, self.early = sample.held, sample.early
        self.host_us, self.gap_ms = sample.host_us, sample.gap_ms
        return sample.ms

    def batch(self, run: Callable[[], Any], count: int) -> float:
        """Milliseconds of one of `count` calls that are captured in a graph, for calls as short as a launch.

        Warm by its nature: the calls share their inputs, and nothing lies between them.
        """
        with self.here():
            stream = self._cupy.cuda.Stream(non_blocking=True)
            with stream:
                stream.begin_capture()
                for _ in range(count):
                    run()
                graph = stream.end_capture()
                graph.launch()  # the first one uploads it
                ms = self.time(graph.launch)
        self.gap_ms /= count
        self.host_us /= count
        return ms / count

    def synchronize(self) -> None:
        """Wait for every stream."""
        with self.here():
            self._wait()

    def tampered(self) -> str:
        """What was changed in CuPy or on the device since this was made; or an empty string."""
        cuda = self._cupy.cuda
        if cuda.Event is not self._event or cuda.get_elapsed_time is not self._elapsed:
            return "replaced CuPy's events"
        if cuda.runtime.deviceSynchronize is not self._wait:
            return "replaced cupy.cuda.runtime.deviceSynchronize"
        if size := self.persisting.set_aside():
            return f"keeps lines in L2: it set {size} bytes aside for persisting accesses"
        return ""

    def probe(self) -> dict[str, float]:
        """ "fma" in GFLOP/s and "copy" in GB/s."""
        with self.here():
            return {"fma": self._fma(), "copy": self._copy(2**26)}

    def ceilings(self, repeats: int = 5) -> dict[str, dict[str, Any]]:
        """The peak of multiply-adds, the vendor's matrix products, and the rate of copying."""
        with self.here():
            return self._ceilings(repeats)

    def _ceilings(self, repeats: int) -> dict[str, dict[str, Any]]:
        found = {
            "fma": ceiling(
                "GFLOP/s", [self._fma() for _ in range(repeats)], "8 chains of FMA", dtype="float32"
            ),
            "copy": ceiling("GB/s", [self._copy(2**28) for _ in range(repeats)], "CuPy copyto, 2 GiB"),
        }
        for name, dtype in (("sgemm", "float32"), ("tensor-fp16", "float16")):
            rates = [self._matmul(dtype) for _ in range(repeats)]
            found[name] = ceiling("GFLOP/s", rates, "CuPy matmul, 8192", dtype=dtype)
        return found

    def _copy(self, count: int) -> float:
        cupy = self._cupy
        source = cupy.ones(count, np.float32)
        target = cupy.empty_like(source)
        return float(2 * source.nbytes / self._again(lambda: cupy.copyto(target, source)) / 1e6)

    def _matmul(self, dtype: str, n: int = 8192) -> float:
        cupy = self._cupy
        a = cupy.random.standard_normal((n, n), dtype=np.float32).astype(dtype)
        b, out = a.copy(), cupy.empty_like(a)
        return 2 * n**3 / self._again(lambda: cupy.matmul(a, b, out=out)) / 1e6

    def _fma(self, blocks: int = 4096, threads: int = 256, steps: int = 4096) -> float:
        kernel = self._cupy.RawKernel(_FMA, "convkit_fma_probe")
        out = self._cupy.empty(blocks * threads, np.float32)
        run = lambda: kernel((blocks,), (threads,), (out, np.int32(steps), np.float32(0.999)))  # noqa: E731
        return 2 * 8 * steps * blocks * threads / self._again(run) / 1e6

    def _again(self, run: Callable[[], Any]) -> float:
        """The second of two times."""
        self.time(run)
        return self.time(run)


#: Eight independent chains hide the latency of a multiply-add (4 cycles) twice over.
_FMA = r"""
extern "C" __global__ void convkit_fma_probe(float* out, int steps, float a) {
  float v[8];
  for (int i = 0; i < 8; ++i) v[i] = threadIdx.x + i;
  for (int s = 0; s < steps; ++s)
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = fmaf(v[i], a, 1.0f);
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += v[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""


def clock_for(device: str, threads: int | None = None) -> Clock:
    """The clock of a device.

    Parameters
    ----------
    device : {"cpu", "cuda", "cuda:1", ...}
        "cuda" is CuPy's current one.
    threads : int, optional
        On a CPU, threads of the probes and of the flush.
    """
    if device == "cpu":
        return CpuClock(threads)
    if re.fullmatch(r"cuda(:[0-9]{1,4})?", device):
        number = device.partition(":")[2]
        return CudaClock(int(number) if number else None)
    raise unknown("device", device, ("cpu", "cuda"))
