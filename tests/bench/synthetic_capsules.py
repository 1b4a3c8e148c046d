"""Result files that no machine has measured: every kind of row, entry and trouble that a report must show.

The same seed gives the same result file. Figures and verdicts are derived from the made-up samples by
`figures`, as those of a run are.
"""

from __future__ import annotations

import random
from typing import Any

from convkit.bench.results import figures, files
from convkit.bench.results.sources import UNRUN

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!-- $\\frac{1}{2}$"
Document = dict[str, Any]
LAYERS = {  # GFLOP and MB at N = 16 of AlexNet's layers, roughly
    "conv1": (3.4, 29.0),
    "conv2": (7.2, 24.0),
    "conv3": (4.8, 15.0),
    "conv4": (3.6, 10.0),
    "conv5": (2.4, 9.0),
    "norm1": (0.07, 37.0),
    "pool1": (0.01, 22.0),
    "fc6": (1.2, 152.0),
}


def entry(
    chance: random.Random,
    name: str,
    library: str,
    ms: float,
    *,
    noise: float = 0.03,
    rounds: int = 8,
    calls: int = 5,
    marks: tuple[str, ...] = (),
    **more: Any,
) -> Document:
    """One that was timed and is correct, around `ms`."""
    samples = [[ms * chance.lognormvariate(0, noise) for _ in range(calls)] for _ in range(rounds)]
    return {
        "name": name,
        "library": library,
        "version": "1.2",
        "layout": "NCHW",
        "marks": list(marks),
        "facts": {},
        "workspace_bytes": None,
        "deterministic": True,
        "error": 3e-7 * chance.uniform(0.5, 2),
        "checks": {"before": "passed", "during": "passed", "after": "passed"},
        "refused": None,
        "samples_ms": samples,
        **more,
    }


def refused(name: str, library: str, reason: str, marks: tuple[str, ...] = ()) -> Document:
    """One that has no figures."""
    return {
        "name": name,
        "library": library,
        "version": "",
        "layout": "",
        "marks": list(marks),
        "facts": {},
        "workspace_bytes": None,
        "deterministic": None,
        "error": None,
        "checks": dict.fromkeys(("before", "during", "after"), "unchecked"),
        "refused": reason,
        "samples_ms": [],
    }


def row(layer: str, direction: str, entries: list[Document], **more: Any) -> Document:
    """A row of AlexNet's."""
    flops, size = LAYERS.get(layer, (1.0, 10.0))
    batch = more.get("batch", 16)
    op = {"fwd": "conv2d_fprop", "dgrad": "conv2d_dgrad", "wgrad": "conv2d_wgrad"}.get(direction, direction)
    found = {
        "net": "alexnet-paper",
        "layer": layer,
        "op": op,
        "direction": direction,
        "problem": {"N": batch},
        "problem_text": f"x({batch}, 96, 27, 27) w(256, 48, 5, 5) pad 2",
        "dtype": "float32",
        "math": "fp32",
        "batch": batch,
        "options": {},
        "absent": [],
        "flops": int(flops * 1e9 * batch / 16),
        "bytes": int(size * 1e6),
        "contenders": entries,
        **more,
    }
    kind = f"{found['dtype']}/{found['math']}"
    return {"id": f"alexnet-paper/{layer}/{op}/N={batch}/{kind}", **found}


