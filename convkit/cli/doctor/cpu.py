"""convkit itself, Python, the CPU's kernels, and the C++ compiler that the emulator needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ... import paths
from ...cpu import extension, threads
from ...cuda import host_compiler
from ...cuda.launch import KernelError
from .row import BROKEN, LIMIT, MISSING, OK, Row


def convkit() -> Row:
    from ...version import __version__

    folder = str(Path(__file__).resolve().parents[2])
    return Row("convkit", OK, f"{__version__} ({folder})", version=__version__, path=folder)


def python() -> Row:
    version = platform.python_version()
    found = f"{version} ({sys.executable}), {platform.system()} {platform.machine()}"
    return Row("Python", OK, found, version=version, path=sys.executable)


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
