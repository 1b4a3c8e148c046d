"""What the training loop costs beside its steps: input, logs, checkpoints, curves, against bare `net.step`.

    python bench/loop.py                             `small`, 28 x 28, batch 128: four minutes
    python bench/loop.py --preset paper --steps 8    `paper`, from 256 x 256 pixels in memory
    python bench/loop.py --json loop.json            and keep every sample

A network is trained on random images as `convkit train` does it, all but the validation. After each step of
the loop there is a bare one in the same process: `net.step` on the batch that is in its place already. The
overhead of an epoch is the time of all else in it, over that of its bare steps, less one: of the time on the
clock, and of the CPU time of the process with all its threads. Medians over epochs, with the least and the
most in brackets. Other work on the machine disturbs both kinds of steps alike.

The parts are milliseconds of the clock for each step. "input" is what becomes of uint8 images: crops, the op
`crop_images`. "end" comes once in an epoch: its row, the checkpoint with fsync, and the
curves, where they are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from convkit.train import recipe as recipes
from convkit.train.build import build
from convkit.train.data.dataset import Data, Pixels
from convkit.train.exchange.alone import Alone
from convkit.train.inputs import Inputs
from convkit.train.loader import Loader
from convkit.train.log import Log
from convkit.train.loop import Loop
from convkit.train.position import Position
from convkit.train.preparation import statistics
from convkit.train.run_folder import Info, RunFolder
from convkit.train.stops import Stops

GOAL = 3.0  # per cent
#: Parts of the loop: a method, and its name in the table.
PARTS = {"_input": "input", "_note": "logs", "_asked": "signals", "_end_epoch": "end"}


def loop_on_noise(preset: str, batch: int, steps: int, folder: Path) -> Loop:
    """The loop of a run on random images, as many as fill an epoch."""
    recipe = recipes.load(
        "small" if preset == "small" else preset, [f"batch={batch}", "epochs=1000000", "lr=1e-9"]
    )
    H, C, classes = (28, 1, 10) if preset == "small" else (256, 3, 1000)
    rng = np.random.default_rng(0)
    kept = min(steps * batch, 4096)  # more images than fit into a cache; they come again and again
    pixels, labels = rng.integers(0, 256, (kept, H, H, C), np.uint8), rng.integers(0, classes, kept)
    names = tuple(map(str, range(classes)))
    again = np.arange(steps * batch) % kept
    split = Again(pixels, labels, again)
    data = Data("noise", names, names, split, None, "noise")
    net = build(recipe, split.shape, classes)
    found = statistics(Pixels(pixels, labels), workers=0)
    run = RunFolder.create(folder, recipe, Info.of(data), found)
    inputs = Inputs(net.preset, recipe, found, split.shape)
    log = Log(quiet=True, events=folder / "events")
    loop = Loop(net, data, recipe, inputs, run, Alone(), log, Position(), Stops())
    log.begin(epochs=recipe.epochs, epoch_steps=steps)
    return loop


class Again(Pixels):
    """Images of which each stands for several."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, again: np.ndarray) -> None:
        super().__init__(pixels, labels[again])
        self.again = again

    def read_many(self, indices: np.ndarray, out: np.ndarray) -> list[tuple[int, str]]:
        return super().read_many(self.again[indices], out)


def now() -> np.ndarray:
    """Seconds on the clock, and of the process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


def watch(loop: Loop) -> dict[str, np.ndarray]:
    """Have a bare step follow each step of the loop; add up the seconds of it, and of the loop's parts."""
    seconds = {name: np.zeros(2) for name in (*PARTS.values(), "bare")}
    net, step = loop.net, loop._step

    def watched(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            began = now()
            try:
                return method(*given)
            finally:
                seconds[name] += now() - began

        return call

    def bare() -> None:
        x, labels = net.inputs(loop.recipe.batch)
        net.step(x, labels, lr=1e-9)

    def both(*given: Any) -> None:
        step(*given)
        timed_bare()

    for method, name in PARTS.items():
        setattr(loop, method, watched(getattr(loop, method), name))
    timed_bare = watched(bare, "bare")
    loop._step = both  # type: ignore[method-assign]
    return seconds


def measure(loop: Loop, rounds: int) -> dict[str, Any]:
    """Epochs of the loop; the first one does not count."""
    steps, ratios, bares = loop.steps_in_epoch, [], []
    seconds = watch(loop)
    with Loader(loop.data.train, workers=0) as loader:
        loop._epoch(loader)
        for part in seconds.values():
            part[:] = 0
        for _ in range(rounds):
            before, began = seconds["bare"].copy(), now()
            loop._epoch(loader)
            bares.append(seconds["bare"] - before)
            ratios.append(100 * ((now() - began - bares[-1]) / bares[-1] - 1))
    return {
        "steps": steps,
        "batch": loop.recipe.batch,
        "step_ms": [1e3 * float(bare[0]) / steps for bare in bares],
        "overhead_percent": {
            name: [float(ratio[i]) for ratio in ratios] for i, name in enumerate(("the clock", "CPU time"))
        },
        "parts_ms": {name: 1e3 * float(seconds[name][0]) / (rounds * steps) for name in PARTS.values()},
    }


def spread(values: list[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small", choices=["small", "paper", "2012", "caffe"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=468, help="of an epoch; Fashion-MNIST has 468 (default)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write all samples")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_on_noise(args.preset, args.batch, args.steps, Path(folder, "run"))
        found = measure(loop, args.rounds)
        loop.log.end()
        loop.run.close()
    found |= {"preset": args.preset, "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    of = f"{args.preset}, batch {args.batch}, {args.rounds} epochs of {args.steps} steps"
    print(f"{of}, {found['machine']}")
    print(f"bare step   {spread(found['step_ms'])} ms")
    for name, values in found["overhead_percent"].items():
        print(f"overhead    {spread(values)} % of {name}; the goal is {GOAL} %")
    for name, value in found["parts_ms"].items():
        print(f"  {name:9} {value:.3f} ms a step")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
