"""A failing case of a CUDA kernel again, under the emulator's sanitizer, which names the line at fault."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod

from .. import devices
from ..cuda.emulate import Emulator, emulate
from ..registry import Implementation
from . import sizes
from .attempt import FIRST, Question, attempt
from .verdicts import Verdict

#: What a case may cost: the sanitizer is some twenty times slower.
_THREADS, _FLOPS = 100_000, 2e6
#: Failing cases of each implementation that are looked at, as long as nothing is found.
_TRIES = 2
_SECONDS = 20.0


def emulator() -> Emulator | None:
    """The emulator that CUDA kernels run under here, or None."""
    current = devices.current() if devices.emulating() else None
    return current if isinstance(current, Emulator) else None


class Sanitizer:
    """Reruns the first small failing cases of each CUDA kernel, where they were not sanitized already."""

    def __init__(self) -> None:
        self._tries: dict[tuple[str, str], int] = {}

    def look(self, implementation: Implementation, question: Question, verdict: Verdict) -> Verdict:
        """The verdict, with what the sanitizer has to say about it.

        Parameters
        ----------
        implementation : Implementation
        question : Question
        verdict : Verdict
            On that question.
        """
        how = emulator() if implementation.device == "cuda" else None
        if how is None:
            return verdict
        if how.check:
            return replace(verdict, sanitized=True)
        key = implementation.op, implementation.label
        tries = self._tries.get(key, 0)
        # What the emulator itself has stopped has its line in the reason.
        stopped = re.search(r"\bKernelError\b", verdict.reason)
        if verdict.ok or stopped or tries >= _TRIES or not _small(implementation, question):
            return verdict
        with emulate(check=True, seed=how.seed, timeout=min(how.timeout, _SECONDS)):
            run = attempt(implementation, question, FIRST)
        if run.kind in ("no compiler", "timeout", "compile error"):
            self._tries[key] = tries + 1
            return verdict
        found = _told(run.fault) if run.kind else ""
        self._tries[key] = _TRIES if found else tries + 1
        return replace(verdict, sanitized=True, line=found)


def _small(implementation: Implementation, question: Question) -> bool:
    """Whether the sanitizer is through with it in some seconds."""
    runner, case = sizes.runner(implementation), question.case
    if runner is None or case.problem.flops(case.op) > _FLOPS:
        return False
    launches = [one for part, own in runner.parts(case.problem) for one in part.ready(own).launches]
    return sum(prod(grid) * prod(block) for _, grid, block, _ in launches) <= _THREADS


def _told(fault: str) -> str:
    """The emulator's report, its place first: "mine.cu:14: out of bounds", then what it says."""
    first, *rows = fault.splitlines()
    kind = first.rpartition(": ")[2]
    if rows and (match := re.match(r"\s*at (.+?:\d+), (.*)", rows[0])):
        place, who = match.groups()
        return "\n".join([f"{place}: {kind}, {who}", *(row.strip() for row in rows[1:])])
    return "\n".join([kind, *(row.strip() for row in rows)])
