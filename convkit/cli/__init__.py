"""The commands: `convkit alexnet | bench | verify | compare | report | check | list | source | doctor`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConvkitError, OptionError, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `convkit` command; returns the exit status.

    0: done. 1: a check failed, or `doctor` found something broken. 2: the command could not be carried out;
    one line on stderr says why.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        _check_paths(args)
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


class _Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line as all others are: it would print the usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _check_paths(args: argparse.Namespace) -> None:
    """Refuse what cannot be a file's name before the work whose results go there, or come from there."""
    for option in ("json", "html", "picture", "output"):
        path = getattr(args, option, None)
        if path == "":
            raise OptionError(f"--{option} takes a file's name, not ''")
        if path and path != "-" and os.path.isdir(path):
            raise OptionError(f"cannot write {path}: it is a folder")
    for name in ("a", "b", "capsule", "capsules", "kernel"):
        given = getattr(args, name, None)
        if args.command != "source" and "" in (given if isinstance(given, list) else [given]):
            raise OptionError("'' names no file")


def _parser() -> argparse.ArgumentParser:
    from .. import __version__, check
    from ..bench import command as bench

    parser = _Parser(
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
    alexnet.add_argument("--preset", default="paper", help="paper (default), 2012, caffe, owt or small")
    alexnet.add_argument(
        "--diff", nargs=2, metavar=("A", "B"), help="print how two presets differ, and nothing else"
    )
    alexnet.add_argument(
        "--batch", type=int, help="images in a batch; photographs take turns (default: 8)", default=8
    )
    alexnet.add_argument(
        "--device",
        default="cpu",
        help="cpu (default), cuda, cuda:1, ..., or emulator: the CUDA kernels, run on the CPU",
    )
    alexnet.add_argument(
        "--math",
        help="coarsest float32 arithmetic accepted: fp32 (default), fp32-emulated, tf32; the table says "
        "where another runs",
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
    doctor = commands.add_parser(
        "doctor",
        help="list what is installed, whether it works, and what to do where it does not",
        description="Look at Python, the C++ kernels, the compiler, the GPU with its driver, CuPy, NVRTC, "
        "cuDNN, optional packages, the disk cache and CONVKIT_* variables: what is found, its state, what to "
        "do. The exit status is 1 if something that is installed is broken; what is missing is no failure.",
    )
    doctor.add_argument(
        "--imports", action="store_true", help="also import each optional package, which takes seconds"
    )
    doctor.add_argument(
        "--json", metavar="FILE", help="write all rows to this file ('-': stdout, and no table)"
    )
    doctor.set_defaults(run=_doctor)
    return parser


# ---------------------------------------------------------------------------------------------------
# convkit doctor
# ---------------------------------------------------------------------------------------------------
def _doctor(args: argparse.Namespace) -> int:
    from . import doctor

    if args.json and args.json != "-":
        _write(args.json, "")
    found = doctor.rows(imports=args.imports)
    document = doctor.document(found)
    text = json.dumps(document, indent=1)
    if args.json == "-":
        print(text)
    else:
        if args.json:
            _write(args.json, text + "\n")
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        shown = f"{doctor.table(found)}\n\n{doctor.summary(document['counts'])}"
        print(shown.encode(encoding, "backslashreplace").decode(encoding))
    return 0 if document["ok"] else 1


# ---------------------------------------------------------------------------------------------------
# convkit source
# ---------------------------------------------------------------------------------------------------
def _source(args: argparse.Namespace) -> int:
    from .. import check
    from ..cuda import header, source

    files = {path.stem: path for path in header.builtin_files()}
    path = Path(args.kernel)
    if path.suffix != ".cu":
        if args.kernel not in files:
            raise unknown("kernel", args.kernel, files)
        path = files[args.kernel]
    file = header.read(path.resolve())
    dtype = args.dtype or file.header.dtypes[0]
    if dtype not in file.header.dtypes:
        raise unknown(f"dtype of {file.stem}", dtype, file.header.dtypes)
    case = next(iter(check.cases(file.header.op))).of(dtype)
    print(source.translation_unit(file, case.problem))
    return 0


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str], **options: Any) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, **options)


