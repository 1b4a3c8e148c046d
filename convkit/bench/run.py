"""A run: items and contenders in, the rows of a capsule out; and what happens when something goes wrong.

The capsule is written after every row, so that a run which is killed has lost one row at most. A row that
fails (no memory, a library that breaks) is recorded, and the others go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConvkitError, OptionError, OutOfMemory
from ..op import Problem, np_itemsize
from ..registry import Implementation
from . import capsule, conditions, figures, own, sources, steps, work
from .peers import PEERS, Field
from .timing import HOST_INCLUDED, OWN, Clock, Contender, Result, Settings, race
from .work import STEP, Item

#: Variables that change how somebody computes; whoever sets one finds it in the capsule.
ENVIRONMENT = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "THP_MEM", "MALLOC_", "GLIBC_", "XLA_", "LD_PRELOAD",
    "JAX_", "CONVKIT_", "OPENBLAS_", "CUDA_", "NVIDIA_", "CUDNN_", "CUBLAS_", "TORCH_",
)  # fmt: skip
#: What must agree for a run to be gone on with: of the settings all, of the machine these. More than for two
#: runs to be compared: one capsule is of one machine, to its GPU's driver.
_MACHINE = (*conditions.SAME, "cpu", "gpu")
#: Copies of an item's memory in float64 that its check holds at once: inputs, outputs, squares, bounds.
_CHECKING = 5


@dataclass
class Options:
    """What a run is asked for besides its items.

    Attributes
    ----------
    device : {"cpu", "cuda"}
    settings : Settings
    path : Path, optional
        The capsule, written after every row.
    command : sequence of str
    reference, every_layout : bool
        See `own.contenders`.
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
        """The "settings" of a capsule."""
        return {
            **asdict(self.settings),
            "environment": environment(),
            "against": sorted(against),
            "reference": self.reference,
            "every_layout": self.every_layout,
        }


