"""The stages of `bench/gpu.py` in which NVIDIA's tools look on: compute-sanitizer and Nsight Compute."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gpu
import numpy as np
from gpu_common import REHEARSED, SIZES, Record, emulated

from convkit.arrays import np_dtype
from convkit.bench import work
from convkit.bench.measure import own
from convkit.bench.peers import Missing
from convkit.check import exact
from convkit.check import inputs as fill
from convkit.check.cases import Case, cases
from convkit.cuda import nvrtc
from convkit.op import OPS
from convkit.registry import implementations

PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute")
CHECKERS = ("memcheck", "racecheck", "synccheck")
PROFILED = (
    "conv2d_fprop_implicit_gemm", "conv2d_dgrad_implicit_gemm", "conv2d_wgrad_implicit_gemm",
    "linear_fprop_gemm", "lrn_dgrad_sliding",
)  # fmt: skip


def tool(name: str) -> str:
    """The path of one of CUDA's programs."""
    folders = [
        os.environ.get("PATH", ""),
        PLACES[0],
        *map(str, sorted(Path(PLACES[1]).glob("*"), reverse=True)),
    ]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise Missing(f"{name} was not found on the PATH, nor in {PLACES[0]}")
    return found


def _called(command: list[str], **environment: str) -> tuple[int, str]:
    """Exit status and output; its end comes with the stage's, since it is in the same group of processes."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **environment}, text=True, errors="replace",
    )  # fmt: skip
    return done.returncode, done.stdout


def sanitize(key: str) -> Record:
    """The small cases under one of compute-sanitizer's tools."""
    command = [tool("compute-sanitizer"), "--tool", key, "--error-exitcode", "9", "--print-limit", "20"]
    code, text = _called([*command, sys.executable, str(gpu.HERE / "gpu.py"), "--cases", key])
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"case"')]
    if not found:  # the tool refuses the device, or Python
        raise Missing(f"no case ran; it ended with {code}: {' / '.join(text.splitlines()[-4:])}"[:600])
    lines = [line for line in text.splitlines() if line.startswith("=====")]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), "")
    record = {"ok": code == 0 and all(f["ok"] for f in found), "exit": code, "cases": found}
    return {**record, "summary": summary, "output": [] if record["ok"] else text.splitlines()[-120:]}


def small_cases(tool: str) -> int:
    """Run small cases of every kernel in memory that is just as large as its tensors; a line for each."""
    wrong = 0
    for i in implementations(device="cuda", layout=None):
        usual = [c.of("float32") for c in cases(i.op) if not c.heavy and not c.problem.empty]
        small = sorted(usual, key=lambda c: sum(np.prod(s) for s in c.problem.shapes.values()))
        chosen = [c for c in small[len(small) // 2 :] if i.refusal(c.problem, i.math) is None][:2]
        for case in chosen[:1] if REHEARSED else chosen:
            with emulated(i.op in ("relu_fprop",)) as real:
                fault = exact.run(i, case, seed=1)
            wrong += bool(fault) and real
            print(
                json.dumps(
                    {"case": f"{i.op}/{i.label}: {case}", "ok": not fault or not real, "fault": fault}
                ),
                flush=True,
            )
    return 1 if wrong else 0


def profile(key: str) -> Record:
    """One kernel on a layer of AlexNet under Nsight Compute, with line numbers."""
    ncu = tool("ncu")
    folder = Path(tempfile.mkdtemp(prefix="convkit-ncu-"))
    report = folder / f"{key}.ncu-rep"
    try:
        code, text = _called(
            [
                *(ncu, "--target-processes", "all", "--clock-control", "none", "--set", "full"),
                *("--import-source", "yes", "--kernel-name", f"regex:^{key}", "--launch-skip", "1"),
                *("--launch-count", "1", "--force-overwrite", "--export", str(report.with_suffix(""))),
                *(sys.executable, str(gpu.HERE / "gpu.py"), "--profiled", key),
            ],
            CONVKIT_CACHE=str(folder / "cache"),
        )
        if code or not report.exists():
            return {"ok": None, "error": f"ncu ended with {code}: {' / '.join(text.splitlines()[-4:])}"[:600]}
        _, details = _called([ncu, "--import", str(report), "--page", "details", "--csv"])
        lines = ("--page", "source", "--csv", "--print-source", "cuda,sass")
        _, source = _called([ncu, "--import", str(report), *lines])
        return {"ok": None, "details": metrics(details), "source": source[:400_000].splitlines()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def metrics(text: str) -> list[list[str]]:
    """[section, metric, unit, value] of each line of Nsight Compute's CSV, which messages may precede."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    wanted = ("Section Name", "Metric Name", "Metric Unit", "Metric Value")
    rows = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    return [[row.get(name) or "" for name in wanted] for row in rows if row.get("Metric Name")]


def profiled(stem: str) -> int:
    """Launch a kernel twice on the layer that it is profiled on."""
    import cupy

    nvrtc.line_info = True
    (implementation,) = (
        i for i in implementations(device="cuda", layout=None) if Path(i.source).stem == stem and not i.packs
    )
    wanted = work.Wanted(preset="paper", layers=("conv2", "fc6", "norm2"), batches=(SIZES.batch,))
    found = [i for i in work.items(wanted) if i.op == implementation.op]
    item = (
        found[0]
        if found
        else next(i for i in work.items(work.Wanted(batches=(SIZES.batch,))) if i.op == implementation.op)
    )
    case = Case(item.op, item.problem, "layer", heavy=True, absent=item.absent)
    made = fill.make(case, 1)
    inputs = {n: None if a is None else cupy.asarray(a) for n, a in made.items()}
    outputs = {
        n: cupy.empty(item.problem.shape(n), np_dtype(item.problem.dtype_of(n))) for n in OPS[item.op].outputs
    }
    run = own.Bound(implementation, item).bind(inputs, outputs)
    for _ in range(2):
        run()
    cupy.cuda.runtime.deviceSynchronize()
    return 0
