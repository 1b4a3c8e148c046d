"""`convkit train`: train an AlexNet by a recipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from ..errors import OptionError

_DESCRIPTION = """\
Train an AlexNet on labelled images, by a recipe: network, rates, crops and colours in one TOML file.

DATA is "digits" (nothing is downloaded), or a folder: an IDX data set (MNIST, Fashion-MNIST), folders of
classes as ImageNet has them, the ILSVRC tars, or a store that `convkit prepare` has made."""

_EPILOG = """\
The run's folder has the recipe with all its values, logs, curves, and checkpoints: the last one, the one
before it, and the one with the lowest validation error. A run can be stopped at any moment, by Ctrl-C and
SIGTERM too, and goes on with --resume to the same bits. In many processes: mpiexec -n 4 convkit train ...
Exit status: 0 the recipe is done; 1 the loss is not finite; 2 it could not be carried out; 128 + N a signal N
has ended it, and it is saved."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "train",
        help="train an AlexNet by a recipe",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("data", nargs="?", metavar="DATA", help='"digits", or a folder of labelled images')
    option("--recipe", help="small (default), paper, 2012, caffe, or a TOML file")
    option("--output", metavar="RUN", dest="folder", help="the run's folder: new, or empty")
    option("--resume", action="store_true", help="go on with the run in RUN; begin where there is none")
    option("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
           help="change a value of the recipe: lr=0.005, images.flip=false; repeatable")  # fmt: skip
    option("--print-recipe", action="store_true", help="print the recipe, and do nothing else")
    option(
        "--workers", type=int, metavar="N", help="processes that decode images (default: one for each CPU)"
    )
    option("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    option("--dtype", help="bfloat16 or float16: mixed precision (network.dtype of the recipe)")
    option("--math", help="coarsest float32 arithmetic accepted: fp32 (default), fp32-emulated, tf32")
    option("--register", action="append", default=[], metavar="FILE",
           help="a file of implementations, for --impl; repeatable")  # fmt: skip
    option("--impl", action="append", default=[], metavar="OP=NAME",
           help="use this implementation; repeatable")  # fmt: skip
    option("--checkpoint-minutes", type=float, default=10.0, metavar="M",
           help="a checkpoint at least so often, besides that after each epoch (default: 10)")  # fmt: skip
    option("--checkpoint-steps", type=int, default=0, metavar="N", help="a checkpoint after each N steps")
    option("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or print a recipe."""
    if args.dtype:
        args.overrides.append(f'network.dtype="{args.dtype}"')
    if args.print_recipe:
        return _print_recipe(args)
    if args.data is None:
        raise OptionError('which data? "digits" needs no download: convkit train digits --output RUN')
    if not args.folder:
        raise OptionError("--output names the folder that the run is written to")
    from ..devices import on_gpu
    from ..discovery import register
    from ..registry import use
    from ..train.errors import NotFinite
    from ..train.stops import Stopped
    from ..train.training import fit
    from .alexnet import choices

    for file in args.register:
        register(file)
    where = (
        on_gpu(args.device, "--device cpu needs none")
        if args.device.startswith("cuda")
        else contextlib.nullcontext()
    )
    try:
        with where, use(**choices(args.impl)):
            fit(
                args.data, args.folder, recipe=args.recipe, overrides=args.overrides, resume=args.resume,
                device=args.device, math=args.math, workers=args.workers,
                checkpoint_steps=args.checkpoint_steps, checkpoint_minutes=args.checkpoint_minutes,
                quiet=args.quiet,
            )  # fmt: skip
    except Stopped as stopped:
        _print(stopped)
        return 128 + (stopped.signal or 15)
    except NotFinite as error:
        _print(error)
        return 1
    return 0


def _print(error: Exception) -> None:
    """Of several processes, one has the text."""
    if str(error):
        print(f"convkit train: {error}", file=sys.stderr)


def _print_recipe(args: argparse.Namespace) -> int:
    from ..train import recipe

    name = args.recipe or "small"
    found = recipe.load(name, args.overrides)
    # As it is written, with its reasons; with other values, every value.
    print(recipe.dump(found) if args.overrides else recipe.text(name), end="")
    return 0
