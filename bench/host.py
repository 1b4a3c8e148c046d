"""What a call costs the host: checks, the choice of an implementation, packing; none of the arithmetic.

    python bench/host.py                             everything; half a minute
    python bench/host.py --sections ops,step         the CUDA path alone
    python bench/host.py --json host.json            and keep every sample

A GPU is not needed: the launches of the CUDA path are prepared and packed as on one, and then not made
(`convkit.cuda.null`), with NumPy arrays in the place of CuPy's. What CuPy itself takes for a launch, and
what its arrays and device switches cost around it, comes on top.

Sections
  ops     each op on a tiny problem, CUDA path
  step    a training step of AlexNet, CUDA path, call by call, as one graph, and its parts; the batch changes
          nothing but a copy
  cupy    CuPy's own share of a launch, where CuPy sees a GPU
  cpu     each op on a tiny problem, CPU path, beside PyTorch in the same process, in turns

A sample is the mean of some calls in a row. Medians, with quartiles in brackets, of the rounds. "thread" is
the CPU time of the calling thread, which other programs disturb least; "wall" counts what it waits for, too.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SECTIONS = ("ops", "step", "cupy", "cpu")
GOAL_STEP_MS, GOAL_RATIO = 1.0, 1.5
#: The call of PyTorch's that every op's is held against.
YARDSTICK = "torch conv2d"


# ---------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------
@dataclass
class Row:
    """One thing that was timed.

    Attributes
    ----------
    section, name, library : str
        `library` is "convkit", "torch" or "cupy".
    inner : int
        Calls that a sample is the mean of.
    launches : int, optional
        Kernels that a call would launch.
    wall_us, thread_us : list of float
        A sample for each round.
    note : str
        Why there is none.
    """

    section: str
    name: str
    library: str = "convkit"
    inner: int = 1
    launches: int | None = None
    wall_us: list[float] = field(default_factory=list)
    thread_us: list[float] = field(default_factory=list)
    note: str = ""

    def quartiles(self, clock: str = "thread_us") -> tuple[float, float, float]:
        """The median between the quartiles; NaN without samples."""
        import numpy as np

        values = getattr(self, clock)
        if not values:
            return (math.nan,) * 3
        low, middle, high = np.percentile(values, (25, 50, 75))
        return float(low), float(middle), float(high)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every sample, and the medians."""
        found = asdict(self)
        for clock in ("wall_us", "thread_us"):
            _, middle, _ = self.quartiles(clock)
            found[f"{clock}_median"] = None if math.isnan(middle) else middle
        return found


