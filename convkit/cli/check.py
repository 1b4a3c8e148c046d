"""`convkit check`: put implementations through the gate."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cuda.emulate import ENGINES, emulate
from ..cuda.warnings import warnings_text
from ..devices import gpu_found
from ..discovery import register
from ..errors import ConvkitError, OptionError, unknown
from ..op import OPS
from ..options import integer
from ..registry import Implementation, implementations
from ._output import case_bar
from ._watch import watch

if TYPE_CHECKING:
    from ..check import Limits, Verdict
    from ..check.explain import Commands

#: Implementations of which those that pass get a block too.
_FEW = 3


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
        "--engine",
        choices=ENGINES,
        help="the same, by the emulator, which compiles the CUDA source for the CPU, or by the PTX runner, "
        "which runs what NVRTC makes of it for a GPU",
    )
    option("--arch", metavar="SM", help="the architecture that --engine ptx compiles for (default: sm_80)")
    option(
        "--sanitize",
        action="store_true",
        help="the same, watching every access to memory: races, bounds, uninitialised reads; slow, so it "
        "implies --quick. On a GPU by NVIDIA's compute-sanitizer, else, and with --emulate, by the emulator",
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
    option(
        "--like",
        action="append",
        default=[],
        metavar="N,C,H,W[,K,R,S][,stride=2,pad=1,...]",
        help="your own sizes, as further cases; may be repeated",
    )
    option("--case", metavar="TEXT", default="", help="only the cases with this text in their name")
    option("--watch", action="store_true", help="check the file again whenever it is saved; Ctrl-C ends it")
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
    """Check what was named; 1 where something fails, or where there is no verdict."""
    if not args.watch:
        return _once(args)[0]
    files = _files(args.targets)
    if missing := [file for file in files if not Path(file).is_file()]:
        raise OptionError(f"no such file: {missing[0]}")
    if not files or args.counters or args.json:
        raise OptionError("--watch takes a file that is checked, and neither --counters nor --json")
    if args.seed is None:  # the same questions each time, so that what changes is the file's doing
        from .. import check

        args.seed = check.fresh_seed()
    before: list[Verdict] = []

    def once(changed: list[str]) -> int:
        if changed:
            print(f"\n{'=' * 80}\n{', '.join(changed)} changed, {time.strftime('%H:%M:%S')}")
        try:
            status, verdicts = _once(args)
        except ConvkitError as error:  # a file that is half written; the next one may do
            print(f"convkit check: {error}")
            return 2
        if before and verdicts:
            print(_since(before, verdicts))
        before[:] = verdicts
        return status

    return watch(files, once)


def _once(args: argparse.Namespace) -> tuple[int, list[Verdict]]:
    from .. import check

    as_ptx = args.engine == "ptx"
    if as_ptx and (args.emulate or args.sanitize or args.counters):
        raise OptionError("--emulate, --sanitize and --counters are the emulator's, not --engine ptx's")
    if args.arch and not as_ptx:
        raise OptionError("--arch says what --engine ptx compiles for")
    chosen_engine = args.emulate or args.engine or args.counters
    on_gpu = args.sanitize and not chosen_engine and gpu_found()
    emulated = chosen_engine or (args.sanitize and not on_gpu)
    limits = None if args.in_process else check.Limits.of(args.timeout, args.memory)
    with contextlib.ExitStack() as stack:
        if emulated:
            how = {"engine": "ptx", "arch": args.arch or "sm_80"} if as_ptx else {"check": args.sanitize}
            stack.enter_context(emulate(**how))
        try:
            chosen = _chosen(
                args.targets, "cuda" if args.cuda or args.sanitize or emulated else "cpu", limits, stack
            )
        except check.Lost as error:
            print(f"FAILS: {error}")
            return 1, []
        kernels = [i for i in chosen if i.device == "cuda"]
        if args.counters:
            if not kernels:
                raise OptionError("--counters counts what a CUDA kernel does; none was named")
            return _count(kernels), []
        if not kernels and (option := _of_kernels(args)):  # else it would pass without what was asked for
            raise OptionError(f"{option} is for CUDA kernels; none was named")
        if on_gpu:
            return _under_compute_sanitizer(args, chosen), []
        return _check(args, chosen, limits)


def _of_kernels(args: argparse.Namespace) -> str:
    """The option that means nothing without a CUDA kernel, if one was given."""
    given = {"--emulate": args.emulate, f"--engine {args.engine}": args.engine, "--sanitize": args.sanitize}
    return next((option for option, value in given.items() if value), "")


def _check(
    args: argparse.Namespace, chosen: Sequence[Implementation], limits: Limits | None
) -> tuple[int, list[Verdict]]:
    from .. import check

    seed = check.fresh_seed() if args.seed is None else integer("seed", args.seed, 0)
    # Refused now, so that the file does not turn out to be unwritable after a minute's work.
    target = Path(args.json) if args.json and args.json != "-" else None
    if target is not None and not target.resolve().parent.is_dir():
        raise OptionError(f"--json: there is no folder {target.resolve().parent}")
    quick = args.quick or args.sanitize
    more = [case for text in args.like for case in check.like(text, [i.op for i in chosen])]
    verdicts = check.check_these(
        chosen,
        quick=quick,
        seed=seed,
        progress=case_bar(),
        limits=limits,
        shipped_too=True,
        only=args.case,
        more=more,
    )
    status = _status(verdicts, named=bool(args.targets))
    if args.json:
        plain = {"seed": seed, "quick": quick, "verdicts": [_plain(v) for v in verdicts]}
        text = json.dumps(plain, indent=1) + "\n"
        if target is None:
            print(text, end="")
            return status, verdicts
        target.write_text(text, encoding="utf-8")
    print(check.summary(verdicts))
    few = len(check.explain.by_implementation(verdicts)) <= _FEW
    if text := check.blocks(verdicts, _commands(args, chosen), passing=few):
        print(f"\n{text}")
    if warned := warnings_text(args.targets):
        print(f"\n{warned}")
    if loose := {f"{v.op} {v.implementation}": None for v in verdicts if not v.contained}:
        print(f"\nnot contained, ran in this process: {', '.join(loose)}")
    print(f"\n{_total(verdicts)}; seed {seed}{', quick' if quick else ''}")
    return status, verdicts


def _under_compute_sanitizer(args: argparse.Namespace, chosen: Sequence[Implementation]) -> int:
    """Small cases on the GPU, and what NVIDIA's tools say about them; 1 where they say something."""
    from .. import check
    from ..check import compute_sanitizer as watching

    if args.json or args.like:
        raise OptionError("--sanitize on a GPU takes neither --json nor --like; with --emulate it does")
    if not (kernels := [i for i in chosen if i.device == "cuda"]):
        raise OptionError("--sanitize watches CUDA kernels; none was named")
    seed = check.fresh_seed() if args.seed is None else integer("seed", args.seed, 0)
    status = 0
    for report in watching.examine(kernels, files=_files(args.targets), seed=seed, only=args.case):
        count = len(report.findings)
        found = f"{count} finding{'s' if count > 1 else ''}" if count else "nothing found"
        said = report.problem or found
        print(f"{report.tool:<10} {report.cases:>4} cases  {said}  ({watching.TOOLS[report.tool]})")
        for finding in report.findings[:_FEW]:
            print(f"  {finding.case}", *finding.lines, sep="\n      ")
        if count > _FEW:
            print(f"  and {count - _FEW} more")
        status |= not report.ok
    print(f"\n{'FAILS' if status else 'passes'}; seed {seed}")
    return int(status)


