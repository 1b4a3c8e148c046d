"""All that needs a GPU, in one run: is every kernel right, is AlexNet's step right, how fast is each layer.

    make gpu                      everything: a verdict, a capsule for each arithmetic and batch, a report
    python bench/gpu.py --quick   small cases, float32, batch 16

Where there is no GPU it says so, writes nothing, and exits with 0. A failed check does not stop it: what is
measured is kept, and the verdict stands beside it. Exit status 1 where a check failed.

The figures are those of `convkit bench --device cuda`, in its capsules: `convkit verify`, `compare` and
`report` read them. What was gated and checked stands in one more JSON beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import convkit as ck
from convkit import check, devices
from convkit.bench import capsule, conditions, peers, report, sources
from convkit.bench.run import Options, Run
from convkit.bench.tables import summary
from convkit.bench.timing import OWN, Settings, clock_for
from convkit.bench.work import Wanted, items
from convkit.kernel import builtin_files
from convkit.presets import PRESETS

RESULTS = Path(__file__).parent / "results"
#: What is measured: storage and arithmetic, batch sizes, and layers (none: all of them).
GRADES = (("float32", "fp32"), ("float32", "tf32"), ("bfloat16", "fp32"), ("float16", "fp32"))
BATCHES = (16, 1, 128)
LAYERS: tuple[str, ...] = ()


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small cases, batch 16, fewer samples")
    parser.add_argument("--batch", type=int, help="only this batch size (default: 16, 1 and 128; quick: 16)")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: 15; quick: 6)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the JSON (default: bench/results)"
    )
    args = parser.parse_args(argv)
    if not devices.gpu_found():
        print("no GPU was found (CuPy is not installed, or sees none): nothing was run, nothing was written")
        return 0
    batches = (args.batch,) if args.batch else BATCHES[:1] if args.quick else BATCHES
    document: dict[str, Any] = {"machine": machine(), "kernels": kernel_hashes()}
    path = (
        args.out
        / f"gpu-{document['machine']['device'].replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for name, work in (
        ("gate", lambda: gate(args.quick)),
        ("alexnet", alexnet),
        ("ceilings", ceilings),
        ("bench", lambda: tables(batches, args.rounds, args.out, args.quick)),
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
        0 if all(document[name].get("ok", True) for name in ("gate", "alexnet", "ceilings", "bench")) else 1
    )


def machine() -> dict[str, Any]:
    """What ran it: device, driver, versions."""
    found = conditions.machine("cuda")
    return {
        **found["gpu"],
        "device": found["name"],
        "versions": found["versions"],
        "python": found["python"],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def kernel_hashes() -> dict[str, str]:
    """SHA-256 of each kernel file and of what they include: a figure belongs to a source."""
    folder = builtin_files()[0].parent
    files = sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")])
    return {path.name: sources.sha256(path) for path in files}


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


def ceilings() -> dict[str, Any]:
    """Rates of copying, of multiply-adds, and of the vendor's matrix products."""
    found = clock_for("cuda").ceilings()
    print(", ".join(f"{name} {entry['value']:.5g} {entry['unit']}" for name, entry in found.items()))
    return found


def tables(batches: Sequence[int], rounds: int | None, folder: Path, quick: bool) -> dict[str, Any]:
    """`convkit bench` of AlexNet's layers: a capsule for each arithmetic and batch size."""
    found: dict[str, Any] = {"ok": True, "capsules": []}
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for (dtype, math), batch in product(GRADES[:1] if quick else GRADES, batches):
        settings = Settings.quickly() if quick else Settings()
        settings = replace(
            settings, rounds=rounds or settings.rounds, gate=False
        )  # it has just been gone through
        grade = math if dtype == "float32" else dtype
        path = folder / f"gpu-{slug(conditions.machine('cuda')['name'])}-{stamp}-{grade}-N{batch}.json"
        wanted = Wanted(preset="paper", layers=LAYERS, batches=(batch,), dtypes=(dtype,), math=math)
        options = Options("cuda", settings, path, [Path(__file__).name, *sys.argv[1:]], say=print)
        document = Run(options, peers.gather(None, "cuda"), clock_for("cuda")).measure(items(wanted))
        print(summary(document), flush=True)
        found["capsules"].append(path.name)
        found["ok"] &= not any(own_fault(document, f) for f in document["failures"])
        if document["interrupted"]:
            raise KeyboardInterrupt
    page = folder / f"gpu-{slug(conditions.machine('cuda')['name'])}-{stamp}.html"
    report.write([capsule.load(folder / name) for name in found["capsules"]], page)
    print(f"report: {page}")
    return found


def own_fault(document: dict[str, Any], failure: dict[str, Any]) -> bool:
    """Whether a failure is of one of convkit's kernels: another library's is its own affair."""
    own = {c["name"] for row in document["rows"] for c in row["contenders"] if c["library"] == OWN}
    return failure["contender"] in own


def slug(text: str) -> str:
    """For a file's name."""
    return text.replace(" ", "-")


def to(device: str, array: np.ndarray) -> Any:
    """An array on a device."""
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)


if __name__ == "__main__":
    sys.exit(main())
