"""The gate, and turns under the bench's clock: which candidate is faster than the default, if any.

Two races. In a short first one all candidates take part; the default and the best `FINALISTS` go on to a
longer one, on new rounds: the best of many would look better than it is on the rounds that chose it. There
each finalist is held against the default, round by round, with an interval; what is tried several times is
to be right as often as one try (Bonferroni). A tie keeps the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..bench.measure import conditions, own, stats
from ..bench.measure.entry import PICKED, Clock, Entry, Result, Settings
from ..bench.measure.timing import race
from ..bench.work import Item
from ..check import check_these
from ..check.process import group_of
from ..registry import Implementation
from .candidates import Candidate

#: Candidates that go on to the second race, besides the default; and rounds of the first one.
FINALISTS, FIRST = 3, 3
#: Rounds of the second race.
ROUNDS = 12
#: How often a choice may be wrong where all are equal.
WRONG = 0.05


@dataclass
class Outcome:
    """What came of a job.

    Attributes
    ----------
    chosen : Candidate
        The default, or what is faster.
    rival : Candidate, optional
        What is chosen, where that is not the default; else the best of the others.
    ratio : stats.Ratio, optional
        How many times longer the default takes than the rival. None where it was alone.
    rounds : dict of str to list of float
        By the candidate's label, milliseconds: a figure for each round, of the last race that it was in.
    refused : dict of str to str
        By label: what was wrong, in the gate or in a race.
    disturbed : float
        Share of the CPUs that other work took; 0 if bearable.
    """

    chosen: Candidate
    rival: Candidate | None = None
    ratio: stats.Ratio | None = None
    rounds: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    disturbed: float = 0.0
    interrupted: bool = False


def settings_of(quick: bool, rounds: int | None, budget_s: float | None) -> Settings:
    """Of the second race."""
    confidence = 1 - WRONG / FINALISTS
    given: dict[str, Any] = {
        "rounds": rounds or (stats.least(confidence) if quick else ROUNDS),
        "confidence": confidence,
        "gate": False,  # which is asked before
    }
    if budget_s is not None:
        given["budget_s"] = budget_s
    return Settings.quickly(**given) if quick else Settings(**given)


def gate(implementation: Implementation, dtype: str) -> str:
    """Why the gate fails an implementation in its small cases, or an empty string."""
    group = group_of(implementation)
    limits = None if group is None else group.limits
    one = replace(implementation, dtypes=(dtype,)) if dtype in implementation.dtypes else implementation
    verdicts = check_these([one], quick=True, limits=limits, printed=lambda name, text: None)
    failed = next((v for v in verdicts if not v.ok), None)
    return f"fails convkit.check, {failed.case}: {failed.reason}" if failed else ""


def measure(
    item: Item,
    candidates: Sequence[Candidate],
    clock: Clock,
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Let candidates take turns that have passed the gate; one of them is the default."""
    default = next(c for c in candidates if c.default)
    if len(candidates) == 1:
        return Outcome(default)
    outcome = Outcome(default)
    entries = {c.implementation.label: _entry(c, item) for c in candidates}
    if len(candidates) > FINALISTS + 1:
        first = replace(settings, rounds=FIRST, turn_s=settings.turn_s / 2)
        result = race(item, list(entries.values()), clock, first, say)
        _note(outcome, result)
        entries = {name: entries[name] for name in _finalists(result, default, entries)}
    own_name = default.implementation.label
    if not outcome.interrupted and own_name in entries and len(entries) > 1:
        result = race(item, list(entries.values()), clock, settings, say)
        _note(outcome, result)
        _decide(outcome, result, default, candidates, settings.confidence)
    return outcome


def _entry(candidate: Candidate, item: Item) -> Entry:
    implementation = candidate.implementation
    # "picked": it is in every round that any other is in.
    return own.entry(implementation, item, {PICKED: implementation if candidate.default else None})


def _note(outcome: Outcome, result: Result) -> None:
    outcome.rounds |= {name: result.rounds(name) for name in result.samples}
    outcome.refused |= result.refused
    outcome.interrupted = outcome.interrupted or result.interrupted
    outcome.disturbed = max(outcome.disturbed, conditions.disturbance(result.conditions))


def _finalists(result: Result, default: Candidate, names: dict[str, Entry]) -> list[str]:
    """The default, and the fastest of the others."""
    own_name = default.implementation.label
    timed = [name for name in names if result.rounds(name) and name not in result.refused]
    others = sorted((n for n in timed if n != own_name), key=lambda n: stats.median(result.rounds(n)))
    return [name for name in timed if name == own_name] + others[:FINALISTS]


def _decide(
    outcome: Outcome, result: Result, default: Candidate, candidates: Sequence[Candidate], confidence: float
) -> None:
    own_name = default.implementation.label
    times = {n: stats.median(result.rounds(n)) for n in result.samples if n not in result.refused}
    if own_name not in times or len(times) == 1:
        return
    ratios = {n: result.ratio(own_name, n, confidence) for n in times if n != own_name}
    faster = [name for name, ratio in ratios.items() if ratio.verdict == stats.WIN]
    best = min(faster or ratios, key=lambda name: times[name])
    outcome.rival = next(c for c in candidates if c.implementation.label == best)
    outcome.ratio = ratios[best]
    if faster:
        outcome.chosen = outcome.rival