class Run:
    """Measures items one after the other into a capsule's document.

    Parameters
    ----------
    options : Options
    peers : Field
        As `peers.gather` returns it.
    clock : Clock
    before : dict, optional
        A capsule to go on with: its rows are kept.

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
        self.document = capsule.plain(
            capsule.new(
                options.command,
                machine=conditions.machine(options.device),
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
        for name, entry in capsule.plain(measured).items():
            known = ceilings.get(name)
            samples = [*(known or {}).get("samples", ()), *entry.get("samples", ())]
            best = max((e for e in (known, entry) if e), key=lambda e: e["value"])
            ceilings[name] = {**best, "samples": samples}

    def _raise_ceilings_by(self, probes: Mapping[str, Sequence[float]]) -> None:
        """A probe between rounds that shows more than the ceiling is the ceiling: rows are derived anew."""
        higher = {}
        for name, values in probes.items():
            entry = self.document["ceilings"].get(name)
            if entry and values and max(values) > entry["value"]:
                higher[name] = {**entry, "value": max(values), "samples": [max(values)]}
        if higher:
            self._raise_ceilings(higher)
            for row in self.document["rows"]:
                figures.summarise(row, self.document["ceilings"], self.document["settings"])

    # -- measuring -------------------------------------------------------------------------------------
    def measure(self, items: Sequence[Item]) -> dict[str, Any]:
        """Measure what is not there yet; returns the capsule's document, which also stands in the file.

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

    def _fail(self, row: str, contender: str | None, reason: str) -> None:
        self.document["failures"].append({"row": row, "contender": contender, "reason": reason})
        self.options.say(f"{row}{f', {contender}' if contender else ''}: {reason}")

    def _contenders(self, item: Item) -> tuple[list[Contender], list[dict[str, Any]]]:
        """Who takes part, and entries for those who cannot."""
        options = self.options
        if item.op == STEP:
            return steps.contenders(item, options.device, list(self.peers.modules))
        found = own.contenders(
            item, options.device, reference=options.reference, every_layout=options.every_layout
        )
        there = {c.implementation for c in found}
        declined = [
            capsule.absent(i.label, OWN, why)
            for i in options.users
            if i.op == item.op and i not in there and (why := i.refusal(item.problem, item.math))
        ]
        others, lacking = self.peers.contenders(item, options.device)
        declined += [capsule.absent(name, PEERS[name], reason) for name, reason in lacking.items()]
        return [*found, *others], declined

    def _row(self, item: Item) -> dict[str, Any] | None:
        contenders, declined = self._contenders(item)
        if not contenders:
            reasons = "; ".join(f"{d['name']}: {d['refused']}" for d in declined)
            raise OptionError(f"nobody on {self.options.device} takes it{f' ({reasons})' if reasons else ''}")
        began = time.monotonic() - self._begin
        measure = steps.race if item.op == STEP else race
        result = measure(
            item, contenders, self.clock, self.options.settings, self.options.say, self.document["ceilings"]
        )
        if result.interrupted and not any(result.samples.values()):
            raise KeyboardInterrupt
        self._note_conditions(result, began)
        self._note_kernels(item, contenders, result)
        row = new_row(item)
        row["contenders"] = [self._contender(item, c, result) for c in contenders] + declined
        row["probes"] = capsule.plain(result.probes)
        self._raise_ceilings_by(result.probes)
        if result.interrupted:
            row["partial"] = True
        figures.summarise(row, self.document["ceilings"], self.document["settings"])
        return row

    def _contender(self, item: Item, contender: Contender, result: Result) -> dict[str, Any]:
        """The entry of one contender, without the figures that follow from its samples."""
        name, checks = contender.name, result.checks.get(contender.name)
        refused = result.refused.get(name)
        samples = [] if refused else result.samples.get(name, [])
        marks = [mark for mark in contender.marks if not (mark == own.UNRUN and samples)]
        judged = checks.as_dict() if checks else dict.fromkeys(("before", "during", "after"), "unchecked")
        if samples and judged["before"] == "unchecked" and "unchecked" not in marks:
            marks.append("unchecked")
        if samples and name in result.host_included:
            marks.append(HOST_INCLUDED)
        if refused:
            self._fail(item.id, name, refused + (smaller_batch(item) if _mentions_memory(refused) else ""))
        return capsule.plain({
            "name": name, "library": contender.library, "version": self._version(contender.library),
            "layout": contender.layout, "marks": marks, "facts": contender.facts,
            "workspace_bytes": contender.facts.get("workspace_bytes"),
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
        for entry in result.conditions:
            self.document["conditions"].append(
                capsule.plain({**entry, "t": began + float(entry.get("t", 0))})
            )

    def _note_kernels(self, item: Item, contenders: Iterable[Contender], result: Result) -> None:
        """Sources of convkit's own contenders, and of each CUDA kernel its machine code and status."""
        for c in contenders:
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
        kernels.update({key: sources.merged(kernels.get(key), entry) for key, entry in described.items()})

    def _write(self) -> dict[str, Any]:
        if self.options.path is None:
            return capsule.sealed(self.document)
        return capsule.write(self.document, self.options.path)


def environment() -> dict[str, str]:
    """Variables of this process that change how somebody computes."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(ENVIRONMENT)}


def new_row(item: Item) -> dict[str, Any]:
    """A row without contenders."""
    return capsule.plain({
        "id": item.id, "net": item.net, "layer": item.layer, "op": item.op, "direction": item.direction,
        "problem": item.fields(), "problem_text": work.text_of(item), "dtype": item.dtype, "math": item.math,
        "batch": item.batch, "options": dict(item.options), "absent": list(item.absent),
        "flops": item.flops, "bytes": item.bytes,
    })  # fmt: skip


def kernels_of(contender: Contender, item: Item) -> list[tuple[Implementation, Problem]]:
    """The implementations of convkit's, or of a user's, that a contender runs, with their problems."""
    if isinstance(contender, steps.StepContender):
        return contender.kernels
    return [] if contender.implementation is None else [(contender.implementation, item.problem)]


def _arch(device: str) -> str | None:
    if device != "cuda":
        return None
    from .. import devices

    return getattr(devices.current(), "arch", None)


# ---------------------------------------------------------------------------------------------------
# Whether a run may be gone on with
# ---------------------------------------------------------------------------------------------------
def incompatible(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How the settings or the machine of two capsules differ, in words; None where they agree."""
    for name, value in now["settings"].items():
        if before["settings"].get(name) != value:
            return f"{name} was {before['settings'].get(name)!r}, and is {value!r}"
    for name in _MACHINE:
        if before["machine"].get(name) != now["machine"].get(name):
            was, now_is = before["machine"].get(name), now["machine"].get(name)
            return f"the machine's {name} was {was!r}, and is {now_is!r}"
    for name, about in now["peers"].items():
        version = before["peers"].get(name, {}).get("version")
        if version != about.get("version"):
            return f"{name} was {version or 'missing'}, and is {about.get('version')}"
    if before["convkit"].get("version") != now["convkit"]["version"]:
        return f"convkit was {before['convkit'].get('version')}, and is {now['convkit']['version']}"
    return None


def changed_sources(kernels: Mapping[str, Any], users: Iterable[Implementation] = ()) -> str | None:
    """The first source file that is not what it was, or None.

    Parameters
    ----------
    kernels : dict
        Of a capsule.
    users : iterable of Implementation
        The user's, whose files are looked for by their names.
    """
    users = list(users)
    files = sources.files_of(users)
    for implementation in users:  # the same kernel from a file of another name is another source too
        entry = kernels.get(sources.key_of(implementation))
        file = Path(implementation.source)
        if entry and file.is_file() and sources.sha256(file) != entry["source_sha256"]:
            return sources.display(file)
    for entry in kernels.values():
        built = entry.get("extension")
        known = {entry["file"]: entry["source_sha256"], **entry["includes"]}
        if built:
            known[f"convkit/{built['file']}"] = built["sha256"]
        for name, sha in known.items():
            path = sources.find(name, files)
            if path is not None and sha and sources.sha256(path) != sha:
                return str(name)
    return None


# ---------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------
def out_of_memory(error: BaseException) -> bool:
    """Whether it is NumPy's, CuPy's or PyTorch's way to say so."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__


def _mentions_memory(reason: str) -> bool:
    words = ("MemoryError", "OutOfMemory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return any(word.lower() in reason.lower() for word in words)


class TooLarge(OutOfMemory):
    """An item that cannot fit; `share` is the part of it that could."""

    share = 0.5


def smaller_batch(item: Item, share: float = 0.5) -> str:
    """What to try instead, to stand behind the reason; empty where the batch cannot be smaller."""
    if item.batch < 2:
        return ""
    batch = smaller(item.batch, share)
    return f"; try {f'--batch {batch}' if item.net else f'N = {batch}'}"


def smaller(batch: int, share: float = 0.5) -> int:
    """The largest power of two that is at most this share of the batch, and at least 1."""
    least = max(1, int(batch * share))
    return 1 << (least.bit_length() - 1)


def available_bytes(device: str) -> int | None:
    """Memory that is free; None where the system does not say."""
    if device == "cuda":
        import cupy

        ask = getattr(cupy.cuda.runtime, "memGetInfo", None)
        return int(ask()[0]) if ask else None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def require_memory(item: Item, device: str) -> None:
    """Refuse an item that cannot fit, before the system's way of refusing it ends the process.

    Raises
    ------
    TooLarge
    """
    if item.op == STEP:
        return
    count = item.bytes // np_itemsize(item.dtype)
    wanted = 3 * item.bytes + (0 if device == "cuda" else _CHECKING * 8 * count)
    free = available_bytes(device)
    if free is not None and wanted > free:
        error = TooLarge(
            f"it takes some {wanted / 2**30:.1f} GiB with its check in float64; {free / 2**30:.1f} are free"
        )
        error.share = free / wanted
        raise error
