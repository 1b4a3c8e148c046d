"""`convkit new`: write a candidate that passes, to start from."""

from __future__ import annotations

import argparse
import shlex
from typing import Any


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "new",
        help="write a candidate that passes, to start from",
        description="Write a candidate for an op: one file with comments, right as it is, as simple as it "
        "can be. Nothing is overwritten.",
    )
    parser.add_argument("op", help="what it computes: `convkit list` has the ops")
    parser.add_argument("file", help="where it goes: mine.cu, mine.cpp, mine.py; the stem is its name")
    parser.add_argument(
        "--lang",
        metavar="LANGUAGE",
        help="cuda, cpp, numba, python, torch, jax, triton, cupy or numba-cuda (default: by the suffix, "
        "of .py numba)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file, and say what comes next."""
    from .. import new

    path = new.write(args.op, args.file, args.lang)
    language = new.LANGUAGES[args.lang or new.language_of(args.op, path)]
    print(f"{path}: {args.op} in {language.title}" + (f"; {language.hint}" if language.hint else ""))
    print(f"next: convkit check {shlex.quote(str(path))}")
    return 0
