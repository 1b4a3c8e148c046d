"""`convkit verify`: does a result file say what its samples say, and are its kernels those installed here?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConvkitError
from ...registry import DEVICES
from .. import steps, work
from ..measure import own
from . import figures, files, sources

OK, FAIL, NOTE = "ok", "FAIL", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    state : {"ok", "FAIL", "note"}
        A note is what cannot be decided here, such as a kernel file that is not installed.
    what : str
    """

    state: str
    what: str

    def __str__(self) -> str:
        return f"{self.state:4}  {self.what}"


def verify(document: Mapping[str, Any], users: Iterable[Path] = ()) -> list[Finding]:
    """Recheck a result file, on any machine.

    Parameters
    ----------
    document : dict
        As `files.load` returns it.
    users : iterable of Path
        Kernel files of the user's own that the result file may speak of.

    Returns
    -------
    list of Finding
        Digest, hashes, every figure recomputed from the samples, and ceilings.
    """
    return [
        *_digest(document),
        *_described(document, list(users)),
        *_kernels(document["kernels"], list(users)),
        *_rows(document),
        *_honest(document),
    ]


def _digest(document: Mapping[str, Any]) -> list[Finding]:
    said, found = document.get("digest"), files.digest(document)
    if said == found:
        return [Finding(OK, f"digest {found[:16]}")]
    return [
        Finding(
            FAIL, f"the digest is not that of the contents: changed since it was written ({str(said)[:16]})"
        )
    ]


# ---------------------------------------------------------------------------------------------------
# Hashes
# ---------------------------------------------------------------------------------------------------
def _described(document: Mapping[str, Any], users: list[Path]) -> list[Finding]:
    """Every kernel that was timed has a record, and that names all files it is made of.

    What is not named would not be compared.
    """
    kernels = document["kernels"]
    found, unnamed = [], set()
    for row in document["rows"]:
        for entry in row["contenders"]:
            if entry["library"] != figures.OWN or not figures.timed(entry):
                continue
            key = f"{row['op']}/{entry['name'].split()[0]}"
            there = bool(kernels) if row["op"] in work.NETWORK_OPS else key in kernels
            if not there and figures.of_time(row):
                found.append(Finding(FAIL, f"{row['id']}: {entry['name']}: nothing says what its source was"))
    for key, record in kernels.items():
        hashes = {record.get("file"): record.get("source_sha256"), **(record.get("includes") or {})}
        path = sources.find(record.get("file") or "", users)
        if path is not None and sources.sha256(path) == record.get("source_sha256"):
            here = sources.includes(path)
            hashes = {**dict.fromkeys(name for name in here if here[name].is_file()), **hashes}
            unnamed |= {name for name in here if name not in hashes}
        if missing := [name for name, sha in hashes.items() if name and not sha]:
            found.append(Finding(FAIL, f"{key}: the hash of {missing[0]} is missing"))
    return found + [  # a wheel has no C++ sources, but the module built from them
        Finding(NOTE, f"{name} was not there when it was measured, so it is not compared")
        for name in sorted(unnamed)
    ]


def _kernels(kernels: Mapping[str, Any], users: list[Path]) -> list[Finding]:
    """Each file of each kernel against the file that is here."""
    files: dict[str, tuple[str, list[str]]] = {}
    found: list[Finding] = []
    for key, record in kernels.items():
        known = {record.get("file"): record.get("source_sha256"), **(record.get("includes") or {})}
        for name, sha in known.items():
            if name and sha:
                before = files.setdefault(name, (sha, []))
                before[1].append(key)
                if before[0] != sha:
                    found.append(Finding(FAIL, f"{name} has two hashes in the same result file"))
    same, absent = 0, []
    for name, (sha, keys) in files.items():
        path = sources.find(name, users)
        if path is None:
            absent.append(name)
        elif sources.sha256(path) == sha:
            same += 1
        else:
            kernel = f"{keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
            found.append(
                Finding(FAIL, f"{name} is not what was measured (of {kernel}): another source is here")
            )
    if same:
        found.append(
            Finding(OK, f"{same} source files of {len(kernels)} kernels are those that were measured")
        )
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        found.append(
            Finding(NOTE, f"not here, so not compared: {', '.join(absent[:3])}{more} (--kernel FILE)")
        )
    return found + _built(kernels)


def _built(kernels: Mapping[str, Any]) -> list[Finding]:
    """Machine code is a machine's own: another build is worth a note, not a fault."""
    records = {e["file"]: e["sha256"] for k in kernels.values() if (e := k.get("extension"))}
    found = []
    for name, sha in records.items():
        path = sources.find(f"convkit/{name}")
        if path is None:
            found.append(Finding(NOTE, f"{name} is not installed here, so not compared"))
        elif sources.sha256(path) == sha:
            found.append(Finding(OK, f"{name} is the module that was measured, to the bit"))
        else:
            found.append(Finding(NOTE, f"{name} here is another build of the C++ kernels"))
    return found