# ---------------------------------------------------------------------------------------------------
# convkit list
# ---------------------------------------------------------------------------------------------------
def _list(args: argparse.Namespace) -> int:
    from ..cpu import extension
    from ..registry import implementations

    rows = [
        (i.op, i.name, i.device, i.layout, " ".join(i.dtypes), f"{i.error:g}", i.rank,
         (i.missing and i.missing()) or "ready")
        for i in implementations(args.op, device=args.device, layout=None)
    ]  # fmt: skip
    print(_table(rows, ("op", "implementation", "device", "layout", "dtypes", "error", "rank", "state")))
    module = extension.load()
    print(f"\nnative extension: {module.isa() if module else extension.why_missing()}")
    if args.device in (None, "cpu"):
        _print_cpu()
    return 0


def _print_cpu() -> None:
    """What the CPU kernels run on: the instruction sets, one a line, and the threads."""
    from ..cpu import extension, threads

    reason = extension.kernels_missing()
    print(f"C++ kernels: {extension.isa()}{f' ({reason})' if reason else ''}")
    for isa, reason in extension.unusable().items():
        state = reason or ("in use" if isa == extension.isa() else "usable")
        print(f"  {isa}: {extension.ISAS[isa]}: {state}")
    print(f"threads: {threads.count()}")


# ---------------------------------------------------------------------------------------------------
# convkit alexnet
# ---------------------------------------------------------------------------------------------------
def _choices(pairs: Sequence[str]) -> dict[str, Any]:
    from ..op import OPS

    chosen: dict[str, Any] = {}
    for text in pairs:
        op, equals, name = text.partition("=")
        if not equals or not op or not name:
            raise OptionError(f"--impl takes OP=NAME, such as conv2d_fprop=reference, not {text!r}")
        if op not in OPS:
            raise OptionError(f"--impl {text}: {unknown('op', op, OPS)}")
        if op in chosen:
            raise OptionError(f"--impl names two implementations of {op}: {chosen[op]} and {name}")
        chosen[op] = name
    return chosen


def _on_device(device: str) -> contextlib.AbstractContextManager[Any]:
    """A block in which a network runs on the device."""
    from ..cuda.emulate import emulate
    from ..devices import on_gpu

    if device == "cpu":
        return contextlib.nullcontext()
    if device == "emulator":
        return emulate()
    if not device.startswith("cuda"):
        raise OptionError(f"{unknown('device', device, ('cpu', 'cuda', 'emulator'))}; a GPU's number: cuda:1")
    return on_gpu(device, "--device emulator runs the CUDA kernels on the CPU")


def _alexnet(args: argparse.Namespace) -> int:
    if args.diff:
        return _diff(*args.diff)
    from ..network.alexnet import AlexNet
    from ..network.presets import preset
    from ..registry import use
    from ..train import photos

    where = _on_device(args.device)
    if args.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, not {args.repeats}")
    if not 0 <= args.lr < float("inf"):
        raise OptionError(f"--lr must be a finite number of at least 0, not {args.lr}")
    if args.json and args.json != "-":
        _write(args.json, "")  # a path that cannot be written is better known before the measurement
    chosen = _choices(args.impl)
    with where, use(**chosen):
        chosen_preset = preset(args.preset)
        x, labels, files = photos.batch(args.images, chosen_preset, args.batch)
        quiet = args.json == "-"
        if not quiet:
            named = ", ".join(_shown(path) for path in files[:6]) + (", ..." if len(files) > 6 else "")
            print(f"AlexNet ({args.preset}), batch {len(x)} of {len(files)} photographs: {named}")
        device = "cuda" if args.device.startswith("cuda") else "cpu"
        classes = max(chosen_preset.num_classes, len(files))  # each photograph is a class of its own
        net = AlexNet(args.preset, classes, seed=args.seed, math=args.math, device=device)
        if args.check and (status := _check_used(net, len(x))):
            return status
        result = _profile(net, x, labels, args)
    if args.json:
        _write_json(args, net, files, result)
    if not quiet:
        _print_profile(net, result)
    return 0


