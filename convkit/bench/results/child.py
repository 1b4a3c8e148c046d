"""A process of `apart`: does one task, prints a line of JSON with its "value", and ends.

Importing this imports convkit and NumPy, no more: what a library imports, and when, is part of what is
measured.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Calls of which the fastest stands for a later one; and the least that a first call may exceed it by, in ms.
LATER, LEAST = 7, 1e-3


def main(text: str, start: int) -> int:
    """Do the task that is told as JSON, in a process that took `start` bytes before it imported anything."""
    task = json.loads(text)
    value = first_call(task) if task["kind"] == "first call" else memory(task, start)
    print(json.dumps({"value": value}))
    return 0


def resident() -> tuple[int, int]:
    """Bytes of memory now, and at most so far."""
    import resource

    now = 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                now = int(line.split()[1]) * 1024
            elif line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024
    except OSError:
        now = peak
    return now, peak


def memory(task: dict[str, Any], start: int) -> float:
    """Megabytes: the most over two training steps. The images count, and the import of the library."""
    from ..measure import whole
    from ..peers import whole as networks
    from ..steps import item_of

    harness = resident()[0] - start  # NumPy and convkit: another library is not charged for them
    item = item_of({"id": "", "op": task["op"], "problem": task["problem"]})
    build = dict(networks.networks_of(task["peer"], item, "cpu"))[task["title"]]
    x, labels = whole.images(task["problem"]["preset"], task["problem"]["N"])
    net = build()
    net.load(x, labels)
    del x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            net.step()
    return (resident()[1] - (0 if task["peer"] == "convkit" else harness)) / 1e6


def first_call(task: dict[str, Any]) -> float:
    """Milliseconds of the first call, less those of a later one."""
    make = _convkit if task["peer"] == "convkit" else _torch
    run = make(task["op"], task["problem"], task["threads"])
    times = []
    for _ in range(1 + LATER):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return max(LEAST, times[0] - min(times[1:]))


def _arrays(op: str, g: dict[str, Any]) -> dict[str, Any]:
    """Inputs by name."""
    rng = np.random.default_rng(0)
    if op.startswith("linear"):
        shapes: dict[str, tuple[int, ...]] = {"x": (g["N"], g["C"]), "w": (g["K"], g["C"])}
    else:
        shapes = {"x": (g["N"], g["C"], g["H"], g["W"])}
    if op.startswith("conv2d"):
        shapes["w"] = (g["K"], g["C"], g["R"], g["S"])
        shapes["dy"] = (g["N"], g["K"], g["H"], g["W"])  # the padding keeps the size
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _convkit(op: str, g: dict[str, Any], threads: int) -> Callable[[], Any]:
    from ...ops import conv2d, linear, lrn, maxpool2d

    a = _arrays(op, g)
    pad = g.get("pad_top", 0)
    return {
        "conv2d_fprop": lambda: conv2d.conv2d_fprop(a["x"], a["w"], padding=pad),
        "conv2d_dgrad": lambda: conv2d.conv2d_dgrad(a["dy"], a["w"], a["x"].shape, padding=pad),
        "conv2d_wgrad": lambda: conv2d.conv2d_wgrad(a["x"], a["dy"], a["w"].shape, padding=pad),
        "lrn_fprop": lambda: lrn.lrn_fprop(a["x"], size=g["size"]),
        "maxpool2d_fprop": lambda: maxpool2d.maxpool2d_fprop(a["x"], window=g["R"], stride=g["stride_h"]),
        "linear_fprop": lambda: linear.linear_fprop(a["x"], a["w"]),
    }[op]


def _torch(op: str, g: dict[str, Any], threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(threads)
    F, a = torch.nn.functional, {name: torch.from_numpy(array) for name, array in _arrays(op, g).items()}
    pad = g.get("pad_top", 0)

    def back(which: int) -> Any:
        mask = [which == 0, which == 1, False]
        pair = (pad, pad)
        return torch.ops.aten.convolution_backward(
            a["dy"], a["x"], a["w"], None, (1, 1), pair, (1, 1), False, (0, 0), 1, mask
        )

    return {
        "conv2d_fprop": lambda: F.conv2d(a["x"], a["w"], padding=pad),
        "conv2d_dgrad": lambda: back(0),
        "conv2d_wgrad": lambda: back(1),
        "lrn_fprop": lambda: F.local_response_norm(a["x"], g["size"]),
        "maxpool2d_fprop": lambda: F.max_pool2d(a["x"], g["R"], g["stride_h"]),
        "linear_fprop": lambda: F.linear(a["x"], a["w"]),
    }[op]
