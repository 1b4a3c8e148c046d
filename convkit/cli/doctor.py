"""What is installed here, whether it works, and what to do where it does not: `convkit doctor`.

Idea      A row for each thing, from a probe of its own. An exception in a probe is a row, not the end. Other
          people's native code (the driver, CuPy, NVRTC, cuDNN) is loaded in a child process, so that what
          crashes or hangs there is a row too; the child tells each result as soon as it has it, and the next
          child goes on behind the probe that the last one did not survive.
Quick     A version is read from the metadata of what is installed. Only what a GPU needs is imported, and
          the other packages on request.
Status    What it says of a GPU, its driver, CuPy and cuDNN is tested on stand-ins; no GPU has run it yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import importlib
import importlib.metadata
import importlib.util
import json
import operator
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import arrays, paths
from ..bench.peers.cudnn import library
from ..cpu import extension
from ..cuda import nvrtc, sass
from ..cuda.cache import Cache
from ..errors import ConvkitError, MissingExtra

OK, MISSING, BROKEN, OLD, UNKNOWN = "ok", "missing", "broken", "old", "unknown"
#: What a row may say. Only "broken" is a failure: something is there, and does not work.
STATES = (OK, MISSING, BROKEN, OLD, UNKNOWN)
#: Seconds that a child process may take.
LIMIT = 60.0
WIDTH = 110

#: The environment variables that convkit reads, and what for.
VARIABLES = {
    "CONVKIT_BUILD_ISAS": "instruction sets that an install compiles for",
    "CONVKIT_CACHE": "folder of compiled kernels",
    "CONVKIT_CUDNN": "libcudnn, or its folder",
    "CONVKIT_FUZZ_CALL": "tests: only this call",
    "CONVKIT_FUZZ_CALLS": "tests: number of calls",
    "CONVKIT_FUZZ_SEED": "tests: seed of the calls",
    "CONVKIT_ISA": "instruction set of the C++ kernels",
    "CONVKIT_KERNELS": "folder of the CUDA kernels",
    "CONVKIT_NUM_THREADS": "threads of the CPU backend",
    "CONVKIT_REQUIRE_NATIVE": "an install fails where the C++ extension does",
    "CONVKIT_SANITIZE": "sanitizers that an install compiles with",
}
#: The oldest versions that work: those of pyproject.toml.
OLDEST = {
    "cuda-core": "1.0",
    "jax": "0.5",
    "matplotlib": "3.9",
    "ml_dtypes": "0.5",
    "numba": "0.61",
    "numpy": "2.0",
    "nvidia-ml-py": "12",
    "onnx": "1.17",
    "onnxruntime": "1.20",
    "pillow": "10.1",
    "scikit-image": "0.25",
    "tabulate": "0.9",
    "threadpoolctl": "3.2",
    "tqdm": "4.66",
}
#: Optional packages: (row, distribution, module, extra, what for).
OPTIONAL = (
    ("PyTorch", "torch", "torch", "torch", "the comparison with it in `convkit bench`"),
    ("JAX", "jax", "jax", "peers", "the comparison with it in `convkit bench`"),
    ("ONNX", "onnx", "onnx", "onnx", "convkit.onnx"),
    ("ONNX Runtime", "onnxruntime", "onnxruntime", "peers", "the comparison with it in `convkit bench`"),
    ("Pillow", "pillow", "PIL", "images", "photographs of your own"),
    ("scikit-image", "scikit-image", "skimage", "images", "example photographs"),
    ("matplotlib", "matplotlib", "matplotlib", "bench", "pictures of `convkit bench`"),
    ("nvidia-ml-py", "nvidia-ml-py", "pynvml", "cuda13", "a GPU's clocks and power in `convkit bench`"),
)
#: The oldest branch of NVIDIA's driver that runs programs of a major version of CUDA.
BRANCHES = {12: 525, 13: 580}
DRIVERS = ("libcuda.so.1", "nvcuda.dll")
MANAGEMENT = ("libnvidia-ml.so.1", "nvml.dll")
CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
#: What CUDA says where there is a driver and no GPU.
_NO_DEVICE = 100


@dataclass(frozen=True)
class Row:
    """One thing.

    Attributes
    ----------
    name : str
    state : {"ok", "missing", "broken", "old", "unknown"}
    found : str
        What is there, or why nothing is.
    advice : str
        What to do about it, in one line; may be empty.
    version, path : str
        Empty where it has none.
    """

    name: str
    state: str
    found: str
    advice: str = ""
    version: str = ""
    path: str = ""


Probe = Callable[[], "Row | list[Row]"]


# ---------------------------------------------------------------------------------------------------
# Versions of what is installed
# ---------------------------------------------------------------------------------------------------
def _version(distribution: str) -> str:
    """The version of a distribution; empty where it is not installed."""
    try:
        return importlib.metadata.version(distribution) or "unknown"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _there(module: str) -> bool:
    """Whether a module could be imported, as far as that is known without doing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def _numbers(version: str, length: int = 4) -> tuple[int, ...]:
    """(2, 0, 0, 0) of "2.0", and of "2.0.0rc1" too."""
    found = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])][:length]
    return (*found, *([0] * (length - len(found))))


