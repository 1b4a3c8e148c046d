"""`convkit doctor`: what each row says of what is there, missing, broken or old.

The driver is a library that stands in for it, compiled here; packages are folders with metadata.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import pytest
from c_library import build
from cudnn_stand_in import frontend as stand_in

from convkit import cli, devices, tuned
from convkit.bench.peers.cudnn import library
from convkit.cli.doctor import children, cpu, cuda, cudnn, environment, packages
from convkit.cli.doctor import driver as gpu_driver
from convkit.cli.doctor.guard import rows_of
from convkit.cli.doctor.probes import probes
from convkit.cli.doctor.row import OK, STATES, Probe, Row, table
from convkit.cpu import extension, threads
from convkit.cuda import host_compiler, nvrtc, sass
from convkit.errors import ConvkitError

ROOT = Path(__file__).resolve().parents[2]
#: libcuda and libnvidia-ml in one; how they behave is said by variables of the environment.
DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int said(const char *name, int other) { const char *v = getenv(name); return v ? atoi(v) : other; }
int cuDriverGetVersion(int *v) { *v = said("STUB_CUDA", 13000); return *v ? 0 : 34; }
int cuInit(unsigned flags) { (void)flags; return said("STUB_INIT", 0); }
int cuDeviceGetCount(int *n) { *n = said("STUB_COUNT", 2); return 0; }
int cuDeviceGet(int *d, int i) { *d = 7 + i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "Pretended H%d", d); return 0; }
int cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)(d - 6) * 80 << 30; return said("STUB_LOST", 0); }
int cuDeviceGetAttribute(int *v, int what, int d) {
    int c = said("STUB_CAPABILITY", 90);
    *v = what == 75 ? c / 10 : what == 76 ? c % 10 : -1;
    return d < 7;
}
int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_PRETENDED"; return e == 4242; }
int nvmlInit_v2(void) { return said("STUB_NVML", 0); }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "580.65.06", n); return 0; }
"""


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch):
    """No driver, whatever this machine has, and nothing of the environment."""
    monkeypatch.setattr(gpu_driver, "DRIVERS", ("libcuda-absent.so.1",))
    monkeypatch.setattr(gpu_driver, "MANAGEMENT", ("libnvidia-ml-absent.so.1",))
    for name in [name for name in os.environ if name.startswith(("CONVKIT_", "CUDA_VISIBLE_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    return str(build(folder / "driver.c", folder / "libcuda.so.1"))


@pytest.fixture
def driver(stub, monkeypatch):
    monkeypatch.setattr(gpu_driver, "DRIVERS", (stub,))
    monkeypatch.setattr(gpu_driver, "MANAGEMENT", (stub,))
    return stub


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Pretends that distributions are installed: metadata, and modules if their text is given."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(name: str, version: str, *requires: str, **modules: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        for module, text in modules.items():
            monkeypatch.delitem(sys.modules, module, raising=False)
            (tmp_path / f"{module}.py").write_text(text)
        importlib.invalidate_caches()

    return add


def absent(monkeypatch, *modules: str, distributions: tuple[str, ...] = ()) -> None:
    """Pretends that modules and distributions are not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    version = packages.installed
    gone = (*modules, *distributions)
    monkeypatch.setattr(packages, "installed", lambda name: "" if name in gone else version(name))


def state(row: Row) -> str:
    assert row.state in STATES and row.found
    assert row.state == OK or row.advice, "what is not ok has something that can be done"
    assert "\n" not in row.found + row.advice and not re.search(r"https?:|index-url", row.found + row.advice)
    return row.state


def one(name: str, probe: Probe) -> Row:
    (row,) = rows_of(name, probe)
    return row


# ---------------------------------------------------------------------------------------------------
# Python and the CPU
# ---------------------------------------------------------------------------------------------------
def test_python_and_numpy(monkeypatch):
    assert cpu.python().version == sys.version.split()[0]
    row = packages.numpy()
    assert state(row) == "ok" and "BLAS: " in row.found
    monkeypatch.setitem(packages.OLDEST, "numpy", "99")
    assert state(packages.numpy()) == "old" and "numpy>=99" in packages.numpy().advice


def test_core_packages(monkeypatch):
    assert state(packages.core()) == "ok"
    monkeypatch.setitem(packages.OLDEST, "tqdm", "99.5")
    assert packages.core().advice == "pip install 'tqdm>=99.5'" and state(packages.core()) == "old"
    absent(monkeypatch, distributions=("tabulate",))
    assert state(packages.core()) == "missing" and "tabulate missing" in packages.core().found


def test_numba_that_refuses_this_numpy(installed, monkeypatch):
    assert state(packages.numba()) == "ok"
    installed("numba", "0.61.2", "llvmlite (<0.45,>=0.1.0dev0)", "numpy<2.0,>=1.24", "scipy<1; extra == 'x'")
    row = packages.numba()
    assert state(row) == "broken" and re.search(r"asks for .*numpy<2.0, and here is 2\.", row.found)
    assert "scipy" not in row.found and "numpy>=1.24" not in row.found
    absent(monkeypatch, "numba")
    assert state(packages.numba()) == "missing"


def test_numba_of_an_old_version(installed):
    installed("numba", "0.60.0", "numpy")
    assert state(packages.numba()) == "old"


def test_the_extension(monkeypatch):
    run = "run `pip install -e .` again"
    cases = (
        ("convkit._native is not built: no C++ compiler was found; install g++ and " + run, "missing", False),
        ("convkit._native cannot be loaded (libx.so: no such file); " + run, "broken", True),
        ("convkit._native cannot be loaded: No module named 'x'", "broken", True),
        (
            "convkit._native is not built for this Python (3.9): run `pip install -e .` with x",
            "missing",
            False,
        ),
    )
    monkeypatch.setattr(extension, "load", lambda: None)
    for reason, expected, file in cases:
        monkeypatch.setattr(extension, "why_missing", lambda reason=reason: reason)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, file=file: file or None)
        row = cpu.cpp_extension()
        assert (state(row), row.found) == (expected, reason.partition("; ")[0].partition(": run")[0])
        assert "pip install -e ." in row.advice
    monkeypatch.setattr(extension, "load", lambda: SimpleNamespace(__file__="/x/_native.so"))
    assert state(cpu.cpp_extension()) == "ok" and cpu.cpp_extension().path == "/x/_native.so"


@pytest.fixture
def isas(monkeypatch):
    """The C++ kernels as they are told to be: reasons by instruction set, and which of them is used."""
    monkeypatch.setattr(devices, "cpu_kernels", None)

    def pretend(used: str, **reasons: str) -> Row:
        choice = (None, used, reasons.get("none", "")) if used == "none" else (SimpleNamespace(), used, "")
        monkeypatch.setattr(devices, "cpu_kernels", choice)
        monkeypatch.setattr(extension, "unusable", lambda: {k: v for k, v in reasons.items() if k != "none"})
        return one("C++ kernels", cpu.cpu_kernels)

    return pretend


def test_instruction_sets(isas, monkeypatch):
    row = isas("v3", v4="this CPU, or its system, is not x86-64 with AVX-512", v3="", v2="")
    assert (state(row), row.version, row.advice) == ("ok", "v3", "") and row.found.endswith("usable too: v2")
    row = isas("v2", v3="convkit._cpu_v3 is not built: CONVKIT_BUILD_ISAS left it out; run it again", v2="")
    assert state(row) == "ok" and "_cpu_v3 is not built" in row.advice
    row = isas("v2", v3="convkit._cpu_v3 cannot be loaded (truncated); run `pip install -e .` again", v2="")
    assert state(row) == "broken" and "truncated" in row.found
    row = isas("none", none="convkit._native is not built: why; run `pip install -e .` again")
    assert (state(row), row.advice) == ("missing", "run `pip install -e .` again") and "Numba" in row.found
    monkeypatch.setenv("CONVKIT_ISA", "none")
    row = isas("none", v3="", none="the C++ kernels are switched off")
    assert state(row) == "ok" and "CONVKIT_ISA=none" in row.found


def test_values_that_cannot_be_obeyed(monkeypatch, tmp_path):
    """They are the row's own errors, and the variable is named."""
    monkeypatch.setattr(devices, "cpu_kernels", None)
    monkeypatch.setenv("CONVKIT_ISA", "v33")
    monkeypatch.setenv("CONVKIT_NUM_THREADS", "many")
    monkeypatch.setenv("CONVKIT_KERNELS", str(tmp_path / "gone"))
    for name, probe in (
        ("ISA", cpu.cpu_kernels), ("NUM_THREADS", cpu.cpu_threads), ("KERNELS", cpu.kernel_files),
    ):  # fmt: skip
        row = one("x", probe)
        assert (state(row), row.advice) == ("broken", f"correct CONVKIT_{name}, or unset it")
    monkeypatch.setenv("CONVKIT_KERNELS", str(tmp_path))
    assert state(cpu.kernel_files()) == "broken" and "no kernel in" in cpu.kernel_files().found
    monkeypatch.setenv("CONVKIT_NUM_THREADS", "3")
    assert cpu.cpu_threads().found == f"3; CPUs for this process: {threads._cpus()}"


def test_the_compiler(monkeypatch, tmp_path, compiler):
    def script(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    row = cpu.compiler()
    assert state(row) == "ok" and os.path.isabs(row.path)
    version = 'case "$1" in --version) echo "clang version 19.1"; exit;; esac'
    monkeypatch.setenv("CXX", script("clang++", f"{version}; cat > /dev/null"))
    row = cpu.compiler()
    assert state(row) == "ok" and row.advice.startswith("check mode needs g++")
    monkeypatch.setenv("CXX", script("bare", f"{version}; echo 'x:1: fatal error: no cstdint' >&2; exit 1"))
    row = cpu.compiler()
    assert state(row) == "broken" and "no cstdint" in row.found
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    assert state(cpu.compiler()) == "broken" and "unset CXX" in cpu.compiler().advice
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    host_compiler.find_compiler.cache_clear()
    try:
        row = cpu.compiler()
    finally:
        host_compiler.find_compiler.cache_clear()
    assert (state(row), row.advice) == ("missing", "apt-get install g++")


# ---------------------------------------------------------------------------------------------------
# The GPU and its driver
# ---------------------------------------------------------------------------------------------------
def test_no_driver():
    gpu, driver = gpu_driver.gpu()
    assert state(gpu) == state(driver) == "missing" and "emulator" in gpu.advice


def test_two_gpus(driver):
    first, second, row = gpu_driver.gpu()
    assert state(first) == state(second) == state(row) == "ok"
    assert first.found == "Pretended H7, compute capability 9.0, 80.0 GiB"
    assert (second.name, second.found.split(", ")[-1]) == ("GPU 1", "160.0 GiB")
    assert (row.version, row.found) == ("580.65.06", "580.65.06, for CUDA up to 13.0")


def test_a_driver_that_is_old_or_a_gpu_that_is(driver, monkeypatch):
    monkeypatch.setenv("STUB_CUDA", "11080")
    monkeypatch.setenv("STUB_CAPABILITY", "75")
    monkeypatch.setenv("STUB_COUNT", "1")
    monkeypatch.setenv("STUB_NVML", "1")
    gpu, row = gpu_driver.gpu()
    assert state(gpu) == state(row) == "old"
    assert row.found == "version unknown, for CUDA up to 11.8" and "525 or newer" in row.advice


@pytest.mark.parametrize(
    ("variable", "value", "expected", "text"),
    [
        ("STUB_INIT", "803", "broken", "CUDA_ERROR_PRETENDED (803)"),
        ("STUB_INIT", "4242", "broken", "error 4242"),
        ("STUB_INIT", "100", "missing", "the driver sees none"),
        ("STUB_COUNT", "0", "missing", "the driver sees none"),
        ("STUB_LOST", "46", "broken", "CUDA_ERROR_PRETENDED (46)"),
        ("STUB_CUDA", "0", "missing", "the driver is broken"),
    ],
)
def test_a_driver_that_does_not_work(driver, monkeypatch, variable, value, expected, text):
    monkeypatch.setenv(variable, value)
    rows = gpu_driver.gpu()
    assert state(rows[0]) == expected and text in rows[0].found
    assert state(rows[-1]) == ("broken" if variable == "STUB_CUDA" else "ok")


def test_a_gpu_that_is_hidden(driver, monkeypatch):
    monkeypatch.setenv("STUB_INIT", "100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    row = gpu_driver.gpu()[0]
    assert state(row) == "missing" and "CUDA_VISIBLE_DEVICES=-1" in row.found and "unset" in row.advice


def test_a_driver_that_cannot_be_loaded(tmp_path, monkeypatch):
    """Not "none": there is one."""
    path = tmp_path / "libcuda.so.1"
    path.write_text("no ELF")
    monkeypatch.setattr(gpu_driver, "DRIVERS", (str(path),))
    gpu, driver = gpu_driver.gpu()
    assert (state(gpu), state(driver)) == ("missing", "broken") and gpu_driver.cuda_major() == 0
    for said in (
        "libx.so.2: cannot open shared object file: No such file or directory",  # which libcuda needs
        "/lib/libcuda.so.1: file too short",
    ):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, said=said: (_ for _ in ()).throw(OSError(said)))
        monkeypatch.setattr(gpu_driver, "DRIVERS", ("libcuda.so.1",))
        assert state(gpu_driver.gpu()[1]) == "broken" and said in gpu_driver.gpu()[1].found


# ---------------------------------------------------------------------------------------------------
# CuPy
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def cupy(monkeypatch):
    module = fake_cupy.module()
    absent(monkeypatch, distributions=cuda.CUPY)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_cupy(cupy, driver, monkeypatch):
    assert state(cuda.cupy()) == "ok" and cuda.cupy().version == "14.2.0"
    cupy.cuda.runtime.runtimeGetVersion = lambda: 13000
    assert cuda.cupy().found == "14.2.0, made for CUDA 13"
    monkeypatch.setenv("STUB_CUDA", "12040")
    row = cuda.cupy()
    assert state(row) == "broken" and "driver to 580 or newer, or pip install 'convkit[cuda12]'" in row.advice
    monkeypatch.setenv("STUB_CUDA", "13010")
    cupy.__version__ = "13.6.0"
    assert state(cuda.cupy()) == "old" and "14 or newer" in cuda.cupy().found


def test_cupy_that_sees_no_gpu(cupy, driver, monkeypatch):
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    assert state(cuda.cupy()) == "broken" and "CuPy none" in cuda.cupy().found

    def fails() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    cupy.cuda.runtime.getDeviceCount = fails
    assert state(cuda.cupy()) == "broken" and "InsufficientDriver" in cuda.cupy().found
    monkeypatch.setenv("STUB_COUNT", "0")
    assert state(cuda.cupy()) == "ok", "no GPU is the GPU's row"


def test_cupy_is_missing_or_gone(monkeypatch, driver, installed):
    absent(monkeypatch, "cupy")
    assert (state(cuda.cupy()), cuda.cupy().advice) == ("missing", "pip install 'convkit[cuda13]'")
    monkeypatch.setenv("STUB_CUDA", "12090")
    assert cuda.cupy().advice == "pip install 'convkit[cuda12]'"
    installed("cupy-cuda12x", "14.1.0")
    assert state(cuda.cupy()) == "broken" and "files are gone" in cuda.cupy().found
    installed("cupy-cuda13x", "14.2.0")
    row = cuda.cupy()
    assert state(row) == "broken" and "pip uninstall -y cupy-cuda12x cupy-cuda13x; pip install" in row.advice


def test_cupy_that_cannot_be_imported(installed):
    installed("cupy-cuda13x", "14.2.0", cupy="raise ImportError('libnvrtc.so.13:\\n not found')")
    row = cuda.cupy()
    assert state(row) == "broken" and row.advice == "pip install --force-reinstall cupy-cuda13x"
    assert row.found == "cupy-cuda13x 14.2.0: cannot be imported: ImportError: libnvrtc.so.13: not found"


# ---------------------------------------------------------------------------------------------------
# NVRTC, headers, nvdisasm
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def toolchain(tmp_path, monkeypatch):
    """cuda-core as far as it is looked at, and a folder of headers."""
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "cuda_fp16.h").write_text("")
    (headers / "cuda_runtime_api.h").write_text("#define CUDART_VERSION  13050\n")
    loaded = SimpleNamespace(abs_path="/x/libnvrtc.so.13")
    pathfinder = SimpleNamespace(load_nvidia_dynamic_lib=lambda name: loaded)
    modules = {"cuda": SimpleNamespace(pathfinder=pathfinder), "cuda.core": 1, "cuda.pathfinder": pathfinder}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(packages, "installed", lambda name: "1.2.2")
    monkeypatch.setattr(nvrtc, "version", lambda: "13.5")
    monkeypatch.setattr(nvrtc, "_toolchain", lambda: (None, ["/nowhere", str(headers)]))
    return headers


def test_the_compiler_of_kernels(toolchain, driver, monkeypatch):
    row, headers = cuda.compiler_of_kernels()
    assert (state(row), row.version, row.path) == ("ok", "13.5", "/x/libnvrtc.so.13")
    assert (state(headers), headers.version, headers.path) == ("ok", "13.5", str(toolchain))
    monkeypatch.setenv("STUB_CUDA", "12080")
    row, _ = cuda.compiler_of_kernels()
    assert state(row) == "broken" and "the driver does not run its code" in row.found
    monkeypatch.setattr(packages, "installed", lambda name: "0.9")
    assert state(cuda.compiler_of_kernels()[0]) == "old"


def test_headers(toolchain):
    (toolchain / "cuda_runtime_api.h").write_text("#define CUDART_VERSION 12090\n")
    row = cuda.compiler_of_kernels()[1]
    assert state(row) == "broken" and row.advice == "pip install 'cuda-toolkit[cudart]==13.*'"
    (toolchain / "cuda_fp16.h").unlink()
    assert state(cuda.compiler_of_kernels()[1]) == "missing"


def test_an_nvrtc_that_is_not_there(toolchain, monkeypatch):
    def raises(kind: type[Exception]) -> None:
        monkeypatch.setattr(nvrtc, "version", lambda: (_ for _ in ()).throw(kind("libnvrtc.so.13")))

    raises(type("DynamicLibNotFoundError", (RuntimeError,), {}))
    row, headers = cuda.compiler_of_kernels()
    assert (state(row), row.advice) == ("missing", "pip install 'cuda-toolkit[nvrtc]==13.*'")
    assert state(headers) == "ok"
    raises(RuntimeError)
    assert state(cuda.compiler_of_kernels()[0]) == "broken"


def test_cuda_core(monkeypatch, driver):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    monkeypatch.setattr(packages, "installed", lambda name: "")
    row, headers = cuda.compiler_of_kernels()
    assert state(row) == state(headers) == "missing" and row.advice == "pip install 'convkit[cuda13]'"
    monkeypatch.setattr(packages, "installed", lambda name: "1.2.2")
    row, headers = cuda.compiler_of_kernels()
    assert (state(row), state(headers)) == ("broken", "missing") and "cannot be imported" in row.found
    monkeypatch.setattr(gpu_driver, "DRIVERS", ())
    assert cuda.compiler_of_kernels()[1].advice == "pip install 'convkit[static]'", "no GPU: no CuPy"


def test_nvdisasm(monkeypatch, tmp_path):
    script = tmp_path / "nvdisasm"
    script.write_text("#!/bin/sh\necho 'release 13.5, V13.5.37'\n")
    script.chmod(0o755)
    monkeypatch.setattr(sass, "nvdisasm", lambda: str(script))
    row = one("nvdisasm", cuda.nvdisasm)
    assert (state(row), row.version) == ("ok", "13.5.37")
    script.write_text("#!/bin/sh\necho 'no such library' >&2; exit 127\n")
    row = one("nvdisasm", cuda.nvdisasm)
    assert state(row) == "broken" and "no such library" in row.found
    monkeypatch.undo()
    monkeypatch.setattr(sass.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "cuda", None)
    sass.nvdisasm.cache_clear()
    row = one("nvdisasm", cuda.nvdisasm)
    assert (state(row), row.advice) == ("missing", "pip install 'convkit[static]'")
    sass.nvdisasm.cache_clear()


# ---------------------------------------------------------------------------------------------------
# cuDNN
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def no_cudnn(monkeypatch):
    absent(
        monkeypatch,
        "cudnn",
        distributions=("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend"),
    )
    monkeypatch.setattr(library, "SONAMES", ("libcudnn-absent.so",))
    monkeypatch.setattr(library, "wheels", lambda: iter(()))


@pytest.fixture(scope="session")
def libcudnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        Path(stand_in.__file__).with_name("cudnn.c"), tmp_path_factory.mktemp("doctor") / "libcudnn.so.9"
    )


def test_cudnn(no_cudnn, libcudnn, driver, installed, monkeypatch):
    row = cudnn.cudnn()
    assert (state(row), row.advice) == ("missing", "pip install 'convkit[cudnn]'")
    monkeypatch.setenv("STUB_CUDA", "12080")
    assert cudnn.cudnn().advice == "pip install nvidia-cudnn-cu12 nvidia-cudnn-frontend"
    monkeypatch.setenv("CONVKIT_CUDNN", str(libcudnn))
    row = cudnn.cudnn()
    assert (state(row), row.version, row.path) == ("ok", "9.28.1", str(libcudnn))
    monkeypatch.setenv("CONVKIT_CUDNN", str(libcudnn.parent / "gone"))
    assert (state(cudnn.cudnn()), cudnn.cudnn().advice) == ("broken", "unset CONVKIT_CUDNN")


def test_cudnn_of_a_wheel(no_cudnn, libcudnn, driver, installed, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(gpu_driver, "DRIVERS", (driver,))
    monkeypatch.delenv("CONVKIT_CUDNN", raising=False)
    monkeypatch.setattr(library, "SONAMES", ())
    monkeypatch.setattr(library, "wheels", lambda: iter([libcudnn]))
    versions = {"nvidia-cudnn-cu13": "9.28.1.4"}
    monkeypatch.setattr(packages, "installed", lambda name: versions.get(name, ""))
    assert state(cudnn.cudnn()) == "ok"
    monkeypatch.setenv("STUB_CUDA", "12080")
    row = cudnn.cudnn()
    assert state(row) == "broken" and "made for CUDA 13" in row.found and "nvidia-cudnn-cu12" in row.advice
    monkeypatch.setattr(library, "wheels", lambda: iter(()))
    assert state(cudnn.cudnn()) == "broken" and "files are gone" in cudnn.cudnn().found
    versions["nvidia-cudnn-cu12"] = "9.20.0"
    row = cudnn.cudnn()
    assert (
        state(row) == "broken" and "pip uninstall -y nvidia-cudnn-cu12 nvidia-cudnn-cu13; pip" in row.advice
    )


def test_cudnn_that_is_old_or_none(no_cudnn, tmp_path, monkeypatch):
    seven = build(Path(stand_in.__file__).with_name("cudnn.c"), tmp_path / "libcudnn.so.7", "-DVERSION=7605")
    monkeypatch.setattr(library, "SONAMES", (str(seven),))
    assert state(cudnn.cudnn()) == "old" and "8.0.0 or newer" in cudnn.cudnn().found
    (tmp_path / "libcudnn.so.9").write_text("no ELF")
    monkeypatch.setattr(library, "SONAMES", (str(tmp_path / "libcudnn.so.9"),))
    assert state(cudnn.cudnn()) == "broken"


def test_the_frontend(no_cudnn, installed, monkeypatch):
    row = cudnn.cudnn_frontend()
    assert (state(row), row.advice) == ("missing", "pip install 'convkit[cudnn]'")
    module = stand_in.module({})
    monkeypatch.setitem(sys.modules, "cudnn", module)
    assert state(cudnn.cudnn_frontend()) == "ok" and cudnn.cudnn_frontend().found == "1.99 with cuDNN 9.28.1"
    module.backend_version = lambda: (_ for _ in ()).throw(RuntimeError("Unable to dlopen libcudnn"))
    assert state(cudnn.cudnn_frontend()) == "broken" and "finds no cuDNN" in cudnn.cudnn_frontend().found


def test_a_frontend_that_cannot_be_imported(installed):
    installed("nvidia-cudnn-frontend", "1.32.0", cudnn="raise OSError('GLIBC_2.99 not found')")
    row = cudnn.cudnn_frontend()
    assert state(row) == "broken" and "GLIBC_2.99" in row.found and "--no-deps" in row.advice


# ---------------------------------------------------------------------------------------------------
# Neighbours, the cache, the environment
# ---------------------------------------------------------------------------------------------------
def test_optional_packages(installed, monkeypatch):
    about = ("ONNX", "onnx", "onnx", "onnx", "convkit.onnx")
    absent(monkeypatch, "onnx")
    row = packages.optional(*about, imports=True)
    assert (state(row), row.advice) == ("missing", "pip install 'convkit[onnx]'")
    monkeypatch.undo()


def test_an_optional_package_that_is_broken_is_imported_on_request_alone(installed, monkeypatch):
    about = ("ONNX", "onnx", "onnx", "onnx", "convkit.onnx")
    installed("onnx", "1.20.0", onnx="raise RuntimeError('two protobufs')")
    assert state(packages.optional(*about, imports=False)) == "ok"
    row = packages.optional(*about, imports=True)
    assert state(row) == "broken" and "RuntimeError: two protobufs" in row.found
    monkeypatch.setitem(packages.OLDEST, "onnx", "1.21")
    assert state(packages.optional(*about, imports=False)) == "old"
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert state(packages.optional(*about, imports=False)) == "broken"


def test_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "a b" / "c"))
    row = environment.disk_cache()
    assert (state(row), row.found) == ("ok", f"{tmp_path}/a b/c: not made yet") and not (
        tmp_path / "a b"
    ).exists()
    row_path = Path(row.path)
    row_path.mkdir(parents=True)
    (row_path / "key.digest.so").write_bytes(bytes(2**20))
    (row_path / ".key.lock").write_bytes(b"x")
    row = environment.disk_cache()
    assert row.found.endswith("1 entries, 1.0 MiB") and row.advice == f"to clear it: rm -r '{row.path}'"
    assert sorted(path.name for path in row_path.iterdir()) == [".key.lock", "key.digest.so"]


def test_what_was_tuned(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    monkeypatch.setenv("CONVKIT_TUNED", "off")
    assert environment.tuned_choices().found == "switched off (CONVKIT_TUNED=off)"
    monkeypatch.setenv("CONVKIT_TUNED", str(path))
    assert environment.tuned_choices().found.startswith("none")
    tuned.Store(path).put({"a": {"machine": tuned.machine("cpu")}, "b": {"machine": {"device": "cpu"}}})
    row = environment.tuned_choices()
    assert state(row) == "ok" and ": 1 for this machine, 1 for others" in row.found
    path.write_text("[]")
    row = environment.tuned_choices()
    assert state(row) == "broken" and "says no format" in row.found and str(path) in row.advice
    monkeypatch.setenv("CONVKIT_TUNED", str(tmp_path))
    row = environment.tuned_choices()
    assert state(row) == "broken" and row.advice == "set CONVKIT_TUNED to a file", "not: rm a folder"


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    """A user named it, so it is an error; of the default folder, the one that stands in is told."""
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "file" / "cache"))
    row = environment.disk_cache()
    assert state(row) == "broken" and "cannot be written; in its place" in row.found
    assert "CONVKIT_CACHE" in row.advice
    monkeypatch.delenv("CONVKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    row = environment.disk_cache()
    assert state(row) == "ok" and str(tmp_path / "tmp") in row.path
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    assert state(environment.disk_cache()) == "broken"


def test_a_folder_that_refuses_files(tmp_path, monkeypatch):
    def refuses(**options: object) -> None:
        raise PermissionError("read-only")

    assert environment._writable(tmp_path) and not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    assert not environment._writable(tmp_path)


def test_a_misspelt_variable(monkeypatch):
    monkeypatch.setenv("CONVKIT_ISAA", "v3")
    monkeypatch.setenv("convkit_cache", "/x")
    monkeypatch.setenv("CONVKIT_NUM_THREADS", "2")
    monkeypatch.setenv("CONVKIT_QQQQQQQQQQQQQ", "")
    rows = {row.name: row for row in environment.variables()}
    assert {name: state(row) for name, row in rows.items()} == {
        "CONVKIT_ISAA": "unknown", "convkit_cache": "unknown", "CONVKIT_NUM_THREADS": "ok",
        "CONVKIT_QQQQQQQQQQQQQ": "unknown",
    }  # fmt: skip
    assert rows["CONVKIT_ISAA"].advice == "did you mean CONVKIT_ISA?"
    assert rows["convkit_cache"].advice == "did you mean CONVKIT_CACHE?"
    assert rows["CONVKIT_QQQQQQQQQQQQQ"].advice.startswith("known: CONVKIT_BUILD_ISAS, ")


@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")
def test_every_variable_that_is_read_is_known():
    doctor = ROOT / "convkit" / "cli" / "doctor"
    files = [path for path in (ROOT / "convkit").rglob("*.py") if doctor not in path.parents]
    fuzz = (ROOT / "tests").rglob("test_fuzz.py")
    texts = [path.read_text() for path in (*files, ROOT / "setup.py", *fuzz)]
    assert {name for text in texts for name in re.findall(r"\"(CONVKIT_[A-Z_]+)\"", text)} == set(
        environment.VARIABLES
    )


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree")
def test_the_oldest_versions_are_those_of_the_metadata():
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib  # type: ignore[no-redef]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {}
    for text in (*project["dependencies"], *(text for extra in extras.values() for text in extra)):
        if match := re.match(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", text):
            asked.setdefault(match[1], match[2])
    assert {name: asked.get(name) for name in packages.OLDEST} == packages.OLDEST
    assert {extra for *_, extra, _ in packages.OPTIONAL} < set(extras)
    assert [text.partition(">")[0] for text in extras["cudnn"]] == [
        "nvidia-cudnn-cu13",
        "nvidia-cudnn-frontend",
    ]


# ---------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------
def test_a_probe_that_raises_is_a_row():
    def leaves() -> Row:
        raise SystemExit("left")

    assert one("x", leaves).found == "SystemExit: left"
    row = one("x", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert (state(row), row.found) == ("broken", "ZeroDivisionError: division by zero")

    def refuses() -> Row:
        raise ConvkitError("in our own words")

    assert one("x", refuses).found == "in our own words"


def test_what_a_process_does_not_survive_is_a_row(installed, capsys, monkeypatch):
    """And what comes behind it is looked at nevertheless; in processes of their own."""
    installed("cupy-cuda13x", "14.2.0", cupy="import os; print('noise'); os.kill(os.getpid(), 9)")
    installed("nvidia-cudnn-frontend", "1.32.0", cudnn="print('{}'); raise ImportError('no backend')")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 110
    assert re.search(r"^CuPy +broken +it crashes: SIGKILL(: noise)?$", out, re.MULTILINE)
    assert re.search(
        r"^cuDNN frontend +broken +1.32.0 cannot be imported: ImportError: no backend$", out, re.M
    )
    first = [line.split("  ")[0] for line in out.splitlines()]
    for name, *_ in probes():
        assert name in ("variables", "GPU") or name in first, name
    assert "cupy" not in sys.modules and "cudnn" not in sys.modules


def test_a_process_that_hangs(monkeypatch):
    told = json.dumps(["GPU", [{"name": "GPU", "state": "ok", "found": "one"}]])
    asked = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        asked.append(command[5:])
        if command[5] == "GPU":
            raise subprocess.TimeoutExpired(command, 60, output=f'{told}\n["CuP'.encode())
        return SimpleNamespace(returncode=-int(signal.SIGSEGV), stdout=b"", stderr=b"a\nbad address\n\n")

    monkeypatch.setattr(subprocess, "run", run)
    rows = children._in_children(["GPU", "CuPy", "NVRTC"], False)
    assert asked == [["GPU", "CuPy", "NVRTC"], ["NVRTC"]]
    assert rows["GPU"] == [Row("GPU", "ok", "one")]
    assert rows["CuPy"][0].found == "no answer in 60 s" and "import cupy" in rows["CuPy"][0].advice
    assert rows["NVRTC"][0].found == "it crashes: SIGSEGV: bad address"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError("no fork")))
    everything = [name for name, _, apart in probes(imports=True) if apart]
    rows = children._in_children(everything, True)
    assert all(state(rows[name][0]) == "broken" and "no fork" in rows[name][0].found for name in everything)


@pytest.fixture
def three(monkeypatch):
    """Some rows, in the place of this machine's."""
    rows = [
        Row("one", "ok", "1.0 (/x)", version="1.0", path="/x"),
        Row("two", "missing", "not installed", "pip install two"),
        Row("CONVKIT_" + "X" * 60, "unknown", "/é\n/\udcff" + "y" * 300, "did you mean Z? " * 20),
    ]
    monkeypatch.setattr(children, "rows", lambda imports=False: rows)
    return rows


def test_exit_statuses(three, capsys):
    assert cli.main(["doctor"]) == 0, "what is missing, old or unknown is no failure"
    assert capsys.readouterr().out.endswith("\n\n1 ok, 1 missing, 1 unknown\n")
    three.append(Row("four", "broken", "x", "y"))
    assert cli.main(["doctor"]) == 1
    assert cli.main(["doctor", "--json", "/nonexistent/x.json"]) == 2
    assert "cannot write /nonexistent/x.json" in capsys.readouterr().err


def test_json(three, capsys, tmp_path):
    path = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--json", str(path)]) == 0
    assert "what " in capsys.readouterr().out
    assert cli.main(["doctor", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(path.read_text())
    assert list(document) == ["convkit", "ok", "counts", "rows"] and document["ok"] is True
    assert document["counts"] == {"ok": 1, "missing": 1, "broken": 0, "old": 0, "unknown": 1}
    assert document["rows"][0] == {
        "name": "one", "state": "ok", "found": "1.0 (/x)", "advice": "", "version": "1.0", "path": "/x",
    }  # fmt: skip
    assert all(list(row) == list(document["rows"][0]) for row in document["rows"])
    assert all(isinstance(value, str) for row in document["rows"] for value in row.values())


def test_the_table_fits(three):
    text = table(three)
    assert max(map(len, text.splitlines())) <= 110 and text.isprintable() is False
    assert all(line.isprintable() for line in text.splitlines()) and "\\n/\\udcff" in text
    assert max(map(len, table(three, 80).splitlines())) <= 80


def test_a_quick_look_imports_nothing_heavy():
    """In a process of its own, whose modules are counted at the end."""
    code = (
        "import sys; from convkit.cli.doctor import children;"
        "children._in_children = lambda names, imports: {};"
        "children.rows(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "torch",
        "jax",
        "numba",
        "onnx",
        "onnxruntime",
        "PIL",
        "skimage",
        "cupy",
        "cuda.core",
    }
