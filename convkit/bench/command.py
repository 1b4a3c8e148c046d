"""`convkit bench | verify | compare | report`: what is typed, in; exit status, out.

Nothing heavy is imported before a command runs, and the number of threads is set before any library has some
(but NumPy, which is told).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import threadpoolctl

from ..errors import MissingExtra, OptionError, unknown
from . import arguments

if TYPE_CHECKING:
    from ..registry import Implementation
    from .results.run import Options
    from .work import Item, Wanted


def add_bench(commands: Any) -> None:
    """Add `convkit bench`."""
    bench = commands.add_parser(
        "bench",
        help="time kernels, layers and steps, against other libraries",
        description=arguments.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add(bench)
    bench.set_defaults(run=_bench)


def add_verify(commands: Any) -> None:
    """Add `convkit verify`."""
    verify = commands.add_parser(
        "verify",
        help="recheck a result file of `convkit bench --json`",
        description="Recheck a result file: its digest, the hash of each kernel's source against the "
        "installed file, and every figure and verdict, recomputed from the raw samples. Exit status 1 where "
        "something does not hold.",
    )
    verify.add_argument("capsule", metavar="FILE")
    verify.add_argument(
        "--rerun", action="store_true", help="measure its rows again here, and say which times agree"
    )
    verify.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="FILE",
        help="a kernel file that it names; repeatable",
    )
    verify.set_defaults(run=_verify)


def add_compare(commands: Any) -> None:
    """Add `convkit compare`."""
    compare = commands.add_parser(
        "compare",
        help="compare two result files row by row",
        description="How many times longer the first took, row by row, with its interval. Refuses result "
        "files of different machines or caches.",
    )
    compare.add_argument("a")
    compare.add_argument("b")
    compare.add_argument("--all", action="store_true", help="every entry, not convkit's picks alone")
    compare.add_argument(
        "--force", action="store_true", help="compare what is not comparable, with a warning"
    )
    compare.set_defaults(run=_compare)


def add_report(commands: Any) -> None:
    """Add `convkit report`."""
    report = commands.add_parser(
        "report",
        help="make one self-contained HTML page of result files",
        description="One self-contained HTML page: pictures, and tables that can be sorted.",
    )
    report.add_argument("capsules", nargs="+", metavar="FILE")
    report.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default: report.html")
    report.add_argument("--picture", metavar="FILE", help="a PNG too (needs matplotlib)")
    report.set_defaults(run=_report)


# ---------------------------------------------------------------------------------------------------
# convkit bench
# ---------------------------------------------------------------------------------------------------
def _words(option: str, text: str | None, what: str = "names") -> tuple[str, ...]:
    """The names in "a,b", each once; none where the option was not given."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if "" in words:
        raise OptionError(f"{option} takes {what} with commas between them, not {text!r}")
    return tuple(dict.fromkeys(words))


def _batches(text: str) -> tuple[int, ...]:
    from .work import MOST_DIGITS

    found = _words("--batch", text, "whole numbers")
    for word in found:
        if len(word) > MOST_DIGITS:
            raise OptionError(f"--batch: a number of {len(word)} digits, more than {MOST_DIGITS}")
        if not (word.isascii() and word.isdigit()) or int(word) < 1:
            raise OptionError(f"--batch takes whole numbers of at least 1, such as 1,16, not {word!r}")
    return tuple(dict.fromkeys(int(word) for word in found))


def use_threads(count: int | None) -> None:
    """Give every library the same number of threads, before they are imported; NumPy's BLAS has been."""
    if count is None:
        return
    if not 1 <= count <= 4096:
        raise OptionError(f"--threads must be from 1 to 4096, not {count}")
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = sorted(affinity(0)) if affinity else []
    if count < len(cpus):  # JAX has no other way to be told
        os.sched_setaffinity(0, cpus[:count])
    for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "CONVKIT"):
        os.environ[f"{name}_NUM_THREADS"] = str(count)
    threadpoolctl.threadpool_limits(count, user_api="blas")


def _whole(args: argparse.Namespace) -> list[str]:
    """Which options ask for something that is no single op of a layer."""
    return [
        name for name in ("step", "forward", "memory", "first-call") if vars(args)[name.replace("-", "_")]
    ]


def wanted_of(args: argparse.Namespace) -> Wanted:
    """What the arguments ask for."""
    from . import work
    from .geometries import GEOMETRIES

    geometries = tuple(GEOMETRIES) if args.geometries else ()
    wanted = work.Wanted(
        args.net, args.preset, _words("--layers", args.layers), _words("--directions", args.directions),
        _batches(args.batch), tuple(args.op), tuple(args.conv), _words("--dtype", args.dtype), args.math,
        geometries,
    )  # fmt: skip
    if whole := _whole(args):
        if wanted.layers or wanted.ops or wanted.convs or wanted.directions or geometries:
            parts = "--layers, --directions, --op, --conv or --geometries"
            raise OptionError(f"--{whole[0]} is measured as a whole: it takes no {parts}")
        if wanted.math != "fp32":
            words = f"in fp32, not {wanted.math!r}; --math is for single ops"
            raise OptionError(f"--{whole[0]} is measured {words}")
    work.check_names("network", (wanted.net,), work.NETS)
    return work.quick(wanted) if args.quick else wanted