def _is_old(distribution: str, version: str) -> bool:
    return version != "unknown" and _numbers(version) < _numbers(OLDEST.get(distribution, "0"))


_COMPARE = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq,
    ">": operator.gt, ">=": operator.ge, "!=": operator.ne,
}  # fmt: skip


def _unmet(distribution: str, needed: Sequence[str]) -> list[str]:
    """Of these packages, what a distribution asks for and does not get: "numpy<2.3, and here is 2.4.6"."""
    unmet = []
    for requirement in importlib.metadata.requires(distribution) or ():
        match = re.match(r"([\w.-]+)\s*\(?([^;)]*)", requirement.partition(";")[0])
        if match is None or match[1].lower() not in needed:
            continue
        here = _version(match[1])
        for sign, bound in re.findall(r"(<=|>=|==|!=|<|>)\s*([\d.]+)", match[2]):
            if not here or not _COMPARE[sign](_numbers(here), _numbers(bound)):
                unmet.append(f"{match[1]}{sign}{bound}, and here is {here or 'none'}")
    return unmet


def _line(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ---------------------------------------------------------------------------------------------------
# Python and the CPU
# ---------------------------------------------------------------------------------------------------
def convkit() -> Row:
    from .. import __version__

    folder = str(Path(__file__).resolve().parents[1])
    return Row("convkit", OK, f"{__version__} ({folder})", version=__version__, path=folder)


def python() -> Row:
    version = platform.python_version()
    found = f"{version} ({sys.executable}), {platform.system()} {platform.machine()}"
    return Row("Python", OK, found, version=version, path=sys.executable)


def numpy() -> Row:
    import numpy
    import threadpoolctl

    version = str(numpy.__version__)
    blas = [
        f"BLAS: {found['internal_api']} {found['version'] or ''}, threads: {found['num_threads']}"
        for found in threadpoolctl.threadpool_info()
        if found["user_api"] == "blas"
    ]
    found = "; ".join([version, *dict.fromkeys(blas)] if blas else [version, "BLAS: unknown"])
    if _is_old("numpy", version):
        return Row("NumPy", OLD, found, f"pip install 'numpy>={OLDEST['numpy']}'", version)
    return Row("NumPy", OK, found, version=version)


def core() -> Row:
    """What convkit cannot do without."""
    versions = {name: _version(name) for name in ("ml_dtypes", "threadpoolctl", "tabulate", "tqdm")}
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    bad = [name for name, version in versions.items() if not version or _is_old(name, version)]
    if not bad:
        return Row("core packages", OK, found)
    state = MISSING if not all(versions.values()) else OLD
    return Row("core packages", state, found, f"pip install {_pins(bad)}")


def _pins(names: Iterable[str]) -> str:
    return " ".join(shlex.quote(f"{name}>={OLDEST[name]}") for name in names)


def numba() -> Row:
    version = _version("numba")
    if not version:
        return Row("Numba", MISSING, "not installed", f"pip install {_pins(['numba'])}")
    if not _there("numba"):
        return Row("Numba", BROKEN, f"{version}, but its files are gone", _again("numba"), version)
    if unmet := _unmet("numba", ("numpy", "llvmlite")):
        advice = "pip install -U numba, or the version of the other that it asks for"
        return Row("Numba", BROKEN, f"{version} asks for {'; '.join(unmet)}", advice, version)
    if _is_old("numba", version):
        return Row("Numba", OLD, version, f"pip install {_pins(['numba'])}", version)
    return Row("Numba", OK, version, version=version)


def _again(distribution: str) -> str:
    return f"pip install --force-reinstall {distribution}"


def cpp_extension() -> Row:
    module = extension.load()
    if module is not None:
        path = str(getattr(module, "__file__", ""))
        return Row("C++ extension", OK, path, path=path)
    reason, _, advice = extension.why_missing().rpartition("; ")
    if not reason:
        reason, _, advice = advice.partition(": run ")
        advice = f"run {advice or '`pip install -e .` again'}"
    state = BROKEN if importlib.util.find_spec("convkit._native") else MISSING
    return Row("C++ extension", state, reason, advice)


def cpu_kernels() -> Row:
    name, asked = "C++ kernels", os.environ.get(extension.VARIABLE, "").strip()
    stand_in = "Numba stands in, some times slower"
    extension.kernels()  # raises where CONVKIT_ISA cannot be obeyed
    used, reasons = extension.isa(), extension.unusable()
    if used == extension.NONE and asked == extension.NONE:
        found = f"switched off by {extension.VARIABLE}=none; {stand_in}"
        return Row(name, OK, found, f"to use them, unset {extension.VARIABLE}")
    usable = [isa for isa, reason in reasons.items() if not reason]
    if used == extension.NONE:
        reason, _, advice = str(extension.kernels_missing()).rpartition("; ")
        return Row(name, MISSING, f"none: {reason or advice}; {stand_in}", advice if reason else "")
    source = f" ({extension.VARIABLE})" if asked else ""
    rest = [isa for isa in usable if isa != used]
    found = f"{used}{source}: {extension.ISAS[used]}" + (f"; usable too: {', '.join(rest)}" if rest else "")
    bad = {isa: reason for isa, reason in reasons.items() if "cannot be loaded" in reason}
    if bad:
        return Row(name, BROKEN, f"{found}; {next(iter(bad.values()))}", "run `pip install -e .` again", used)
    wider = [reason for isa, reason in reasons.items() if "is not built" in reason]
    return Row(name, OK, found, wider[0] if wider else "", used)


def cpu_threads() -> Row:
    from ..cpu import threads

    cpus = threads._cpus()
    return Row("threads", OK, f"{threads.count()}; CPUs for this process: {cpus}")


def kernel_files() -> Row:
    folder = paths.kernels_dir()
    count = len(list(folder.glob("*.cu")))
    if not count:
        return Row("CUDA kernels", BROKEN, f"no kernel in {folder}", "reinstall convkit", path=str(folder))
    return Row("CUDA kernels", OK, f"{count} files in {folder}", path=str(folder))


def compiler() -> Row:
    """The emulator's: what there is must compile."""
    from ..cuda import host_compiler
    from ..cuda.launch import KernelError

    name, asked = "C++ compiler", os.environ.get("CXX")
    install = "apt-get install g++"
    try:
        path, version = host_compiler.find_compiler(asked)
    except KernelError:
        if asked:
            return Row(name, BROKEN, f"CXX={asked} is not found", "unset CXX, or set it to g++", path=asked)
        return Row(name, MISSING, "none, so no emulator: neither g++, c++ nor clang++ is found", install)
    command = [path, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(
        command, input="#include <cstdint>\n", capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode or not version:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "it fails")
        return Row(name, BROKEN, f"{path} does not compile: {said}", install, version, path)
    advice = ""
    if "clang" in version:
        there = shutil.which("g++")
        advice = f"check mode needs g++: {f'set CXX={there}' if there else install}"
    return Row(name, OK, f"{version} ({path})", advice, version, path)


# ---------------------------------------------------------------------------------------------------
# The GPU, through its driver alone
# ---------------------------------------------------------------------------------------------------
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


def _cuda_major() -> int:
    """The major version of CUDA that the driver runs; 0 without one."""
    try:
        return _driver_cuda(_open(DRIVERS))[0]
    except (OSError, AttributeError):
        return 0


def _extra() -> str:
    return "cuda12" if _cuda_major() == 12 else "cuda13"


def _too_new(major: int) -> str:
    """Why what was made for a CUDA does not run on this driver, and what to do; empty where it does."""
    here = _cuda_major()
    if not 0 < here < major:
        return ""
    branch = f" to {BRANCHES[major]} or newer" if major in BRANCHES else ""
    return f"update NVIDIA's driver{branch}, or pip install 'convkit[{_extra()}]'"


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


# ---------------------------------------------------------------------------------------------------
# What CUDA needs beside a driver
# ---------------------------------------------------------------------------------------------------
def cupy() -> Row:
    versions = {name: version for name in CUPY if (version := _version(name))}
    installed, version = next(iter(versions.items()), ("", ""))
    install = f"pip install 'convkit[{_extra()}]'"
    if len(versions) > 1:
        both = ", ".join(f"{name} {version}" for name, version in versions.items())
        advice = f"pip uninstall -y {' '.join(versions)}; {install}"
        return Row("CuPy", BROKEN, f"several, which overwrite each other's files: {both}", advice)
    if not _there("cupy"):
        if installed:
            return Row("CuPy", BROKEN, f"{version}, but its files are gone", _again(installed), version)
        return Row("CuPy", MISSING, "not installed; a GPU needs it", install)
    try:
        module = importlib.import_module("cupy")
    except Exception as error:
        found = f"{installed} {version}: cannot be imported: {_line(error)}".lstrip()
        return Row("CuPy", BROKEN, found, _again(installed) if installed else install, version)
    version, path = str(module.__version__), str(getattr(module, "__file__", None) or "")
    made_for = _cupy_cuda(installed, module)
    found = version + (f", made for CUDA {made_for}" if made_for else "")
    if arrays._too_old(version):
        return Row("CuPy", OLD, f"{found}; 14 or newer is needed", install, version, path)
    if advice := _too_new(made_for):
        return Row("CuPy", BROKEN, f"{found}, which the driver does not run", advice, version, path)
    if problem := _cupy_sees(module):
        return Row("CuPy", BROKEN, f"{found}; {problem}", _again(installed or "cupy"), version, path)
    return Row("CuPy", OK, found, version=version, path=path)


def _cupy_cuda(installed: str, module: Any) -> int:
    """The major version of CUDA that a CuPy was made for; 0 if it does not say."""
    if match := re.fullmatch(r"cupy-cuda(\d+)x", installed):
        return int(match[1])
    try:
        return int(module.cuda.runtime.runtimeGetVersion()) // 1000
    except Exception:
        return 0


def _cupy_sees(module: Any) -> str:
    """What is wrong where the driver has a GPU, and CuPy has none."""
    if not any(row.state in (OK, OLD) for row in gpu() if row.name.startswith("GPU")):
        return ""
    try:
        return "" if module.cuda.runtime.getDeviceCount() else "the driver sees a GPU, and CuPy none"
    except Exception as error:
        return f"the driver sees a GPU, and CuPy none: {_line(error)}"


def compiler_of_kernels() -> list[Row]:
    """NVRTC, and the headers that it needs."""
    extra = _extra() if _cuda_major() else "static"
    install = f"pip install 'convkit[{extra}]'"
    core = _version("cuda-core")
    try:
        importlib.import_module("cuda.core")
        importlib.import_module("cuda.pathfinder")
    except Exception as error:
        nothing = Row("CUDA headers", MISSING, "not looked for: that needs cuda-core", install)
        if core and not (isinstance(error, ModuleNotFoundError) and error.name == "cuda"):
            found = f"cuda-core {core}: cannot be imported: {_line(error)}"
            advice = f"{_again('cuda-core')} cuda-bindings cuda-pathfinder"
            return [Row("NVRTC", BROKEN, found, advice, core), nothing]
        return [Row("NVRTC", MISSING, "cuda-core is not installed", install), nothing]
    row = _nvrtc(core)
    return [row, _guarded("CUDA headers", lambda: _headers(row.version))]


def _nvrtc(core: str) -> Row:
    from cuda import pathfinder

    with_core = f"with cuda-core {core or 'of unknown version'}"
    wanted = _cuda_major() or 13
    try:
        version = nvrtc.version()
    except Exception as error:
        if "NotFound" in type(error).__name__:
            advice = f"pip install 'cuda-toolkit[nvrtc]=={wanted}.*'"
            return Row("NVRTC", MISSING, f"libnvrtc is not found; {with_core}", advice)
        found = f"it cannot be used, {with_core}: {_line(error)}"
        return Row("NVRTC", BROKEN, found, f"{_again('cuda-core')} 'cuda-toolkit[nvrtc]=={wanted}.*'")
    path = ""
    with contextlib.suppress(Exception):
        path = str(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path or "")
    found = f"{version}, {with_core}" + (f" ({path})" if path else "")
    if core and _is_old("cuda-core", core):
        return Row("NVRTC", OLD, found, f"pip install {_pins(['cuda-core'])}", version, path)
    if advice := _too_new(_numbers(version)[0]):
        return Row("NVRTC", BROKEN, f"{found}: the driver does not run its code", advice, version, path)
    return Row("NVRTC", OK, found, version=version, path=path)


def _headers(compiler: str) -> Row:
    """Those that the kernels include; of the same major version as the compiler."""
    wanted = _numbers(compiler)[0] or _cuda_major() or 13
    install = f"pip install 'cuda-toolkit[cudart]=={wanted}.*'"
    folders = nvrtc._toolchain()[1]
    folder = next((f for f in folders if Path(f, "cuda_fp16.h").is_file()), "")
    if not folder:
        looked = f" in {', '.join(folders)}" if folders else ""
        return Row("CUDA headers", MISSING, f"cuda_fp16.h is not found{looked}", install)
    version = ""
    with contextlib.suppress(OSError):
        text = Path(folder, "cuda_runtime_api.h").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^#define\s+CUDART_VERSION\s+(\d+)", text, re.MULTILINE):
            version = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
    found = f"{version or 'version unknown'} ({folder})"
    if version and compiler and _numbers(version)[0] != _numbers(compiler)[0]:
        return Row("CUDA headers", BROKEN, f"{found}, and NVRTC is {compiler}", install, version, folder)
    return Row("CUDA headers", OK, found, version=version, path=folder)


def nvdisasm() -> Row:
    path = sass.nvdisasm()
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=LIMIT, check=False)
    match = re.search(r"\bV(\d[\d.]*)", done.stdout)
    if done.returncode or not match:
        said = " ".join((done.stderr or done.stdout).split()) or "it says no version"
        return Row("nvdisasm", BROKEN, f"{path}: {said}", _again("nvidia-cuda-nvdisasm"), path=path)
    return Row("nvdisasm", OK, f"{match[1]} ({path})", version=match[1], path=path)


def _install_cudnn() -> str:
    if _cuda_major() == 12:
        return "pip install nvidia-cudnn-cu12 nvidia-cudnn-frontend"
    return "pip install 'convkit[cudnn]'"


def cudnn() -> Row:
    wheels = {cuda: version for cuda in (12, 13) if (version := _version(f"nvidia-cudnn-cu{cuda}"))}
    if len(wheels) > 1:
        names = " ".join(f"nvidia-cudnn-cu{cuda}" for cuda in wheels)
        found = f"two, which overwrite each other's files: {names}"
        return Row("cuDNN", BROKEN, found, f"pip uninstall -y {names}; {_install_cudnn()}")
    named = os.environ.get(library.VARIABLE)
    try:
        loaded = library.load()
    except library.NotInstalled:
        if not wheels:
            return Row(
                "cuDNN",
                MISSING,
                "not installed; it is for the comparison with it in `convkit bench`",
                _install_cudnn(),
            )
        cuda, version = next(iter(wheels.items()))
        advice = _again(f"nvidia-cudnn-cu{cuda}")
        return Row("cuDNN", BROKEN, f"{version}, but its files are gone", advice, version)
    except library.Unavailable as error:
        state = OLD if isinstance(error, library.TooOld) else BROKEN
        return Row("cuDNN", state, str(error), f"unset {library.VARIABLE}" if named else _install_cudnn())
    version = library.dotted(loaded.version)
    row = Row("cuDNN", OK, f"{version} ({loaded.path}, {loaded.where})", version=version, path=loaded.path)
    cuda = next(iter(wheels), 0)
    if loaded.where == "the wheel" and (advice := _too_new(cuda)):
        advice = advice.partition(", or")[0]
        found = f"{row.found}, made for CUDA {cuda}, which the driver does not run"
        return Row("cuDNN", BROKEN, found, f"{advice}, or {_install_cudnn()}", version, loaded.path)
    return row


def cudnn_frontend() -> Row:
    name, version = "cuDNN frontend", _version("nvidia-cudnn-frontend")
    again = f"pip install --force-reinstall --no-deps nvidia-cudnn-frontend=={version}" if version else ""
    if not _there("cudnn"):
        if version:
            return Row(name, BROKEN, f"{version}, but its files are gone", again, version)
        return Row(name, MISSING, "not installed; it is for cuDNN's graph API", _install_cudnn())
    try:
        module = importlib.import_module("cudnn")
        version = version or str(getattr(module, "__version__", "unknown"))
    except Exception as error:
        found = f"{version} cannot be imported: {_line(error)}".lstrip()
        return Row(name, BROKEN, found, again or _install_cudnn(), version)
    path = str(getattr(module, "__file__", None) or "")
    try:
        backend = library.dotted(library.version_of(int(module.backend_version())))
    except Exception as error:
        found = f"{version}, which finds no cuDNN: {_line(error)}"
        return Row(name, BROKEN, found, _install_cudnn(), version, path)
    return Row(name, OK, f"{version} with cuDNN {backend}", version=version, path=path)


# ---------------------------------------------------------------------------------------------------
# Neighbours, the cache, the environment
# ---------------------------------------------------------------------------------------------------
def optional(name: str, distribution: str, module: str, extra: str, purpose: str, imports: bool) -> Row:
    """An optional package; imported only on request."""
    version = _version(distribution)
    install = f"pip install 'convkit[{_extra() if extra == 'cuda13' else extra}]'"
    if not _there(module):
        if version:
            return Row(name, BROKEN, f"{version}, but its files are gone", _again(distribution), version)
        return Row(name, MISSING, f"not installed; it is for {purpose}", install)
    version = version or "unknown"
    if _is_old(distribution, version):
        return Row(name, OLD, f"{version}; {OLDEST[distribution]} or newer is needed", install, version)
    if imports:
        try:
            importlib.import_module(module)
        except Exception as error:
            found = f"{version} cannot be imported: {_line(error)}"
            return Row(name, BROKEN, found, _again(distribution), version)
    return Row(name, OK, version, version=version)


def disk_cache() -> Row:
    """The folder that kernels are compiled into: the first that can be written."""
    name, asked = "disk cache", os.environ.get("CONVKIT_CACHE")
    folders = list(Cache()._folders())
    folder = next((f for f in folders if _writable(f)), None)
    refused = f"{folders[0]} cannot be written" if folders else "there is no home folder"
    set_it = "set CONVKIT_CACHE to a folder that you can write to"
    if folder is None:
        return Row(name, BROKEN, refused, set_it, path=str(folders[0]) if folders else "")
    count, size = _contents(folder)
    made = f"{count} entries, {size / 2**20:.1f} MiB" if folder.is_dir() else "not made yet"
    clear = f"to clear it: rm -r {shlex.quote(str(folder))}" if count else ""
    if folder == folders[0]:
        return Row(name, OK, f"{folder}: {made}", clear, path=str(folder))
    found = f"{refused}; in its place {folder}: {made}"
    return Row(name, BROKEN if asked else OK, found, set_it, path=str(folder))


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself; nothing is left behind."""
    try:
        if folder.exists():
            with tempfile.TemporaryFile(dir=folder):
                return True
        above = next(parent for parent in folder.parents if parent.exists())
    except (OSError, StopIteration):
        return False
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def _contents(folder: Path) -> tuple[int, int]:
    """Entries of a cache, and their bytes."""
    sizes = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                    sizes.append(entry.stat().st_size)
    return len(sizes), sum(sizes)


def variables() -> list[Row]:
    """CONVKIT_* as they are set, those that nobody reads too."""
    rows = []
    for name in sorted(name for name in os.environ if name.upper().startswith("CONVKIT_")):
        value = os.environ[name]
        if name in VARIABLES:
            rows.append(Row(name, OK, f"{value or 'empty'} ({VARIABLES[name]})"))
            continue
        near = difflib.get_close_matches(name.upper(), VARIABLES, n=1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(VARIABLES))}"
        rows.append(Row(name, UNKNOWN, f"{value or 'empty'}; convkit has no such variable", advice))
    return rows


# ---------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------
def probes(imports: bool = False) -> list[tuple[str, Probe, bool]]:
    """In the order of the table: the row's name, its probe, and whether that belongs in a child process."""

    def neighbour(about: tuple[str, str, str, str, str]) -> tuple[str, Probe, bool]:
        return about[0], lambda: optional(*about, imports), imports

    return [
        ("convkit", convkit, False),
        ("Python", python, False),
        ("NumPy", numpy, False),
        ("core packages", core, False),
        ("Numba", numba, False),
        ("C++ extension", cpp_extension, False),
        ("C++ kernels", cpu_kernels, False),
        ("threads", cpu_threads, False),
        ("C++ compiler", compiler, False),
        ("CUDA kernels", kernel_files, False),
        ("GPU", gpu, True),
        ("CuPy", cupy, True),
        ("NVRTC", compiler_of_kernels, True),
        ("nvdisasm", nvdisasm, True),
        ("cuDNN", cudnn, True),
        ("cuDNN frontend", cudnn_frontend, True),
        *map(neighbour, OPTIONAL),
        ("disk cache", disk_cache, False),
        ("variables", variables, False),
    ]


def _guarded(name: str, probe: Probe) -> Any:
    """A probe's rows; of one that raises, a row that says so."""
    try:
        return probe()
    except MissingExtra as error:
        found, _, advice = str(error).rpartition(": ")
        return Row(name, MISSING, found, advice)
    except (Exception, SystemExit) as error:
        text = str(error) if isinstance(error, ConvkitError) else _line(error)
        named = [variable for variable in VARIABLES if variable in text and variable in os.environ]
        advice = (
            f"correct {named[0]}, or unset it" if named else "reinstall it; if that is no help, report this"
        )
        return Row(name, BROKEN, text, advice)


def _rows(name: str, probe: Probe) -> list[Row]:
    found = _guarded(name, probe)
    return found if isinstance(found, list) else [found]


def rows(*, imports: bool = False) -> list[Row]:
    """Every row, in the order of the table. Never raises.

    Parameters
    ----------
    imports : bool
        Import the optional packages that are installed too, which takes seconds.
    """
    every = probes(imports)
    found: dict[str, list[Row]] = {}
    foreign = [name for name, _, apart in every if apart]
    thread = threading.Thread(target=lambda: found.update(_in_children(foreign, imports)))
    thread.start()
    own = {name: _rows(name, probe) for name, probe, apart in every if not apart}
    thread.join()
    lost = "the child process that was to look gave no answer"
    return [
        row
        for name, _, apart in every
        for row in (found.get(name, [Row(name, BROKEN, lost)]) if apart else own[name])
    ]


_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from convkit.cli import doctor; "
    "doctor.child(sys.argv[3:], imports=sys.argv[2] == '1')"
)


