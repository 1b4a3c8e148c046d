"""What `bench/cpu.py` measures in a process of its own: the peak memory of a step, a first call.

    python bench/cpu_child.py 2 '{"kind": "memory", "contender": "torch", "preset": "paper", "batch": 16}'
    python bench/cpu_child.py 2 '{"kind": "first", "contender": "convkit", "op": "lrn_fprop"}'

With 2 threads, that is. The answer is a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from cpu import prepare


def main(threads: int, task: dict[str, Any]) -> int:
    """Do one task, and print its answer."""
    start = resident()[0]  # before anything heavy
    prepare(threads)
    answer = {"memory": memory, "first": first}[task["kind"]](task, threads, start)
    print(json.dumps(answer))
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


def memory(task: dict[str, Any], threads: int, start: int) -> dict[str, Any]:
    """Peak of the resident memory over two training steps, the images included."""
    import cpu_peers as peers
    import numpy as np

    harness = resident()[0] - start  # convkit and NumPy: a peer is not charged for them
    name = task["contender"]
    found, missing = peers.make([name], threads)
    if missing:
        sys.exit(missing[name])
    spec = peers.describe(task["preset"])
    imported = resident()[0]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((task["batch"], *spec["input"]), np.float32)
    labels = rng.integers(0, 1000, task["batch"])
    if name == "convkit":
        net = found[name].network(spec)
    else:  # weights of the right size: their values do not matter here
        params = {n: np.full(s, 1e-2, np.float32) for n, s in spec["parameters"].items()}
        net = found[name].network(spec, params)
        del params
    net.load(x, labels)
    if name != "convkit":
        del x  # it has its own copy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [net.step() for _ in range(2)]
    peak = resident()[1]
    other = 0 if name == "convkit" else harness
    return {
        "peak": peak - other, "imported": imported - other, "step": peak - imported, "losses": losses,
        "harness": harness,
    }  # fmt: skip


def first(task: dict[str, Any], threads: int, start: int) -> dict[str, Any]:
    """Milliseconds of the first call and of a later one."""
    import numpy as np

    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    op = task["op"]
    x, w, dy = array(1, 96, 27, 27), array(256, 96, 5, 5), array(1, 256, 27, 27)
    rows, weights = array(1, 4096), array(1000, 4096)
    if task["contender"] == "convkit":
        import convkit as ck

        run = {
            "conv2d_fprop": lambda: ck.conv2d_fprop(x, w, padding=2),
            "conv2d_dgrad": lambda: ck.conv2d_dgrad(dy, w, x.shape, padding=2),
            "conv2d_wgrad": lambda: ck.conv2d_wgrad(x, dy, w.shape, padding=2),
            "lrn_fprop": lambda: ck.lrn_fprop(x),
            "maxpool2d_fprop": lambda: ck.maxpool2d_fprop(x),
            "linear_fprop": lambda: ck.linear_fprop(rows, weights),
        }[op]
    else:
        import torch

        torch.set_num_threads(threads)
        F = torch.nn.functional
        tx, tw, tdy, trows, tweights = map(torch.from_numpy, (x, w, dy, rows, weights))

        def back(which: int) -> Any:
            return torch.ops.aten.convolution_backward(
                tdy, tx, tw, None, (1, 1), (2, 2), (1, 1), False, (0, 0), 1, [which == 0, which == 1, False]
            )

        run = {
            "conv2d_fprop": lambda: F.conv2d(tx, tw, padding=2),
            "conv2d_dgrad": lambda: back(0),
            "conv2d_wgrad": lambda: back(1),
            "lrn_fprop": lambda: F.local_response_norm(tx, 5),
            "maxpool2d_fprop": lambda: F.max_pool2d(tx, 3, 2),
            "linear_fprop": lambda: F.linear(trows, tweights),
        }[op]
    times = []
    for _ in range(8):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return {"first": times[0], "later": min(times[1:])}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
