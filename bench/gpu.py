"""All that needs a GPU, in one run: is every kernel right, is AlexNet's step right, how fast is each layer.

    make gpu                      everything, and one JSON in bench/results/
    python bench/gpu.py --quick   small cases and batch 16

Where there is no GPU it says so, writes nothing, and exits with 0. A failed check does not stop it: what is
measured is kept, and the verdict stands beside it. Exit status 1 where a check failed.

Timing: CUDA events on the current stream, one pair for each sample; the L2 cache is overwritten before each
sample, since a layer of a real step does not find its data there either; every call of the plan in turn, and
round after round, so that a change of clocks meets all of them. Medians are printed, raw samples are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import convkit as ck
from convkit import check, devices
from convkit.kernel import builtin_files
from convkit.presets import PRESETS

RESULTS = Path(__file__).parent / "results"
#: More than any GPU's L2 cache holds.
FLUSH_BYTES = 256 * 2**20


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small cases, batch 16, fewer samples")
    parser.add_argument("--batch", type=int, help="images in the timed batch (default: 128; quick: 16)")
    parser.add_argument("--rounds", type=int, help="samples of each call (default: 20; quick: 5)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the JSON (default: bench/results)"
    )
    args = parser.parse_args(argv)
    if not devices.gpu_found():
        print("no GPU was found (CuPy is not installed, or sees none): nothing was run, nothing was written")
        return 0
    batch = args.batch or (16 if args.quick else 128)
    rounds = args.rounds or (5 if args.quick else 20)
    document: dict[str, Any] = {"machine": machine(), "kernels": kernel_hashes()}
    path = (
        args.out
        / f"gpu-{document['machine']['device'].replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for name, work in (
        ("gate", lambda: gate(args.quick)),
        ("alexnet", alexnet),
        ("ceilings", lambda: ceilings(rounds)),
        ("layers", lambda: layers(batch, rounds)),
    ):
        print(f"\n== {name}", flush=True)
        try:
            document[name] = work()
        except Exception as error:  # what was measured so far is worth keeping
            document[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            print(document[name]["error"])
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
    return (
        0 if all(document[name].get("ok", True) for name in ("gate", "alexnet", "ceilings", "layers")) else 1
    )


def machine() -> dict[str, Any]:
    """What ran it: device, driver, versions."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return {
        "device": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "numpy": np.__version__,
        "convkit": ck.__version__,
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def kernel_hashes() -> dict[str, str]:
    """SHA-256 of each kernel file and of what they include: a figure belongs to a source."""
    folder = builtin_files()[0].parent
    files = sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def gate(quick: bool) -> dict[str, Any]:
    """Every CUDA kernel on the gate's cases."""
    verdicts = check.check(device="cuda", quick=quick)
    print(check.summary(verdicts))
    failed = [v for v in verdicts if not v.ok]
    for verdict in failed[:20]:
        print(verdict)
    run = [v for v in verdicts if not v.declined]
    return {"ok": not failed, "run": len(run), "failed": [v.asdict() for v in failed]}


def alexnet() -> dict[str, Any]:
    """A training step of each preset: every call against float64, on the inputs that it had."""
    found: dict[str, Any] = {"ok": True}
    for preset in PRESETS:
        rng = np.random.default_rng(0)
        net = ck.AlexNet(preset, seed=1, device="cuda")
        x = rng.standard_normal((2, *net.input_shape), np.float32) * 50
        verdicts = check.check_step(net, to("cuda", x), to("cuda", np.array([1, 2])))
        failed = [v for v in verdicts if not v.ok]
        worst = max(verdicts, key=lambda v: v.ratio)
        found[preset] = {"ok": not failed, "calls": [v.asdict() for v in verdicts]}
        found["ok"] &= not failed
        passed = f"{len(verdicts) - len(failed)} of {len(verdicts)} calls passed"
        print(f"{preset:6} {passed}; nearest to its bound ({worst.ratio:.2f}): {worst.op}, {worst.case}")
        for verdict in failed:
            print(f"       {verdict}")
    return found


def ceilings(rounds: int) -> dict[str, Any]:
    """Copy rate of device memory, and the float32 rate of the vendor's matrix product."""
    import cupy

    source = cupy.ones(2**28, np.float32)
    target = cupy.empty_like(source)
    copy = sample(lambda: cupy.copyto(target, source), rounds)
    a = cupy.random.standard_normal((8192, 8192), dtype=np.float32)
    b, c = cupy.random.standard_normal((8192, 8192), dtype=np.float32), cupy.empty_like(a)
    sgemm = sample(lambda: cupy.matmul(a, b, out=c), rounds)
    gbs = 2 * source.nbytes / median(copy) / 1e6
    tflops = 2 * 8192**3 / median(sgemm) / 1e9
    print(f"copy {gbs:.0f} GB/s, sgemm {tflops:.1f} TFLOP/s (medians of {rounds})")
    return {"copy_gbs": gbs, "copy_ms": copy, "sgemm_tflops": tflops, "sgemm_ms": sgemm}


def layers(batch: int, rounds: int) -> dict[str, Any]:
    """Every call of a planned training step, timed on its own."""
    import cupy

    net = ck.AlexNet("paper", seed=1, device="cuda")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *net.input_shape), np.float32) * 50
    net.step(to("cuda", x), to("cuda", rng.integers(0, 1000, batch)))  # every buffer holds real values
    plan = net.plan(batch)
    calls = [*plan.forward, *plan.loss, *plan.backward, *plan.update]
    flush = cupy.empty(FLUSH_BYTES, np.uint8)
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for row, call in zip(samples, calls):
            flush.fill(0)
            row += sample(call.run, 1, warm=0)
    rows = []
    for row, call in zip(samples, calls):
        flops = call.problem.flops(call.op.name)
        moved = sum(a.nbytes for a in (*call.inputs, *call.outputs) if a is not None)
        ms = median(row)
        rows.append({
            "layer": call.layer, "op": call.op.name, "implementation": call.implementation.name,
            "gflops": flops / ms / 1e6, "gbytes_per_s": moved / ms / 1e6, "ms": ms, "samples_ms": row,
        })  # fmt: skip
        print(f"{call.layer:12} {call.op.name:18} {call.implementation.name:14} {ms:8.3f} ms "
              f"{flops / ms / 1e6:9.1f} GFLOP/s {moved / ms / 1e6:8.1f} GB/s")  # fmt: skip
    print(f"sum of the medians: {sum(r['ms'] for r in rows):.2f} ms")
    return {"batch": batch, "preset": "paper", "rows": rows}


def sample(run: Any, count: int, warm: int = 2) -> list[float]:
    """Milliseconds of `count` runs, by events on the current stream."""
    import cupy

    for _ in range(warm):
        run()
    found = []
    for _ in range(count):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        end.record()
        cupy.cuda.runtime.deviceSynchronize()  # of all streams: work on a side stream would show
        found.append(cupy.cuda.get_elapsed_time(start, end))
    return found


def to(device: str, array: np.ndarray) -> Any:
    """An array on a device."""
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)


if __name__ == "__main__":
    sys.exit(main())
