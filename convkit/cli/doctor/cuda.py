"""What CUDA needs beside a driver: CuPy, NVRTC with its headers, nvdisasm."""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

from ... import arrays
from ...cuda import nvrtc, sass
from . import driver, packages
from .guard import guarded
from .row import BROKEN, LIMIT, MISSING, OK, OLD, Row, one_line

CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")


def cupy() -> Row:
    versions = {name: version for name in CUPY if (version := packages.installed(name))}
    installed, version = next(iter(versions.items()), ("", ""))
    install = f"pip install 'convkit[{driver.extra()}]'"
    if len(versions) > 1:
        both = ", ".join(f"{name} {version}" for name, version in versions.items())
        advice = f"pip uninstall -y {' '.join(versions)}; {install}"
        return Row("CuPy", BROKEN, f"several, which overwrite each other's files: {both}", advice)
    if not packages.there("cupy"):
        if installed:
            return Row(
                "CuPy", BROKEN, f"{version}, but its files are gone", packages.again(installed), version
            )
        return Row("CuPy", MISSING, "not installed; a GPU needs it", install)
    try:
        module = importlib.import_module("cupy")
    except Exception as error:
        found = f"{installed} {version}: cannot be imported: {one_line(error)}".lstrip()
        return Row("CuPy", BROKEN, found, packages.again(installed) if installed else install, version)
    version, path = str(module.__version__), str(getattr(module, "__file__", None) or "")
    made_for = _cupy_cuda(installed, module)
    found = version + (f", made for CUDA {made_for}" if made_for else "")
    if arrays._too_old(version):
        return Row("CuPy", OLD, f"{found}; 14 or newer is needed", install, version, path)
    if advice := driver.too_new(made_for):
        return Row("CuPy", BROKEN, f"{found}, which the driver does not run", advice, version, path)
    if problem := _cupy_sees(module):
        return Row("CuPy", BROKEN, f"{found}; {problem}", packages.again(installed or "cupy"), version, path)
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
    if not any(row.state in (OK, OLD) for row in driver.gpu() if row.name.startswith("GPU")):
        return ""
    try:
        return "" if module.cuda.runtime.getDeviceCount() else "the driver sees a GPU, and CuPy none"
    except Exception as error:
        return f"the driver sees a GPU, and CuPy none: {one_line(error)}"


def compiler_of_kernels() -> list[Row]:
    """NVRTC, and the headers that it needs."""
    extra = driver.extra() if driver.cuda_major() else "static"
    install = f"pip install 'convkit[{extra}]'"
    core = packages.installed("cuda-core")
    try:
        importlib.import_module("cuda.core")
        importlib.import_module("cuda.pathfinder")
    except Exception as error:
        nothing = Row("CUDA headers", MISSING, "not looked for: that needs cuda-core", install)
        if core and not (isinstance(error, ModuleNotFoundError) and error.name == "cuda"):
            found = f"cuda-core {core}: cannot be imported: {one_line(error)}"
            advice = f"{packages.again('cuda-core')} cuda-bindings cuda-pathfinder"
            return [Row("NVRTC", BROKEN, found, advice, core), nothing]
        return [Row("NVRTC", MISSING, "cuda-core is not installed", install), nothing]
    row = _nvrtc(core)
    return [row, guarded("CUDA headers", lambda: _headers(row.version))]


def _nvrtc(core: str) -> Row:
    from cuda import pathfinder

    with_core = f"with cuda-core {core or 'of unknown version'}"
    wanted = driver.cuda_major() or 13
    try:
        version = nvrtc.version()
    except Exception as error:
        if "NotFound" in type(error).__name__:
            advice = f"pip install 'cuda-toolkit[nvrtc]=={wanted}.*'"
            return Row("NVRTC", MISSING, f"libnvrtc is not found; {with_core}", advice)
        found = f"it cannot be used, {with_core}: {one_line(error)}"
        return Row("NVRTC", BROKEN, found, f"{packages.again('cuda-core')} 'cuda-toolkit[nvrtc]=={wanted}.*'")
    path = ""
    with contextlib.suppress(Exception):
        path = str(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path or "")
    found = f"{version}, {with_core}" + (f" ({path})" if path else "")
    if core and packages.is_old("cuda-core", core):
        return Row("NVRTC", OLD, found, f"pip install {packages.pins(['cuda-core'])}", version, path)
    if advice := driver.too_new(packages.numbers(version)[0]):
        return Row("NVRTC", BROKEN, f"{found}: the driver does not run its code", advice, version, path)
    return Row("NVRTC", OK, found, version=version, path=path)


def _headers(compiler: str) -> Row:
    """Those that the kernels include; of the same major version as the compiler."""
    wanted = packages.numbers(compiler)[0] or driver.cuda_major() or 13
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
    if version and compiler and packages.numbers(version)[0] != packages.numbers(compiler)[0]:
        return Row("CUDA headers", BROKEN, f"{found}, and NVRTC is {compiler}", install, version, folder)
    return Row("CUDA headers", OK, found, version=version, path=folder)


def nvdisasm() -> Row:
    path = sass.nvdisasm()
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=LIMIT, check=False)
    match = re.search(r"\bV(\d[\d.]*)", done.stdout)
    if done.returncode or not match:
        said = " ".join((done.stderr or done.stdout).split()) or "it says no version"
        return Row("nvdisasm", BROKEN, f"{path}: {said}", packages.again("nvidia-cuda-nvdisasm"), path=path)
    return Row("nvdisasm", OK, f"{match[1]} ({path})", version=match[1], path=path)
