"""The command line: `convkit alexnet | bench | verify | compare | report | check | list | source`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ConvkitError, OptionError, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `convkit` command; returns the exit status.

    0: done. 1: a check failed. 2: the command could not be carried out; one line on stderr says why.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except ConvkitError as error:
        print(f"convkit {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"convkit {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from . import __version__, check
    from .bench import command as bench

    parser = argparse.ArgumentParser(
        prog="convkit",
        description="Convolution, ReLU, LRN and max-pooling kernels, and AlexNet made of them.",
    )
    parser.add_argument("--version", action="version", version=f"convkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    alexnet = commands.add_parser(
        "alexnet",
        help="train AlexNet for a few steps on photographs, and show each layer",
        description="Run AlexNet's forward and backward pass, a training step included, on photographs; "
        "print each layer's implementation, time, and error against the float64 reference.",
    )
    alexnet.add_argument(
        "images", nargs="*", help="image files and folders (default: scikit-image's photographs)"
    )
    alexnet.add_argument("--preset", default="paper", help="paper (default), 2012, caffe or owt")
    alexnet.add_argument(
        "--diff", nargs=2, metavar=("A", "B"), help="print how two presets differ, and nothing else"
    )
    alexnet.add_argument(
        "--batch", type=int, help="images in a batch; photographs take turns (default: 8)", default=8
    )
    alexnet.add_argument(
        "--device", default="cpu", help="cpu (default), or emulator: the CUDA kernels, run on the CPU"
    )
    alexnet.add_argument(
        "--math", help="coarsest float32 arithmetic accepted: fp32 (default), fp32-emulated, tf32"
    )
    alexnet.add_argument(
        "--impl", action="append", default=[], metavar="OP=NAME", help="use this implementation; repeatable"
    )
    alexnet.add_argument("--repeats", type=int, default=5, help="timed steps (default: 5)")
    alexnet.add_argument(
        "--lr",
        type=float,
        default=0.001,
        help="learning rate (default: 0.001; the presets' 0.01 is meant for batches of 128 and more)",
    )
    alexnet.add_argument(
        "--no-errors", action="store_true", help="skip the comparison with float64, which is slow"
    )
    alexnet.add_argument(
        "--check", action="store_true", help="first put the implementations used through the gate"
    )
    alexnet.add_argument(
        "--json", metavar="FILE", help="write everything measured to this file ('-': stdout)"
    )
    alexnet.add_argument("--seed", type=int, default=0, help="of the weights and of dropout (default: 0)")
    alexnet.set_defaults(run=_alexnet)

    bench.add_commands(commands)

    checker = commands.add_parser(
        "check",
        help="put implementations through the gate",
        description="Check implementations elementwise against the float64 reference.",
    )
    check.add_arguments(checker)
    checker.set_defaults(run=check.main)

    lister = commands.add_parser("list", help="list ops and their implementations")
    lister.add_argument("op", nargs="?", help="only this op")
    lister.add_argument("--device", help="only this device")
    lister.set_defaults(run=_list)
    source = commands.add_parser(
        "source",
        help="print what is compiled for a kernel",
        description="Print the translation unit of a kernel, for nvcc, ncu or a look: "
        "convkit source NAME > unit.cu; nvcc -I kernels -cubin -arch=sm_90a unit.cu",
    )
    source.add_argument("kernel", help="a kernel file's stem, or a path to a .cu file")
    source.add_argument("--dtype", help="storage (default: the first that the kernel declares)")
    source.set_defaults(run=_source)
    return parser


# ---------------------------------------------------------------------------------------------------
# convkit source
# ---------------------------------------------------------------------------------------------------
def _source(args: argparse.Namespace) -> int:
    from . import check, kernel

    files = {path.stem: path for path in kernel.builtin_files()}
    path = Path(args.kernel)
    if path.suffix != ".cu":
        if args.kernel not in files:
            raise unknown("kernel", args.kernel, files)
        path = files[args.kernel]
    file = kernel.read(path.resolve())
    dtype = args.dtype or file.header.dtypes[0]
    if dtype not in file.header.dtypes:
        raise unknown(f"dtype of {file.stem}", dtype, file.header.dtypes)
    case = next(iter(check.cases(file.header.op))).of(dtype)
    print(kernel.translation_unit(file, case.problem))
    return 0


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str], **options: Any) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, **options)


# ---------------------------------------------------------------------------------------------------
# convkit list
# ---------------------------------------------------------------------------------------------------
def _list(args: argparse.Namespace) -> int:
    from . import native
    from .registry import implementations

    rows = [
        (i.op, i.name, i.device, i.layout, " ".join(i.dtypes), f"{i.error:g}", i.rank,
         (i.missing and i.missing()) or "ready")
        for i in implementations(args.op, device=args.device, layout=None)
    ]  # fmt: skip
    print(_table(rows, ("op", "implementation", "device", "layout", "dtypes", "error", "rank", "state")))
    module = native.load()
    print(f"\nnative extension: {module.isa() if module else native.why_missing()}")
    if args.device in (None, "cpu"):
        _print_cpu()
    return 0


def _print_cpu() -> None:
    """What the CPU kernels run on: the instruction sets, one a line, and the threads."""
    from . import native
    from .cpu import threads

    reason = native.kernels_missing()
    print(f"C++ kernels: {native.isa()}{f' ({reason})' if reason else ''}")
    for isa, reason in native.unusable().items():
        state = reason or ("in use" if isa == native.isa() else "usable")
        print(f"  {isa}: {native.ISAS[isa]}: {state}")
    print(f"threads: {threads.count()}")


# ---------------------------------------------------------------------------------------------------
# convkit alexnet
# ---------------------------------------------------------------------------------------------------
def _choices(pairs: Sequence[str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for text in pairs:
        op, equals, name = text.partition("=")
        if not equals or not op or not name:
            raise OptionError(f"--impl takes OP=NAME, such as conv2d_fprop=reference, not {text!r}")
        chosen[op] = name
    return chosen


def _alexnet(args: argparse.Namespace) -> int:
    if args.diff:
        return _diff(*args.diff)
    from . import photos
    from .alexnet import AlexNet
    from .devices import emulate
    from .presets import preset
    from .registry import use

    if args.device not in ("cpu", "emulator"):
        raise unknown("device", args.device, ("cpu", "emulator"))
    if args.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, not {args.repeats}")
    if args.lr < 0 or args.lr != args.lr:
        raise OptionError(f"--lr must be a number of at least 0, not {args.lr}")
    if args.json and args.json != "-":
        _write(args.json, "")  # a path that cannot be written is better known before the measurement
    chosen = _choices(args.impl)
    where = emulate() if args.device == "emulator" else contextlib.nullcontext()
    with where, use(**chosen):
        x, labels, files = photos.batch(args.images, preset(args.preset), args.batch)
        quiet = args.json == "-"
        if not quiet:
            named = ", ".join(path.name for path in files[:6]) + (", ..." if len(files) > 6 else "")
            print(f"AlexNet ({args.preset}), batch {len(x)} of {len(files)} photographs: {named}")
        net = AlexNet(args.preset, seed=args.seed, math=args.math)
        if args.check and (status := _check_used(net, len(x))):
            return status
        result = _profile(net, x, labels, args)
    if args.json:
        _write_json(args, net, files, result)
    if not quiet:
        _print_profile(net, result)
    return 0


def _profile(net: Any, x: Any, labels: Any, args: argparse.Namespace) -> Any:
    from tqdm import tqdm

    from .profile import profile

    plan = net.plan(len(x))
    total = args.repeats + 1 + (0 if args.no_errors else len(plan.calls()) - 1)
    with tqdm(
        total=total, leave=False, file=sys.stderr, disable=None, bar_format="{l_bar}{bar}| {postfix}"
    ) as bar:

        def progress(done: int, what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(done)

        return profile(
            net, x, labels, repeats=args.repeats, errors=not args.no_errors, lr=args.lr, progress=progress
        )


def _check_used(net: Any, batch: int) -> int:
    """Gate every implementation that the plan uses; 1 if one fails."""
    from . import check

    calls = net.plan(batch).calls()
    used = dict.fromkeys((c.op.name, c.implementation.name, c.implementation.device) for c in calls)
    verdicts = [v for op, name, device in used for v in check.check(op, name, device=device, quick=True)]
    failed = [v for v in verdicts if not v.ok]
    print(f"gate: {len(verdicts) - len(failed)} of {len(verdicts)} cases passed, {len(used)} implementations")
    for verdict in failed:
        print(f"  {verdict}")
    return 1 if failed else 0


def _print_profile(net: Any, result: Any) -> None:
    rows = [
        (
            r.layer, r.implementation, r.layout, r.output, f"{r.forward_ms:.2f}", f"{r.backward_ms:.2f}",
            f"{r.gflops:.1f}", f"{r.peak_percent:.1f}", "-" if r.error is None else f"{r.error:.1e}",
        )
        for r in result.rows
    ]  # fmt: skip
    rows.append(("loss", "", "", "", f"{result.loss_ms:.2f}", "", "", "", ""))
    error = "" if result.update_error is None else f"{result.update_error:.1e}"
    rows.append(("update", "", "", "", "", f"{result.update_ms:.2f}", "", "", error))
    headers = (
        "layer",
        "implementation",
        "layout",
        "output",
        "fwd ms",
        "bwd ms",
        "GFLOP/s",
        "% peak",
        "error",
    )
    print()
    print(_table(rows, headers, colalign=("left",) * 4 + ("right",) * 5))
    low, high = min(result.step_ms_samples), max(result.step_ms_samples)
    parameters = sum(w.size for w in net.params.values())
    print(
        f"\nforward {result.forward_ms:.1f} ms, backward {result.backward_ms:.1f} ms, loss and update "
        f"{result.loss_ms + result.update_ms:.1f} ms"
        f"\nstep    {result.step_ms:.1f} ms, median of {len(result.losses) - 1} ({low:.1f} to {high:.1f}): "
        f"{1e3 * result.batch / result.step_ms:.1f} images/s, {parameters:,} parameters"
        f"\npeak    {result.peak_gflops:.0f} GFLOP/s float32 ({result.peak_method}; samples "
        f"{min(result.peak_samples):.0f} to {max(result.peak_samples):.0f})"
        f"\nloss    {' '.join(f'{loss:.3f}' for loss in result.losses)}"
    )
    if any(r.error is not None for r in result.rows):
        print("error   relative RMS of each layer's outputs, both ways, against float64 on the same inputs")
    if any(r.peak_percent > 100 for r in result.rows):
        print("FLOP    those of direct convolution: Winograd needs fewer, and may pass 100 % of the peak")


def _write_json(args: argparse.Namespace, net: Any, files: Sequence[Any], result: Any) -> None:
    import numpy

    from . import __version__

    document = {
        "convkit": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "preset": args.preset,
        "seed": args.seed,
        "images": [path.name for path in files],
        "parameters": sum(w.size for w in net.params.values()),
        **result.as_dict(),
    }
    text = json.dumps(document, indent=1)
    if args.json == "-":
        print(text)
    else:
        _write(args.json, text + "\n")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w" if text else "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror}") from error


def _diff(a: str, b: str) -> int:
    from .presets import diff

    rows = diff(a, b)
    if not rows:
        print(f"{a} and {b} do not differ")
        return 0
    print(_table(rows, ("entry", a, b), maxcolwidths=[None, 56, 56]))
    return 0