def _in_children(names: Sequence[str], imports: bool) -> dict[str, list[Row]]:
    """Rows by probe. A probe that its process does not survive is broken; another process goes on."""
    found: dict[str, list[Row]] = {}
    left = list(names)
    while left:
        text, end = _run_child(left, imports)
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                name, told = json.loads(line)
                found[name] = [Row(**row) for row in told]
        left = [name for name in left if name not in found]
        if left:
            advice = f"reinstall it; {_reproduce(left[0])} shows all that it says"
            found[left[0]] = [Row(left[0], BROKEN, end, advice)]
            left = left[1:]
    return found


def _reproduce(name: str) -> str:
    """A command that ends as the probe did."""
    others = {"GPU": "nvidia-smi", "nvdisasm": "nvdisasm --version"}
    modules = {"CuPy": "cupy", "NVRTC": "convkit.cuda.nvrtc as it; it.version()", "cuDNN frontend": "cudnn"}
    modules |= {"cuDNN": "convkit.bench.peers.cudnn.library as it; it.load()"} | {
        about[0]: about[2] for about in OPTIONAL
    }
    command = others.get(name) or f"python -c 'import {modules[name]}'"
    return f"`{command}`"


def _run_child(names: Sequence[str], imports: bool) -> tuple[str, str]:
    """What a child process told, and how it ended."""
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), "1" if imports else "0", *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        return _text(error.stdout), f"no answer in {LIMIT:g} s"
    except OSError as error:
        return "", f"no process can be started to look: {error}"
    last = [line.strip() for line in _text(done.stderr).splitlines() if line.strip()][-1:]
    said = f": {last[0]}" if last else ""
    if done.returncode < 0:
        with contextlib.suppress(ValueError):
            return _text(done.stdout), f"it crashes: {signal.Signals(-done.returncode).name}{said}"
    return _text(done.stdout), f"it ends the process with status {done.returncode}{said}"


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def child(names: Sequence[str], *, imports: bool = False) -> None:
    """What a child process does: a line of JSON for each probe, as soon as it has ended."""
    told = os.dup(1)
    os.dup2(2, 1)  # whatever is loaded here may print
    every = {name: probe for name, probe, _ in probes(imports)}
    for name in names:
        line = json.dumps([name, [asdict(row) for row in _rows(name, every[name])]])
        os.write(told, line.encode() + b"\n")
    os._exit(0)  # libraries that crash when they are unloaded have said all that they can