def _status(verdicts: Sequence[Verdict], named: bool) -> int:
    """0 where something was judged and nothing failed; what was named must have been judged, all of it."""
    from ..check import explain

    if any(not v.ok for v in verdicts):
        return 1
    groups = explain.by_implementation(verdicts).values()
    judged = [mine for mine in groups if explain.outcome(mine) == "passes"]
    if not judged or (named and not all(explain.complete(mine) for mine in groups)):
        return 1
    return 0


def _total(verdicts: Sequence[Verdict]) -> str:
    run = [v for v in verdicts if not v.declined]
    text = f"{sum(v.ok for v in run)} of {len(run)} passed" if run else "no verdict"
    for word in ("declines", "not run"):
        if count := sum(v.outcome == word for v in verdicts):
            text += f", {count} {'declined' if word == 'declines' else word}"
    return text


def _since(before: Sequence[Verdict], now: Sequence[Verdict]) -> str:
    """What has changed since the last time."""

    def states(verdicts: Sequence[Verdict]) -> dict[tuple[str, ...], str]:
        return {(v.op, v.implementation, v.dtype, v.case): v.outcome for v in verdicts}

    old, new = states(before), states(now)
    mended = [key for key, word in new.items() if word == "passes" and old.get(key) == "FAILS"]
    broken = [key for key, word in new.items() if word == "FAILS" and old.get(key) != "FAILS"]
    if not mended and not broken:
        return "since the last time: the same cases pass and fail"
    parts = [f"{len(mended)} more pass"] if mended else []
    if broken:
        *_, dtype, case = broken[0]
        parts.append(f"{len(broken)} fail that did not, such as {dtype}, {case}")
    return f"since the last time: {'; '.join(parts)}"


