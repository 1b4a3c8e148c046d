"""`convkit alexnet`: train AlexNet for a few steps on photographs, and show each layer."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..cuda.emulate import emulate
from ..devices import on_gpu
from ..errors import OptionError, unknown
from ..network.alexnet import AlexNet
from ..network.presets import diff, preset
from ..op import OPS
from ..registry import ALL_DTYPES, use
from ._output import printable, require_writable, table, write

if TYPE_CHECKING:
    from ..bench.measure.profile import Profile, Row

_HEADERS = (
    *("layer", "implementation", "math", "layout", "output"),
    *("fwd ms", "bwd ms", "GFLOP/s", "% peak", "error"),
)


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "alexnet",
        help="train AlexNet for a few steps on photographs, and show each layer",
        description="Run AlexNet's forward and backward pass, a training step included, on photographs; "
        "print each layer's implementation, time, and error against the float64 reference.",
    )
    option = parser.add_argument
    option("images", nargs="*", help="image files and folders (default: scikit-image's photographs)")
    option("--preset", default="paper", help="paper (default), 2012, caffe, owt or small")
    option("--diff", nargs=2, metavar=("A", "B"), help="print how two presets differ, and nothing else")
    option("--batch", type=int, help="images in a batch; photographs take turns (default: 8)", default=8)
    option(
        "--device",
        default="cpu",
        help="cpu (default), cuda, cuda:1, ..., or emulator: the CUDA kernels, run on the CPU",
    )
    option(
        "--dtype",
        default="float32",
        help="float32 (default), bfloat16 or float16, which mean mixed precision, or float64",
    )
    option(
        "--math",
        help="coarsest float32 arithmetic accepted: fp32 (default), fp32-emulated, tf32; the table says "
        "where another runs",
    )
    option(
        "--impl", action="append", default=[], metavar="OP=NAME", help="use this implementation; repeatable"
    )
    option("--repeats", type=int, default=5, help="timed steps (default: 5)")
    option(
        "--lr",
        type=float,
        default=0.001,
        help="learning rate (default: 0.001; the presets' 0.01 is meant for batches of 128 and more)",
    )
    option("--no-errors", action="store_true", help="skip the comparison with float64, which is slow")
    option("--check", action="store_true", help="first put the implementations used through the gate")
    option("--json", metavar="FILE", help="write everything measured to this file ('-': stdout)")
    option("--seed", type=int, default=0, help="of the weights and of dropout (default: 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Profile a network on photographs, or print how two presets differ."""
    if args.diff:
        return _diff(*args.diff)
    from ..train import photos

    where = _on_device(args.device)
    if args.dtype not in ALL_DTYPES:
        raise unknown("dtype", args.dtype, ALL_DTYPES)
    if args.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, not {args.repeats}")
    if not 0 <= args.lr < float("inf"):
        raise OptionError(f"--lr must be a finite number of at least 0, not {args.lr}")
    require_writable(args.json)
    chosen = choices(args.impl)
    with where, use(**chosen):
        chosen_preset = preset(args.preset)
        x, labels, files = photos.batch(args.images, chosen_preset, args.batch)
        quiet = args.json == "-"
        if not quiet:
            named = ", ".join([printable(path.name) for path in files[:6]] + ["..."] * (len(files) > 6))
            storage = "" if args.dtype == "float32" else f", {args.dtype}"
            print(f"AlexNet ({args.preset}){storage}, batch {len(x)} of {len(files)} photographs: {named}")
        device = "cuda" if args.device.startswith("cuda") else "cpu"
        classes = max(chosen_preset.num_classes, len(files))  # each photograph is a class of its own
        net = AlexNet(args.preset, classes, seed=args.seed, dtype=args.dtype, math=args.math, device=device)
        x = x.astype(args.dtype) if args.dtype == "float64" else x  # mixed precision takes float32
        if args.check and (status := _check_used(net, len(x))):
            return status
        result = _profile(net, x, labels, args)
    parameters = sum(w.size for w in net.params.values())
    if args.json:
        images = [path.name for path in files]
        write(args.json, json.dumps(_document(args, images, parameters, result), indent=1))
    if not quiet:
        _print_profile(result, parameters)
    return 0


def _diff(a: str, b: str) -> int:
    rows = diff(a, b)
    if not rows:
        print(f"{a} and {b} do not differ")
        return 0
    print(table(rows, ("entry", a, b), maxcolwidths=[None, 56, 56]))
    return 0


