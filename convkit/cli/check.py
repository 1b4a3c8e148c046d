"""`convkit check`: put implementations through the gate."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cuda.emulate import emulate
from ..discovery import register
from ..errors import OptionError, unknown
from ..op import OPS
from ..options import integer
from ..registry import Implementation, implementations
from ._output import case_bar

if TYPE_CHECKING:
    from ..check import Limits, Verdict

#: Failures of one implementation that are printed.
_SHOWN = 3


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "check",
        help="put implementations through the gate",
        description="Check implementations elementwise against the float64 reference.",
    )
    option = parser.add_argument
    option(
        "targets",
        nargs="*",
        metavar="op|implementation|file",
        help="what to check: an op, an implementation (sliding, lrn_fprop_sliding), or a kernel file (.cu), "
        "C++ file (.cpp) or Python file (.py) that registers some; by default all that the CPU backend has",
    )
    option("--cuda", action="store_true", help="check the CUDA kernels: on the GPU, if there is one")
    option("--emulate", action="store_true", help="the same, but under the emulator in any case")
    option(
        "--sanitize",
        action="store_true",
        help="the same, watching every access to memory: races, bounds, uninitialised reads; slow, so it "
        "implies --quick",
    )
    option("--quick", action="store_true", help="small cases only, some seconds")
    option(
        "--counters",
        action="store_true",
        help="do not judge, but count: shared-memory wavefronts and global sectors of each line, emulated",
    )
    option(
        "--seed", type=int, help="of inputs and random geometries (default: a fresh one, which is printed)"
    )
    option("--json", metavar="PATH", help="write every verdict to this file")
    option(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="that a candidate's call may take (default: 60); then its process is ended",
    )
    option(
        "--memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="that a candidate's process may take beyond its tensors (default: 4)",
    )
    option(
        "--in-process",
        action="store_true",
        help="run candidates in this process, for a debugger: what they do to it is not contained",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check what was named; 1 where something fails."""
    from .. import check

    emulated = args.emulate or args.sanitize or args.counters
    limits = None if args.in_process else check.Limits(args.timeout, int(args.memory * 2**30))
    with contextlib.ExitStack() as stack:
        if emulated:
            stack.enter_context(emulate(check=args.sanitize))
        try:
            chosen = _chosen(args.targets, "cuda" if args.cuda or emulated else "cpu", limits, stack)
        except check.Lost as error:
            print(f"FAILS: {error}")
            return 1
        if args.counters:
            return _count([i for i in chosen if i.device == "cuda"])
        return _check(args, chosen, limits)


def _check(args: argparse.Namespace, chosen: Sequence[Implementation], limits: Limits | None) -> int:
    from .. import check

    seed = check.fresh_seed() if args.seed is None else integer("seed", args.seed, 0)
    # Refused now, so that the file does not turn out to be unwritable after a minute's work.
    target = Path(args.json) if args.json and args.json != "-" else None
    if target is not None and not target.resolve().parent.is_dir():
        raise OptionError(f"--json: there is no folder {target.resolve().parent}")
    quick = args.quick or args.sanitize
    verdicts = check.check_these(
        chosen, quick=quick, seed=seed, progress=case_bar(), limits=limits, shipped_too=True
    )
    failed = [v for v in verdicts if not v.ok]
    if args.json:
        plain = {"seed": seed, "quick": quick, "verdicts": [_plain(v) for v in verdicts]}
        text = json.dumps(plain, indent=1) + "\n"
        if target is None:
            print(text, end="")
            return 1 if failed else 0
        target.write_text(text, encoding="utf-8")
    print(check.summary(verdicts))
    _print_failures(failed)
    if loose := {f"{v.op} {v.implementation}": None for v in verdicts if not v.contained}:
        print(f"\nnot contained, ran in this process: {', '.join(loose)}")
    if not args.sanitize and any(i.device == "cuda" for i in chosen):
        print("\nraces between threads were not looked for: --sanitize does")
    judged = sum(not v.declined for v in verdicts)
    declined = f", {len(verdicts) - judged} declined" if len(verdicts) > judged else ""
    print(f"\n{judged - len(failed)} of {judged} passed{declined}; seed {seed}{', quick' if quick else ''}")
    return 1 if failed else 0


