"""What is measured in processes of their own: the most memory of a training step, an op's first call.

A process does it once and ends, so that nothing which ran before is counted. Entries take turns as anywhere
else. Nothing is compared with float64 here: the rows of the same work do that.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...cpu import threads
from ...op import Problem
from ...ops.conv2d import Conv2d
from ...ops.linear import Linear
from ...ops.lrn import LRN
from ...ops.maxpool2d import Pool2d
from ..measure.entry import OWN, PICKED, Clock, Entry, Result, Settings
from ..measure.timing import in_turns
from ..peers import PEERS, Missing
from ..peers import whole as networks
from ..work import FIRST_CALL, MEMORY, Item, identity

#: Processes of each entry, at most: an import takes a second or two.
MOST = {MEMORY: 1, FIRST_CALL: 6}
#: Seconds that a process may take.
LONGEST = 900
#: What a process runs: what it took before it imported anything is not the library's.
_PROGRAM = """import resource, sys
try:
    with open("/proc/self/statm") as file:
        start = int(file.read().split()[1]) * resource.getpagesize()
except OSError:
    start = 0
from convkit.bench.results.child import main
sys.exit(main(sys.argv[1], start))
"""


def first_calls() -> list[Item]:
    """The ops whose first call is measured: one image of AlexNet's size, or one of its last layer's rows."""
    conv = Conv2d.of((1, 96, 27, 27), (256, 96, 5, 5), padding=2)
    problems: dict[str, Problem] = {
        "conv2d_fprop": conv,
        "conv2d_dgrad": conv,
        "conv2d_wgrad": conv,
        "lrn_fprop": LRN.of((1, 96, 27, 27)),
        "maxpool2d_fprop": Pool2d.of((1, 96, 27, 27), window=3, stride=2),
        "linear_fprop": Linear(1, 4096, 1000),
    }
    return [
        Item(
            identity("", FIRST_CALL, op, 1, "float32", "fp32"), op, problem, layer=FIRST_CALL, batch=1,
            absent=("b",) if op in ("conv2d_fprop", "linear_fprop") else (),
        )
        for op, problem in problems.items()
    ]  # fmt: skip


@dataclass
class Process(Entry):
    """An entry that is a process.

    Attributes
    ----------
    task : dict
        What `child` is told.
    """

    task: dict[str, Any] | None = None


def entries(item: Item, device: str, peers: Sequence[str]) -> tuple[list[Entry], dict[str, str]]:
    """A process for convkit, and for each other library that can do it; and why one cannot."""
    found: list[Entry] = []
    lacking: dict[str, str] = {}
    for name in (OWN, *peers):
        try:
            titles = _titles(name, item, device)
        except Missing as reason:
            lacking[name] = str(reason)
            continue
        for title in titles:
            task = {
                "kind": item.kind, "peer": name, "title": title, "threads": threads.count(), "op": item.op,
                "problem": item.fields(),
            }  # fmt: skip
            marks = (PICKED,) if name == OWN else ()
            library = PEERS.get(name, OWN)
            found.append(Process(title, library, _bound, layout="", marks=(*marks, "unchecked"), task=task))
    return found, lacking


def _bound(inputs: Any, outputs: Any) -> Callable[[], None]:
    raise NotImplementedError("it runs in a process of its own")


def _titles(name: str, item: Item, device: str) -> list[str]:
    if device != "cpu":
        raise Missing("what a process needs is measured on a CPU")
    if item.kind == MEMORY:
        return [title for title, _ in networks.networks_of(name, item, device)]
    if name not in (OWN, "torch"):
        raise Missing("its first call compiles or builds a session: there is nothing to compare")
    return [name]


def race(
    item: Item,
    entries: Sequence[Entry],
    clock: Clock,
    settings: Settings,
    progress: Callable[[str], None],
    ceilings: dict[str, dict[str, Any]] | None = None,
) -> Result:
    """As `timing.race`: a turn is a process. Samples are megabytes, or milliseconds."""
    result, order = Result(item, cache="warm"), random.Random(settings.seed)
    try:
        for number in range(min(settings.rounds, MOST[item.kind])):
            for entry in in_turns(entries, order, settings.pause_s):
                if entry.name in result.refused:
                    continue
                progress(f"{item.id}: {entry.name}, process {number + 1}")
                try:
                    value = _ask(entry)
                except ChildError as reason:
                    result.refused[entry.name] = str(reason)
                    result.samples.pop(entry.name, None)
                else:
                    result.samples.setdefault(entry.name, []).append([value])
    except KeyboardInterrupt:
        result.interrupted = True
    return result


class ChildError(Exception):
    """A process that gave no answer; the message is why."""


def _ask(entry: Entry) -> float:
    assert isinstance(entry, Process)
    command = [sys.executable, "-c", _PROGRAM, json.dumps(entry.task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise ChildError(f"its process took longer than {LONGEST // 60} minutes") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ChildError(words[:200])
    return float(json.loads(lines[-1])["value"])
