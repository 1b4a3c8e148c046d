"""What the commands share: the paths that they are given, tables, files, a progress bar."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import OptionError

#: Options whose value is a file to write, and arguments that are files to read.
_WRITTEN = ("json", "html", "picture", "output")
_READ = ("a", "b", "capsule", "capsules", "kernel", "kernels", "data", "store")


def check_paths(args: argparse.Namespace) -> None:
    """Refuse what cannot be a file's name before the work whose results go there, or come from there."""
    for option in _WRITTEN:
        path = getattr(args, option, None)
        if path == "":
            raise OptionError(f"--{option} takes a file's name, not ''")
        if path and path != "-" and os.path.isdir(path):
            raise OptionError(f"cannot write {path}: it is a folder")
    for name in _READ:
        given = getattr(args, name, None)
        if args.command != "source" and "" in (given if isinstance(given, list) else [given]):
            raise OptionError("'' names no file")


def require_writable(path: str | None) -> None:
    """Refuse a file that cannot be written, before the work whose results go there; "-" is stdout."""
    if path and path != "-":
        _write(path, "", "a")


def write(path: str, text: str) -> None:
    """Write a text file; "-" is stdout."""
    if path == "-":
        print(text)
    else:
        _write(path, text + "\n", "w")


def _write(path: str, text: str, mode: str) -> None:
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror}") from error


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], **options: Any) -> str:
    """A table of plain text."""
    from tabulate import tabulate

    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, **options)


def encodable(text: str) -> str:
    """The text with an escape for each character that stdout's encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(text: str) -> str:
    """The text on one line, with escapes for what is no printable character.

    A file's name may hold line ends, and bytes that are no text.
    """
    return encodable("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


@contextmanager
def progress_bar(unit: str, **options: Any) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, where that is a terminal: told what is done, of how much, and of what."""
    from tqdm import tqdm

    with tqdm(total=0, unit=unit, leave=False, file=sys.stderr, disable=None, **options) as bar:

        def progress(done: int, total: int, what: str = "") -> None:
            if bar.total != total:  # the first call; what was done before does not count for the rate
                bar.reset(total)
                bar.initial = bar.n = done
            bar.set_description_str(what, refresh=False)
            bar.update(done - bar.n)

        yield progress


def case_bar() -> Callable[[int, int, str], None]:
    """A progress bar of the gate's cases on stderr, where that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(total=0, unit="case", leave=False, file=sys.stderr, disable=None)

    def progress(done: int, total: int, what: str) -> None:
        bar.total = total
        bar.n = done
        bar.set_postfix_str(what, refresh=False)
        bar.update(0)
        if done == total:
            bar.close()

    return progress
