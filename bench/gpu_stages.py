"""What the stages of `bench/gpu.py` do: a list of tasks each, and a record for each task.

A record is plain data. "ok" in it is the verdict on convkit's own work: True, False, or None where nothing
was judged; what is wrong with another library stands beside its own times. A stage, or a task, whose tool or
package is missing raises `Missing`, and is "not run".
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_race
import gpu_tools
import numpy as np
from gpu_common import REHEARSED, SIZES, Record, clock, emulated, place, torch_here

import convkit as ck
from convkit import check
from convkit.bench.measure import conditions
from convkit.bench.peers import Missing
from convkit.bench.results import files
from convkit.check.cases import cases
from convkit.cuda import nvrtc
from convkit.cuda.header import builtin_files, read
from convkit.cuda.prepare import Runner
from convkit.cuda.source import translation_unit
from convkit.errors import MissingExtra
from convkit.registry import implementations

#: Exit status of a process whose CUDA context is of no more use.
STICKY = 3


# ---------------------------------------------------------------------------------------------------
# A process that works on a stage
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Work:
    """A stage's tasks, by key, and what makes the record of one; whether a task is convkit's own to pass."""

    tasks: Callable[[], list[str]]
    run: Callable[[str], Record]
    missing: Callable[[], object] = lambda: None
    own: Callable[[str], bool] = lambda key: True


def child(kind: str, arguments: list[str]) -> int:
    """A process of `bench/gpu.py` that is not the first."""
    if kind == "--cases":
        return gpu_tools.small_cases(arguments[0])
    if kind == "--profiled":
        return gpu_tools.profiled(arguments[0])
    return worker(WORK[arguments[0]], Path(arguments[1]), usable)


def usable() -> bool:
    """Whether the CUDA context still works: some errors stay."""
    try:
        import cupy

        cupy.cuda.runtime.deviceSynchronize()
    except Exception:
        return False
    return True


def worker(stage: Work, folder: Path, usable: Callable[[], bool] = lambda: True) -> int:
    """Take one task after another, as long as there are some; the exit status."""
    try:
        stage.missing()
    except (Missing, MissingExtra) as reason:
        _whole(folder / "not_run.json", str(reason))
        return 0
    tasks = stage.tasks()
    _whole(folder / "tasks.json", tasks)
    done = set(json.loads((folder / "done.json").read_text(encoding="utf-8")))
    with open(folder / f"records-{os.getpid()}.jsonl", "a", encoding="utf-8") as records:
        for number, key in enumerate(tasks):
            if key in done or not _claim(folder / f"{number}.claim", key):
                continue
            began = time.monotonic()
            try:
                record = stage.run(key)
            except (Missing, MissingExtra) as reason:
                record = {"not_run": str(reason)}
            except Exception as error:  # one task, not the stage
                at = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error}"[:600]
                record = {
                    "ok": False if stage.own(key) else None,
                    "error": f"{text} ({Path(at.filename).name}:{at.lineno})",
                }
            record = {"key": key, **record, "seconds": round(time.monotonic() - began, 4)}
            records.write(json.dumps(files.plain(record)) + "\n")
            records.flush()
            if not usable():
                print(f"the CUDA context is lost after {key}", file=sys.stderr)
                return STICKY
    return 0


def _whole(path: Path, value: Any) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value), encoding="utf-8")
    os.replace(beside, path)


def _claim(path: Path, key: str) -> bool:
    """Take a task, unless another process has."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(key)
    except FileExistsError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------
# Right or wrong
# ---------------------------------------------------------------------------------------------------
def _stems() -> list[Path]:
    return [p for p in builtin_files() if not SIZES.kernels or p.stem in SIZES.kernels]


def _arch() -> str:
    from convkit.cuda import gpu

    return gpu.executor().arch


def compile_kernel(key: str) -> Record:
    """A kernel file in one dtype, into the cache of machine code."""
    stem, dtype = key.split("/", 1)  # a pair has a slash of its own
    (kernel,) = (read(path) for path in _stems() if path.stem == stem)
    accepted = (c.of(dtype).problem for c in cases(kernel.header.op))
    problem = next(p for p in accepted if Runner(kernel).refusal(p) is None)
    source = translation_unit(kernel, problem)
    code = nvrtc.cached_cubin(source, _arch(), include=(kernel.path.parent,), name=stem)
    return {"ok": True, "bytes": len(code), "arch": _arch(), "nvrtc": nvrtc.version()}


def compilations() -> list[str]:
    return [f"{path.stem}/{dtype}" for path in _stems() for dtype in read(path).header.dtypes]


def gates() -> list[str]:
    found = implementations(device="cuda", layout=None)
    # A kernel that packs NCHW arrays has the name of the one that it packs for, and is asked with it.
    keys = [*dict.fromkeys(f"{i.op}/{i.name}/{d}" for i in found for d in i.dtypes if _is_asked(d))]
    # What takes longest comes first, so that no core is left with it; then all of it on other data.
    keys.sort(key=lambda key: not key.startswith(("conv2d", "linear")))
    return [f"{key}/{number}" for number in range(1, SIZES.passes + 1) for key in keys]


