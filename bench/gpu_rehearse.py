"""The rehearsal of `bench/gpu.py`: every stage on the stand-in for CuPy, so that no GPU minute finds a typo.

Imports are limited to what gpu-packages.txt lists: for every other third-party module this Python is as if it
were not installed, and so is convkit's C++ extension. Launches go through the real executor to kernels that
do nothing; where the work is small, the emulator does it instead and its results are judged. PyTorch is real
and works on the CPU; cuDNN, compute-sanitizer and Nsight Compute are stand-ins.

What it cannot show is how the real ones answer.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu

TESTS = gpu.HERE.parent / "tests"
#: Modules of this checkout, and what an editable install or the environment has already put into Python.
_LOCAL = ("convkit", "fake_cupy", "gpu", *(p.stem for p in gpu.HERE.glob("gpu_*.py")))
_NOT_BUILT = ("convkit._native", "convkit._cpu_")
MOST_SECONDS, MOST_BYTES = 60, 16 * 2**20


# ---------------------------------------------------------------------------------------------------
# A Python with few packages
# ---------------------------------------------------------------------------------------------------
def allowed() -> frozenset[str]:
    """The top-level modules that gpu-packages.txt lists."""
    lines = (gpu.HERE / "gpu-packages.txt").read_text(encoding="utf-8").splitlines()
    words = [line.partition("#")[0].split() for line in lines]
    return frozenset(module for found in words for module in found[1:])


class Limited:
    """A finder of `sys.meta_path` that finds what is listed, the standard library, and this checkout."""

    def __init__(self, finder: Any, names: frozenset[str]) -> None:
        self.finder, self.names = finder, names | frozenset(_LOCAL) | sys.stdlib_module_names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        own = top in self.names or top.startswith("_sysconfigdata")  # Python's own, of a name for each system
        if not own or name.startswith(_NOT_BUILT):
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:  # invalidate_caches, find_distributions
        return getattr(self.finder, name)


def limit_imports() -> None:
    """From now on, what is not listed is not installed."""
    names = allowed()
    for number, finder in enumerate(sys.meta_path):
        if getattr(finder, "__name__", "") not in ("BuiltinImporter", "FrozenImporter"):
            sys.meta_path[number] = Limited(finder, names)


# ---------------------------------------------------------------------------------------------------
# A GPU that is none
# ---------------------------------------------------------------------------------------------------
def install() -> None:
    """Put the stand-in in CuPy's place, in a Python with few packages."""
    limit_imports()
    sys.path.append(str(TESTS))
    import fake_cupy

    module = fake_cupy.module()
    module.cuda.set_allocator = lambda allocator=None: None
    sys.modules["cupy"] = module
    fake_cupy.KERNEL[0] = 1e-5
    from convkit import check, devices
    from convkit.bench.measure import clocks
    from convkit.cuda import gpu
    from convkit.network import presets

    for place in (devices, check):
        place.gpu_found = lambda *_: True  # type: ignore[attr-defined]
    clocks.CUDA_FLUSH = 4096
    gpu.cached_cubin = lambda *_, **__: b"machine code"  # type: ignore[attr-defined]
    tiny = _tiny()
    presets.PRESETS["tiny"] = tiny
    # PyTorch's LRN knows no bfloat16 on a CPU.
    plain = tuple(layer for layer in tiny.layers if layer.name != "norm1")
    presets.PRESETS["plain"] = replace(tiny, name="plain", layers=plain)


def _tiny() -> Any:
    """A network whose step the emulator does in a second."""
    from convkit.network.layers import Constant, Conv, Flatten, Linear, Lrn, MaxPool, Normal, Relu
    from convkit.network.presets import Preset

    layers = (
        Conv("conv1", 4, 3, Normal(0.05), Constant(0), padding=1), Relu("relu1"),
        Lrn("norm1", 5, 1e-4, 0.75, 2.0), MaxPool("pool1", 3, 2), Flatten("flatten"),
        Linear("fc8", None, Normal(0.01), Constant(0)),
    )  # fmt: skip
    return Preset("tiny", 9, layers)


