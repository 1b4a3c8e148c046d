"""NVIDIA's driver and the GPUs that it knows, asked through the driver's own library alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Sequence
from typing import Any

from .row import BROKEN, MISSING, OK, OLD, Row

#: The oldest branch of NVIDIA's driver that runs programs of a major version of CUDA.
BRANCHES = {12: 525, 13: 580}
DRIVERS = ("libcuda.so.1", "nvcuda.dll")
MANAGEMENT = ("libnvidia-ml.so.1", "nvml.dll")
#: What CUDA says where there is a driver and no GPU.
_NO_DEVICE = 100


def _open(names: Sequence[str]) -> Any:
    """A library of the system's loader, or None.

    Raises
    ------
    OSError
        If there is one that cannot be loaded.
    """
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            # Of a library that is there and lacks another one, the loader names the other one first.
            absent = rf"(^|library |dlopen\(){re.escape(name)}[:,].*no such file"
            if not re.search(absent, " ".join(str(error).split()), re.IGNORECASE):
                raise
    return None


def _driver_cuda(driver: Any) -> tuple[int, int]:
    """The newest CUDA that a driver runs."""
    number = ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)):
        return 0, 0
    return number.value // 1000, number.value % 1000 // 10


def cuda_major() -> int:
    """The major version of CUDA that the driver runs; 0 without one."""
    try:
        return _driver_cuda(_open(DRIVERS))[0]
    except (OSError, AttributeError):
        return 0


def extra() -> str:
    """The extra of convkit that fits the driver's CUDA."""
    return "cuda12" if cuda_major() == 12 else "cuda13"


def too_new(major: int) -> str:
    """Why what was made for a CUDA does not run on this driver, and what to do; empty where it does."""
    here = cuda_major()
    if not 0 < here < major:
        return ""
    branch = f" to {BRANCHES[major]} or newer" if major in BRANCHES else ""
    return f"update NVIDIA's driver{branch}, or pip install 'convkit[{extra()}]'"


def _driver_version() -> str:
    """As NVIDIA counts them, such as "580.65.06"; of the management library, which may be missing."""
    with contextlib.suppress(OSError, AttributeError):
        management = _open(MANAGEMENT)
        text = ctypes.create_string_buffer(96)
        if management is not None and management.nvmlInit_v2() == 0:
            if management.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))):
                text.value = b""
            management.nvmlShutdown()
            return text.value.decode(errors="replace")
    return ""


def gpu() -> list[Row]:
    """The driver, and the GPUs that it knows."""
    without = "not needed on a CPU; --device emulator runs the CUDA kernels there"
    try:
        driver = _open(DRIVERS)
    except OSError as error:
        bad = Row("driver", BROKEN, f"it cannot be loaded: {error}", "reinstall NVIDIA's driver")
        return [Row("GPU", MISSING, "not asked: the driver cannot be loaded", without), bad]
    if driver is None:
        found = f"NVIDIA's driver is not installed (no {DRIVERS[0]})"
        none = Row("driver", MISSING, found, f"for a GPU, install NVIDIA's driver, {BRANCHES[13]} or newer")
        return [Row("GPU", MISSING, "none without a driver", without), none]
    major, minor = _driver_cuda(driver)
    if not major:
        bad = Row(
            "driver", BROKEN, "it tells no version (a stub of the toolkit's?)", "reinstall NVIDIA's driver"
        )
        return [Row("GPU", MISSING, "not asked: the driver is broken", without), bad]
    version = _driver_version()
    found = f"{version or 'version unknown'}, for CUDA up to {major}.{minor}"
    row = Row("driver", OK, found, version=version)
    if major < min(BRANCHES):
        advice = f"update NVIDIA's driver to {BRANCHES[min(BRANCHES)]} or newer"
        row = Row("driver", OLD, found, advice, version)
    return [*_gpus(driver, without), row]


def _gpus(driver: Any, without: str) -> list[Row]:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f"CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else ""
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if not status:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status == _NO_DEVICE or (not status and not count.value):
        found = f"the driver sees none{f' ({seen})' if seen else ''}"
        return [
            Row("GPU", MISSING, found, "if it hides one, unset CUDA_VISIBLE_DEVICES" if seen else without)
        ]
    if status:
        advice = "look at what `nvidia-smi` says; after an update of the driver, restart the machine"
        return [Row("GPU", BROKEN, f"the driver does not start: {_cuda_error(driver, status)}", advice)]
    return [_device(driver, number) for number in range(count.value)]


def _cuda_error(driver: Any, status: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorName(status, ctypes.byref(text)) or not text.value:
        return f"error {status}"
    return f"{text.value.decode(errors='replace')} ({status})"


def _device(driver: Any, number: int) -> Row:
    device, text, memory = ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    capability = [ctypes.c_int(0), ctypes.c_int(0)]
    name = f"GPU {number}"
    status = (
        driver.cuDeviceGet(ctypes.byref(device), number)
        or driver.cuDeviceGetName(text, len(text), device)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        or driver.cuDeviceGetAttribute(ctypes.byref(capability[0]), 75, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(capability[1]), 76, device)
    )
    if status:
        return Row(name, BROKEN, _cuda_error(driver, status), "look at what `nvidia-smi` says")
    major, minor = (value.value for value in capability)
    found = (
        f"{text.value.decode(errors='replace')}, compute capability {major}.{minor}, "
        f"{memory.value / 2**30:.1f} GiB"
    )
    if major < 8:
        advice = "the CUDA kernels are made for 8.0 (Ampere) and later"
        return Row(name, OLD, found, advice, f"{major}.{minor}")
    return Row(name, OK, found, version=f"{major}.{minor}")
