"""The state of the machine while something was measured: clocks, power, temperature, throttling, other work.

What a machine does not say is left out, never guessed. A GPU is asked through NVML (the package
`nvidia-ml-py`) where that is installed; that part is written to NVML's documentation.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from ...errors import OptionError, unknown

#: Share of the CPUs' time from which on others have disturbed a run.
DISTURBED = 0.05
#: Bits of NVML's `clocksEventReasons` that mean that the clock was held down, by their meaning.
THROTTLE = {
    0x2: "applications clock setting",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clock setting",
}


MEASURE_THE_CPU = "--device cpu measures the CPU"


def device_of(asked: str | None) -> str:
    """The device to measure.

    Raises
    ------
    OptionError
        For the emulator, which gives no times, and for "cuda" or "cuda:1" where there is no such GPU.
    """
    from ...devices import gpu_found, on_gpu

    if asked == "emulator":
        raise OptionError(
            "the emulator gives no times: it runs CUDA kernels on the CPU; `convkit check --emulate` checks "
            "them, --counters counts their accesses"
        )
    if asked not in (None, "cpu") and not asked.startswith("cuda"):
        raise unknown("device", asked, ("cpu", "cuda"))
    if asked not in (None, "cpu"):
        on_gpu(asked, MEASURE_THE_CPU)
    return asked or ("cuda" if gpu_found() else "cpu")


class Others:
    """The share of the machine's CPU time that went to anything but this process since it was made."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        """Seconds that all CPUs were busy, or taken away by the host; seconds that they had."""
        own = os.times()
        try:
            with open("/proc/stat", encoding="utf-8") as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return math.nan, math.nan
        idle, unit = ticks[3] + ticks[4], os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - idle) / unit - own.user - own.system, sum(ticks) / unit

    def share(self) -> float:
        """0 to 1; NaN where the system does not say."""
        busy, total = (now - then for now, then in zip(self._read(), self._start))
        return min(1.0, max(0.0, busy / total)) if total > 0 else math.nan


def disturbance(rounds: Iterable[Mapping[str, Any]]) -> float:
    """The share that others took of the CPUs' time, the median of the rounds; 0 if bearable."""
    shares = [c["others"] for c in rounds if c.get("others") is not None]
    share = float(median(shares)) if shares else 0.0
    return share if share > DISTURBED else 0.0


def sample(device: str = "cpu") -> dict[str, Any]:
    """Clocks, power, temperature and throttling just now; what the machine does not say is absent.

    Returns
    -------
    dict
        Of "sm_mhz", "mem_mhz", "power_w", "temperature_c", "throttle" (a list of reasons) on a GPU; of
        "cpu_mhz" on a CPU, where that is the mean of its cores'.
    """
    if device == "cuda":
        return _nvml_sample()
    mhz = _cpu_mhz()
    return {} if mhz is None else {"cpu_mhz": mhz}


def last_level_cache() -> int:
    """Bytes of the largest cache of this machine's first CPU; 32 MB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        except OSError:
            continue
        if match:
            sizes.append(int(match[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]])
    return max(sizes, default=32 * 2**20)


# ---------------------------------------------------------------------------------------------------
# CPU
# ---------------------------------------------------------------------------------------------------
def _cpu_mhz() -> float | None:
    """Mean over the cores; a virtual machine may only ever say its nominal clock."""
    found = []
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        try:
            found.append(int(path.read_text()) / 1e3)
        except (OSError, ValueError):
            continue
    if not found:
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        except OSError:
            return None
        found = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(sum(found) / len(found), 1) if found else None


# ---------------------------------------------------------------------------------------------------
# GPU
# ---------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def _nvml() -> Any:
    """NVML and the handle of the current device, or None: not installed, or it fails."""
    try:
        import cupy
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        # NVML counts all GPUs, CUDA those that it may see: the bus id is the same in both.
        bus = cupy.cuda.runtime.deviceGetPCIBusId(cupy.cuda.runtime.getDevice())
        return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus if isinstance(bus, bytes) else bus.encode())
    except Exception:  # a missing package or a driver without NVML is no reason not to measure
        return None


def _nvml_sample() -> dict[str, Any]:
    if (nvml := _nvml()) is None:
        return {}
    n, device = nvml
    ask = {
        "sm_mhz": lambda: n.nvmlDeviceGetClockInfo(device, n.NVML_CLOCK_SM),
        "mem_mhz": lambda: n.nvmlDeviceGetClockInfo(device, n.NVML_CLOCK_MEM),
        "power_w": lambda: n.nvmlDeviceGetPowerUsage(device) / 1e3,
        "temperature_c": lambda: n.nvmlDeviceGetTemperature(device, n.NVML_TEMPERATURE_GPU),
        "throttle": lambda: throttled(n.nvmlDeviceGetCurrentClocksThrottleReasons(device)),
    }
    found = {}
    for key, question in ask.items():
        try:
            found[key] = question()
        except Exception:  # not every GPU answers every question
            continue
    return found


def throttled(bits: int) -> list[str]:
    """What held the clock down, from NVML's bit mask; being idle does not count."""
    return [meaning for bit, meaning in THROTTLE.items() if bits & bit]