@contextlib.contextmanager
def emulator() -> Iterator[None]:
    """Kernels run under the emulator, on the stand-in's arrays."""
    from convkit import devices

    before = devices.current
    devices.current = _current()  # type: ignore[assignment]
    try:
        yield
    finally:
        devices.current = before  # type: ignore[assignment]


@functools.lru_cache(maxsize=1)
def _current() -> Any:
    import fake_cupy

    from convkit.cuda.emulate import Emulator

    return fake_cupy.current_executor(Emulator())


_TOOL = """#!{python}
import os, sys
rest = sys.argv[1:]
if "--import" in rest:
    print("==PROF== a message")
    print('"ID","Section Name","Metric Name","Metric Unit","Metric Value"')
    print('"0","GPU Speed Of Light Throughput","Duration","us","12.5"')
    sys.exit(0)
for option in ("--export",):
    if option in rest:
        open(rest[rest.index(option) + 1] + ".ncu-rep", "w").close()
print("========= COMPUTE-SANITIZER, a stand-in", flush=True)
command = rest[rest.index({python!r}):]
sys.stdout.flush()
code = os.spawnv(os.P_WAIT, command[0], command)
print("========= ERROR SUMMARY: 0 errors")
sys.exit(code)
"""


def stand_ins(folder: Path) -> dict[str, str]:
    """Programs and a library in the place of CUDA's; the environment that has them found."""
    for name in ("ncu", "compute-sanitizer"):
        path = folder / name
        path.write_text(_TOOL.format(python=sys.executable), encoding="utf-8")
        path.chmod(0o755)
    library = folder / "libcudnn_stand_in.so"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "cc"
    source = TESTS / "cudnn_stand_in" / "cudnn.c"
    command = [
        *compiler.split(),
        "-std=c99",
        "-O1",
        "-shared",
        "-fPIC",
        str(source),
        "-o",
        str(library),
        "-lm",
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return {
        "PATH": os.pathsep.join([str(folder), os.environ.get("PATH", "")]), "CONVKIT_CUDNN": str(library),
        gpu.REHEARSAL: "1",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# AlexNet's step on the host
# ---------------------------------------------------------------------------------------------------
def step_on_the_host(batch: int = 1, repeats: int = 9) -> dict[str, float]:
    """Launches of AlexNet's step, and the milliseconds of this thread that they take: kernels do nothing."""
    import fake_cupy
    import numpy as np

    import convkit as ck

    count = [0]

    def launch(self: Any, grid: Any, block: Any, args: Any, shared_mem: int = 0, **options: Any) -> None:
        count[0] += 1

    before = fake_cupy.Function.__call__
    fake_cupy.Function.__call__ = launch  # type: ignore[method-assign]
    try:
        net = ck.AlexNet("paper", seed=0, device="cuda")
        cupy = sys.modules["cupy"]
        x = cupy.asarray(np.zeros((batch, *net.input_shape), np.float32))  # type: ignore[attr-defined]
        labels = cupy.asarray(np.zeros(batch, np.int64))  # type: ignore[attr-defined]
        plan = net.load_step(x, labels)
        calls = [call for phase in plan.phases().values() for call in phase]

        def step() -> None:
            for call in calls:
                call.run()

        step()
        count[0], times = 0, []
        for _ in range(repeats):
            began = time.thread_time_ns()
            step()
            times.append((time.thread_time_ns() - began) / 1e6)
        return {"launches": count[0] // repeats, "calls": len(calls), "host_ms": min(times)}
    finally:
        fake_cupy.Function.__call__ = before  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------
# The rehearsal
# ---------------------------------------------------------------------------------------------------
def rehearse(folder: Path) -> tuple[list[Sequence[Any]], list[str]]:
    """Walk every stage, with its files in a folder; the table's rows, and what is not as it must be."""
    began, rows, faults = time.monotonic(), [], []
    tools = folder / "tools"
    tools.mkdir()
    os.environ.update(stand_ins(tools))
    install()
    out = folder / "out"
    spent = [_spent()]

    def size() -> tuple[int, int]:
        files = [p for p in out.rglob("*") if p.is_file()] if out.exists() else []
        return len(files), sum(p.stat().st_size for p in files)

    def each(stage: gpu.Document) -> None:
        now = _spent()
        rows.append((stage["name"], f"{stage['status']}, {len(stage['records'])}", now - spent[0], *size()))
        spent[0] = now

    args = argparse.Namespace(minutes=9.0, after=None, stages=None, out=out)
    document, path = gpu.run(args, each)
    if fault := gpu.fault_of(gpu.load(path)):
        faults.append(fault)
    files, total = size()
    if files > gpu.MOST_FILES or total > MOST_BYTES:
        faults.append(f"{files} files of {total} bytes were written")
    for stage in document["stages"]:
        if stage["status"] != "done":
            faults.append(f"{stage['name']}: {stage['status']}: {stage['note']}")
        for record in stage["records"]:
            text = record.get("error") or record.get("not_run")
            if record.get("ok") is False or text:
                faults.append(f"{stage['name']}/{record['key']}: {text or 'is wrong'}"[:800])
    faults += _contents(document)
    host = step_on_the_host()
    rows.append(
        ("AlexNet", f"{host['launches']} launches, {host['host_ms']:.2f} ms of host time a step", *[""] * 3)
    )
    if (seconds := time.monotonic() - began) > MOST_SECONDS:
        print(f"(it took {seconds:.0f} s; with cold caches of the emulator it may)")
    return rows, faults


def _contents(document: gpu.Document) -> list[str]:
    """What a document must have of each stage to be of use."""
    found = {s["name"]: s["records"] for s in document["stages"]}
    faults = [f"no records of {name}" for name, records in found.items() if not records]
    for record in found["layers"]:
        libraries = {c["library"] for c in record.get("contenders", []) if c.get("ms")}
        plain = record["dtype"] == "float32" and record["math"] == "fp32"
        wanted = {"convkit", "cuDNN", "PyTorch"} if plain else {"PyTorch"}
        if not wanted <= libraries:
            refused = [c.get("refused") for c in record.get("contenders", [])]
            lacking = f"no samples of {wanted - libraries}: {refused} {record.get('missing')}"
            faults.append(f"layers/{record['key']}: {lacking}")
        # The stand-in for cuDNN works at once, also where the stream is held and its inputs are still queued:
        # whether it is right says nothing here.
        judged = [c for c in record.get("contenders", []) if c["library"] != "cuDNN"]
        if wrong := [c["name"] for c in judged if c.get("ok") is False]:
            faults.append(f"layers/{record['key']}: wrong by their samples: {wrong}")
    row = ["GPU Speed Of Light Throughput", "Duration", "us", "12.5"]  # as the stand-in prints it
    silent = [f"steps/{r['key']}" for r in found["steps"] if not (r.get("ms") and r.get("right"))]
    silent += [f"profile/{r['key']}" for r in found["profile"] if r.get("details") != [row]]
    return [*faults, *(f"{name}: has not what it should have" for name in silent)]


def _spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    mine, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def main() -> int:
    """Rehearse in a folder that goes away; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="convkit-rehearsal-") as name:
        rows, faults = rehearse(Path(name))
    print(f"{'stage':10} {'status, tasks':13} {'host s':>7} {'files':>6} {'bytes':>8}")
    for stage, status, seconds, files, size in rows:
        numbers = f"{seconds:7.1f} {files:6} {size:8}" if files != "" else ""
        print(f"{stage:10} {status:13} {numbers}".rstrip())
    for fault in faults:
        print(f"NOT AS IT MUST BE: {fault}")
    return 1 if faults else 0
