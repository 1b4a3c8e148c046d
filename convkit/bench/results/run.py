"""A run: items and entries in, the rows of a result file out; and what happens when something goes wrong.

The result file is written after every row, so that a run which is killed has lost one row at most. A row that
fails (no memory, a library that breaks) is recorded, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ... import checked, devices
from ...check.process import Lost, group_of
from ...errors import ConvkitError, OptionError
from ...op import Problem
from ...registry import Implementation
from ..measure import contained, own, whole
from ..measure.entry import (
    HOST_INCLUDED,
    NOT_PASSED,
    OWN,
    QUICK_ONLY,
    TOO_SHORT,
    Clock,
    Entry,
    Result,
    Settings,
)
from ..measure.timing import race
from ..peers import PEERS, Field
from ..peers import whole as networks
from ..status import UNRUN
from ..work import MEMORY, NETWORK_OPS, Item
from . import apart, figures, files, machine, sources
from .fits import mentions_memory, out_of_memory, require_memory, smaller_batch
from .resume import changed_sources, environment, incompatible


@dataclass
class Options:
    """What a run is asked for besides its items.

    Attributes
    ----------
    device : {"cpu", "cuda"}
    settings : Settings
    path : Path, optional
        The result file, written after every row.
    command : sequence of str
    reference, every_layout : bool
        See `own.entries`.
    users : sequence of Implementation
        Those of `--kernel`: they stand in every row of their op, with the reason where they decline it.
    say : callable
        Told what is going on, a line at a time.
    show : callable
        Given each row as soon as it is there.
    """

    device: str = "cpu"
    settings: Settings = field(default_factory=Settings)
    path: Path | None = None
    command: Sequence[str] = ()
    reference: bool = False
    every_layout: bool = False
    users: Sequence[Implementation] = ()
    say: Callable[[str], None] = lambda text: None
    show: Callable[[dict[str, Any], int, int], None] = lambda row, done, total: None

    def as_dict(self, against: Sequence[str]) -> dict[str, Any]:
        """The "settings" of a result file."""
        return {
            **asdict(self.settings),
            "environment": environment(),
            "against": sorted(against),
            "reference": self.reference,
            "every_layout": self.every_layout,
        }


class Run:
    """Measures items one after the other into a result file's document.

    Parameters
    ----------
    options : Options
    peers : Field
        As `peers.gather` returns it.
    clock : Clock
    before : dict, optional
        A result file to go on with: its rows are kept.

    Raises
    ------
    OptionError
        If `before` was measured under other settings, on another machine, or from another source.
    """

    def __init__(
        self, options: Options, peers: Field, clock: Clock, before: Mapping[str, Any] | None = None
    ) -> None:
        self.options, self.peers, self.clock = options, peers, clock
        self._begin = time.monotonic()
        self._implementations: dict[tuple[str, str], Implementation] = {}
        self._problems: dict[str, list[Any]] = {}
        self._ran: set[str] = set()
        against = (*peers.about, *peers.missing)
        self.document = files.plain(
            files.new(
                options.command,
                machine=machine.machine(options.device),
                settings=options.as_dict(against),
            )
        )
        self.document["peers"], self.document["missing"] = peers.about, peers.missing
        if before is not None:
            self._go_on(before)
        options.say("measuring the ceilings")
        self._raise_ceilings(clock.ceilings())
        for row in self.document["rows"]:
            figures.summarise(row, self.document["ceilings"], self.document["settings"])

    # -- going on with a run -------------------------------------------------------------------------
    def _go_on(self, before: Mapping[str, Any]) -> None:
        if reason := incompatible(before, self.document):
            raise OptionError(
                f"{self.options.path} cannot be gone on with: {reason}; "
                "--overwrite without --resume starts anew"
            )
        if changed := changed_sources(before["kernels"], self.options.users):
            raise OptionError(
                f"{self.options.path} cannot be gone on with: {changed} has changed since; "
                "--overwrite without --resume starts anew"
            )
        document = self.document
        document["rows"] = [row for row in before["rows"] if not row.get("partial")]
        kept = {row["id"] for row in document["rows"]}
        document["conditions"] = [c for c in before.get("conditions", ()) if c.get("row") in kept]
        document["kernels"], document["ceilings"] = dict(before["kernels"]), dict(before["ceilings"])
        document["failures"] = [f for f in before["failures"] if f.get("row") in kept]
        # What is there already was run, and checked, on this GPU: its kernels stay those that it has run.
        self._ran = {key for key, e in document["kernels"].items() if e.get("status") == sources.RUN}
        document["created"], document["resumed"] = before["created"], int(before.get("resumed") or 0) + 1

    def _raise_ceilings(self, measured: Mapping[str, Mapping[str, Any]]) -> None:
        """A ceiling is the highest figure that was ever measured of it."""
        ceilings = self.document["ceilings"]
        for name, record in files.plain(measured).items():
            known = ceilings.get(name)
            samples = [*(known or {}).get("samples", ()), *record.get("samples", ())]
            best = max((e for e in (known, record) if e), key=lambda e: e["value"])
            ceilings[name] = {**best, "samples": samples}

    def _raise_ceilings_by(self, probes: Mapping[str, Sequence[float]]) -> None:
        """A probe between rounds that shows more than the ceiling is the ceiling: rows are derived anew."""
        higher = {}
        for name, values in probes.items():
            record = self.document["ceilings"].get(name)
            if record and values and max(values) > record["value"]:
                higher[name] = {**record, "value": max(values), "samples": [max(values)]}
        if higher:
            self._raise_ceilings(higher)
            for row in self.document["rows"]:
                figures.summarise(row, self.document["ceilings"], self.document["settings"])

    # -- measuring -------------------------------------------------------------------------------------
    def measure(self, items: Sequence[Item]) -> dict[str, Any]:
        """Measure what is not there yet; returns the result file's document, which also stands in the file.

        A Ctrl-C ends it: what was measured is kept, and "interrupted" is true.
        """
        done = {row["id"] for row in self.document["rows"]}
        if done & {item.id for item in items}:
            self.options.say(f"{len(done & {i.id for i in items})} of {len(items)} rows are there already")
        todo = [item for item in items if item.id not in done]
        self._write()
        try:
            for number, item in enumerate(todo):
                self.options.say(f"[{number + 1}/{len(todo)}] {item.id}{self._left(number, len(todo))}")
                row = self._guarded(item)
                if row is None:
                    continue
                self.document["rows"].append(row)
                self._write()
                self.options.show(row, number + 1, len(todo))
                if row.get("partial"):
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.document["interrupted"] = True
        order = {item.id: number for number, item in enumerate(items)}
        self.document["rows"].sort(key=lambda row: order.get(row["id"], -1))
        return self._write()

    def _left(self, done: int, total: int) -> str:
        """How long it may still take."""
        seconds = (time.monotonic() - self._begin) / max(done, 1) * (total - done)
        return f" (about {seconds / 60:.0f} min left)" if done and seconds > 90 else ""

    def _guarded(self, item: Item) -> dict[str, Any] | None:
        """A row; None where it failed, which is recorded."""
        try:
            require_memory(item, self.options.device)
            return self._row(item)
        except Exception as error:
            if not out_of_memory(error) and not isinstance(error, ConvkitError):
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            else:
                reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            if out_of_memory(error):
                reason += smaller_batch(item, getattr(error, "share", 0.5))
            self._fail(item.id, None, reason)
            return None

    def _fail(self, row: str, entry: str | None, reason: str) -> None:
        self.document["failures"].append({"row": row, "contender": entry, "reason": reason})
        self.options.say(f"{row}{f', {entry}' if entry else ''}: {reason}")

    def _entries(self, item: Item) -> tuple[list[Entry], list[dict[str, Any]]]:
        """What takes part, and records of what cannot."""
        options = self.options
        if item.kind != "time" or item.op in NETWORK_OPS:
            kind = apart if item.kind != "time" else networks
            found, lacking = kind.entries(item, options.device, list(self.peers.modules))
            return found, [files.absent(name, PEERS[name], reason) for name, reason in lacking.items()]
        there = any(user.op == item.op and group_of(user) for user in options.users)
        found = own.entries(
            item,
            options.device,
            reference=options.reference,
            every_layout=options.every_layout,
            empty=contained.same_kind().empty if there else None,
        )
        taken = {c.implementation for c in found}
        declined = [
            files.absent(i.label, OWN, why)
            for i in options.users
            if i.op == item.op
            and not group_of(i)
            and i not in taken
            and (why := i.refusal(item.problem, item.math))
        ]
        for user in options.users:
            if user.op == item.op and group_of(user):
                self._add_candidate(user, item, found, declined)
        others, lacking = self.peers.entries(item, options.device)
        declined += [files.absent(name, PEERS[name], reason) for name, reason in lacking.items()]
        return [*found, *others], declined

    def _add_candidate(
        self, user: Implementation, item: Item, found: list[Entry], declined: list[dict[str, Any]]
    ) -> None:
        """A candidate in a process of its own, which is asked whether it takes the item."""
        group = group_of(user)
        assert group is not None
        try:
            if group.stopped:
                raise Lost(f"not run: {group.why_stopped}")
            if (why := user.refusal(item.problem, item.math)) is None:
                found.append(own.entry(user, item, {}))
                return
        except (ConvkitError, ValueError, TypeError) as error:
            why = str(error)
            self._fail(item.id, user.label, why)
        declined.append(files.absent(user.label, OWN, why))

    def _row(self, item: Item) -> dict[str, Any] | None:
        entries, declined = self._entries(item)
        if not entries:
            reasons = "; ".join(f"{d['name']}: {d['refused']}" for d in declined)
            raise OptionError(
                f"nothing on {self.options.device} takes it{f' ({reasons})' if reasons else ''}"
            )
        began = time.monotonic() - self._begin
        measure = apart.race if item.kind != "time" else whole.race if item.op in NETWORK_OPS else race
        result = measure(
            item, entries, self.clock, self.options.settings, self.options.say, self.document["ceilings"]
        )
        if result.interrupted and not any(result.samples.values()):
            raise KeyboardInterrupt
        self._note_conditions(result, began)
        self._note_kernels(item, entries, result)
        row = new_row(item)
        row["contenders"] = [self._entry(item, c, result) for c in entries] + declined
        row["probes"] = files.plain(result.probes)
        self._raise_ceilings_by(result.probes)
        if result.interrupted:
            row["partial"] = True
        figures.summarise(row, self.document["ceilings"], self.document["settings"])
        return row

    def _entry(self, item: Item, entry: Entry, result: Result) -> dict[str, Any]:
        """The record of one entry, without the figures that follow from its samples."""
        name, checks = entry.name, result.checks.get(entry.name)
        refused = result.refused.get(name)
        samples = [] if refused else result.samples.get(name, [])
        marks = [mark for mark in entry.marks if not (mark == UNRUN and samples)]
        judged = checks.as_dict() if checks else dict.fromkeys(("before", "during", "after"), "unchecked")
        if samples and judged["before"] == "unchecked" and "unchecked" not in marks:
            marks.append("unchecked")
        if samples:
            marks += gate_marks(implementation for implementation, _ in kernels_of(entry, item))
        if samples and name in result.host_included:
            marks.append(HOST_INCLUDED)
        if samples and (way := entry.facts.get("round_trip_us")):
            spread, took = entry.facts.get("round_trip_spread_us", 0.0), 1e3 * median(result.rounds(name))
            if 10 * spread > took:
                marks.append(f"+-{spread:.0f} us")
            if took < way:
                marks.append(TOO_SHORT)
        if refused:
            self._fail(item.id, name, refused + (smaller_batch(item) if mentions_memory(refused) else ""))
        return files.plain({
            "name": name, "library": entry.library, "version": self._version(entry.library),
            "layout": entry.layout, "marks": marks, "facts": entry.facts,
            "workspace_bytes": entry.facts.get("workspace_bytes"),
            "deterministic": checks.deterministic if checks else None,
            "error": checks.error if checks else None, "checks": judged,
            "looks": checks.looks if checks else 0, "refused": refused, "samples_ms": samples,
            "host_us": result.host_us.get(name) if samples else None,
        })  # fmt: skip

    def _version(self, library: str) -> str:
        if library == OWN:
            return str(self.document["convkit"]["version"])
        names = {title: name for name, title in PEERS.items()}
        return str(self.peers.about.get(names.get(library, ""), {}).get("version", ""))

    def _note_conditions(self, result: Result, began: float) -> None:
        for record in result.conditions:
            self.document["conditions"].append(
                files.plain({**record, "t": began + float(record.get("t", 0))})
            )

    def _note_kernels(self, item: Item, entries: Iterable[Entry], result: Result) -> None:
        """Sources of convkit's own entries, and of each CUDA kernel its machine code and status."""
        for c in entries:
            for implementation, problem in kernels_of(c, item):
                key = sources.key_of(implementation)
                self._implementations[key, implementation.source] = implementation
                if result.samples.get(c.name) and c.name not in result.refused:
                    self._problems.setdefault(key, []).append(problem)
                    self._ran.add(key)
        described = sources.describe(
            self._implementations.values(), self._problems, _arch(self.options.device), self._ran
        )
        kernels = self.document["kernels"]
        kernels.update({key: sources.merged(kernels.get(key), record) for key, record in described.items()})

    def _write(self) -> dict[str, Any]:
        if self.options.path is None:
            return files.sealed(self.document)
        return files.write(self.document, self.options.path)