def _chosen(
    targets: Sequence[str], device: str, limits: Limits | None, stack: contextlib.ExitStack
) -> list[Implementation]:
    """Implementations of these files, else all of the device; of these ops; of these names.

    With limits, a file is loaded in a process of its own, which ends with the stack.

    A name that the device does not know may be that of a CUDA kernel, which needs no option then.
    """
    files = [t for t in targets if t.endswith((".py", ".cu", ".cpp")) or os.sep in t or Path(t).is_file()]
    wanted = {t for t in targets if t not in files}
    ops = {t for t in wanted if t in OPS}
    impls = wanted - ops
    if files:
        pool = [i for path in dict.fromkeys(files) for i in _of_file(path, limits, stack)]
    else:
        pool = implementations(device=device, layout=None)
        others = {name for name in impls if not any(_named(i, {name}) for i in pool)}
        pool += [i for i in implementations(layout=None) if others and _named(i, others)]
    for target in impls:
        if not any(_named(i, {target}) for i in pool):
            raise unknown("op or implementation", target, _near(target))
    chosen = [i for i in pool if (not ops or i.op in ops) and (not impls or _named(i, impls))]
    if not chosen:
        raise OptionError(
            f"nothing to check: {', '.join(sorted(ops))} has no implementation {', '.join(sorted(impls))}"
        )
    return chosen


def _of_file(path: str, limits: Limits | None, stack: contextlib.ExitStack) -> list[Implementation]:
    from .. import check

    if limits is None:
        return register(path)
    group = check.process.of_file(path, limits)
    stack.callback(group.close)
    try:
        return group.load()
    except check.Lost as error:
        if text := group.printed():
            check.print_apart(group.name, text)
        raise check.Lost(f"{group.name} could not be loaded: {error}") from None


def _near(target: str) -> set[str]:
    """What may have been meant: implementations of the op that the target begins with, or all names."""
    everything = implementations(layout=None)
    found = {_whole(i) for i in everything if target.startswith(f"{i.op}_")}
    return found or {*OPS, *(i.name for i in everything)}


def _named(implementation: Implementation, names: Collection[str]) -> bool:
    """Whether it goes by one of the names: "sliding", or with its op "lrn_fprop_sliding"."""
    return implementation.name in names or _whole(implementation) in names


def _whole(implementation: Implementation) -> str:
    """The name with the op in front: the stem of a kernel file."""
    return f"{implementation.op}_{implementation.name}"


def _print_failures(failed: Sequence[Verdict]) -> None:
    from ..check import REST

    shown: dict[tuple[str, str], int] = {}
    for verdict in failed:
        key = verdict.op, verdict.implementation
        shown[key] = shown.get(key, 0) + 1
        if shown[key] <= _SHOWN or verdict.case == REST:
            print(f"\n{verdict}")
    for (op, name), count in shown.items():
        if count > _SHOWN:
            print(f"\n{op} {name!r}: {count - _SHOWN} more cases fail; --json PATH writes all of them")


def _plain(verdict: Verdict) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {
        k: (v if not isinstance(v, float) or abs(v) < float("inf") else None if v != v else str(v))
        for k, v in verdict.asdict().items()
    }


def _count(chosen: Sequence[Implementation]) -> int:
    """Print how each line of these kernels uses memory."""
    from tabulate import tabulate

    from .. import check

    for i in chosen:
        case, fault, counted = check.count(i)
        print(f"\n{i.op} {i.name}: {case}{': ' + fault if fault else ''}")
        rows = [
            (f"{Path(c.file).name}:{c.line}", c.kind, c.accesses, c.actual, c.ideal, f"{c.ratio:.2f}")
            for c in counted
        ]
        print(tabulate(rows, ("line", "kind", "accesses", "actual", "ideal", "ratio"), disable_numparse=True))
    return 0