def _commands(args: argparse.Namespace, chosen: Sequence[Implementation]) -> Callable[[Verdict], Commands]:
    """What may be typed about an implementation, by one of its verdicts."""
    from ..check.explain import Commands

    given = {f"--{name}": getattr(args, name) for name in ("cuda", "emulate", "sanitize", "quick")}
    words = [name for name, on in given.items() if on]
    engine = " ".join(f"--{name} {value}" for name in ("engine", "arch") if (value := getattr(args, name)))
    likes = " ".join(f"--like {shlex.quote(text)}" for text in args.like)
    files = {str(Path(path).resolve()): path for path in _files(args.targets)}
    sources = {(i.op, i.label, i.device): (i.origin or i.source, _whole(i)) for i in chosen}

    def of(verdict: Verdict) -> Commands:
        source, name = sources[verdict.op, verdict.implementation, verdict.device]
        path = files.get(str(Path(source).resolve())) if source else None
        if path is None and len(files) == 1:
            (path,) = files.values()
        target = shlex.quote(path) if path is not None else name
        runs = verdict.device == "cpu" or gpu_found()
        return Commands(target, " ".join(words), likes, file=path is not None, runs=runs, engine=engine)

    return of


def _files(targets: Sequence[str]) -> list[str]:
    """Those of the targets that are files."""
    found = [t for t in targets if t.endswith((".py", ".cu", ".cpp")) or os.sep in t or Path(t).is_file()]
    return list(dict.fromkeys(found))


def _chosen(
    targets: Sequence[str], device: str, limits: Limits | None, stack: contextlib.ExitStack
) -> list[Implementation]:
    """Implementations of these files, else all of the device; of these ops; of these names.

    With limits, a file is loaded in a process of its own, which ends with the stack.

    A name that the device does not know may be that of a CUDA kernel, which needs no option then.
    """
    files = _files(targets)
    wanted = {t for t in targets if t not in files}
    ops = {t for t in wanted if t in OPS}
    impls = wanted - ops
    if files:
        pool = [i for path in files for i in _of_file(path, limits, stack)]
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
        print(f"\n{i.op} {i.label}: {case}{': ' + fault if fault else ''}")
        rows = [
            (f"{Path(c.file).name}:{c.line}", c.kind, c.accesses, c.actual, c.ideal, f"{c.ratio:.2f}")
            for c in counted
        ]
        print(tabulate(rows, ("line", "kind", "accesses", "actual", "ideal", "ratio"), disable_numparse=True))
    return 0