# ---------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------
def _rows(document: Mapping[str, Any]) -> list[Finding]:
    """Every figure, derived anew and compared."""
    wrong: list[str] = []
    for row in document["rows"]:
        again = figures.summarise(copy.deepcopy(row), document["ceilings"], document["settings"])
        wrong += [
            f"{row['id']}: {difference}"
            for field in ("bound", "ranking")
            if (difference := _difference(row.get(field), again[field], field))
        ]
        wrong += [
            f"{row['id']}: {said['name']}: {difference}"
            for said, derived in zip(row["contenders"], again["contenders"])
            for name, value in derived.items()
            if (difference := _difference(said.get(name), value, name))
        ]
    found = [Finding(FAIL, words) for words in wrong]
    if not found:
        count = sum(len(row["contenders"]) for row in document["rows"])
        rows = len(document["rows"])
        words = f"figures and verdicts of {count} entries in {rows} rows follow from the samples"
        found.append(Finding(OK, words))
    return found


def _difference(said: Any, derived: Any, where: str) -> str:
    """Where two values differ first, or an empty string."""
    if isinstance(derived, Mapping):
        if not isinstance(said, Mapping):
            return f"{where} is {said!r}, from the samples {derived!r}"
        for key in (*derived, *(k for k in said if k not in derived)):
            if words := _difference(said.get(key), derived.get(key), f"{where}.{key}"):
                return words
        return ""
    if isinstance(derived, float) and isinstance(said, (int, float)) and not isinstance(said, bool):
        close = math.isclose(said, derived, rel_tol=1e-9, abs_tol=1e-12)
        return "" if close else f"{where} is {said:.6g}, from the samples {derived:.6g}"
    derived = files.plain(derived)
    return "" if said == derived else f"{where} is {said!r}, from the samples {derived!r}"


def _honest(document: Mapping[str, Any]) -> list[Finding]:
    """What must hold whatever the samples are."""
    ids = [row["id"] for row in document["rows"]]
    found = [Finding(FAIL, f"{i} stands there twice") for i in sorted(set(ids)) if ids.count(i) > 1]
    unchecked = 0
    for row in document["rows"]:
        for entry in row["contenders"]:
            where = f"{row['id']}: {entry['name']}"
            samples = [t for calls in entry.get("samples_ms") or () for t in calls]
            if any(not isinstance(t, (int, float)) or not math.isfinite(t) or t <= 0 for t in samples):
                found.append(Finding(FAIL, f"{where}: a sample that is no time"))
            checks = entry.get("checks") or {}
            bad = [f"{k}: {v}" for k, v in checks.items() if v not in ("passed", "unchecked", None)]
            if bad and not entry.get("refused"):
                found.append(Finding(FAIL, f"{where}: is shown although a check failed ({bad[0]})"))
            unchecked += figures.timed(entry) and "passed" not in checks.values()
    found += [*_ceilings(document["ceilings"]), *_problems(document)]
    if unchecked:
        found.append(Finding(NOTE, f"{unchecked} entries were timed and not checked: marked as such"))
    if document.get("interrupted"):
        found.append(Finding(NOTE, "the run was interrupted: not all rows are there"))
    return found


def _problems(document: Mapping[str, Any]) -> list[Finding]:
    """Ids, FLOPs, bytes and the fewest operations follow from the problem, whatever the file says."""
    found = []
    for row in document["rows"]:
        words = ("net", "layer", "op", "batch", "dtype", "math")
        identity = work.identity(*(row.get(word, "") for word in words))
        if row["id"] != identity:
            found.append(Finding(FAIL, f"{row['id']}: by what else the row says, its id is {identity}"))
        try:
            item = steps.item_of(row)
        except ConvkitError as error:
            found.append(Finding(FAIL, f"{row['id']}: {error}"))
            continue
        for name, said, derived in (
            ("batch", row["batch"], item.batch), ("flops", row["flops"], item.flops),
            ("bytes", row["bytes"], item.bytes),
        ):  # fmt: skip
            if said != derived:
                found.append(Finding(FAIL, f"{row['id']}: {name} is {said}, the problem's is {derived}"))
        device = document["machine"].get("device")
        found += _fast(row, item, device if device in DEVICES else None)
    return found


def _fast(row: Mapping[str, Any], item: work.Item, device: str | None) -> list[Finding]:
    """What may stand above the ceiling of arithmetic: by what its implementation declares, and never by more
    than the fastest algorithm of its window."""
    found = []
    for entry in row["contenders"]:
        said = (entry.get("facts") or {}).get("algorithm_flops")
        if said is None:
            continue
        words = ""
        if said < item.fast_flops:
            words = f"fewer than any algorithm needs, {item.fast_flops}"
        elif entry["library"] != figures.OWN or item.op in work.NETWORK_OPS:
            words = "" if said == item.fast_flops else f"and may only be {item.fast_flops}"
        elif (here := own.of_label(entry["name"], item.op, device)) is not None:
            declared = own.algorithm_flops(here, item) or item.flops
            words = "" if said == declared else f"and its implementation declares {declared}"
        if words:
            text = f"FLOPs of its algorithm are {said}, {words}"
            found.append(Finding(FAIL, f"{row['id']}: {entry['name']}: {text}"))
    return found


def _ceilings(ceilings: Mapping[str, Any]) -> list[Finding]:
    """A ceiling is the highest figure that was measured of it: neither more nor less."""
    found = []
    for name, record in ceilings.items():
        samples = [v for v in record.get("samples") or () if isinstance(v, (int, float))]
        if not samples or record.get("value") != max(samples):
            most = f"{max(samples):.6g}" if samples else "missing"
            words = f"the ceiling {name} is {record.get('value')!r}, the highest of its samples {most}"
            found.append(Finding(FAIL, words))
    return found