def document(rows: list[Document], **more: Any) -> Document:
    """A sealed result file of these rows."""
    settings = {
        "rounds": 8,
        "turn_s": 0.05,
        "pause_s": 0.0,
        "budget_s": 30.0,
        "cache": "cold",
        "seed": 0,
        "quick": False,
        "confidence": 0.95,
        "environment": {"OMP_NUM_THREADS": "2"},
    }
    found = {
        "convkit_capsule": 1,
        "created": "2026-11-25T01:30:00+0000",
        "command": ["convkit", "bench", "--json", "x"],
        "digest": "",
        "convkit": {"version": "0.1.0", "commit": "0123abc", "dirty": False},
        "machine": {
            "device": "cpu",
            "name": "Imaginary CPU",
            "cpu": "Imaginary CPU",
            "threads": 2,
            "isa": "v4",
            "system": "Linux",
            "python": "3.11.7",
            "memory_gb": 16.0,
            "versions": {"numpy": "2.4"},
            "gpu": None,
        },
        "settings": settings,
        "ceilings": {
            "fma": {
                "unit": "GFLOP/s",
                "value": 2000.0,
                "samples": [1990.0, 2000.0],
                "dtype": "float32",
                "method": "FMA",
            },
            "copy": {"unit": "GB/s", "value": 60.0, "samples": [58.0, 60.0], "method": "NumPy"},
            "read": {"unit": "GB/s", "value": 90.0, "samples": [90.0], "method": "NumPy"},
        },
        "conditions": [{"t": 0.5 * i, "row": r["id"], "others": 0.01} for i, r in enumerate(rows)],
        "kernels": {},
        "peers": {"torch": {"version": "1.2", "settings": {"threads": 2}}},
        "missing": {},
        "rows": rows,
        "interrupted": False,
        "resumed": 0,
        "failures": [],
        **more,
    }
    for record in found["rows"]:
        figures.summarise(record, found["ceilings"], found["settings"])
    return files.sealed(found)


def cpu(seed: int = 1) -> Document:
    """A CPU: wins, a loss, a tie, nobody to compare with, a refused pick, an exact op, an unchecked one."""
    chance = random.Random(seed)
    rows = []
    for layer in ("conv1", "conv2", "conv3"):
        for direction in ("fwd", "dgrad", "wgrad"):
            ms = LAYERS[layer][0] * 1.6 * chance.uniform(0.8, 1.3)
            fast = {"facts": {"algorithm_flops": 10**9}, "error": 3e-6 * chance.uniform(0.6, 1.5)}
            field = [
                entry(chance, "winograd", "convkit", ms, marks=("picked",), **fast),
                entry(chance, "direct", "convkit", ms * 1.4),
                entry(chance, "torch", "PyTorch", ms * chance.uniform(1.5, 2.8), error=4e-7),
                entry(chance, "torch channels_last", "PyTorch", ms * 1.9, layout="NHWC"),
                entry(chance, "jax", "JAX", ms * chance.uniform(4, 9), error=5e-7),
            ]
            if direction == "fwd":
                field.append(entry(chance, "onnxruntime", "ONNX Runtime", ms * 2.2))
            else:
                field.append(refused("onnxruntime", "ONNX Runtime", "trains nothing"))
            rows.append(row(layer, direction, field))
    near = [
        entry(chance, "direct", "convkit", 5.0, marks=("picked",))
    ]  # its peer: the same times, another order
    near.append(entry(chance, "torch", "PyTorch", 5.0, samples_ms=near[0]["samples_ms"][::-1]))
    slow = [
        entry(chance, "direct", "convkit", 4.0, marks=("picked",)),
        entry(chance, "torch", "PyTorch", 3.1),
    ]
    alone = [entry(chance, "rows", "convkit", 0.9, marks=("picked",), deterministic=False)]
    exact = [entry(chance, "plane", "convkit", 0.6, marks=("picked",), error=0.0),
             entry(chance, "torch", "PyTorch", 1.7, error=0.0)]  # fmt: skip
    open_ = [entry(chance, "panels", "convkit", 3.0, marks=("picked", "unchecked"), error=None,
                       checks=dict.fromkeys(("before", "during", "after"), "unchecked")),
             entry(chance, "torch", "PyTorch", 7.0)]  # fmt: skip
    failed = [
        refused("direct", "convkit", "wrong: dx[3] is nan", ("picked",)),
        entry(chance, "torch", "PyTorch", 3.0),
    ]
    rows += [
        row("conv4", "fwd", near),
        row("conv4", "dgrad", slow),
        row("norm1", "fwd", alone),
        row("pool1", "fwd", exact),
        row("fc6", "fwd", open_),
        row("conv5", "fwd", failed),
    ]
    return document(
        rows,
        missing={"cudnn": "no GPU"},
        failures=[{"row": rows[-1]["id"], "contender": "direct", "reason": "wrong: dx[3] is nan"}],
    )


