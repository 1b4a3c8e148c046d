"""What takes part in a measurement, how long it may take, and what came out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...check.process import Contained
from ...registry import Implementation
from . import stats

Arrays = dict[str, Any]
CACHES = ("cold", "warm")
#: The library of convkit's own entries, and of users'; and the mark of the one that is chosen.
OWN, PICKED = "convkit", "picked"
#: The mark of an entry that waits for a GPU inside its call: its times are no times of the device alone.
HOST_INCLUDED = "host included"
#: Marks of a user's implementation: whether it runs in a process of its own.
CONTAINED, NOT_CONTAINED = "contained", "not contained"
#: The mark of a candidate whose call takes less than the way to its process: that is known too badly.
TOO_SHORT = "too short to compare"
#: Marks of what has not passed the gate as it is now, and of what has passed its quick cases alone; a race
#: begins with these.
NOT_PASSED, QUICK_ONLY = "has not passed the gate", "quick check only"


@dataclass
class Entry:
    """One way to do an item's work.

    Attributes
    ----------
    name : str
        "winograd", "torch", "cudnn:graph:eng37{k2=1}"; unique within an item.
    library : str
        "convkit", "PyTorch", "ONNX Runtime", "JAX", "cuDNN".
    bind : callable
        ``bind(inputs, outputs) -> run``. `inputs` and `outputs` are NCHW arrays on the item's device by
        name, the inputs read-only; an optional input may be None. ``run()`` does the work, and nothing else:
        what needs another layout is copied by `bind`. Called anew, with the same memory, whenever the inputs
        have new values: before each timed call for convkit's own, once a turn for other libraries. So it
        should keep what is expensive and does not depend on the values (a compiled function, a session, a
        plan).
    read : callable, optional
        The outputs of the last run as NCHW NumPy arrays by name. None: they are in the `outputs` that were
        bound.
    layout : str
    facts : dict
        Engine, algorithm, "workspace_bytes", "algorithm_flops" (fewer than the definition's), declared
        determinism, rank among the heuristic's, ...
    marks : tuple of str
        "picked", "tuned", "heuristic", "not yet run on a GPU", "unchecked" (against float64, in the race).
    implementation : Implementation, optional
        convkit's own, which the gate judges.
    memory : callable, optional
        The arrays that the run which was bound last writes to, by any names, where those are not the
        `outputs`: they are filled with NaN before a call, and looked at as soon as it returns. None:
        unknown, or `outputs`.
    trespass : callable, optional
        Where it has memory of its own: an input there that is not what was written, and where it was written
        outside its tensors; empty strings where all is well.
    look : callable, optional
        ``look(part) -> arrays``: NCHW copies of a part (`fresh.Part`) of the last run's outputs, and of no
        more, so that little time passes between the end of a call and its copy. None: a part of what `read`
        gives, or of the `outputs`.
    process : Contained, optional
        The process of its own in which it runs.
    """

    name: str
    library: str
    bind: Callable[[Arrays, Arrays], Callable[[], None]]
    read: Callable[[], Arrays] | None = None
    layout: str = "NCHW"
    facts: dict[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    implementation: Implementation | None = None
    memory: Callable[[], Arrays] | None = None
    trespass: Callable[[], tuple[str, str]] | None = None
    look: Callable[[Any], Arrays] | None = None
    process: Contained | None = None


@dataclass
class Settings:
    """How long and how often.

    Attributes
    ----------
    rounds : int
        Turns of each entry. With the default and 10 calls in a turn, a difference of 2 % is found under
        noise of 5 % (in four of five runs). Below 6 rounds nothing can be a win or a loss.
    turn_s, pause_s : float
        Seconds that a turn of short calls is filled with, flushes and fresh inputs included, and of rest
        before it.
    budget_s : float
        Seconds for one entry's turns: a slow one gets fewer rounds, at least 1. The one that is marked
        "picked" is in every round that any other is in, since ratios pair rounds.
    cache : {"cold", "warm"}
        Whether caches are evicted before each call. Warm: the inputs were written just before.
    seed : int
        Of the order of turns. Inputs, and which calls are looked at, have no seed: an entry may not know.
    quick : bool
        Only for the record; `quickly` makes settings with fewer rounds (6) and shorter turns.
    confidence : float
        Of the intervals.
    gate : bool
        Put convkit's entries through the small cases of `convkit.check` first, once in a process. At the
        timed size every entry is compared with float64 in any case.
    """

    rounds: int = 18
    turn_s: float = 0.1
    pause_s: float = 0.02
    budget_s: float = 30.0
    cache: str = "cold"
    seed: int = 0
    quick: bool = False
    confidence: float = 0.95
    gate: bool = True

    @classmethod
    def quickly(cls, **changes: Any) -> Settings:
        """Those of `--quick`."""
        return cls(**{"rounds": stats.LEAST, "turn_s": 0.03, "budget_s": 3.0, "quick": True, **changes})


@dataclass
class Checks:
    """What was found out about one entry: each "passed", a reason, "unchecked", or "" (not got that far).

    `error` is its relative RMS error against float64 at the timed size; `deterministic`, measured, is
    whether the same inputs gave the same bits; `looks` counts the timed calls that were looked at.
    """

    before: str = ""
    during: str = ""
    after: str = ""
    error: float | None = None
    deterministic: bool | None = None
    looks: int = 0

    def as_dict(self) -> dict[str, str]:
        """The "checks" of a result file."""
        return {n: getattr(self, n) or "unchecked" for n in ("before", "during", "after")}


@dataclass
class Result:
    """What a race gave.

    Attributes
    ----------
    samples : dict of str to list of list of float
        By entry: round by round, the milliseconds of each call. Of those that were refused: none.
    refused : dict of str to str
        By entry: why it was not timed, or why its samples are not worth anything.
    checks : dict of str to Checks
    conditions : list of dict
        Of each round: "t" (seconds since the start), "row" (the item's id), what `conditions.sample` says,
        "others".
    probes : dict of str to list of float
        The ceilings, by name ("fma" in GFLOP/s, "copy" in GB/s), round by round; and behind them what was
        measured again where an entry seemed to beat them.
    host_us : dict of str to float
        On a GPU, by entry: microseconds that the host needed to queue a call, the median of all.
    host_included : set of str
        On a GPU, entries of which a call could not be queued as a whole: those that wait for the device.
    cache : str
    interrupted : bool
        A Ctrl-C ended it; complete rounds are kept.
    """

    item: Any
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Checks] = field(default_factory=dict)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    probes: dict[str, list[float]] = field(default_factory=dict)
    host_us: dict[str, float] = field(default_factory=dict)
    host_included: set[str] = field(default_factory=set)
    cache: str = "cold"
    interrupted: bool = False

    def note_host(self, name: str, host_us: Sequence[float], included: bool) -> None:
        """Note what the host needed for an entry's calls; nothing on a CPU."""
        if host_us:
            self.host_us[name] = stats.median(host_us)
        if included:
            self.host_included.add(name)

    def rounds(self, name: str) -> list[float]:
        """One figure for each round of an entry: the median of its calls, in ms."""
        return [stats.median(calls) for calls in self.samples.get(name, ()) if calls]

    def ratio(self, peer: str, own: str, confidence: float = stats.CONFIDENCE) -> stats.Ratio:
        """How many times longer `peer` takes than `own`, paired by round."""
        return stats.ratio_of(self.rounds(peer), self.rounds(own), confidence)


class Clock(Protocol):
    """Times calls on one device; see `clocks.CudaClock` for what one of a GPU has besides.

    Attributes
    ----------
    name, device : str
    slack_ms : float
        By how much the wall clock may exceed a sample for good reasons (launches, synchronisation).
    """

    name: str
    device: str
    slack_ms: float

    def cold(self) -> None:
        """Evict caches."""

    def time(self, run: Callable[[], Any]) -> float:
        """Milliseconds of one call, all that it started included."""

    def synchronize(self) -> None:
        """Wait for the whole device."""

    def probe(self) -> dict[str, float]:
        """What the device can do just now: "fma" in GFLOP/s, "copy" in GB/s; some 50 ms."""

    def ceilings(self) -> dict[str, dict[str, Any]]:
        """The "ceilings" of a result file, with more care: {name: {"unit", "value", "samples", ...}}."""


def on_its_device(clock: Clock) -> contextlib.AbstractContextManager[Any]:
    """A block in which a clock's GPU is the current one."""
    here: Callable[[], contextlib.AbstractContextManager[Any]] = getattr(
        clock, "here", contextlib.nullcontext
    )
    return here()
