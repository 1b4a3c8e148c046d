"""What is printed: a table for each row, a line for each row at the end, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..measure import conditions, stats
from ..measure.entry import CONTAINED, NOT_CONTAINED, TOO_SHORT
from ..peers import PEERS
from ..results import figures
from ..work import FIRST_CALL, NETWORK_OPS
from .charts import milliseconds

Row = Mapping[str, Any]
_HEAD = ("entry", "layout", "ms", "interval", "GFLOP/s", "GB/s", "%", "of", "error", "bits", "marks")
_ALIGN = ("left", "left", "right", "left", "right", "right", "right", "left", "right", "left", "left")
#: How a verdict's key is called in words.
_AGAINST = {
    "best": "the best of the other libraries",
    "heuristic": "their heuristic's pick",
    "deterministic": "their best deterministic one",
    "convkit": "the best of convkit's others",
}


def tabulated(
    rows: Sequence[Sequence[Any]], headers: Sequence[str], align: Sequence[str] | None = None
) -> str:
    """A plain table; numbers stay as they were formatted."""
    from tabulate import tabulate

    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)


def times(ratio: float) -> str:
    """A ratio of times, with the digits that its size bears."""
    return f"{ratio:.3f}" if 0.9 < ratio < 1.1 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


# ---------------------------------------------------------------------------------------------------
# One row
# ---------------------------------------------------------------------------------------------------
def heading(row: Row) -> str:
    """What the row is, in a line or two."""
    where = " ".join(filter(None, (row["layer"], row["direction"])))
    grade = row["dtype"] + (f", {row['math']}" if row["math"] != "fp32" else "")
    rates = f"; {row['flops'] / 1e9:.3g} GFLOP, {row['bytes'] / 1e6:.3g} MB, bound by {row['bound']}"
    rates = rates if figures.of_time(row) else ""
    extra = "".join(f", {name}" for name, value in (row.get("options") or {}).items() if value is True)
    net = f"{row['net']}, " if row["net"] else ""
    title = f"{net}{where}: {row['op']}{extra}, N = {row['batch']}, {grade}"
    return f"{title}\n  {row['problem_text']}{rates}"


def row_table(row: Row, confidence: float = stats.CONFIDENCE) -> str:
    """A row's entries, the fastest first, then those that were refused, then the verdicts."""
    timed = sorted(
        (c for c in row["contenders"] if figures.timed(c)), key=lambda c: median(figures.rounds_of(c))
    )
    lines = [heading(row)]
    if timed:
        host = figures.has_host(row)
        head = tuple(unit(row) if name == "ms" else name for name in _HEAD)
        heads, align = (_add_host(head, "host us"), _add_host(_ALIGN, "right")) if host else (head, _ALIGN)
        cells = [_add_host(_line(c), microseconds(c.get("host_us"))) if host else _line(c) for c in timed]
        lines += ["", tabulated(cells, heads, align)]
    refused = [c for c in row["contenders"] if not figures.timed(c)]
    lines += [f"  {c['name']}: {c.get('refused') or 'not timed'}" for c in refused]
    lines += verdict_lines(row, confidence)
    return "\n".join(lines)


def _add_host(cells: tuple[str, ...], cell: str) -> tuple[str, ...]:
    """A row of cells with the host's behind the device's time and its interval."""
    return (*cells[:4], cell, *cells[4:])


def unit(row: Row) -> str:
    """Of a row's samples: "ms", or "MB"."""
    return str(row.get("unit") or "ms")


def rate(value: float | None) -> str:
    """GFLOP/s or GB/s; a dash where a row has none."""
    return "-" if value is None else f"{value:.1f}"


def microseconds(value: float | None) -> str:
    """Of the host, or a dash."""
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _line(c: Mapping[str, Any]) -> tuple[str, ...]:
    percent = c.get("percent")
    name = c["name"] if c["library"] in (figures.OWN, *PEERS.values()) else f"{c['library']} {c['name']}"
    name = name.removesuffix(f" {c['layout']}")  # it has a column of its own
    deterministic = {True: "same", False: "differ", None: "?"}[c.get("deterministic")]
    return (
        name, c["layout"], milliseconds(c["median_ms"]),
        f"{milliseconds(c['low_ms'])} to {milliseconds(c['high_ms'])}",
        rate(c["gflops"]), rate(c["gbs"]),
        "-" if percent is None else f"{percent:.0f}", c.get("ceiling") or "",
        "-" if c.get("error") is None else f"{c['error']:.1e}", deterministic, ", ".join(c["marks"]),
    )  # fmt: skip