def gpu(seed: int = 2) -> Document:
    """A GPU: every engine of cuDNN, types and batches, a throttled clock, kernels that have not run."""
    chance = random.Random(seed)
    kinds = (("bfloat16", "fp32"), ("float16", "fp32"), ("float32", "tf32"), ("float32", "fp32"))
    rows = []
    for layer in ("conv2", "conv4"):
        for dtype, math in kinds:
            for batch in (1, 16, 128):
                grade = math if dtype == "float32" else dtype
                peak = 60e3 if grade == "fp32" else 400e3
                ms = LAYERS[layer][0] * batch / 16 / peak * 1e3 * chance.uniform(1.6, 2.4) + 0.004
                rows.append(
                    row(layer, "fwd", _engines(chance, ms, grade), dtype=dtype, math=math, batch=batch)
                )
    conditions = [
        {
            "t": 0.4 * i,
            "row": r["id"],
            "sm_mhz": 1980 - chance.randrange(120),
            "mem_mhz": 3201,
            "power_w": 600 + chance.random() * 90,
            "temperature_c": 61,
            "throttle": ["power cap"] if i % 9 == 4 else [],
        }
        for i, r in enumerate(rows * 3)
    ]
    ceilings = {
        "fma": {
            "unit": "GFLOP/s",
            "value": 61e3,
            "samples": [60e3, 61e3],
            "dtype": "float32",
            "method": "8 chains",
        },
        "sgemm": {
            "unit": "GFLOP/s",
            "value": 52e3,
            "samples": [52e3],
            "dtype": "float32",
            "method": "matmul",
        },
        "tensor-fp16": {
            "unit": "GFLOP/s",
            "value": 740e3,
            "samples": [740e3],
            "dtype": "float16",
            "method": "matmul",
        },
        "copy": {"unit": "GB/s", "value": 4100.0, "samples": [4050.0, 4100.0], "method": "copyto"},
    }
    machine = {
        "device": "cuda",
        "name": "Imaginary H200",
        "cpu": "Imaginary CPU",
        "threads": 16,
        "isa": "",
        "system": "Linux",
        "python": "3.11.7",
        "memory_gb": 128.0,
        "versions": {"cupy": "13.6", "cudnn": "9.9"},
        "gpu": {
            "name": "Imaginary H200",
            "compute_capability": "9.0",
            "driver": 13000,
            "runtime": 13000,
            "sms": 132,
            "l2_bytes": 52428800,
            "memory_bytes": 150754820096,
        },
    }
    kernels = {
        "conv2d_fprop/implicit_gemm": _kernel("implicit_gemm", "run", "c" * 64),
        "conv2d_fprop/sliding": _kernel("sliding", UNRUN, None),
    }
    return document(
        rows,
        machine=machine,
        ceilings=ceilings,
        conditions=conditions,
        kernels=kernels,
        peers={"cudnn": {"version": "9.9", "settings": {"workspace_bytes": 1 << 30}}},
        missing={"onnxruntime": "has no CUDA provider"},
    )


