"""Whether entries are right before they are timed, and still right afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ...check import check_these
from ...check.faults import Lost, Misdeclared, Raised
from ...check.process import group_of
from ...registry import Implementation
from . import fresh
from .defences import on
from .entry import Arrays
from .fresh import Memory
from .trial import Caught, Trial, poison_in, same


@lru_cache(maxsize=1024)
def gate(implementation: Implementation) -> str:
    """Why `convkit.check` fails an implementation in its small cases, or an empty string."""
    group = group_of(implementation)
    limits = None if group is None else group.limits
    # What its process prints is shown once, at the end of the bench.
    failed = [
        v
        for v in check_these([implementation], quick=True, limits=limits, printed=lambda name, text: None)
        if not v.ok
    ]
    return f"fails convkit.check, {failed[0].case}: {failed[0].reason}" if failed else ""


def check_gate(trial: Trial) -> None:
    """Put convkit's own through the gate; refuse what fails."""
    implementation = trial.entry.implementation
    if implementation is None or not on("gate"):
        return
    try:
        reason = gate(implementation)
    except Exception as error:  # also where the gate itself cannot cope with what it gave
        refuse(trial, "before", error)
        return
    if reason:
        trial.refused = trial.checks.before = reason


def check_whole(trials: Sequence[Trial], memory: Memory, when: str) -> None:
    """Every entry twice on the same new inputs, every element compared; `when` is "before" or "after"."""
    if on("fresh") or when == "before":
        memory.draw()
        memory.refresh()
    runs: list[tuple[Trial, Arrays]] = []
    for trial in trials:
        try:
            runs.append((trial, _twice(trial, when)))
        except Exception as error:  # one entry that cannot do it must not end the others' race
            refuse(trial, when, error)
            memory.restore()
    if on(when):
        _compare_all(runs, memory, when)
    for trial, _ in runs:
        if not trial.refused:
            setattr(trial.checks, when, "passed" if on(when) else "unchecked")


def _twice(trial: Trial, when: str) -> Arrays:
    """The outputs of one call; a second one on the same inputs says whether the bits are the same."""
    where = f"{when} the timing"
    trial.bind()
    trial.timed()
    trial._seen.add(trial._glance())
    first = trial.outputs()
    trial._memory(where)
    trial.timed()
    second = trial.outputs()
    trial._memory(where)
    trial._tampered()
    again = same(first, second)
    trial.checks.deterministic = again and trial.checks.deterministic is not False
    if trial.own and not again and on(when):
        for name, array in second.items():
            if left := poison_in(array):
                raise Caught(
                    f"did not write {left} of the {array.size} elements of {name} in a second call "
                    f"({where}): work was skipped"
                )
        if not any(poison_in(array) for array in first.values()):
            raise Caught(f"is not deterministic: the same inputs gave other bits ({where})")
    return first


def _compare_all(runs: Sequence[tuple[Trial, Arrays]], memory: Memory, when: str) -> None:
    item = memory.item
    squares: dict[str, list[float]] = {trial.name: [0.0, 0.0] for trial, _ in runs}
    for part in fresh.parts(item):
        wanted = part.expected(memory.values)
        for trial, outputs in runs:
            if trial.refused:
                continue
            got = part.of(outputs)
            if not got:
                refuse(trial, when, Caught(f"gave none of its outputs, {', '.join(part.outputs)}"))
            for name, array in got.items():
                want = wanted[name]
                if reason := trial.wrong(name, array, want):
                    refuse(trial, when, Caught(f"{reason} ({when} the timing, at the timed size)"))
                    break
                if want.value.dtype.kind == "f":
                    difference = array.astype(np.float64) - want.value
                    squares[trial.name][0] += float(np.vdot(difference, difference))
                    squares[trial.name][1] += float(np.vdot(want.value, want.value))
    for trial, _ in runs:
        off, whole = squares[trial.name]
        if not trial.refused and whole > 0:
            trial.checks.error = max(trial.checks.error or 0.0, float(np.sqrt(off / whole)))


def refuse(trial: Trial, when: str, error: BaseException) -> None:
    """Put an entry out of the race."""
    lines = str(error).splitlines() or [""]
    if isinstance(error, Raised):
        text = f"raised {lines[0]}"
    elif isinstance(error, (Caught, Lost, Misdeclared)):
        text = lines[0]
    else:
        text = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    trial.refused = text[:400]
    setattr(trial.checks, when, trial.refused)
