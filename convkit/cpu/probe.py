"""What this machine can do at most: the ceilings that every benchmark prints beside its figures.

Cores that are shared, or throttled, change their speed from minute to minute; a figure is only worth
something next to a ceiling that was measured in the same minute.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from convkit.cpu import extension
from convkit.errors import OptionError


@dataclass(frozen=True)
class Peak:
    """Arithmetic ceiling in single precision.

    Attributes
    ----------
    gflops : float
        1e9 floating-point operations per second, of all threads together; a multiply-add counts as 2.
    method : str
        "native fma", or "BLAS sgemm 1024" where the extension is missing (some 10-30 % lower).
    isa : str
        Instruction set of the probe: "avx512", "avx2", "sse2", "neon", "generic"; "unknown" for BLAS.
    threads : int or None
        Threads that worked; None where BLAS chose them.
    """

    gflops: float
    method: str
    isa: str
    threads: int | None

    def __str__(self) -> str:
        threads = "BLAS's own" if self.threads is None else self.threads
        return f"{self.gflops:.0f} GFLOP/s ({self.method}, {self.isa}, threads: {threads})"


@dataclass(frozen=True)
class CopyRate:
    """Memory ceiling.

    Attributes
    ----------
    gbs : float
        1e9 bytes per second, read and written bytes together: copying 1 GB in a second is 2 GB/s.
    method : str
        "native memcpy", or "NumPy copyto" where the extension is missing.
    threads : int
        Threads that worked.
    megabytes : float
        Size of source and destination together; it must be well above the caches' to say anything about DRAM.
    """

    gbs: float
    method: str
    threads: int
    megabytes: float

    def __str__(self) -> str:
        return f"{self.gbs:.1f} GB/s ({self.method}, {self.megabytes:g} MB, threads: {self.threads})"


def peak_gflops(threads: int | None = None, seconds: float = 0.2) -> Peak:
    """Measure the single-precision multiply-add peak.

    Parameters
    ----------
    threads : int, optional
        By default as many as there are CPUs for this process. BLAS chooses its own.
    seconds : float
        How long to measure; the best fifth of it (of BLAS, the best call) counts.
    """
    count = _threads(threads)
    module = extension.load()
    if module is not None:
        return Peak(module.fma_gflops(count, seconds), "native fma", module.isa(), count)
    return _blas_peak(seconds)


def copy_gbs(threads: int | None = None, megabytes: float = 256, seconds: float = 0.2) -> CopyRate:
    """Measure the rate of copying memory, read and written bytes together.

    Parameters
    ----------
    threads : int, optional
        By default as many as there are CPUs for this process. NumPy copies with one.
    megabytes : float
        Size of source and destination together.
    seconds : float
        How long to measure; the best fifth of it counts.
    """
    count = _threads(threads)
    module = extension.load()
    if module is not None:
        return CopyRate(module.copy_gbs(count, megabytes, seconds), "native memcpy", count, megabytes)
    half = max(1, int(megabytes * 1e6 / 2 / 4))
    source = np.ones(half, np.float32)
    target = np.zeros(half, np.float32)
    best = _best_time(lambda: np.copyto(target, source), seconds)
    return CopyRate(2.0 * source.nbytes / best * 1e-9, "NumPy copyto", 1, megabytes)


def _blas_peak(seconds: float) -> Peak:
    n = 1024
    a = np.ones((n, n), np.float32)
    b = np.ones((n, n), np.float32)
    out = np.empty((n, n), np.float32)
    best = _best_time(lambda: np.matmul(a, b, out=out), seconds)
    return Peak(2.0 * n**3 / best * 1e-9, "BLAS sgemm 1024", "unknown", None)


def _threads(asked: int | None) -> int:
    if asked is not None:
        if asked < 1:
            raise OptionError(f"threads must be 1 or more, not {asked}")
        return asked
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _best_time(function, seconds: float) -> float:
    """The shortest of the calls that fit into the time (at least two, after one to warm up), in seconds."""
    function()
    best = float("inf")
    calls = 0
    end = time.perf_counter() + seconds
    while calls < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best
