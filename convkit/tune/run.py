"""Goes through jobs, and keeps each result as soon as it is there.

What is kept is not done again: a job whose candidates, machine and sources are the same, and what the gate
has said of a candidate. So a run that was killed goes on where it was; of a job, the races begin anew.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..bench.measure import stats
from ..bench.measure.clocks import clock_for
from ..bench.measure.entry import Clock, Settings
from ..bench.work import text_of
from ..checked import engine
from ..errors import ConvkitError
from ..tuned import Store, digest, key_of, machine, named
from ..version import __version__
from . import measure
from .candidates import MOST_TILES, Candidate, first, of_job, unfit
from .compiling import compiled
from .gpus import H200, Gpu
from .jobs import Job

#: The state of a job of which nothing came: it is tried again.
FAILED = "failed"
#: Significant digits that a time is kept with.
DIGITS = 5

_NAMED = {"implementation": str, "tile": dict, "source": str}
#: What an entry of the file has, and of what types: a list's one member is that of each of its own.
_FORM: dict[str, Any] = {
    **dict.fromkeys(("op", "layout", "math", "text", "rival", "state", "among", "date", "version"), str),
    "flags": [str],
    "places": [str],
    "machine": {"name": str, "driver": str},
    "default": _NAMED,
    "chosen": _NAMED,
    "candidates": [{"name": str, "reason": str, "ms": [(int, float)]}],
}
_RATIO = dict.fromkeys(("median", "low", "high"), (int, float))


@dataclass
class Tuner:
    """Tunes jobs on one device.

    Attributes
    ----------
    store : Store
        Where results are kept.
    settings : Settings
    device : {"cpu", "cuda"}
    gpu : Gpu
        Whose limits count; on a CPU it does not matter.
    again : bool
        Whether what is kept is measured anew.
    workers : int, optional
        Processes that compile.
    say : callable
        Told what is going on, a line at a time.
    """

    store: Store
    settings: Settings
    device: str = "cpu"
    gpu: Gpu = H200
    again: bool = False
    workers: int | None = None
    say: Callable[[str], None] = lambda text: None
    _clock: Clock | None = field(default=None, repr=False)

    def key(self, job: Job) -> str:
        """The key of a job in the store."""
        return key_of(job.question, machine(self.device))

    def entry(self, job: Job) -> dict[str, Any] | None:
        """What is kept of a job. None also where somebody has changed the file: then it is tuned anew."""
        entry = self.store.choices.get(self.key(job))
        return entry if entry is not None and _whole(entry) else None

    def kept(self, job: Job) -> dict[str, Any] | None:
        """What is kept of a job, if it still holds: the same candidates, from the same sources."""
        entry = self.entry(job)
        if entry is None or entry.get("state") == FAILED:
            return None
        return entry if entry.get("among") == _among(of_job(job, self.gpu)) else None

    def tune(self, job: Job) -> tuple[dict[str, Any], bool]:
        """A job's entry, and whether it was measured now."""
        if not self.again and (entry := self.kept(job)) is not None:
            return entry, False
        candidates = of_job(job, self.gpu)
        try:
            entry = self._tune(job, candidates)
        except ConvkitError as error:  # no memory for it, say: the others go on
            nothing = measure.Outcome(_default(candidates), FAILED)
            entry = {**self._entry(job, candidates, nothing), "failure": str(error)}
        self.store.put({self.key(job): entry})
        return entry, True

    def _tune(self, job: Job, candidates: list[Candidate]) -> dict[str, Any]:
        if self.device == "cuda":
            candidates = self._compile(job, candidates)
        tried = [c for c in candidates if not c.reason]
        outcome = measure.Outcome(_default(candidates))
        if len(tried) > 1:
            refused = {c.implementation.label: self._gate(c, job.item.dtype) for c in tried}
            passed = [c for c in tried if not refused[c.implementation.label]]
            if any(c.default for c in passed):
                self._clock = self._clock or clock_for(self.device)
                outcome = measure.measure(job.item, passed, self._clock, self.settings, self.say)
            outcome.refused |= {label: reason for label, reason in refused.items() if reason}
        if outcome.interrupted:
            raise KeyboardInterrupt
        return self._entry(job, candidates, outcome)

    def _compile(self, job: Job, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The same, with reasons for those that do not compile, or to what is not worth a try."""
        problem, found = job.question.problem, list(candidates)
        chosen = [n for n, c in enumerate(found) if not c.reason and c.implementation.tile]
        runners: list[Any] = [found[n].implementation.run for n in chosen]
        done = compiled(runners, problem, self.gpu.arch, workers=self.workers)
        for count, (index, what) in enumerate(done, 1):
            self.say(f"{job.name}: compiled {count} of {len(chosen)}")
            reason = what if isinstance(what, str) else unfit(runners[index], problem, what, self.gpu)
            if reason:
                found[chosen[index]] = replace(found[chosen[index]], reason=reason)
        return first(found, MOST_TILES, "timed")

    def _gate(self, candidate: Candidate, dtype: str) -> str:
        """What the gate says of a candidate, as it was kept, or now."""
        implementation = candidate.implementation
        parts = [
            implementation.op, implementation.label, implementation.device, engine(self.device), dtype,
            digest(implementation), __version__,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        if self.again or key not in self.store.gates:
            self.say(f"{implementation.op} {implementation.label}: the gate")
            self.store.put(gates={key: measure.gate(implementation, dtype)})
        return self.store.gates[key]

    def _entry(self, job: Job, candidates: Sequence[Candidate], outcome: measure.Outcome) -> dict[str, Any]:
        """What the file keeps of a job."""
        return {
            **job.question.as_dict(),
            "text": text_of(job.item),
            "places": list(job.places),
            "machine": machine(self.device),
            "default": named(_default(candidates).implementation),
            "chosen": named(outcome.chosen.implementation),
            "rival": outcome.rival.name if outcome.rival else "",
            "state": outcome.state,
            "ratio": outcome.ratio.as_dict() if outcome.ratio else None,
            "confidence": self.settings.confidence,
            "disturbed": round(outcome.disturbed, 3),
            "candidates": [_row(c, outcome) for c in candidates],
            "among": _among(of_job(job, self.gpu)),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "version": __version__,
        }


def _whole(entry: Mapping[str, Any]) -> bool:
    """Whether an entry has all that is shown of it."""
    ratio = entry.get("ratio", "none at all")
    return _fits(entry, _FORM) and bool(entry["places"]) and (ratio is None or _fits(ratio, _RATIO))


def _fits(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        return isinstance(value, dict) and all(n in value and _fits(value[n], f) for n, f in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(one, form[0]) for one in value)
    return isinstance(value, form)


def _default(candidates: Sequence[Candidate]) -> Candidate:
    return next(c for c in candidates if c.default)


def _row(candidate: Candidate, outcome: measure.Outcome) -> dict[str, Any]:
    label = candidate.implementation.label
    reason = candidate.reason or outcome.refused.get(label, "")
    rounds = [float(f"{ms:.{DIGITS}g}") for ms in outcome.rounds.get(label, ())]
    return {"name": candidate.name, "reason": reason, "ms": [] if reason else rounds}


def _among(candidates: Sequence[Candidate]) -> str:
    """A hash of the candidates and of their sources: another one where there is something new to try."""
    parts = [[c.name, bool(c.reason), c.default, digest(c.implementation)] for c in candidates]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def times(entry: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of the candidates of an entry that were timed, by their names."""
    return {c["name"]: stats.median(c["ms"]) for c in entry["candidates"] if c["ms"]}