def sample(rows: list[tuple[Row, Callable[[], Any]]], rounds: int, seed: int = 0) -> None:
    """Time calls in turns, in a random order in each round."""
    from convkit.bench.measure.timing import in_turns

    order = random.Random(seed)
    for row, call in rows:
        for _ in range(3):
            call()
        began = time.perf_counter_ns()
        call()
        once = max(1, time.perf_counter_ns() - began)
        row.inner = max(1, min(50, 400_000 // once))  # a sample of some 0.4 ms
    for _ in range(rounds):
        for row, call in in_turns(rows, order):
            inner = range(row.inner)
            wall, thread = time.perf_counter_ns(), time.thread_time_ns()
            for _ in inner:
                call()
            thread, wall = time.thread_time_ns() - thread, time.perf_counter_ns() - wall
            row.wall_us.append(wall / 1e3 / row.inner)
            row.thread_us.append(thread / 1e3 / row.inner)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """A block without the garbage collector, which would fall into some samples and not into others."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def ratio(mine: Row, theirs: Row) -> float:
    """The median of the rounds' ratios of wall time: what slows a whole round cancels."""
    import numpy as np

    return float(np.median([a / b for a, b in zip(mine.wall_us, theirs.wall_us, strict=True)]))


# ---------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------
class Counter:
    """In the place of CuPy's functions: counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, grid: Any, block: Any, arguments: Any, shared: int) -> None:
        self.count += 1

    def of(self, call: Callable[[], Any]) -> int:
        """Launches of a call."""
        before = self.count
        call()
        return self.count - before


def ops(args: argparse.Namespace) -> list[Row]:
    """Each op's public call on a tiny problem, CUDA path."""
    from host_ops import convkit_calls

    from convkit.cuda.null import nulled
    from convkit.errors import NoImplementation

    rows, timed, counter = [], [], Counter()
    for name, call in convkit_calls().items():
        rows.append(row := Row("ops", name))
        try:
            with nulled(counter):
                row.launches = counter.of(call)
        except NoImplementation:
            row.note = "no CUDA implementation takes it"
        else:
            timed.append((row, call))
    with nulled():
        sample(timed, args.rounds)
    return rows


def step(args: argparse.Namespace) -> list[Row]:
    """A training step of AlexNet, CUDA path, and its parts."""
    import numpy as np

    import convkit as ck
    from convkit.cuda.null import nulled

    net = ck.AlexNet(args.preset, seed=0)
    x = np.zeros((args.batch, *net.input_shape), np.float32)
    labels = np.zeros(args.batch, np.int64)
    counter = Counter()
    with nulled(counter):
        plan = net.load_step(x, labels)
        calls = [call for phase in plan.phases().values() for call in phase]

        def each() -> None:
            for call in calls:
                call.run()

        each()
        launches = counter.of(each)
    with nulled():
        bare = [call.bare() for call in calls]

        def kept() -> None:
            with np.errstate(all="ignore"):
                for function in bare:
                    function()

        def whole(graph: bool) -> None:
            net.graph = graph
            net.step(x, labels)

        timed = [
            (Row("step", "Network.step, call by call", launches=launches), lambda: whole(False)),
            (Row("step", "Network.step, as one graph", launches=1), lambda: whole(True)),
            (Row("step", "its checks and copies", launches=0), lambda: net.load_step(x, labels)),
            (Row("step", f"its {len(calls)} calls, by Call.run", launches=launches), each),
            (Row("step", f"its {len(calls)} calls, bare", launches=launches), kept),
        ]
        sample(timed, args.rounds)
    return [row for row, _ in timed]


#: Ops of which CuPy's launch is timed: few arguments, a convolution's, many by value.
_LAUNCHED = ("relu_fprop", "conv2d_fprop", "sgd_momentum")


def cupy(args: argparse.Namespace) -> list[Row]:
    """CuPy's own share: its function, called with what is packed already; and what stands around a call."""
    from convkit import arrays, devices
    from convkit.errors import MissingExtra
    from convkit.op import OPS
    from convkit.ops.conv2d import Conv2d
    from convkit.ops.elementwise import Elementwise
    from convkit.registry import select

    try:
        library = arrays._cupy()
    except MissingExtra as missing:
        return [Row("cupy", "launch", "cupy", note=str(missing))]
    if not devices.gpu_found():
        return [Row("cupy", "launch", "cupy", note="CuPy sees no GPU")]
    timed = []
    options = {"relu": False, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "dampening": 0.0,
               "nesterov": False, "lr_in_velocity": False}  # fmt: skip
    executor = devices.current()
    for name in _LAUNCHED:
        problem = Conv2d.of((1, 1, 3, 3), (1, 1, 3, 3)) if OPS[name].problem is Conv2d else Elementwise((16,))
        implementation = select(name, problem, device="cuda")
        assert implementation.prepare is not None
        prepared: Any = implementation.prepare(problem)
        tensors = [
            arrays.zeros(problem.shape(tensor), "float32", "cuda")
            for tensor in (*OPS[name].inputs, *OPS[name].outputs)
        ]
        scratch = implementation.workspace and arrays.empty(
            (implementation.workspace(problem),), "uint8", "cuda"
        )
        arguments = executor.pack(prepared.values(tensors, options, scratch))
        row = Row("cupy", f"{name}, {len(arguments)} arguments", "cupy", launches=1)
        timed.append((row, lambda launch=prepared.bound[0], arguments=arguments: launch(arguments)))

    def switch() -> None:
        with arrays.on(tensors[0]):
            pass

    timed.append((Row("cupy", "an array's GPU made the current one, and back", "cupy"), switch))
    timed.append((Row("cupy", "the executor of the current GPU", "cupy"), devices.current))
    sample(timed, args.rounds)
    library.cuda.get_current_stream().synchronize()
    return [row for row, _ in timed]


def cpu(args: argparse.Namespace) -> list[Row]:
    """Each op's public call on a tiny problem, CPU path, in turns with PyTorch's."""
    from host_ops import convkit_calls, torch_calls

    theirs: dict[str, Callable[[], Any]] = {}
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(args.threads)
        theirs = torch_calls(torch)
    timed = []
    for name, call in convkit_calls().items():
        pair = [(Row("cpu", name), call)]
        if name in theirs:
            pair.append((Row("cpu", name, "torch"), theirs[name]))
        if theirs:
            pair.append((Row("cpu", name, YARDSTICK), theirs["conv2d_fprop"]))
        sample(pair, args.rounds)  # side by side: ratios are of neighbours
        timed += pair
    return [row for row, _ in timed]


# ---------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------
def _cell(row: Row | None, clock: str = "thread_us", scale: float = 1.0) -> str:
    if row is None or not row.thread_us:
        return "-"
    low, middle, high = (value * scale for value in row.quartiles(clock))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def table(rows: list[Row]) -> str:
    """What was measured, as text."""
    from tabulate import tabulate

    def of(section: str) -> list[Row]:
        return [row for row in rows if row.section == section]

    def shown(headers: tuple[str, ...], lines: Iterable[list[Any]]) -> str:
        right = ("left", *["right"] * (len(headers) - 1))
        return tabulate(lines, headers, tablefmt="simple", colalign=right, disable_numparse=True)

    parts = []
    if found := of("ops"):
        lines = [
            [r.name, r.note or r.launches, _cell(r), _cell(r, "wall_us")] if not r.note
            else [r.name, "-", "-", r.note]
            for r in found
        ]  # fmt: skip
        parts.append("CUDA path without launches: us a call\n\n")
        parts[-1] += shown(("op", "launches", "thread", "wall"), lines)
    if found := of("step"):
        lines = [[r.name, r.launches, _cell(r, scale=1e-3), _cell(r, "wall_us", 1e-3)] for r in found]
        parts.append("AlexNet's training step, CUDA path without launches: ms\n\n")
        parts[-1] += shown(("what", "launches", "thread", "wall"), lines)
        middle = found[0].quartiles()[1] / 1e3
        met = "met" if middle <= GOAL_STEP_MS else "missed"
        parts[-1] += (
            f"\n\ngoal: at most {GOAL_STEP_MS:g} ms of the thread a step, call by call: {met}, "
            f"{middle:.2f} ms"
        )
    if found := of("cupy"):
        lines = [[r.name, r.note or _cell(r), _cell(r, "wall_us")] for r in found]
        parts.append("CuPy's own share: us\n\n" + shown(("what", "thread", "wall"), lines))
    if found := of("cpu"):
        by = {(r.name, r.library): r for r in found}
        lines = []
        for name in dict.fromkeys(r.name for r in found):
            mine, theirs = by[name, "convkit"], by.get((name, "torch"))
            others = (theirs, by.get((name, YARDSTICK)))
            times = [f"{ratio(mine, other):.2f}" if other else "-" for other in others]
            lines.append([name, _cell(mine), _cell(mine, "wall_us"), _cell(theirs, "wall_us"), *times])
        headers = ("op", "thread", "wall", "PyTorch's wall", "ratio", "to conv2d")
        parts.append("CPU path: us a call\n\n" + shown(headers, lines))
        if not any(r.library == "torch" for r in found):
            parts[-1] += "\n\nPyTorch is not installed"
        else:
            parts[-1] += (
                "\n\nratio: of wall times, within a round, to PyTorch's own call for the same, and to its "
                f"conv2d of 3 x 3 numbers; goal: at most {GOAL_RATIO:g} times that conv2d"
            )
    return "\n\n\n".join(parts)


def machine() -> dict[str, Any]:
    """What the samples were taken on."""
    from importlib import metadata

    import convkit

    versions = {"convkit": convkit.__version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"processor": platform.processor() or platform.machine(), "versions": versions}


# ---------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------
def _sections(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"unknown section {name!r}; known: {', '.join(SECTIONS)}")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("host.py", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--sections", type=_sections, default=list(SECTIONS), metavar="A,B", help="only these")
    p.add_argument("--rounds", type=_positive, default=40, help="samples of each (default 40)")
    p.add_argument("--preset", default="paper", help="AlexNet of `step` (default paper)")
    p.add_argument("--batch", type=_positive, default=1, help="images of `step` (default 1)")
    p.add_argument("--threads", type=_positive, default=1, help="of convkit and PyTorch on a CPU (default 1)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")
    return p


def measure(args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the sections asked for, and what goes into the JSON."""
    from threadpoolctl import threadpool_limits

    sections: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "ops": ops, "step": step, "cupy": cupy, "cpu": cpu,
    }  # fmt: skip
    with threadpool_limits(args.threads), no_collection():
        rows = [row for name in SECTIONS if name in args.sections for row in sections[name](args)]
    document = {
        "convkit_host": 1,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "rows": [row.as_dict() for row in rows],
    }
    return rows, document


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; returns the exit status."""
    from convkit.errors import ConvkitError

    p = parser()
    args = p.parse_args(argv)
    try:
        rows, document = measure(args)
    except ConvkitError as error:  # an unknown preset
        p.error(str(error))
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
