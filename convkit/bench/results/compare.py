"""`convkit compare`: two result files, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from ..measure import stats
from . import figures, machine

#: What must agree besides the machine, and how it is called.
_SETTINGS = {"cache": "cache", "confidence": "confidence"}
#: From which difference of a ceiling on it is worth a word.
DRIFT = 0.05
FASTER, SLOWER, TIE = "faster", "slower", "as fast"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why times of the two cannot be compared, a line each; empty where they can."""
    found = []
    for part, names in (("machine", machine.SAME), ("settings", _SETTINGS)):
        for name, word in names.items():
            if a[part].get(name) != b[part].get(name):
                found.append(f"another {word}: {a[part].get(name)!r} and {b[part].get(name)!r}")
    return found


def remarks(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What else differs, and may be what is to be compared: versions, sources, rounds."""
    found = []
    versions = ("version", "commit")
    if any(a["convkit"].get(k) != b["convkit"].get(k) for k in versions):
        words = [
            f"{d['convkit'].get('version')} {str(d['convkit'].get('commit', ''))[:10]}".strip()
            for d in (a, b)
        ]
        found.append(f"convkit: {words[0]} and {words[1]}")
    for name in sorted({*a["peers"], *b["peers"]}):
        one, two = (d["peers"].get(name, {}).get("version") or "not there" for d in (a, b))
        if one != two:
            found.append(f"{name}: {one} and {two}")
    changed = [
        key
        for key, record in a["kernels"].items()
        if key in b["kernels"] and record.get("source_sha256") != b["kernels"][key].get("source_sha256")
    ]
    if changed:
        found.append(f"other sources: {', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}")
    for name in a["ceilings"]:
        one, two = (d["ceilings"].get(name, {}).get("value") for d in (a, b))
        if one and two and abs(math.log(one / two)) > DRIFT:
            found.append(f"the ceiling {name}: {one:.4g} and {two:.4g}; the machine itself had another speed")
    pairs = {name: (a["settings"].get(name), b["settings"].get(name)) for name in ("quick", "rounds", "seed")}
    return found + [f"{name}: {one} and {two}" for name, (one, two) in pairs.items() if one != two]


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], *, every: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of both, with how many times longer `a` took.

    Parameters
    ----------
    a, b : dict
        Result files.
    every : bool
        Every entry that both have; by default convkit's picks.

    Returns
    -------
    rows : list of dict
        "id", "contender" in a and "other" in b, "a_ms", "b_ms", "ratio", "low", "high", "verdict".
    unmatched : list of str
        Rows that only one of them has, or in which nothing could be compared.
    """
    there = {row["id"]: row for row in b["rows"]}
    confidence = figures.confidence_of(a["settings"])
    found, unmatched = (
        [],
        [f"{i}: only in the second" for i in there if i not in {r["id"] for r in a["rows"]}],
    )
    for row in a["rows"]:
        other = there.get(row["id"])
        if other is None:
            unmatched.append(f"{row['id']}: only in the first")
            continue
        pairs = _pairs(row, other, every)
        if not pairs:
            unmatched.append(f"{row['id']}: no entry was timed in both")
        for one, two in pairs:
            found.append(_compared(row["id"], one, two, confidence))
    return found, unmatched


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any], every: bool) -> list[tuple[Any, Any]]:
    timed = [{c["name"]: c for c in row["contenders"] if figures.correct(c)} for row in (a, b)]
    if every:
        return [(c, timed[1][name]) for name, c in timed[0].items() if name in timed[1]]
    picks = [timed[i].get((row["ranking"] or {}).get("own")) for i, row in enumerate((a, b))]
    return [(picks[0], picks[1])] if all(picks) else []


def _compared(
    identity: str, one: Mapping[str, Any], two: Mapping[str, Any], confidence: float
) -> dict[str, Any]:
    x, y = figures.rounds_of(one), figures.rounds_of(two)
    low, high = unpaired(x, y, confidence)
    enough = min(len(x), len(y)) >= stats.least(confidence)
    verdict = FASTER if low > 1 else SLOWER if high < 1 else TIE
    return {
        "id": identity, "contender": one["name"], "other": two["name"], "a_ms": median(x), "b_ms": median(y),
        "ratio": median(x) / median(y), "low": low, "high": high, "verdict": verdict if enough else TIE,
    }  # fmt: skip


def unpaired(x: Sequence[float], y: Sequence[float], confidence: float) -> tuple[float, float]:
    """Interval of the ratio of two runs' times: of the shift of their logarithms (Mann-Whitney).

    Rounds of two runs are no pairs: each stands for itself, and all m * n ratios are ordered. How many of
    them to leave out at each end is the normal approximation of the rank sum, which errs by little from 6
    rounds on.
    """
    ratios = np.sort([math.log(a / b) for a, b in product(x, y)])
    m, n = len(x), len(y)
    deviation = math.sqrt(m * n * (m + n + 1) / 12)
    skip = int(max(0, m * n / 2 - stats.normal_quantile(confidence) * deviation))
    skip = min(skip, (m * n - 1) // 2)
    middle = median(x) / median(y)
    return min(middle, math.exp(ratios[skip])), max(middle, math.exp(ratios[-1 - skip]))