def new_row(item: Item) -> dict[str, Any]:
    """A row without entries."""
    return files.plain({
        "id": item.id, "net": item.net, "layer": item.layer, "op": item.op, "direction": item.direction,
        "problem": item.fields(), "problem_text": item.text, "dtype": item.dtype, "math": item.math,
        "batch": item.batch, "options": dict(item.options), "absent": list(item.absent),
        "flops": item.flops, "bytes": item.bytes, "unit": "MB" if item.op == MEMORY else "ms",
    })  # fmt: skip


def gate_marks(implementations: Iterable[Implementation]) -> list[str]:
    """Marks of an entry that runs what has not passed the gate as it is now, or its quick cases alone."""
    states = {implementation.checked for implementation in implementations}
    if checked.UNCHECKED in states:
        return [NOT_PASSED]
    return [QUICK_ONLY] if any(state.endswith("quick") for state in states) else []


def kernels_of(entry: Entry, item: Item) -> list[tuple[Implementation, Problem]]:
    """The implementations of convkit's, or of a user's, that an entry runs, with their problems."""
    if isinstance(entry, whole.NetworkEntry):
        return entry.kernels
    return [] if entry.implementation is None else [(entry.implementation, item.problem)]


def _arch(device: str) -> str | None:
    if device != "cuda":
        return None
    return getattr(devices.current(), "arch", None)
