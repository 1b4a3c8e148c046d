"""What a figure was measured on: the device, its names, threads, and the versions of libraries."""

from __future__ import annotations

import os
import platform
import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ...cpu import extension
from ...cpu import threads as pool

#: Distributions whose versions decide what was measured, where they are installed.
_DISTRIBUTIONS = (
    "numpy", "numba", "torch", "onnxruntime", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda13x",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend", "cuda-core",
)  # fmt: skip
#: What of two machines must agree for their times to mean the same, and how it is called.
SAME = {"device": "device", "name": "machine", "threads": "number of threads", "isa": "instruction set"}


def machine(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """What a figure was measured on: the "machine" of a result file.

    Parameters
    ----------
    device : {"cpu", "cuda", "emulator"}
    threads : int, optional
        Threads that convkit may use; by default as many as it uses now.

    Returns
    -------
    dict
        "device", "name" (of the GPU, else of the CPU), "cpu", "threads", "isa" (whose kernels run), "system",
        "python", "memory_gb", "versions" of what is installed, "gpu" (None without one).
    """
    gpu = _gpu() if device == "cuda" else None
    cpu = _cpu_name()
    return {
        "device": device,
        "name": gpu["name"] if gpu else cpu,
        "cpu": cpu,
        "threads": threads or pool.count(),
        "isa": extension.isa(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "memory_gb": _memory_gb(),
        "versions": versions(),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Versions of installed libraries that take part, by the name of the distribution."""
    from ...version import __version__

    found = {"convkit": __version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpu() -> dict[str, Any]:
    import cupy

    runtime = cupy.cuda.runtime
    number = runtime.getDevice()
    found = runtime.getDeviceProperties(number)
    name = found["name"]
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{found['major']}.{found['minor']}",
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "sms": found.get("multiProcessorCount"),
        "l2_bytes": found.get("l2CacheSize"),
        "memory_bytes": found.get("totalGlobalMem"),
    }