# ---------------------------------------------------------------------------------------------------
# Showing them
# ---------------------------------------------------------------------------------------------------
def broken(found: Iterable[Row]) -> list[Row]:
    """The rows that make `convkit doctor` fail."""
    return [row for row in found if row.state == BROKEN]


def document(found: Sequence[Row]) -> dict[str, Any]:
    """For JSON: "convkit", "ok" (nothing is broken), "counts" by state, "rows" with the fields of `Row`."""
    from .. import __version__

    return {
        "convkit": __version__,
        "ok": not broken(found),
        "counts": {state: sum(row.state == state for row in found) for state in STATES},
        "rows": [asdict(row) for row in found],
    }


def table(found: Sequence[Row], width: int = WIDTH) -> str:
    """Plain text, no line longer than `width`: one row each, and under it what to do about it."""
    first = max([len("what"), *(len(row.name) for row in found)])
    first = min(first, width // 3)
    second = max(map(len, STATES))
    room = width - first - second - 4
    lines = [
        f"{'what':{first}}  {'state':{second}}  found, and -> what to do",
        f"{'-' * first}  {'-' * second}  {'-' * room}",
    ]
    for row in found:
        told = _wrapped(row.found, room, "")
        if row.advice:
            told += _wrapped(f"-> {row.advice}", room, "   ")
        names = _wrapped(row.name, first, "")
        for i in range(max(len(told), len(names))):
            name = names[i] if i < len(names) else ""
            state = row.state if i == 0 else ""
            lines.append(f"{name:{first}}  {state:{second}}  {told[i] if i < len(told) else ''}".rstrip())
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return textwrap.wrap(shown, width, subsequent_indent=indent, break_on_hyphens=False) or [""]


def summary(counts: Mapping[str, int]) -> str:
    """One line: how many rows are in each state."""
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