def _is_asked(dtype: str) -> bool:
    return not REHEARSED or dtype == "float32"


def gate(key: str) -> Record:
    """An implementation in one dtype on the gate's quick cases."""
    op, name, dtype = key.rpartition("/")[0].split("/", 2)
    chosen = [
        replace(i, dtypes=(dtype,))
        for i in implementations(op, device="cuda", layout=None)
        if i.name == name and dtype in i.dtypes
    ]
    seed = check.fresh_seed()
    with emulated(op in ("relu_fprop", "conv2d_bgrad")) as real:
        asked = check.in_turn(chosen, quick=True, seed=seed, random=0 if REHEARSED else None)
        verdicts = list(itertools.islice(asked, SIZES.gate_cases))
    run = [v for v in verdicts if not v.declined]
    wrong = [v for v in run if not v.ok]
    return {
        "ok": (bool(run) and not wrong) if real else None,
        "run": len(run), "declined": len(verdicts) - len(run), "seed": seed,
        "worst": max((v.ratio for v in run), default=None),
        "ratios": [[v.case, float(f"{v.ratio:.4g}"), float(f"{v.rms:.4g}")] for v in run],
        "failed": len(wrong) if real else None,
        "failures": [v.asdict() for v in wrong[:5]] if real else [],
    }  # fmt: skip


def preset_tasks() -> list[str]:
    """Each preset in float32, the first of them first in every precision: "paper/bf16"."""
    first, *others = SIZES.presets
    return [*(f"{first}/{grade}" for grade in gpu_race.OPTIONS), *(f"{name}/fp32" for name in others)]


def preset_step(key: str) -> Record:
    """A training step of a preset: every call against float64, on the inputs that it had."""
    import cupy

    name, grade = key.split("/")
    rng = np.random.default_rng(0)
    net = ck.AlexNet(name, seed=1, device="cuda", **gpu_race.OPTIONS[grade])
    x = rng.standard_normal((2, *net.input_shape), np.float32) * 50
    with emulated():
        verdicts = check.check_step(net, cupy.asarray(x), cupy.asarray(np.array([1, 2])))
    wrong = [v for v in verdicts if not v.ok]
    worst = max(verdicts, key=lambda v: v.ratio)
    return {
        "ok": not wrong, "calls": len(verdicts), "worst": worst.ratio, "nearest": f"{worst.op}, {worst.case}",
        "ratios": [[v.op, v.case, float(f"{v.ratio:.4g}"), float(f"{v.rms:.4g}")] for v in verdicts],
        "failures": [v.asdict() for v in wrong[:8]],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Ceilings
# ---------------------------------------------------------------------------------------------------
def ceilings() -> list[str]:
    return ["clock", "bf16 matrix", "tf32 matrix"]


def ceiling(key: str) -> Record:
    """Rates of copying, of multiply-adds, and of matrix products by cuBLAS."""
    if key == "clock":
        return {"ok": None, "found": clock().ceilings(*([1] if REHEARSED else []))}
    torch, n = torch_here(), 64 if REHEARSED else 8192
    tf32 = key.startswith("tf32")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    kind = torch.float32 if tf32 else torch.bfloat16
    a, b = (torch.randn(n, n, device=place()).to(kind) for _ in range(2))  # normal data: zeros run faster
    out = torch.empty_like(a)

    def run() -> None:
        torch.matmul(a, b, out=out)

    _ = clock().time(run), clock().time(run)
    ms = [clock().time(run) for _ in range(SIZES.samples)]
    rates = [2 * n**3 / t / 1e6 for t in ms if t > 0]
    entry = {
        "unit": "GFLOP/s",
        "value": max(rates, default=None),
        "samples": rates,
        "method": f"PyTorch, {n}",
    }
    return {"ok": None, "found": {key: entry}, "conditions": conditions.sample("cuda")}


WORK = {
    "compile": Work(compilations, compile_kernel),
    "gate": Work(gates, gate),
    "presets": Work(preset_tasks, preset_step),
    "ceilings": Work(ceilings, ceiling, own=lambda key: False),
    "layers": Work(lambda: list(gpu_race.layer_items()), gpu_race.layer),
    "steps": Work(gpu_race.step_tasks, gpu_race.step, own=lambda key: key.startswith("convkit")),
    "sanitizer": Work(
        lambda: list(gpu_tools.CHECKERS), gpu_tools.sanitize, lambda: gpu_tools.tool("compute-sanitizer")
    ),
    "profile": Work(
        lambda: list(gpu_tools.PROFILED), gpu_tools.profile, lambda: gpu_tools.tool("ncu"), lambda key: False
    ),
}
