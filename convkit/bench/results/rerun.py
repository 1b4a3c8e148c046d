"""`convkit verify --rerun`: the rows of a result file measured again, and whether the times agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

from ...check.process import Limits
from ...errors import OptionError
from ...registry import Implementation
from .. import peers, steps
from ..measure import conditions, contained
from ..measure.clocks import clock_for
from ..measure.entry import Settings
from . import compare, machine
from .run import Options, Run

#: Two runs agree where the interval of their ratio comes within this of 1: machines drift by as much.
DRIFT = 0.05
AGREES, DIFFERS = "agrees", "differs"


@dataclass
class Again:
    """What came of it.

    Attributes
    ----------
    rows : list of dict
        As `compare.compare` gives them, with the verdicts `AGREES` and `DIFFERS`.
    lines : list of str
        What is to be said besides.
    failed : int
        How many rows failed their checks this time.
    """

    rows: list[dict[str, Any]]
    lines: list[str]
    failed: int
    differ: int


def rerun(
    document: Mapping[str, Any],
    kernels: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    begin: Callable[[int], None] = lambda rows: None,
) -> Again:
    """Measure the rows of a result file again, with its settings, and compare.

    A time that differs is no failure: the machine may be busier. An entry that was right, and is wrong
    now, is one.

    Raises
    ------
    OptionError
        If the result file is of another kind of device, or of another machine.
    """
    device = conditions.device_of(document["machine"].get("device"))
    here = machine.machine(device)
    for name in machine.SAME:
        if here.get(name) != document["machine"].get(name):
            raise OptionError(
                f"it cannot be rerun here: its {name} is {document['machine'].get(name)!r}, "
                f"and this machine's {here.get(name)!r}"
            )
    known = {f.name for f in fields(Settings)}
    settings = Settings(**{k: v for k, v in document["settings"].items() if k in known})
    with ExitStack() as stack:
        users, _ = contained.load(list(kernels), None if device != "cpu" else Limits(), stack)
        return _rerun(document, device, settings, users, say, begin)


def _rerun(
    document: Mapping[str, Any],
    device: str,
    settings: Settings,
    users: Sequence[Implementation],
    say: Callable[[str], None],
    begin: Callable[[int], None],
) -> Again:
    options = Options(
        device, settings, reference=bool(document["settings"].get("reference")),
        every_layout=bool(document["settings"].get("every_layout")), users=users, say=say,
    )  # fmt: skip
    run = Run(options, peers.gather(list(document["peers"]), device), clock_for(device))
    items = [steps.item_of(row) for row in document["rows"]]
    begin(len(items))
    again = run.measure(items)
    rows, unmatched = compare.compare(document, again, every=True)
    for row in rows:
        close = row["low"] <= 1 + DRIFT and row["high"] >= 1 - DRIFT
        row["verdict"] = AGREES if close else DIFFERS
    differ = sum(row["verdict"] == DIFFERS for row in rows)
    wrong = [f for f in again["failures"] if (f["row"], f["contender"]) not in _failures(document)]
    lines = [
        *([] if rows else ["no row could be measured again"]),
        f"{len(rows) - differ} of {len(rows)} times agree (intervals, and {DRIFT:.0%}), {differ} differ",
        *(f"not there now: {line}" for line in unmatched),
        *(f"failed now: {f['row']}, {f['entry']}: {f['reason']}" for f in wrong),
    ]
    return Again(rows, lines, len(wrong), differ)


def _failures(document: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(f["row"], f["contender"]) for f in document["failures"]}
