"""The gate, and turns under the bench's clock: which candidate is faster than the default, if any.

Two races. In a short first one all candidates take part. The default and the best `FINALISTS`, as far as they
are anywhere near it, go on to a longer one, on new rounds: the best of many would look better than it is on
the rounds that chose it. There each finalist is held against the default, round by round, with an interval;
what is tried several times is to be right as often as one try (Bonferroni). A tie keeps the default.
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
#: How many times longer than the default one may take in the first race, and go on.
HOPELESS = 2.0
#: What came of a job.
FASTER, TIE, ALONE, SLOWER = "faster", "tie", "alone", "default is best"
#: How often a choice may be wrong where all are equal.
WRONG = 0.05


@dataclass
class Outcome:
    """What came of a job.

    Attributes
    ----------
    chosen : Candidate
        The default, or what is faster.
    state : str
        `FASTER`: another one than the default is; `TIE`, `SLOWER`: it is not known to be, or known not to be;
        `ALONE`: there was none.
    rival : Candidate, optional
        What is chosen, where that is not the default; else the best of the others.
    ratio : stats.Ratio, optional
        How many times longer the default takes than the rival, in the last race. None where it was alone.
    rounds : dict of str to list of float
        By the candidate's label, milliseconds: a figure for each round, of the last race that it was in.
    refused : dict of str to str
        By label: what was wrong, in the gate or in a race.
    disturbed : float
        Share of the CPUs that other work took; 0 if bearable.
    """

    chosen: Candidate
    state: str = ALONE
    rival: Candidate | None = None
    ratio: stats.Ratio | None = None
    rounds: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    disturbed: float = 0.0
    interrupted: bool = False


def settings_of(quick: bool, rounds: int | None = None) -> Settings:
    """Of the second race."""
    confidence = 1 - WRONG / FINALISTS
    given: dict[str, Any] = {
        "rounds": rounds or (stats.least(confidence) if quick else ROUNDS),
        "confidence": confidence,
        "gate": False,  # which is asked before
    }
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
    outcome = Outcome(default)
    if len(candidates) == 1:
        return outcome
    first = replace(settings, rounds=FIRST, turn_s=settings.turn_s / 2)
    result = _race(outcome, item, [_entry(c, item, c.default) for c in candidates], clock, first, say)
    finalists = _finalists(result, default, candidates)
    if len(finalists) > 1 and not outcome.interrupted:
        # Each is in every round: with fewer it could not win.
        result = _race(outcome, item, [_entry(c, item, True) for c in finalists], clock, settings, say)
    if not outcome.interrupted:
        _decide(
            outcome, result, default, finalists if len(finalists) > 1 else candidates, settings.confidence
        )
    return outcome


def _entry(candidate: Candidate, item: Item, every_round: bool) -> Entry:
    implementation = candidate.implementation
    # The mark "picked" puts it into every round that any other is in.
    return own.entry(implementation, item, {PICKED: implementation if every_round else None})


def _race(
    outcome: Outcome,
    item: Item,
    entries: list[Entry],
    clock: Clock,
    settings: Settings,
    say: Callable[[str], None],
) -> Result:
    result = race(item, entries, clock, settings, say)
    outcome.rounds |= {name: result.rounds(name) for name in result.samples}
    outcome.refused |= result.refused
    outcome.interrupted = outcome.interrupted or result.interrupted
    outcome.disturbed = max(outcome.disturbed, conditions.disturbance(result.conditions))
    return result


def _times(result: Result, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Milliseconds by label, of those that were timed and not refused."""
    labels = [c.implementation.label for c in candidates]
    return {
        name: stats.median(rounds)
        for name in labels
        if name not in result.refused and (rounds := result.rounds(name))
    }


def _finalists(result: Result, default: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The default and the fastest of the others, as far as they are anywhere near it."""
    times, name = _times(result, candidates), default.implementation.label
    if name not in times:
        return []
    others = [c for c in candidates if not c.default and c.implementation.label in times]
    others.sort(key=lambda c: times[c.implementation.label])
    near = [c for c in others if times[c.implementation.label] < HOPELESS * times[name]]
    return [default, *near[:FINALISTS]]


def _decide(
    outcome: Outcome, result: Result, default: Candidate, candidates: Sequence[Candidate], confidence: float
) -> None:
    """Choose by the last race: what is faster than the default beyond doubt, else the default."""
    times, name = _times(result, candidates), default.implementation.label
    others = {c.implementation.label: c for c in candidates if not c.default}
    ratios = {n: result.ratio(name, n, confidence) for n in times if n in others and name in times}
    if not ratios:
        return
    faster = [n for n, ratio in ratios.items() if ratio.verdict == stats.WIN]
    best = min(faster or ratios, key=lambda n: times[n])
    outcome.rival, outcome.ratio = others[best], ratios[best]
    if faster:
        outcome.chosen, outcome.state = outcome.rival, FASTER
    elif outcome.ratio.verdict == stats.LOSS or times[best] >= HOPELESS * times[name]:
        outcome.state = SLOWER
    else:
        outcome.state = TIE
