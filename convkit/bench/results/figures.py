"""What follows from the raw samples of a row: times, shares of ceilings, ranks and verdicts.

A run calls `summarise` on each row that it has measured, `convkit verify` on each row that it has read. No
figure of a result file comes from anywhere else, and no random number is involved: the same samples give the
same figures on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from types import SimpleNamespace
from typing import Any

from ..measure import stats
from ..measure.ceilings import Ceiling, above_ceiling, holding
from ..measure.entry import HOST_INCLUDED, OWN, PICKED, TOO_SHORT
from ..work import NETWORK_OPS, kind_of

Row = dict[str, Any]
Entry = dict[str, Any]
_DERIVED = ("median_ms", "low_ms", "high_ms", "gflops", "gbs", "percent", "ceiling")


def rounds_of(entry: Mapping[str, Any]) -> list[float]:
    """One figure for each round, in ms: the median of the round's calls."""
    return [median(calls) for calls in entry.get("samples_ms") or () if calls]


def timed(entry: Mapping[str, Any]) -> bool:
    """Whether there are samples that count: not of a call that took no time, which cannot be."""
    rounds = [calls for calls in entry.get("samples_ms") or () if calls]
    return not entry.get("refused") and bool(rounds) and all(min(calls) > 0 for calls in rounds)


def correct(entry: Mapping[str, Any]) -> bool:
    """Whether it was timed, and no check found fault with it; an unchecked one counts, and is marked."""
    checks = entry.get("checks") or {}
    return timed(entry) and all(v in ("passed", "unchecked", None) for v in checks.values())


def host_included(entry: Mapping[str, Any]) -> bool:
    """Whether an entry on a GPU waits for it inside its call, so that the host's time is in its own."""
    return HOST_INCLUDED in (entry.get("marks") or ())


def has_host(row: Mapping[str, Any]) -> bool:
    """Whether it is known what the host needed: on a GPU, unless the result file is an old one."""
    return any(c.get("host_us") is not None for c in row["contenders"])


def of_time(row: Mapping[str, Any]) -> bool:
    """Whether its samples are the times of calls: no memory, and no first call of a process."""
    return kind_of(row["op"], row.get("layer", "")) == "time"


def confidence_of(settings: Mapping[str, Any]) -> float:
    """Of a result file's intervals."""
    return float(settings.get("confidence") or stats.CONFIDENCE)


