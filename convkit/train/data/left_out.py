"""The list of files that were left out: a line for each with its name, a tab, and the reason."""

from __future__ import annotations

from collections.abc import Iterable

#: Files, and why they are left out.
LeftOut = list[tuple[str, str]]


def to_text(files: Iterable[tuple[str, str]]) -> bytes:
    """The list as text, in UTF-8."""

    def line(text: str) -> str:  # a file's name may hold line ends, and bytes that are no text
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    return "".join(f"{line(name)}\t{line(reason)}\n" for name, reason in files).encode()


def from_text(text: bytes) -> tuple[tuple[str, str], ...]:
    """What such a text says."""
    parts = (line.partition("\t") for line in text.decode().split("\n")[:-1])
    return tuple((name, reason) for name, _, reason in parts)