def verdict_lines(row: Row, confidence: float = stats.CONFIDENCE) -> list[str]:
    """convkit's pick against the others, a line for each verdict that says something new."""
    rank = row["ranking"]
    if rank["own"] is None:
        return ["  convkit's pick was not timed: no verdict"]
    found = [f"  {rank['own']} (picked) is {ordinal(rank['rank'])} of {rank['of']}"]
    told: set[str] = set()
    for key in ("best", "heuristic", "deterministic", "convkit"):
        verdict = rank["against"].get(key)
        if verdict and verdict["name"] not in told:
            told.add(verdict["name"])
            words = sentence(verdict, confidence, "fast" if unit(row) == "ms" else "small")
            found.append(f"  {words} {verdict['name']}, {_AGAINST[key]}")
    if len(found) == 1:
        found.append("  nothing else was timed")
    return found + [f"  {line}" for line in _candidates(row, rank["own"], confidence)]


def _candidates(row: Row, picked: str, confidence: float) -> list[str]:
    """What became of a user's own implementations, against convkit's pick."""
    by_name = {c["name"]: c for c in row["contenders"]}
    found = []
    for name, c in by_name.items():
        marks = set(c.get("marks") or ())
        if not marks & {CONTAINED, NOT_CONTAINED} or not figures.correct(c):
            continue
        if TOO_SHORT in marks:
            found.append(f"{name} is too short to be compared from a process of its own: --in-process")
            continue
        ratio = stats.ratio_of(figures.rounds_of(c), figures.rounds_of(by_name[picked]), confidence)
        interval = f"[{times(ratio.low)}, {times(ratio.high)}]"
        found.append(f"{name} takes {times(ratio.middle)} x the time of {picked} {interval}, convkit's pick")
    return found


def sentence(verdict: Mapping[str, Any], confidence: float = stats.CONFIDENCE, quality: str = "fast") -> str:
    """A verdict in words: "WIN  1.82 x as fast [1.75, 1.90] as"."""
    words = {"win": "WIN ", "loss": "LOSS", "tie": "TIE "}[verdict["verdict"]]
    interval = f"[{times(verdict['low'])}, {times(verdict['high'])}]"
    few = "" if verdict["rounds"] >= stats.least(confidence) else f" (only {verdict['rounds']} rounds)"
    return f"{words} {times(verdict['ratio'])} x as {quality} {interval}{few} as"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


# ---------------------------------------------------------------------------------------------------
# All rows
# ---------------------------------------------------------------------------------------------------
def summary(document: Mapping[str, Any]) -> str:
    """A line for each row, and what must be said about the run."""
    confidence = figures.confidence_of(document["settings"])
    rows = [_short(row, stats.least(confidence)) for row in document["rows"]]
    headers = ("layer", "dir", "N", "dtype", "convkit's pick", "ms", "GFLOP/s", "GB/s", "%", "best other",
               "x", "interval", "verdict", "marks")  # fmt: skip
    align = (
        "left",
        "left",
        "right",
        "left",
        "left",
        *("right",) * 4,
        "left",
        "right",
        "left",
        "left",
        "left",
    )
    lines = [tabulated(rows, headers, align)] if rows else ["nothing was measured"]
    return "\n".join([*lines, "", *footer(document)])


def _short(row: Row, least: int) -> tuple[str, ...]:
    rank = row["ranking"]
    own = next((c for c in row["contenders"] if c["name"] == rank["own"]), None)
    best = rank["against"].get("best")
    dtype = row["dtype"] if row["math"] == "fp32" else f"{row['dtype']} {row['math']}"
    layer = f"{FIRST_CALL}: {row['op']}" if row["layer"] == FIRST_CALL else row["layer"]
    head = (layer, row["direction"], str(row["batch"]), dtype)
    if own is None:
        reason = next((c.get("refused") or "" for c in row["contenders"] if figures.PICKED in c["marks"]), "")
        return (*head, "not timed", "", "", "", "", "", "", "", "", reason[:60])
    percent = "-" if own["percent"] is None else f"{own['percent']:.0f}"
    cells = (
        *head,
        own["name"],
        milliseconds(own["median_ms"]) + ("" if unit(row) == "ms" else f" {unit(row)}"),
        rate(own["gflops"]),
        rate(own["gbs"]),
        percent,
    )
    marks = ", ".join(m for m in own["marks"] if not m.startswith(figures.PICKED))
    if best is None:
        return (*cells, "none", "", "", "", marks)
    interval = f"{times(best['low'])} to {times(best['high'])}"
    verdict = best["verdict"] if best["rounds"] >= least else f"{best['rounds']} rounds"
    return (*cells, best["name"], times(best["ratio"]), interval, verdict, marks)