# ---------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------
def choices(pairs: Sequence[str]) -> dict[str, Any]:
    """Implementations by op, of `--impl OP=NAME`."""
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
    if device == "cpu":
        return contextlib.nullcontext()
    if device == "emulator":
        return emulate()
    if not device.startswith("cuda"):
        raise OptionError(f"{unknown('device', device, ('cpu', 'cuda', 'emulator'))}; a GPU's number: cuda:1")
    return on_gpu(device, "--device emulator runs the CUDA kernels on the CPU")


# ---------------------------------------------------------------------------------------------------
# The gate and the profile, with their progress
# ---------------------------------------------------------------------------------------------------
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


def _profile(net: Any, x: Any, labels: Any, args: argparse.Namespace) -> Profile:
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


# ---------------------------------------------------------------------------------------------------
# Showing it
# ---------------------------------------------------------------------------------------------------
def _document(
    args: argparse.Namespace, images: Sequence[str], parameters: int, result: Profile
) -> dict[str, Any]:
    """Everything measured, for JSON."""
    import numpy

    from ..version import __version__

    return {
        "convkit": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "preset": args.preset,
        "dtype": args.dtype,
        "seed": args.seed,
        "images": list(images),
        "parameters": parameters,
        **result.as_dict(),
        "device": args.device,
    }


def _print_profile(result: Profile, parameters: int) -> None:
    """The table of layers, and the lines below it."""
    asked = result.math or "fp32"
    # What was accepted is the coarsest arithmetic; where another runs, the table gets a column that says so.
    mixed = any(r.math != asked for r in result.rows)
    print(f"\n{_layers(result, mixed)}")
    low, high = min(result.step_ms_samples), max(result.step_ms_samples)
    print(
        f"\nforward {result.forward_ms:.1f} ms, backward {result.backward_ms:.1f} ms, loss and update "
        f"{result.loss_ms + result.update_ms:.1f} ms"
        f"\nstep    {result.step_ms:.1f} ms, median of {len(result.losses) - 1} ({low:.1f} to {high:.1f}): "
        f"{1e3 * result.batch / result.step_ms:.1f} images/s, {parameters:,} parameters"
        f"\npeak    {_peak(result)}"
        f"\nloss    {' '.join(f'{loss:.3f}' for loss in result.losses)}"
    )
    if mixed:
        print(f"math    {_arithmetic(asked, result.rows)}")
    if any(r.error is not None for r in result.rows):
        print("error   relative RMS of each layer's outputs, both ways, against float64 on the same inputs")
    if any((r.peak_percent or 0) > 100 for r in result.rows):
        print("FLOP    those of direct convolution: Winograd needs fewer, and may pass 100 % of the peak")


def _layers(result: Profile, mixed: bool) -> str:
    """A row for each layer, for the loss and for the update; `mixed` shows the column of the arithmetic."""
    rows = [
        (
            *(r.layer, r.implementation, r.math, r.layout, r.output),
            *(f"{r.forward_ms:.2f}", f"{r.backward_ms:.2f}", f"{r.gflops:.1f}"),
            "-" if r.peak_percent is None else f"{r.peak_percent:.1f}",
            "-" if r.error is None else f"{r.error:.1e}",
        )
        for r in result.rows
    ]
    blank = ("",) * 4
    error = "" if result.update_error is None else f"{result.update_error:.1e}"
    rows.append(("loss", *blank, f"{result.loss_ms:.2f}", "", "", "", ""))
    rows.append(("update", *blank, "", f"{result.update_ms:.2f}", "", "", error))
    shown = [i for i, header in enumerate(_HEADERS) if header != "math" or mixed]
    return table(
        [[row[i] for i in shown] for row in rows],
        [_HEADERS[i] for i in shown],
        colalign=("left",) * (len(shown) - 5) + ("right",) * 5,
    )


def _peak(result: Profile) -> str:
    if result.peak_gflops is None:
        return f"{result.peak_method}: `convkit bench` measures it"
    low, high = min(result.peak_samples), max(result.peak_samples)
    return f"{result.peak_gflops:.0f} GFLOP/s float32 ({result.peak_method}; samples {low:.0f} to {high:.0f})"


def _arithmetic(asked: str, rows: Sequence[Row]) -> str:
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
