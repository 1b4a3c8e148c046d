"""Names for people: the synsets of ILSVRC 2012, from `synsets.tsv`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("synsets.tsv")


@cache
def synsets() -> dict[str, str]:
    """Words of each of ILSVRC 2012's 1000 synsets, by its key ("n01440764": "tench, Tinca tinca").

    The keys come in their order, which is that of the labels everywhere. Two synsets can have the same first
    word, "crane" and "maillot" do.
    """
    lines = _TABLE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def readable(classes: Iterable[str]) -> tuple[str, ...]:
    """Names for people: the words of a synset, any other key as it is."""
    known = synsets()
    return tuple(known.get(key, key) for key in classes)