def _shown(path: Path) -> str:
    """A file's name as it can be printed: a name may hold bytes that are no text, and ends of lines."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path.name)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _profile(net: Any, x: Any, labels: Any, args: argparse.Namespace) -> Any:
    from tqdm import tqdm

    from ..bench.measure.profile import profile

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
    from .. import check

    calls = net.plan(batch).calls()
    used = dict.fromkeys((c.op.name, c.implementation.name, c.implementation.device) for c in calls)
    verdicts = [v for op, name, device in used for v in check.check(op, name, device=device, quick=True)]
    failed = [v for v in verdicts if not v.ok]
    print(f"gate: {len(verdicts) - len(failed)} of {len(verdicts)} cases passed, {len(used)} implementations")
    for verdict in failed:
        print(f"  {verdict}")
    return 1 if failed else 0


def _print_profile(net: Any, result: Any) -> None:
    asked = result.math or "fp32"
    other = any(
        r.math != asked for r in result.rows
    )  # `asked` is the coarsest accepted, and not always there
    rows = [
        (
            r.layer, r.implementation, *([r.math] if other else []), r.layout, r.output,
            f"{r.forward_ms:.2f}", f"{r.backward_ms:.2f}", f"{r.gflops:.1f}",
            "-" if r.peak_percent is None else f"{r.peak_percent:.1f}",
            "-" if r.error is None else f"{r.error:.1e}",
        )
        for r in result.rows
    ]  # fmt: skip
    blank = [""] * (3 + other)
    rows.append(("loss", *blank, f"{result.loss_ms:.2f}", "", "", "", ""))
    error = "" if result.update_error is None else f"{result.update_error:.1e}"
    rows.append(("update", *blank, "", f"{result.update_ms:.2f}", "", "", error))
    headers = (
        "layer",
        "implementation",
        *(["math"] if other else []),
        "layout",
        "output",
        "fwd ms",
        "bwd ms",
        "GFLOP/s",
        "% peak",
        "error",
    )
    print()
    print(_table(rows, headers, colalign=("left",) * (4 + other) + ("right",) * 5))
    low, high = min(result.step_ms_samples), max(result.step_ms_samples)
    parameters = sum(w.size for w in net.params.values())
    print(
        f"\nforward {result.forward_ms:.1f} ms, backward {result.backward_ms:.1f} ms, loss and update "
        f"{result.loss_ms + result.update_ms:.1f} ms"
        f"\nstep    {result.step_ms:.1f} ms, median of {len(result.losses) - 1} ({low:.1f} to {high:.1f}): "
        f"{1e3 * result.batch / result.step_ms:.1f} images/s, {parameters:,} parameters"
        f"\npeak    {_peak(result)}"
        f"\nloss    {' '.join(f'{loss:.3f}' for loss in result.losses)}"
    )
    if other:
        print(f"math    {_arithmetic(asked, result.rows)}")
    if any(r.error is not None for r in result.rows):
        print("error   relative RMS of each layer's outputs, both ways, against float64 on the same inputs")
    if any((r.peak_percent or 0) > 100 for r in result.rows):
        print("FLOP    those of direct convolution: Winograd needs fewer, and may pass 100 % of the peak")


def _peak(result: Any) -> str:
    if result.peak_gflops is None:
        return f"{result.peak_method}: `convkit bench` measures it"
    low, high = min(result.peak_samples), max(result.peak_samples)
    return f"{result.peak_gflops:.0f} GFLOP/s float32 ({result.peak_method}; samples {low:.0f} to {high:.0f})"


def _arithmetic(asked: str, rows: Sequence[Any]) -> str:
    """What runs where `asked` was the coarsest arithmetic accepted."""
    maths = {r.layer: r.math.split("/") for r in rows}
    others = ", ".join(dict.fromkeys(m for found in maths.values() for m in found if m != asked))
    such = [
        layer if found == [asked] else f"{layer} (in part)"
        for layer, found in maths.items()
        if asked in found
    ]
    if not such:
        return f"{asked} was accepted, but nothing that was picked computes in it: {others} runs everywhere"
    return f"{asked} runs in {', '.join(such)}; {others} in the rest"


def _write_json(args: argparse.Namespace, net: Any, files: Sequence[Any], result: Any) -> None:
    import numpy

    from .. import __version__

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
        "device": args.device,
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
    from ..network.presets import diff

    rows = diff(a, b)
    if not rows:
        print(f"{a} and {b} do not differ")
        return 0
    print(_table(rows, ("entry", a, b), maxcolwidths=[None, 56, 56]))
    return 0
