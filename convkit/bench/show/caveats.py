"""What must be said about a result file before a figure of it is believed: for the page and the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..measure import conditions, stats
from ..results import figures, files, sources
from . import charts

Row = Mapping[str, Any]
Document = Mapping[str, Any]
MATCH, MISMATCH, MISSING = "match", "mismatch", "missing"


@dataclass(frozen=True)
class Notice:
    """Something to say.

    Attributes
    ----------
    kind : {"bad", "warn", "note"}
    word : str
        What it is about.
    text : str
    """

    kind: str
    word: str
    text: str


def digest_state(document: Document) -> str:
    """Whether a result file is as it was written: "match", "mismatch" or "missing"."""
    said = document.get("digest")
    if not said:
        return MISSING
    try:
        return MATCH if files.digest(document) == said else MISMATCH
    except (TypeError, ValueError):  # what is written by a run has neither NaN nor other types
        return MISMATCH


def of(document: Document, digest: str) -> list[Notice]:
    """All that is to be said, the worst of each sort first.

    Parameters
    ----------
    document : dict
        A result file.
    digest : str
        Its `digest_state`.
    """
    return [*_integrity(document, digest), *_gaps(document), *_disturbed(document)]


def _integrity(document: Document, digest: str) -> Iterator[Notice]:
    if digest == MISMATCH:
        text = (
            "the digest does not match the contents: changed since the run wrote it. Believe no figure here."
        )
        yield Notice("bad", "Not as it was written", text)
    elif digest == MISSING:
        yield Notice("warn", "No digest", "nothing shows that this result file is as it was written.")
    if document["machine"].get("device") == "emulator":
        text = "these kernels ran on a CPU that stands in for a GPU: their times say nothing about one."
        yield Notice("bad", "Emulated", text)
    if document.get("interrupted"):
        yield Notice("warn", "Interrupted", "the run was ended before all rows were measured.")
    if not document["rows"]:
        yield Notice("warn", "Empty", "nothing was measured in this run.")
    if document["settings"].get("quick"):
        yield Notice("note", "Quick", "a first look: few rounds, wide intervals.")
    if document.get("convkit", {}).get("dirty"):
        yield Notice(
            "note", "Changed checkout", "convkit's files differed from the commit that is named below."
        )


def _gaps(document: Document) -> Iterator[Notice]:
    rows = list(zip(document["rows"], charts.labels(document["rows"])))
    if unchecked := [label for row, label in rows if is_unchecked(row)]:
        yield Notice("warn", "Unchecked", f"timed, but not compared with float64: {_some(unchecked)}.")
    if partial := [label for row, label in rows if row.get("partial")]:
        yield Notice("warn", "Cut short", f"fewer rounds than planned: {_some(partial)}.")
    least = stats.least(figures.confidence_of(document["settings"]))
    best = [(label, charts.against(row, "best")) for row, label in rows]
    if few := [label for label, v in best if v and v["rounds"] < least]:
        text = f"fewer than {least}, which no win and no loss can be told from: {_some(few)}."
        yield Notice("note", "Few rounds", text)
    kernels = document["kernels"].items()
    if unrun := [name for name, about in kernels if about.get("status") == sources.UNRUN]:
        text = f"{count(len(unrun), 'kernel')} emulated and compiled only: {_some(unrun)}."
        yield Notice("warn", "Not yet run on a GPU", text)
    if waiting := [label for row, label in rows if any(map(_waits, row["contenders"]))]:
        text = f"an entry waits for the GPU inside its call, whose time is in its own: {_some(waiting)}."
        yield Notice("note", "Host included", text)
    for name, reason in document["missing"].items():
        yield Notice("note", f"{name} did not take part", str(reason))
    if failures := len(document["failures"]):
        yield Notice(
            "warn", "Failures", f"{count(failures, 'entry or row', 'entries or rows')}, listed below."
        )


def _disturbed(document: Document) -> Iterator[Notice]:
    rounds = document.get("conditions") or []
    if others := conditions.disturbance(rounds):
        text = f"other processes took {others:.0%} of the CPUs' time (median of the rounds)."
        yield Notice("warn", "Disturbed", text)
    throttled = Counter(str(reason) for c in rounds for reason in c.get("throttle") or ())
    if throttled:
        reasons = ", ".join(f"{name} ({n} of {len(rounds)} readings)" for name, n in throttled.items())
        yield Notice("warn", "Throttled", f"the clock was held down: {reasons}.")


def _waits(entry: Mapping[str, Any]) -> bool:
    return figures.timed(entry) and figures.host_included(entry)


def is_unchecked(row: Row) -> bool:
    """Whether a figure of the row stands there without having been compared with float64."""
    return any(
        figures.timed(c)
        and ("unchecked" in c["marks"] or (c.get("checks") or {}).get("before") == "unchecked")
        for c in row["contenders"]
    )


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(n: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{n} {one if n == 1 else many or f'{one}s'}"


def outcome(row: Row) -> str:
    """What became of a row against the best of the others: "win", "loss", "tie", "no peer" or "not timed"."""
    if charts.own(row) is None:
        return "not timed"
    best = charts.against(row, "best")
    return str(best["verdict"]) if best else "no peer"
