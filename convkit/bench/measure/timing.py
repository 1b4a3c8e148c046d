"""The timing loop: entries take turns under one clock, on fresh inputs, with caches as they are asked for.

`race` measures one item. In each round every entry has one turn, in a random order, after a pause. A turn
is a few calls, each on new inputs, into outputs full of NaN, with cold caches unless `Settings.cache` says
"warm". Probes of arithmetic and of memory take turns like entries. What keeps an entry honest is in
`trial`.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ...errors import OptionError, unknown
from . import clocks, conditions, stats
from .ceilings import above_ceiling, unbelievable
from .checks import check_gate, check_whole, refuse
from .contained import same_kind
from .entry import CACHES, PICKED, Clock, Entry, Result, Settings, on_its_device
from .fresh import Memory
from .trial import LONG_CALL, Caught, Trial

#: Calls of a turn, at most.
MOST_CALLS = 50
#: How often ceilings are measured again before an entry that beats them is refused.
AGAIN = 3
_sleep = time.sleep
T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------
# The race
# ---------------------------------------------------------------------------------------------------
def race(
    item: Any,
    entries: Sequence[Entry],
    clock: Clock,
    settings: Settings | None = None,
    progress: Callable[[str], None] = lambda text: None,
    ceilings: dict[str, dict[str, Any]] | None = None,
) -> Result:
    """Check each entry, let the right ones take turns, check them again.

    Parameters
    ----------
    item : work.Item
    entries : sequence of Entry
    clock : Clock
    settings : Settings, optional
    progress : callable
        Called with a line of text now and then.
    ceilings : dict, optional
        Of `clock.ceilings()`: an entry that beats them is refused. Without them, by the probes' own.

    Returns
    -------
    Result
        An entry that is wrong, that fails, or that was caught at something is in `refused` with the
        reason, and has no samples. Only KeyboardInterrupt ends a race early, and then the complete rounds
        are in it.

    Raises
    ------
    OptionError
        If two entries have the same name.
    OutOfMemory
        If there is no memory for the item itself.
    """
    with on_its_device(clock):
        return _race(item, entries, clock, settings or Settings(), progress, ceilings or {})


def _race(
    item: Any,
    entries: Sequence[Entry],
    clock: Clock,
    settings: Settings,
    progress: Callable[[str], None],
    ceilings: dict[str, dict[str, Any]],
) -> Result:
    if settings.cache not in CACHES:
        raise unknown("cache", settings.cache, CACHES)
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise OptionError(f"two entries of {item.id} have the same name: {', '.join(sorted(names))}")
    result = Result(item, cache=settings.cache)
    apart = any(entry.process is not None for entry in entries)
    memory = Memory(item, clock.device, same_kind().empty if apart else None)
    trials = [Trial(item, entry, memory, clock, settings) for entry in entries]
    result.checks = {trial.name: trial.checks for trial in trials}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        _check_before(trials, memory, settings, progress)
        Rounds(result, trials, memory, settings, progress).run()
        for one in (trial for trial in trials if not trial.refused):
            try:
                one.wall()
            except Caught as caught:
                refuse(one, "during", caught)
        progress(f"{item.id}: checking again")
        check_whole([trial for trial in trials if not trial.refused], memory, "after")
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        if was_enabled:
            gc.enable()
    refuse_impossible(result, trials, ceilings)
    for trial in trials:
        result.note_host(trial.name, trial.host_us, trial.host_included)
        if trial.refused:
            result.refused[trial.name] = trial.refused
            result.samples.pop(trial.name, None)
    return result


def _check_before(
    trials: Sequence[Trial], memory: Any, settings: Settings, progress: Callable[[str], None]
) -> None:
    for trial in trials:
        if not trial.refused and (reason := unbelievable(memory.item, trial.entry.facts)):
            refuse(trial, "before", Caught(reason))
        if settings.gate and trial.own and not trial.refused:
            progress(f"{memory.item.id}: {trial.name}, the gate")
            check_gate(trial)
    progress(f"{memory.item.id}: comparing with float64")
    check_whole([trial for trial in trials if not trial.refused], memory, "before")


def in_turns(turns: Iterable[T], order: random.Random, pause_s: float = 0.0) -> Iterator[T]:
    """One round: each turn once, in a random order, after a pause.

    So that a change of the machine's speed meets all of them, and that threads which spin for a while after
    their work are asleep before the next one begins.
    """
    shuffled = list(turns)
    order.shuffle(shuffled)
    for turn in shuffled:
        if pause_s:
            _sleep(pause_s)
        yield turn


class Rounds:
    """The rounds of a race: which entry has a turn when, and what came of it."""

    def __init__(
        self,
        result: Result,
        trials: Sequence[Trial],
        memory: Any,
        settings: Settings,
        progress: Callable[[str], None],
    ) -> None:
        self.result, self.memory, self.settings, self.progress = result, memory, settings, progress
        self.trials = [trial for trial in trials if not trial.refused]
        self.calls: dict[str, int] = {}
        self.plan: dict[str, int] = {}

    def run(self) -> None:
        """Run them all; after a KeyboardInterrupt, the complete ones are in the result."""
        settings, order = self.settings, random.Random(self.settings.seed)
        self._plan()
        self.trials = [trial for trial in self.trials if not trial.refused]
        if not self.trials:
            return
        clock, begin = self.trials[0].clock, clocks.independent()
        for number in range(max(self.plan.values())):
            turns: list[Trial | None] = [
                t for t in self.trials if self.plan[t.name] > number and not t.refused
            ]
            if not turns:
                return
            turns.append(None)  # the probes have a turn too
            self.progress(f"{self.result.item.id}: round {number + 1} of {max(self.plan.values())}")
            self.memory.draw()
            found: dict[str, list[float]] = {}
            probes: dict[str, float] = {}
            others = conditions.Others()
            for trial in in_turns(turns, order, settings.pause_s):
                if trial is None:
                    probes = clock.probe()
                elif samples := self._turn(trial, number):
                    found[trial.name] = samples
            # Only now: a round that is cut short leaves nothing.
            for name, samples in found.items():
                self.result.samples.setdefault(name, []).append(samples)
            for name, value in probes.items():
                self.result.probes.setdefault(name, []).append(value)
            state = {"t": round(clocks.independent() - begin, 3), "row": self.result.item.id}
            share = others.share()
            state |= conditions.sample(clock.device)
            self.result.conditions.append({**state, "others": share if share == share else None})
            gc.collect(0)  # all that is new

    def _turn(self, trial: Trial, number: int) -> list[float]:
        try:
            samples = trial.turn(self.calls[trial.name], f"round {number + 1}")
        except Exception as error:  # one that fails must not end the others' race
            refuse(trial, "during", error)
            self.memory.restore()
            return []
        trial.checks.during = "passed" if trial.checks.looks else ""
        return samples

    def _plan(self) -> None:
        """Calls of a turn, and rounds, for each entry, from one call of it."""
        settings = self.settings
        self.memory.draw()
        for trial in self.trials:
            self.progress(f"{self.result.item.id}: {trial.name}, warming up")
            try:
                ms, cost = min(trial.estimate() for _ in range(2))
            except Exception as error:
                refuse(trial, "during", error)
                continue
            fitting = int(settings.turn_s * 1e3 / max(cost, 1e-3))
            self.calls[trial.name] = calls = 1 if ms > LONG_CALL else max(3, min(MOST_CALLS, fitting))
            rounds = int(settings.budget_s * 1e3 / max(calls * cost, 1e-3))
            # convkit's pick is in every round that a peer is in: ratios pair rounds.
            every = PICKED in trial.entry.marks
            self.plan[trial.name] = settings.rounds if every else max(1, min(settings.rounds, rounds))
        if peers := [count for name, count in self.plan.items() if not self._every(name)]:
            self.plan = {name: min(count, max(peers)) for name, count in self.plan.items()}

    def _every(self, name: str) -> bool:
        return any(t.name == name and PICKED in t.entry.marks for t in self.trials)


def refuse_impossible(result: Result, trials: Sequence[Trial], ceilings: dict[str, dict[str, Any]]) -> None:
    """Refuse what was faster than the machine can be.

    A ceiling may have been measured while the machine was busy with something else: before anything is
    refused, it is measured again, and what is found is kept with the probes.
    """

    def suspects() -> dict[str, str]:
        highest = {name: max(values) for name, values in result.probes.items()}
        for name, record in ceilings.items():
            highest[name] = max(highest.get(name, 0.0), record["value"])
        found = {}
        for trial in trials:
            rounds = result.rounds(trial.name)
            if rounds and not trial.refused:
                ms, facts = stats.median(rounds), trial.entry.facts
                if reason := above_ceiling(result.item, facts, ms, highest, result.cache):
                    found[trial.name] = reason
        return found

    for _ in range(0 if result.interrupted else AGAIN):
        if not suspects():
            return
        for name, record in trials[0].clock.ceilings().items():
            result.probes.setdefault(name, []).append(record["value"])
    found = suspects()
    for trial in trials:
        trial.refused = trial.refused or found.get(trial.name, "")