def settings_of(args: argparse.Namespace) -> Any:
    """The timing core's settings."""
    from .measure.entry import CACHES, Settings

    if args.cache not in CACHES:
        raise unknown("cache", args.cache, CACHES)
    given = {"rounds": args.rounds, "budget_s": args.budget, "turn_s": args.turn, "pause_s": args.pause}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        least = 1 if name == "rounds" else 0
        if not least <= value < 1e6:
            option = name.removesuffix("_s")
            raise OptionError(f"--{option} must be at least {least} and below 1e6, not {value}")
    make = Settings.quickly if args.quick else Settings
    return make(**given, cache=args.cache, seed=args.seed, gate=not args.no_gate)


def _bench(args: argparse.Namespace) -> int:
    from ..devices import on_gpu
    from .measure.conditions import MEASURE_THE_CPU, device_of

    use_threads(args.threads)
    device = device_of(args.device)
    # So that every allocation, launch and question to the GPU means this one.
    with contextlib.nullcontext() if device == "cpu" else on_gpu(device, MEASURE_THE_CPU):
        return _bench_on(device.partition(":")[0], args)


def _bench_on(device: str, args: argparse.Namespace) -> int:
    from ..check import Lost, print_apart
    from .measure import contained

    with contextlib.ExitStack() as stack:
        try:
            users, groups = contained.load([*args.kernels, *args.kernel], _limits(device, args), stack)
        except Lost as error:
            print(f"convkit bench: --kernel: it could not be loaded: {error}", file=sys.stderr)
            return 1
        try:
            return _bench_with(device, args, users)
        finally:
            for group in groups:
                group.close()
                if text := group.printed():
                    print_apart(group.name, text)


def _limits(device: str, args: argparse.Namespace) -> Any:
    """What a candidate in a process of its own may take; None where it runs in this one."""
    from ..check import Limits

    limits = Limits.of(args.timeout, args.memory_limit)
    return None if device != "cpu" or args.in_process else limits


def _bench_with(device: str, args: argparse.Namespace, users: Sequence[Implementation]) -> int:
    items = _items(args)
    settings = settings_of(args)
    if args.json == "-" and sys.stdout is None:
        raise OptionError("--json - needs a standard output, which is closed")
    before = _before(args)
    _require_outputs(args.html, args.picture)
    from . import peers
    from .results.run import Options

    _require_users(users, items, device)
    field = peers.gather(None if args.against is None else _words("--against", args.against), device)
    quiet = args.json == "-" or args.summary
    progress = Progress()
    options = Options(
        device, settings, Path(args.json) if args.json and args.json != "-" else None,
        ["convkit", *sys.argv[1:]], args.reference, args.layouts == "all", users, progress.say,
        (lambda row, done, total: None) if quiet else progress.show,
    )  # fmt: skip
    from . import work

    progress.say(work.describe(items))
    document = _measured(options, field, items, before, progress)
    _results(args, document)
    if document["interrupted"]:
        return 130
    return 0 if document["rows"] and _have_times(users, document) else 1


def _have_times(users: Sequence[Implementation], document: dict[str, Any]) -> bool:
    """Whether the user's implementations have a time somewhere, and are refused nowhere."""
    labels = {(i.op, i.label) for i in users}
    ops = {row["id"]: row["op"] for row in document["rows"]}
    failed = {(ops.get(f["row"], ""), f["contender"]) for f in document["failures"]}
    mine = [c for row in document["rows"] for c in row["contenders"] if (row["op"], c["name"]) in labels]
    return not users or (not labels & failed and any(c["samples_ms"] and not c["refused"] for c in mine))


def _require_outputs(page: str | None, picture: str | None) -> None:
    """Refuse what cannot be written, or drawn, before anything is measured."""
    from .results.files import writable

    for path in (page, picture):
        if path:
            writable(path)
    if picture:
        from .show.pictures import require_png

        require_png(picture)
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtra("--picture", "matplotlib", "bench")


def _items(args: argparse.Namespace) -> list[Item]:
    from . import steps, work
    from .results.apart import first_calls

    wanted, whole = wanted_of(args), _whole(args)
    found = [item for op in work.NETWORK_OPS if op in whole for item in steps.items(wanted, op)]
    found += first_calls() if "first-call" in whole else []
    return found or work.items(wanted)


def _before(args: argparse.Namespace) -> dict[str, Any] | None:
    """The result file to go on with; refuses to lose one."""
    from .results import files

    if not args.json:
        if args.resume:
            raise OptionError("--resume needs --json FILE, the result file to go on with")
        return None
    files.writable(args.json)
    if args.json == "-" or not Path(args.json).exists():
        return None
    if args.resume:
        return files.load(args.json)
    if not args.overwrite:
        raise OptionError(f"{args.json} exists: --resume goes on with it, --overwrite replaces it")
    return None


