"""What a swap has shown, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..bench.measure.stats import Ratio, interval, median, ratio_of
from ..check.tolerance import PLAIN
from ..check.verdicts import Verdict
from .places import Names
from .runs import Curve

#: How many times the spread of two right implementations a candidate's gradients may differ, at the median of
#: the steps where they are taken. Rounding that turns a ReLU or a maximum the other way makes single steps
#: differ by more, between right implementations too: the median does not see these.
FACTOR = 10.0
#: What a gradient may be off in any one step, relative, unless two right implementations show a tenth of it.
LARGEST = 0.5
#: Share of the loss by which two curves may always differ: training amplifies rounding, step by step.
CHAOS = 0.25


@dataclass
class Gradients:
    """Relative RMS differences of one parameter's gradient, at the same weights, step by step.

    Attributes
    ----------
    candidate : list of float
        With the candidate, against the network without it.
    spread : list of float
        The same of another right implementation in its place; empty where there is none.
    """

    candidate: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)


@dataclass
class Report:
    """What `swap` has found.

    Attributes
    ----------
    preset, batch, seed, lr, device
        Of the network and the run.
    file : str
    candidates : dict of str to str
        The candidate's name by op.
    places : dict
        For each layer in which it ran, names by op.
    refused : dict of str to str
        Layers that it does not take, and why.
    calls, calls_after : list of Verdict
        The candidate's calls in the first step, and in one more step after the run, by the same process.
    fault : str
        What ended the run before its time, or empty.
    asked : int
        Steps that were asked for.
    without, candidate, other : Curve
        The runs: as the network is, with the candidate, with another right implementation.
    other_names : dict
        What that was, as `places`.
    gradient_steps : list of int
        The steps before which gradients were compared, from 1; before the first one on several batches.
    gradients : dict of str to Gradients
        By parameter.
    declared : float
        The largest error that a candidate declares.
    printed : str
        What the candidate's processes have printed.
    unchecked : list of str
        What is to be said of candidates that have not passed the gate as they are now.
    """

    file: str
    preset: str
    batch: int
    asked: int
    seed: int
    lr: float
    device: str
    candidates: dict[str, str] = field(default_factory=dict)
    places: Names = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    calls: list[Verdict] = field(default_factory=list)
    calls_after: list[Verdict] = field(default_factory=list)
    fault: str = ""
    without: Curve = field(default_factory=Curve)
    candidate: Curve = field(default_factory=Curve)
    other: Curve = field(default_factory=Curve)
    other_names: Names = field(default_factory=dict)
    gradient_steps: list[int] = field(default_factory=list)
    gradients: dict[str, Gradients] = field(default_factory=dict)
    declared: float = 0.0
    printed: str = ""
    unchecked: list[str] = field(default_factory=list)

    @property
    def others(self) -> str:
        """The other right implementations, by name."""
        return ", ".join(dict.fromkeys(n for ops in self.other_names.values() for n in ops.values()))

    # -- gradients ------------------------------------------------------------------------------------
    @property
    def floor(self) -> float:
        """A difference that is none: what the candidate declares, or plain float32 arithmetic.

        Ten times as much where no spread could be measured: there was no other right implementation, or it
        rounds as the first one does. Gradients amplify rounding.
        """
        measured = any(any(found.spread) for found in self.gradients.values())
        return max(PLAIN, self.declared) * (1 if measured else 10)

    def spread_of(self, name: str) -> float:
        """The median spread of a parameter's gradient, at least the floor."""
        return max(self.floor, median(self.gradients[name].spread or [0.0]))

    def ratio_of(self, name: str) -> float:
        """The candidate's median difference in units of the spread."""
        found = self.gradients[name].candidate
        return math.inf if not np.isfinite(found).all() else median(found) / self.spread_of(name)

    @property
    def compared_steps(self) -> list[int]:
        """The steps before which gradients were compared, as far as the run came."""
        count = min((len(found.candidate) for found in self.gradients.values()), default=0)
        return list(dict.fromkeys(self.gradient_steps[:count]))

    @property
    def worst_gradient(self) -> str:
        """The parameter whose gradient differs most, in units of its spread."""
        return max(self.gradients, key=self.ratio_of)

    def _gradient_faults(self) -> list[str]:
        faults = []
        for name in sorted(self.gradients, key=self.ratio_of, reverse=True):
            found = self.gradients[name]
            largest = max(found.candidate)
            if not np.isfinite(found.candidate).all():
                faults.append(f"the gradient of {name} is not finite")
            elif (ratio := self.ratio_of(name)) > FACTOR:
                faults.append(
                    f"the gradient of {name} differs by {median(found.candidate):.1e}, {ratio:.0f} x the "
                    f"spread of two right implementations"
                )
            elif largest > LARGEST and largest > FACTOR * max(found.spread or [0.0]):
                step = self.gradient_steps[found.candidate.index(largest)]
                faults.append(f"before step {step} the gradient of {name} differs by {largest:.1e}")
        return faults

    # -- losses ---------------------------------------------------------------------------------------
    def loss_difference(self, curve: Curve) -> float:
        """Largest difference of a curve from that of the run without the candidate."""
        pairs = list(zip(curve.losses, self.without.losses))
        return max((abs(a - b) for a, b in pairs), default=math.nan)

    def _loss_faults(self) -> list[str]:
        for step, loss in enumerate(self.candidate.losses, 1):
            if not math.isfinite(loss):
                return [f"the loss of step {step} is {loss}"]
        if not self.whole:
            return []
        half = self.asked // 2
        mine, right = (float(np.mean(curve.losses[half:])) for curve in (self.candidate, self.without))
        allowed = CHAOS * right
        if self.other.losses:
            allowed = max(allowed, FACTOR * abs(float(np.mean(self.other.losses[half:])) - right))
        if abs(mine - right) > allowed:
            return [f"the mean loss of the second half is {mine:.3g} instead of {right:.3g}"]
        return []

    # -- time -----------------------------------------------------------------------------------------
    @property
    def ratio(self) -> Ratio:
        """Time of a step with the candidate over that without it, paired step by step."""
        return ratio_of(self.candidate.times, self.without.times)

    # -- verdict --------------------------------------------------------------------------------------
    @property
    def faults(self) -> list[str]:
        """Everything that speaks against the swap, the clearest first."""
        faults = [self.fault] if self.fault else []
        faults += [_wrong_call(v, "") for v in self.calls if not v.ok]
        faults += [_wrong_call(v, ", after the run") for v in self.calls_after if not v.ok]
        return faults + self._loss_faults() + self._gradient_faults()

    @property
    def whole(self) -> bool:
        """Whether everything was done that was asked for."""
        return len(self.candidate.losses) == self.asked and bool(self.calls) and bool(self.calls_after)

    @property
    def ok(self) -> bool:
        """Whether the swap is safe."""
        return self.whole and not self.faults

    @property
    def verdict(self) -> str:
        """The verdict in a sentence."""
        if faults := self.faults:
            more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
            return f"swap FAILS: {faults[0]}{more}"
        if not self.whole:
            return "no verdict: the run did not come to its end"
        name = self.worst_gradient
        loss, right = self.loss_difference(self.candidate), self.loss_difference(self.other)
        other = f" (two right implementations: {right:.1g})" if self.other.losses else ""
        gradients = "gradients have the same bits"
        if any(any(found.candidate) for found in self.gradients.values()):
            gradients = (
                f"gradients differ by at most {self.ratio_of(name):.2g} x the spread of two right "
                f"implementations ({name})"
            )
        return (
            f"swap is safe: all of its {len(self.calls) + len(self.calls_after)} calls in two steps are "
            f"right; {gradients}; loss curves agree within {loss:.1g}{other}; {self.pace}"
        )

    @property
    def pace(self) -> str:
        """How the time of a step compares, in words."""
        if self.device == "emulated":
            return "its time is the emulator's and says nothing"
        ratio = self.ratio
        if ratio.rounds == 0:
            return "its time was not measured"
        times = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        return f"a step takes {ratio.middle:.3g} x the time {times}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `None` where a number is not finite."""
        plain = asdict(self) | {"ok": self.ok, "verdict": self.verdict, "faults": self.faults}
        if self.candidate.times:
            plain["step_ratio"] = self.ratio.as_dict()
        found: dict[str, Any] = _finite(plain)
        return found


def _wrong_call(verdict: Verdict, when: str) -> str:
    layer, _, problem = verdict.case.partition(", ")
    return f"{layer}: {verdict.op} {verdict.implementation!r}{when}: {verdict.reason}; {problem}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def milliseconds(curve: Curve) -> str:
    """Median of the steps and its interval."""
    if not curve.times:
        return "-"
    low, high = interval(curve.times)
    return f"{1e3 * median(curve.times):.3g} [{1e3 * low:.3g}, {1e3 * high:.3g}]"


def losses(values: Sequence[float], most: int = 8) -> str:
    """Some of the losses, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))
    return " ".join(f"{values[n]:.3f}" for n in chosen)