def cache_of(row: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Caches before each call of a row: a step finds them as the one before left them, whatever was asked."""
    return "warm" if row["op"] in NETWORK_OPS or not of_time(row) else str(settings.get("cache", "cold"))


def summarise(row: Row, ceilings: Mapping[str, Any], settings: Mapping[str, Any]) -> Row:
    """Fill in the figures of each entry, the bound, and the ranking.

    An entry that is above a ceiling is refused here, in a run and in a file that is read.

    Parameters
    ----------
    row : dict
        Of a result file; changed in place, and returned.
    ceilings, settings : mapping
        Of the same result file.
    """
    compute, memory = ceilings_for(row, ceilings) if of_time(row) else (None, None)
    confidence = confidence_of(settings)
    row["bound"] = _bound(row, compute, memory) if of_time(row) else ""
    for entry in row["contenders"]:
        _figures(entry, row, compute, memory, confidence)
        if of_time(row) and not entry.get("refused") and (reason := beyond(entry, row, ceilings, settings)):
            entry["refused"] = reason
            entry.update(dict.fromkeys(_DERIVED))
    row["ranking"] = ranking(row, confidence)
    return row


# ---------------------------------------------------------------------------------------------------
# Ceilings
# ---------------------------------------------------------------------------------------------------
def highest(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> dict[str, float]:
    """The most that was measured of each ceiling, before the run and in the rounds of this row."""
    found = {name: float(record["value"]) for name, record in ceilings.items() if record.get("value")}
    for name, values in (row.get("probes") or {}).items():
        found[name] = max([found.get(name, 0.0), *(v for v in values if v)])
    return found


def ceilings_for(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> tuple[Ceiling, Ceiling]:
    """The ceilings of arithmetic and of memory that hold for a row: see `ceilings.holding`."""
    return holding(row["dtype"], row["math"], highest(row, ceilings))


def share(
    row: Mapping[str, Any], ms: float, compute: Ceiling, memory: Ceiling
) -> tuple[float | None, str | None]:
    """Percent of the nearer ceiling, and its name; None where there is neither."""
    found = {}
    if compute:
        found[compute[0]] = 100 * (row["flops"] / ms / 1e6) / compute[1]
    if memory:
        found[memory[0]] = 100 * (row["bytes"] / ms / 1e6) / memory[1]
    name = max(found, key=lambda n: found[n], default=None)
    return (None, None) if name is None else (found[name], name)


def _bound(row: Mapping[str, Any], compute: Ceiling, memory: Ceiling) -> str:
    """Which ceiling the work meets first: the one under which its least time is longer."""
    if compute is None or memory is None:
        return "compute" if row["flops"] >= 50 * row["bytes"] else "memory"
    return "compute" if row["flops"] / compute[1] >= row["bytes"] / memory[1] else "memory"


def beyond(
    entry: Mapping[str, Any],
    row: Mapping[str, Any],
    ceilings: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """Why an entry's time cannot be true, or an empty string; see `trial.above_ceiling`."""
    values = rounds_of(entry)
    if not values:
        return ""
    work = SimpleNamespace(flops=row["flops"], bytes=row["bytes"], dtype=row["dtype"], math=row["math"])
    facts = entry.get("facts") or {}
    return above_ceiling(work, facts, median(values), highest(row, ceilings), cache_of(row, settings))


def _figures(
    entry: Entry, row: Mapping[str, Any], compute: Ceiling, memory: Ceiling, confidence: float
) -> None:
    """Median, interval, rates, and the share of the nearer ceiling."""
    entry.update(dict.fromkeys(_DERIVED))
    if not timed(entry):
        return
    values = rounds_of(entry)
    ms = median(values)
    low, high = stats.interval(values, confidence)
    entry.update({"median_ms": ms, "low_ms": low, "high_ms": high})
    if not of_time(row):
        return
    entry["gflops"], entry["gbs"] = row["flops"] / ms / 1e6, row["bytes"] / ms / 1e6
    entry["percent"], entry["ceiling"] = share(row, ms, compute, memory)


# ---------------------------------------------------------------------------------------------------
# Ranks and verdicts
# ---------------------------------------------------------------------------------------------------
def ranking(row: Mapping[str, Any], confidence: float = stats.CONFIDENCE) -> dict[str, Any]:
    """convkit's own pick among the entries that are correct, and its verdicts.

    Returns
    -------
    dict
        "own": its name, or None where it was not timed; "rank" of it, 1 the fastest, and "of" how many;
        "against": verdicts against the best of the other libraries, their heuristic's choice, their best
        deterministic one, and the best of each library; under "convkit" the best of convkit's others.
        On a GPU, of those alone whose times are of the same kind: the device's, or the host's in it too.
        A candidate that is too short for the clock between processes is not among them.
    """
    field = [c for c in row["contenders"] if correct(c) and TOO_SHORT not in (c.get("marks") or ())]
    field.sort(key=lambda c: median(rounds_of(c)))
    own = next((c for c in field if c["library"] == OWN and PICKED in (c.get("marks") or ())), None)
    if own is not None:  # the time of a device alone says nothing about one with the host's in it
        field = [c for c in field if host_included(c) == host_included(own)]
    found: dict[str, Any] = {"own": own and own["name"], "rank": None, "of": len(field), "against": {}}
    if own is None:
        return found
    found["rank"] = field.index(own) + 1
    rivals = [c for c in field if c["library"] != OWN]
    groups = {
        "best": rivals,
        "heuristic": [c for c in rivals if "heuristic" in (c.get("marks") or ())],
        "deterministic": [c for c in rivals if c.get("deterministic") is True],
    }
    libraries = dict.fromkeys(c["library"] for c in field)
    groups |= {name: [c for c in field if c["library"] == name and c is not own] for name in libraries}
    found["against"] = {name: _against(own, group, confidence) for name, group in groups.items()}
    return found


def _against(own: Entry, group: list[Entry], confidence: float) -> dict[str, Any] | None:
    """The verdict against the fastest of a group; None where there is none."""
    if not group:
        return None
    best = group[0]
    ratio = stats.ratio_of(rounds_of(best), rounds_of(own), confidence)
    return {
        "name": best["name"], "ratio": ratio.middle, "low": ratio.low, "high": ratio.high,
        "rounds": ratio.rounds, "verdict": stats.verdict(ratio),
    }  # fmt: skip