def caches(document: Mapping[str, Any]) -> str:
    """The state of the caches before a call: "cold caches"; steps have their own."""
    found = dict.fromkeys(figures.cache_of(row, document["settings"]) for row in document["rows"])
    if any(row["op"] in NETWORK_OPS for row in document["rows"]):
        return f"{' or '.join(found)} caches, a step's as the one before left them"
    return f"{' or '.join(found) or document['settings'].get('cache', '?')} caches"


def footer(document: Mapping[str, Any]) -> list[str]:
    """Ceilings, machine, what is missing, what failed; and how to read the columns."""
    machine, settings = document["machine"], document["settings"]
    lines = [
        f"machine   {machine.get('name')}, threads: {machine.get('threads')}, {machine.get('isa') or ''}",
        "ceilings  " + ", ".join(
            f"{name} {record['value']:.4g} {record['unit']}" for name, record in document["ceilings"].items()
        ),
        f"protocol  {settings['rounds']} rounds in random order, {caches(document)}; medians, and "
        f"{figures.confidence_of(settings):.0%} intervals",
        "x         how many times longer the other takes than convkit's pick; a win or a loss only where the "
        "whole interval is on one side of 1",
        "%         of the nearer ceiling that was measured here; GFLOP are those of the definition: Winograd "
        "needs fewer",
    ]  # fmt: skip
    lines += _about_host(document)
    if others := others_share(document):
        lines.append(others)
    for name, about in document["peers"].items():
        lines.append(f"{PEERS.get(name, name)} {about.get('version')}")
    for name, reason in document["missing"].items():
        lines.append(f"{PEERS.get(name, name)} did not take part: {reason}")
    for failure in document["failures"]:
        entry = f", {failure['contender']}" if failure.get("contender") else ""
        lines.append(f"failed    {failure['row']}{entry}: {failure['reason']}")
    if document.get("interrupted"):
        lines.append("interrupted: what was measured is kept; --resume goes on with it")
    return lines


def _about_host(document: Mapping[str, Any]) -> list[str]:
    """What the host's column and mark mean, where there are any."""
    lines = []
    if any(figures.has_host(row) for row in document["rows"]):
        lines.append(
            "host us   that the host needs to queue a call; ms is the device's time, with none of it"
        )
    entries = [c for row in document["rows"] for c in row["contenders"]]
    if any(figures.timed(c) and figures.host_included(c) for c in entries):
        lines.append(
            "host included: it waits for the device inside its call, so its ms are those of both, and it has "
            "no verdict"
        )
    return lines


def others_share(document: Mapping[str, Any]) -> str:
    """A warning where other processes took the machine, or it was throttled."""
    share = conditions.disturbance(document["conditions"])
    reasons = sorted({r for c in document["conditions"] for r in c.get("throttle") or ()})
    found = []
    if share:
        found.append(f"others took {share:.0%} of the CPUs' time: figures are disturbed")
    if reasons:
        found.append(f"the GPU was throttled: {', '.join(reasons)}")
    return "warning   " + "; ".join(found) if found else ""


# ---------------------------------------------------------------------------------------------------
# Two runs
# ---------------------------------------------------------------------------------------------------
def comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of `convkit compare`."""
    cells = [
        (
            r["id"], r["contender"] if r["contender"] == r["other"] else f"{r['contender']} > {r['other']}",
            milliseconds(r["a_ms"]), milliseconds(r["b_ms"]), times(r["ratio"]),
            f"{times(r['low'])} to {times(r['high'])}", r["verdict"],
        )
        for r in rows
    ]  # fmt: skip
    headers = ("row", "entry", "a, ms", "b, ms", "a / b", "interval", "b is")
    return tabulated(cells, headers, ("left", "left", "right", "right", "right", "left", "left"))
