"""The `convkit` command. Each module of this folder is a command of the same name; `_output` is shared.

A command's module has `add(commands)`, which adds its parser with `run=` among the parser's defaults.
`run(args)` carries the command out and returns the exit status. All the parsers are made on every call, so
heavy imports belong inside `run`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import ConvkitError
from ._output import check_paths

#: The order of the commands in the help; others follow in the order of the alphabet.
_ORDER = (
    "new", "check", "swap", "bench", "tune", "explain", "list", "alexnet", "prepare", "train", "evaluate",
    "predict", "verify", "compare", "report", "source", "ptx", "sass", "doctor",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `convkit` command; returns the exit status.

    0: done. 1: a check failed, or `doctor` found something broken. 2: the command could not be carried out;
    one line on stderr says why.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        check_paths(args)
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
    """argparse's parser, with errors of one line: argparse would print the usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse's; but what a command does not know is that command's error, with its own help."""
        found, rest = super().parse_known_args(*args, **kwargs)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._near(rest)}")
        return found, rest

    def _near(self, rest: list[str]) -> str:
        known = [option for option in self._option_string_actions if option.startswith("--")]
        words = [word.partition("=")[0] for word in rest if word.startswith("--")]
        near = difflib.get_close_matches(words[0], known, n=1, cutoff=0.75) if words else []
        return f"; did you mean {near[0]}?" if near else ""


def _parser() -> argparse.ArgumentParser:
    from ..version import __version__

    parser = _Parser(
        prog="convkit",
        description="Convolution, ReLU, LRN and max-pooling kernels, and AlexNet made of them.",
    )
    parser.add_argument("--version", action="version", version=f"convkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _commands():
        importlib.import_module(f"{__name__}.{name}").add(commands)
    return parser


def _commands() -> Sequence[str]:
    """Names of the commands: the modules of this folder but those with an underscore."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")
    return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