def _engines(chance: random.Random, ms: float, grade: str) -> list[Document]:
    error = {"bfloat16": 2e-3, "float16": 3e-4, "tf32": 2e-4}.get(grade, 4e-7)
    field = [
        entry(
            chance,
            "implicit_gemm",
            "convkit",
            ms,
            marks=("picked", "tuned"),
            error=error,
            workspace_bytes=1 << 22,
        ),
        refused("sliding", "convkit", "the gate: no GPU has run it", ("not yet run on a GPU",)),
        entry(chance, "torch", "PyTorch", ms * chance.uniform(0.9, 2), error=error),
    ]
    for engine in range(6):
        marks = ("heuristic",) if engine == 3 else ()
        more = {
            "facts": {"engine": engine, "rank": engine},
            "workspace_bytes": engine * 12345678,
            "error": error,
        }
        time = ms * chance.uniform(0.8, 2.5)
        field.append(entry(chance, f"cudnn:graph:eng{engine}{{k2=1}}", "cuDNN", time, marks=marks,
                               deterministic=engine % 2 == 0, **more))  # fmt: skip
    field.append(
        refused(
            "cudnn:legacy:FFT_TILING", "cuDNN", "NOT_SUPPORTED: filters of 5 x 5 with padding 2 and groups"
        )
    )
    return field


def _kernel(name: str, status: str, cubin: str | None) -> Document:
    return {
        "file": f"kernels/conv2d_fprop_{name}.cu",
        "source_sha256": "a" * 64,
        "includes": {},
        "flags": ["-std=c++17"],
        "cubin_sha256": cubin,
        "status": status,
    }


def hostile(seed: int = 3) -> Document:
    """Every text is an attack on the page."""
    chance = random.Random(seed)
    field = [
        entry(
            chance,
            HOSTILE,
            "convkit",
            2.0,
            marks=("picked", HOSTILE),
            facts={HOSTILE: HOSTILE},
            layout=HOSTILE,
        ),
        entry(chance, HOSTILE + "2", HOSTILE, 3.0, version=HOSTILE),
        entry(chance, "control\x00\x1b\ud800", "Other <b>", 9.0),
        refused(HOSTILE + "3", "Third", HOSTILE),
        refused("x" * 400, "y" * 200, "z" * 2000),
    ]
    evil = row(HOSTILE, HOSTILE, field, problem_text=HOSTILE, net=HOSTILE, options={HOSTILE: HOSTILE})
    twin = row(HOSTILE, HOSTILE, [entry(chance, "a", "convkit", 2.0)], id="id " + HOSTILE)
    return document(
        [evil, twin],
        machine={
            "device": "cpu",
            "name": HOSTILE,
            "cpu": HOSTILE,
            "threads": 2,
            "versions": {HOSTILE: HOSTILE},
            "gpu": None,
        },
        kernels={HOSTILE: {**_kernel(HOSTILE, HOSTILE, HOSTILE), "flags": [HOSTILE]}},
        peers={HOSTILE: {"version": HOSTILE, "settings": {HOSTILE: HOSTILE}}},
        missing={HOSTILE: HOSTILE},
        failures=[{"row": HOSTILE, "contender": HOSTILE, "reason": HOSTILE}],
        command=["convkit", HOSTILE],
        conditions=[{"t": 0.0, "row": evil["id"], "throttle": [HOSTILE], HOSTILE: 3.0}],
    )


def hundred(seed: int = 4) -> Document:
    """A hundred rows of five entries."""
    chance = random.Random(seed)
    rows = []
    for number in range(100):
        ms = 10 ** chance.uniform(-1.5, 2)
        field = [
            entry(chance, "direct", "convkit", ms, marks=("picked",)),
            entry(chance, "im2col_gemm", "convkit", ms * chance.uniform(1, 3)),
            entry(chance, "torch", "PyTorch", ms * chance.uniform(0.7, 4)),
            entry(chance, "jax", "JAX", ms * chance.uniform(0.9, 8)),
            entry(chance, "onnxruntime", "ONNX Runtime", ms * chance.uniform(0.8, 3)),
        ]
        flops = int(ms * 1e6 * 10 ** chance.uniform(0.5, 2.2))
        size = int(ms * 1e6 * chance.uniform(0.5, 30))
        layer = f"g{number // 3:02d}"
        rows.append(row(layer, ("fwd", "dgrad", "wgrad")[number % 3], field, flops=flops, bytes=size))
    return document(rows)


def empty() -> Document:
    """A run that was ended before its first row."""
    return document([], interrupted=True, peers={}, missing={"torch": "not installed"})
