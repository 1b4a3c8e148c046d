"""What follows from the raw samples of a row: times, shares of ceilings, ranks and verdicts.

A run calls `summarise` on each row that it has measured, `convkit verify` on each row that it has read. No
figure of a capsule comes from anywhere else, and no random number is involved: the same samples give the
same figures on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from types import SimpleNamespace
from typing import Any

from . import stats
from .trial import above_ceiling
from .work import STEP

Row = dict[str, Any]
Contender = dict[str, Any]
#: (name in a capsule's `ceilings`, its value in GFLOP/s or GB/s)
Ceiling = tuple[str, float] | None
OWN = "convkit"
PICKED = "picked"
_DERIVED = ("median_ms", "low_ms", "high_ms", "gflops", "gbs", "percent", "ceiling")
_TENSOR = {"tf32": "tensor-tf32", "bfloat16": "tensor-bf16", "float16": "tensor-fp16"}


def rounds_of(contender: Mapping[str, Any]) -> list[float]:
    """One figure for each round, in ms: the median of the round's calls."""
    return [median(calls) for calls in contender.get("samples_ms") or () if calls]


def timed(contender: Mapping[str, Any]) -> bool:
    """Whether there are samples that count."""
    return not contender.get("refused") and bool(rounds_of(contender))


def correct(contender: Mapping[str, Any]) -> bool:
    """Whether it was timed, and no check found fault with it."""
    checks = contender.get("checks") or {}
    return timed(contender) and all(v in ("passed", "unchecked", None) for v in checks.values())


def summarise(row: Row, ceilings: Mapping[str, Any], settings: Mapping[str, Any]) -> Row:
    """Fill in the figures of each contender, the bound, and the ranking.

    A contender that is above a ceiling is refused here, whoever measured it.

    Parameters
    ----------
    row : dict
        Of a capsule; changed in place, and returned.
    ceilings, settings : mapping
        Of the same capsule.
    """
    compute, memory = ceilings_for(row, ceilings)
    confidence = float(settings.get("confidence", stats.CONFIDENCE))
    row["bound"] = _bound(row, compute, memory)
    for contender in row["contenders"]:
        _figures(contender, row, compute, memory, confidence)
        if not contender.get("refused") and (reason := beyond(contender, row, ceilings, settings)):
            contender["refused"] = reason
            contender.update(dict.fromkeys(_DERIVED))
    row["ranking"] = ranking(row, confidence)
    return row


# ---------------------------------------------------------------------------------------------------
# Ceilings
# ---------------------------------------------------------------------------------------------------
def highest(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> dict[str, float]:
    """The most that was measured of each ceiling, before the run and in the rounds of this row."""
    found = {name: float(entry["value"]) for name, entry in ceilings.items() if entry.get("value")}
    for name, values in (row.get("probes") or {}).items():
        found[name] = max([found.get(name, 0.0), *(v for v in values if v)])
    return found


def ceilings_for(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> tuple[Ceiling, Ceiling]:
    """The ceilings of arithmetic and of memory that hold for a row.

    Arithmetic: the tensor cores' for a 16-bit type or TF32, where it was measured, else that of float32
    multiply-adds; none for float64. Memory: the fastest way that was measured to move bytes.
    """
    found = highest(row, ceilings)
    grade = row["math"] if row["dtype"] == "float32" else row["dtype"]
    names = [_TENSOR[grade], "tensor-fp16", "fma"] if grade in _TENSOR else ["fma"]
    names = [] if row["dtype"] == "float64" else names
    compute = next(((name, found[name]) for name in names if name in found), None)
    rates = [(name, found[name]) for name in ("copy", "read", "update") if name in found]
    return compute, max(rates, key=lambda rate: rate[1], default=None)


def _bound(row: Mapping[str, Any], compute: Ceiling, memory: Ceiling) -> str:
    """Which ceiling the work meets first: the one under which its least time is longer."""
    if compute is None or memory is None:
        return "compute" if row["flops"] >= 50 * row["bytes"] else "memory"
    return "compute" if row["flops"] / compute[1] >= row["bytes"] / memory[1] else "memory"


def beyond(
    contender: Mapping[str, Any],
    row: Mapping[str, Any],
    ceilings: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """Why a contender's time cannot be true, or an empty string; see `trial.above_ceiling`."""
    values = rounds_of(contender)
    if not values:
        return ""
    work = SimpleNamespace(flops=row["flops"], bytes=row["bytes"], dtype=row["dtype"], math=row["math"])
    facts = contender.get("facts") or {}
    cache = "warm" if row["op"] == STEP else settings.get("cache", "cold")
    return above_ceiling(work, facts, median(values), highest(row, ceilings), cache)


def _figures(
    contender: Contender, row: Mapping[str, Any], compute: Ceiling, memory: Ceiling, confidence: float
) -> None:
    """Median, interval, rates, and the share of the nearer ceiling."""
    contender.update(dict.fromkeys(_DERIVED))
    values = rounds_of(contender)
    if not values or contender.get("refused"):
        return
    ms = median(values)
    low, high = stats.interval(values, confidence)
    contender.update({"median_ms": ms, "low_ms": low, "high_ms": high})
    contender["gflops"], contender["gbs"] = row["flops"] / ms / 1e6, row["bytes"] / ms / 1e6
    shares = {}
    if compute:
        shares[compute[0]] = 100 * contender["gflops"] / compute[1]
    if memory:
        shares[memory[0]] = 100 * contender["gbs"] / memory[1]
    if shares:
        name = max(shares, key=lambda n: shares[n])
        contender["percent"], contender["ceiling"] = shares[name], name


# ---------------------------------------------------------------------------------------------------
# Ranks and verdicts
# ---------------------------------------------------------------------------------------------------
def ranking(row: Mapping[str, Any], confidence: float = stats.CONFIDENCE) -> dict[str, Any]:
    """convkit's own pick among the contenders that are correct, and its verdicts.

    Returns
    -------
    dict
        "own": its name, or None where it was not timed; "rank" of it, 1 the fastest, and "of" how many;
        "against": verdicts against the best of the other libraries, their heuristic's choice, their best
        deterministic one, and the best of each library; under "convkit" the best of convkit's others.
    """
    field = sorted((c for c in row["contenders"] if correct(c)), key=lambda c: median(rounds_of(c)))
    own = next((c for c in field if c["library"] == OWN and PICKED in (c.get("marks") or ())), None)
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


def _against(own: Contender, group: list[Contender], confidence: float) -> dict[str, Any] | None:
    """The verdict against the fastest of a group; None of nobody."""
    if not group:
        return None
    best = group[0]
    ratio = stats.ratio_of(rounds_of(best), rounds_of(own), confidence)
    return {
        "name": best["name"], "ratio": ratio.middle, "low": ratio.low, "high": ratio.high,
        "rounds": ratio.rounds, "verdict": stats.verdict(ratio),
    }  # fmt: skip