def _require_users(users: Sequence[Any], items: Sequence[Item], device: str) -> None:
    """A user's file that cannot take part in any row is an error, not a silence."""
    if not users:
        return
    if not any(i.device == device for i in users):
        there = ", ".join(sorted({i.device for i in users}))
        hint = "; without a GPU `convkit check` runs a CUDA kernel, under the emulator" * (there == "cuda")
        raise OptionError(f"--kernel: its implementations are for {there}, and {device} is measured{hint}")
    ops = sorted({i.op for i in users})
    if not any(item.op in ops for item in items):
        raise OptionError(f"--kernel: no row has its op; add --op {' --op '.join(ops)}")


def _measured(
    options: Options, field: Any, items: list[Item], before: Any, progress: Progress
) -> dict[str, Any]:
    """Run it; a polite kill is a Ctrl-C."""
    from .measure.clocks import clock_for
    from .results.run import Run

    def terminate(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = None
    try:
        previous = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        pass
    try:
        run = Run(options, field, clock_for(options.device), before)
        progress.begin(len(items))
        return run.measure(items)
    finally:
        progress.close()
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _results(args: argparse.Namespace, document: dict[str, Any]) -> None:
    from .results import files
    from .show import tables

    if args.json == "-":
        files.write(document, "-")
    else:
        print(f"\n{tables.summary(document)}")
        if args.json:
            print(f"result file   {args.json}")
    if args.html:
        from .show import report

        report.write([document], args.html)
        print(f"report    {args.html}", file=sys.stderr if args.json == "-" else sys.stdout)
    if args.picture:
        from .show import pictures

        pictures.picture([document], args.picture)
        print(f"picture   {args.picture}", file=sys.stderr if args.json == "-" else sys.stdout)


class Progress:
    """A bar on stderr where that is a terminal, else a line for each row; tables go to stdout in between."""

    def __init__(self) -> None:
        self.bar: Any = None

    def begin(self, rows: int) -> None:
        """Start the bar."""
        from tqdm import tqdm

        self.bar = tqdm(total=rows, unit="row", leave=False, file=sys.stderr, disable=None)

    def say(self, text: str) -> None:
        """What is going on."""
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(text[-60:])
        elif ": round " not in text and "warming up" not in text:
            print(text, file=sys.stderr, flush=True)

    def show(self, row: dict[str, Any], done: int, total: int) -> None:
        """A row that is there."""
        from tqdm import tqdm

        from .show import tables

        if self.bar is not None:
            self.bar.total = total
            self.bar.update(done - self.bar.n)
        with tqdm.external_write_mode(file=sys.stdout):
            print(f"\n{tables.row_table(row)}", flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


# ---------------------------------------------------------------------------------------------------
# convkit verify, compare, report
# ---------------------------------------------------------------------------------------------------
def _verify(args: argparse.Namespace) -> int:
    from .results import files, verify

    document = files.load(args.capsule)
    users = [Path(path) for path in args.kernel]
    for path in users:
        if not path.is_file():
            raise OptionError(f"--kernel: no such file: {path}")
    findings = verify.verify(document, users)
    for finding in findings:
        print(finding)
    failed = sum(f.state == verify.FAIL for f in findings)
    if args.rerun:
        from .results import rerun
        from .show import tables

        progress = Progress()
        try:
            again = rerun.rerun(document, args.kernel, progress.say, progress.begin)
        finally:
            progress.close()
        table = [tables.comparison(again.rows)] if again.rows else []
        print("\n" + "\n".join([*table, *again.lines]))
        failed += again.failed
    words = f"{failed} of them failed" if failed else "it holds"
    print(f"\n{args.capsule}: {len(document['rows'])} rows, {len(findings)} findings: {words}")
    return 1 if failed else 0


def _compare(args: argparse.Namespace) -> int:
    from .results import compare, files
    from .show import tables

    a, b = files.load(args.a), files.load(args.b)
    unlike = compare.differences(a, b)
    if unlike and not args.force:
        raise OptionError(f"these cannot be compared: {'; '.join(unlike)}; --force does it all the same")
    rows, unmatched = compare.compare(a, b, every=args.all)
    if not rows:
        raise OptionError(f"the two have no row in common ({len(a['rows'])} and {len(b['rows'])} rows)")
    print(tables.comparison(rows))
    print()
    for line in unlike:
        print(f"warning   {line}: the ratios may mean nothing")
    for line in compare.remarks(a, b):
        print(f"differs   {line}")
    for line in unmatched[:20]:
        print(f"no pair   {line}")
    if len(unmatched) > 20:
        print(f"no pair   {len(unmatched) - 20} more")
    counts = {
        word: sum(r["verdict"] == word for r in rows)
        for word in (compare.FASTER, compare.SLOWER, compare.TIE)
    }
    print(
        "b is      " + ", ".join(f"{word} in {count}" for word, count in counts.items()) + f" of {len(rows)}"
    )
    return 0


def _report(args: argparse.Namespace) -> int:
    from .results import files

    _require_outputs(args.output, args.picture)
    documents = [files.load(path) for path in args.capsules]
    from .show import report

    report.write(documents, args.output)
    print(f"report    {args.output}")
    if args.picture:
        from .show import pictures

        pictures.picture(documents, args.picture)
        print(f"picture   {args.picture}")
    return 0
