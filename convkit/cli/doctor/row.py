"""A row of the table: what was looked at, its state, what was found, what to do; and how rows are shown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, MISSING, BROKEN, OLD, UNKNOWN = "ok", "missing", "broken", "old", "unknown"
#: What a row may say. Only "broken" is a failure: something is there, and does not work.
STATES = (OK, MISSING, BROKEN, OLD, UNKNOWN)
#: Seconds that a program or a child process may take.
LIMIT = 60.0
#: Columns of the table.
WIDTH = 110


@dataclass(frozen=True)
class Row:
    """One thing.

    Attributes
    ----------
    name : str
    state : {"ok", "missing", "broken", "old", "unknown"}
    found : str
        What is there, or why nothing is.
    advice : str
        What to do about it, in one line; may be empty.
    version, path : str
        Empty where it has none.
    """

    name: str
    state: str
    found: str
    advice: str = ""
    version: str = ""
    path: str = ""


Probe = Callable[[], "Row | list[Row]"]


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def broken(found: Iterable[Row]) -> list[Row]:
    """The rows that make `convkit doctor` fail."""
    return [row for row in found if row.state == BROKEN]


def document(found: Sequence[Row]) -> dict[str, Any]:
    """For JSON: "convkit", "ok" (nothing is broken), "counts" by state, "rows" with the fields of `Row`."""
    from ...version import __version__

    return {
        "convkit": __version__,
        "ok": not broken(found),
        "counts": {state: sum(row.state == state for row in found) for state in STATES},
        "rows": [asdict(row) for row in found],
    }


def table(found: Sequence[Row], width: int = WIDTH) -> str:
    """Plain text, no line longer than `width`: one row each, and under it what to do about it."""
    first = max([len("what"), *(len(row.name) for row in found)])
    first = min(first, width // 3)
    second = max(map(len, STATES))
    room = width - first - second - 4
    lines = [
        f"{'what':{first}}  {'state':{second}}  found, and -> what to do",
        f"{'-' * first}  {'-' * second}  {'-' * room}",
    ]
    for row in found:
        told = _wrapped(row.found, room, "")
        if row.advice:
            told += _wrapped(f"-> {row.advice}", room, "   ")
        names = _wrapped(row.name, first, "")
        for i in range(max(len(told), len(names))):
            name = names[i] if i < len(names) else ""
            state = row.state if i == 0 else ""
            lines.append(f"{name:{first}}  {state:{second}}  {told[i] if i < len(told) else ''}".rstrip())
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return textwrap.wrap(shown, width, subsequent_indent=indent, break_on_hyphens=False) or [""]


def summary(counts: Mapping[str, int]) -> str:
    """One line: how many rows are in each state."""
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
