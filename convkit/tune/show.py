"""What the tuner says, as text: what would be tried, a line for each job, and why a choice was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..bench.measure import stats
from ..cuda.prepare import Runner
from ..op import Problem
from .candidates import Candidate
from .jobs import Job
from .run import times

HEADS = (
    "call", "op", "tried", "left out", "default", "ms", "best other", "ms", "ratio", "interval", "verdict",
)  # fmt: skip
#: Of names and reasons in a table.
_SHORT = 60


def _table(
    rows: Sequence[Sequence[Any]],
    heads: Sequence[str],
    numbers: Sequence[str] = ("ms", "ratio", "predicted", "rounds"),
) -> str:
    from tabulate import tabulate

    align = ["right" if head in numbers else "left" for head in heads]
    return tabulate(rows, heads, tablefmt="simple", disable_numparse=True, colalign=align)


def place(places: Sequence[str]) -> str:
    """Places in a few words: "conv3.dgrad", "relu1.fwd and 6 more"."""
    more = len(places) - 1
    return places[0] + (f" and {more} more" if more else "")


def line(entry: Mapping[str, Any]) -> list[str]:
    """A job's row of the table of results."""
    ms, default, rival = times(entry), _name(entry["default"]), entry["rival"]
    left_out = sum(not c["ms"] for c in entry["candidates"])
    return [
        place(entry["places"]),
        entry["op"],
        str(len(entry["candidates"]) - left_out),
        str(left_out),
        _short(default),
        _number(ms.get(default)),
        _short(rival),
        _number(ms.get(rival)),
        *(_ratio(entry) if entry["ratio"] else ("", "")),
        entry["state"] + (f": {entry['failure']}" if "failure" in entry else ""),
    ]


def results(entries: Sequence[Mapping[str, Any]]) -> str:
    """The table of results, and their counts."""
    rows = [line(entry) for entry in entries]
    counts = Counter(entry["state"] for entry in entries)
    words = ", ".join(f"{count} {state}" for state, count in counts.items())
    notes = [f"\n{len(entries)} calls: {words}"]
    if any(entry["ratio"] for entry in entries):
        notes.append("ratio   how many times longer the default takes than the best other, with its interval")
    if any(entry.get("disturbed") for entry in entries):
        share = max(entry.get("disturbed") or 0 for entry in entries)
        notes.append(
            f"note    other programs took up to {share:.0%} of the CPUs: the figures are worse for it"
        )
    return _table(rows, HEADS, ("tried", "left out", "ms", "ratio")) + "\n" + "\n".join(notes)


def plan(job: Job, candidates: Sequence[Candidate], every: bool = False) -> str:
    """What would be tried for a job, and what is left out, with the reason."""
    tried = [c for c in candidates if not c.reason]
    out = [c for c in candidates if c.reason]
    head = f"{place(job.places)}: {job.item.op}, {job.item.text}, {job.question.layout}, {job.item.dtype}"
    problem = job.question.problem
    rows = [[c.name, _predicted(c), _mark(c, problem)] for c in tried]
    lines = [head, _indented(_table(rows, ("tried", "predicted", "")).replace("\n\n", "\n"))]
    if out and every:
        lines += [_indented(_table([[c.name, c.reason] for c in out], ("left out", "why")))]
    elif out:
        reasons = Counter(c.reason.partition(":")[0] for c in out)
        lines += [f"  {len(out)} left out: " + ", ".join(f"{n} by {reason}" for reason, n in reasons.items())]
    return "\n".join(lines)


def _predicted(candidate: Candidate) -> str:
    return "" if candidate.predicted is None else f"{candidate.predicted:.0%}"


def _mark(candidate: Candidate, problem: Problem) -> str:
    words = ["the default"] if candidate.default else []
    run = candidate.implementation.run
    if isinstance(run, Runner) and not candidate.implementation.tile and candidate.predicted is not None:
        tile = run.fitted(problem).header.tile
        words += ["with " + ", ".join(f"{name}={value}" for name, value in tile.items())]
    return ", ".join(words)


def why(entry: Mapping[str, Any]) -> str:
    """Why a choice was made: every candidate, with its time or the reason why it has none."""
    ms = times(entry)
    default, best = _name(entry["default"]), _name(entry["chosen"])
    on = entry["machine"]
    lines = [
        f"{', '.join(entry['places'])}: {entry['op']}, {entry['text']}",
        f"layout {entry['layout']}, math {entry['math']}"
        + (f", flags {', '.join(entry['flags'])}" if entry["flags"] else ""),
        f"on {on['name']} ({on['driver']}), {entry['date']}, convkit {entry['version']}",
        "",
    ]
    rows = []
    for one in sorted(entry["candidates"], key=lambda c: (ms.get(c["name"], float("inf")), c["name"])):
        if not one["ms"]:
            continue
        low, high = stats.interval(one["ms"])
        mark = "chosen" if one["name"] == best else ""
        mark = ", ".join(filter(None, (mark, "the default" if one["name"] == default else "")))
        shown = [_number(ms[one["name"]]), f"[{_number(low)}, {_number(high)}]", str(len(one["ms"])), mark]
        rows.append([one["name"], *shown])
    if rows:
        lines += [_table(rows, ("candidate", "ms", "interval", "rounds", "")), ""]
    if out := [[c["name"], c["reason"]] for c in entry["candidates"] if c["reason"]]:
        lines += [_table(out, ("left out", "why")), ""]
    lines += [_verdict(entry, default, best)]
    return "\n".join(lines)


def _verdict(entry: Mapping[str, Any], default: str, best: str) -> str:
    """The decision, as a sentence."""
    if "failure" in entry:
        return f"nothing was measured: {entry['failure']}; {default} runs"
    if entry["ratio"] is None:
        return f"there is nothing else to run: {default} runs"
    ratio, interval = _ratio(entry)
    if best != default:
        return f"{best} is chosen: {default} takes {ratio} x its time {interval}"
    how = f"it takes {ratio} x the time of {entry['rival']} {interval}"
    if entry["state"] == "tie":
        return f"{default} stays: no other is known to be faster; {how}"
    return f"{default} stays: {how}"


def _ratio(entry: Mapping[str, Any]) -> tuple[str, str]:
    found = entry["ratio"]
    return f"{found['median']:.2f}", f"[{found['low']:.2f}, {found['high']:.2f}]"


def _name(one: Mapping[str, Any]) -> str:
    tile = ", ".join(f"{name}={value}" for name, value in one["tile"].items())
    return f"{one['implementation']}[{tile}]" if tile else str(one["implementation"])


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."


def _number(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
