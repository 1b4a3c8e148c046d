"""One implementation, one case: run it where every liberty that it takes shows, and judge what comes out.

Each tensor lies between guard bands inside a larger buffer, an output between bands of another content than
any input's. The implementation runs several times:

1. on other inputs of the same shapes, in the same memory, so that a result which is kept shows;
2. on the inputs of the case, with the inputs' bands, the outputs and the workspace full of 0xFF (a NaN in
   every float type);
3. again, at an address that is aligned to the element alone, with bands and workspace of large numbers of
   either sign, outputs of 0x40 (a small one, to which adding shows). The bits must be those of run 2: an
   element that is not written, an output that is added to, a read beyond an input's end, and chance differ.
4. in place, once for each input that an output may overwrite, where the op allows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..devices import emulating
from ..op import Op, Tensors
from ..registry import Implementation
from . import sizes
from .attempt import FIRST, SECOND, Question, Run, attempt, bits, last_line
from .cases import Case
from .faults import Lost, Misdeclared
from .guarded import LARGE, NAN, SMALL
from .tolerance import Comparison, compare, kept


@dataclass(frozen=True)
class Verdict:
    """What the gate found for one implementation in one case.

    Attributes
    ----------
    op, implementation, device : str
    case : str
        The case, in words.
    dtype : str
    ok : bool
        False where it failed.
    declined : bool
        The implementation does not take this problem (its `refusal` says so); it was not run.
    reason : str
        Why it failed, or declined; empty otherwise.
    ratio : float
        Largest error over its bound; at most 1 in what passes.
    rms : float
        RMS of the errors over the RMS of the reference, of the worst output.
    index : tuple of int, optional
        The worst element of the worst output.
    got, expected : float
        The worst element, and what it should be.
    unrun : bool
        Judged by what it declares: it was too large to run.
    seed : int
        Of the inputs and the random problems; `convkit check --seed` asks the same again.
    contained : bool
        It ran in a process of its own.
    """

    op: str
    implementation: str
    case: str
    dtype: str
    ok: bool
    reason: str = ""
    declined: bool = False
    ratio: float = 0.0
    rms: float = float("nan")
    index: tuple[int, ...] | None = None
    got: float = float("nan")
    expected: float = float("nan")
    device: str = "cpu"
    unrun: bool = False
    seed: int = 0
    contained: bool = False

    def __str__(self) -> str:
        word = "declines" if self.declined else "passes" if self.ok else "FAILS"
        drawn = "" if self.ok else f" (seed {self.seed})"
        return f"{self.op} {self.implementation!r} {word} {self.dtype}, {self.case}{drawn}" + (
            f"\n    {self.reason}" if self.reason else ""
        )

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def judge_launch(implementation: Implementation, case: Case) -> Verdict:
    """The verdict on a kernel's launches for a problem that is too large to run: its header says them."""
    blank = Verdict(
        *(case.op, implementation.label, str(case), case.problem.dtype, True),  # type: ignore[attr-defined]
        device=implementation.device,
        unrun=True,
    )
    refusal, fault = _refusal(implementation, case)
    if fault:
        return replace(blank, ok=False, reason=fault)
    if refusal:
        return replace(blank, declined=True, reason=refusal)
    fault = sizes.launch_fault(implementation, case.problem)
    return replace(blank, ok=not fault, reason=fault)


def _refusal(implementation: Implementation, case: Case) -> tuple[str | None, str]:
    """Why an implementation does not take a case, if so; and what is wrong with how it says it."""
    try:
        first, second = (
            implementation.refusal(case.problem, implementation.math, flags=case.flags) for _ in range(2)
        )
    except Misdeclared as error:
        return None, str(error)
    except Lost as error:
        return None, f"asked whether it takes the problem, {error}"
    except Exception as error:
        return None, "its `when` or `missing` raised " + last_line(error)
    if first != second:
        return None, f"its `when` gave {first!r} and then {second!r} for the same problem"
    return first, ""


def judge(implementation: Implementation, question: Question) -> Verdict:
    """The gate's verdict on one implementation in one case.

    Parameters
    ----------
    implementation : Implementation
    question : Question
    """
    case, problem = question.case, question.problem
    blank = Verdict(
        *(case.op, implementation.label, str(case), problem.dtype, True),  # type: ignore[attr-defined]
        device=implementation.device,
    )
    refusal, fault = _refusal(implementation, case)
    if fault:
        return replace(blank, ok=False, reason=fault)
    if not refusal and case.sized and emulating():
        refusal = sizes.too_many_threads(implementation, problem)
    if refusal:
        return replace(blank, declined=True, reason=refusal)

    first = attempt(implementation, question, FIRST, first_on=question.others)
    if first.fault:
        return replace(blank, ok=False, reason=first.fault)
    second = attempt(implementation, question, SECOND)
    if second.fault:
        return replace(blank, ok=False, reason=second.fault)
    if reason := _unwritten(first, second):
        return replace(blank, ok=False, reason=reason)
    if not _same(first, second):
        return replace(blank, ok=False, reason=_why_different(implementation, question, first, second))

    found: list[Comparison] = []
    for name, want in question.wanted.items():
        found.append(compare(name, first.outputs[name], want, implementation, case.op))
    worst = max(found, key=lambda c: (bool(c.reason), c.ratio))
    rms = max((c.rms for c in found if not np.isnan(c.rms)), default=float("nan"))
    blank = replace(
        blank, ratio=worst.ratio, rms=rms, index=worst.index, got=worst.got, expected=worst.wanted
    )
    if worst.reason:
        return replace(blank, ok=False, reason=worst.reason + _hint(implementation, question, first))
    if reason := _moved(question, first):
        return replace(blank, ok=False, reason=reason)
    if not case.heavy and not problem.empty:
        for places in _aliases(question.op):
            run = attempt(implementation, question, FIRST, inplace=places)
            if run.fault or not _same(first, run):
                words = " and ".join(f"{out} in place of {given}" for out, given in places.items())
                return replace(blank, ok=False, reason=f"with {words}: {run.fault or 'other results'}")
    return blank


def _moved(question: Question, run: Run) -> str:
    """What an update changed though its flag forbids it, to the bit."""
    if not kept(question.inputs):
        return ""
    for name, old in question.op.updates.items():
        before = question.inputs[old]
        assert before is not None
        if not np.array_equal(bits(run.outputs[name]), bits(before)):
            return f"{name} must have the bits of {old} where the flag is 0; some are others"
    return ""


def _aliases(op: Op) -> list[dict[str, str]]:
    """Each output in each input's place where it may be; and all at once, in the places that they update."""
    single = [
        {out: given}
        for out in op.outputs
        for given in op.inputs
        if op.inplace or op.updates.get(out) == given
    ]
    return single + ([op.updates] if len(op.updates) > 1 else [])


# ---------------------------------------------------------------------------------------------------
# What went wrong: only ever run after a failure
# ---------------------------------------------------------------------------------------------------
def _same(a: Run, b: Run) -> bool:
    """Whether the outputs agree to the bit; any NaN is as good as another."""
    return all(_first_difference(a, b, name) is None for name in a.outputs)


def _first_difference(a: Run, b: Run, name: str) -> tuple[int, ...] | None:
    x, y = a.outputs[name], b.outputs[name]
    differ = bits(x) != bits(y)
    if differ.any() and x.dtype.kind not in "iu":
        differ &= ~(np.isnan(x) & np.isnan(y)).reshape(-1)
    if not differ.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(differ)), x.shape))


def _unwritten(first: Run, second: Run) -> str:
    """Elements that hold the poison after both runs."""
    for name, array in first.outputs.items():
        size = array.dtype.itemsize
        a, b = bits(array), bits(second.outputs[name])
        left = (a == int.from_bytes(bytes([NAN]) * size, "little")) & (
            b == int.from_bytes(bytes([SMALL]) * size, "little")
        )
        if left.any():
            index = np.unravel_index(int(np.argmax(left)), array.shape)
            where = f"{name}[{', '.join(str(int(i)) for i in index)}]"
            return f"did not write {where}; {int(left.sum())} of {array.size} elements were left as they were"
    return ""


def _why_different(implementation: Implementation, question: Question, first: Run, second: Run) -> str:
    """Change one thing at a time, until it shows what the difference comes from."""
    name, index = next(
        (n, i) for n in first.outputs if (i := _first_difference(first, second, n)) is not None
    )
    here = f"{name}[{', '.join(map(str, index))}]"
    values = f"{here} is {first.outputs[name][index]} and then {second.outputs[name][index]}"
    for _ in range(3):
        again = attempt(implementation, question, FIRST, first_on=question.others)
        if again.fault or not _same(first, again):
            return f"is not deterministic: the same inputs gave different results, {values}"
    if _is_kept(implementation, question, first):
        return f"returns the result of an earlier call, on other inputs: {values}"
    if not _same(first, attempt(implementation, question, FIRST)):
        return f"depends on an earlier call: {values}"
    for change, meaning in (
        ({"poison": SMALL}, "depends on what its outputs hold before"),
        ({"band": LARGE}, "reads outside its inputs"),
        ({"scratch": LARGE}, "depends on what its workspace holds before"),
        ({"aligned": False}, "depends on the alignment of its arrays"),
    ):
        setting = replace(FIRST, **change)
        run = attempt(implementation, question, setting, first_on=question.others)
        if run.fault or not _same(first, run):
            return f"{meaning}: {values}"
    return f"gave different results for the same inputs: {values}"


def _hint(implementation: Implementation, question: Question, first: Run) -> str:
    """What else is known about a wrong result."""
    other = attempt(implementation, question, replace(FIRST, band=0), first_on=question.others)
    if not other.fault and not _same(first, other):
        return " (it reads outside its inputs: other bands around them change the result)"
    if _is_kept(implementation, question, first):
        return " (it is the result of an earlier call, on other inputs)"
    return ""


def _is_kept(implementation: Implementation, question: Question, first: Run) -> bool:
    """Whether the first run's outputs are those of the inputs before, which were others."""
    values = np.concatenate([a.astype(np.float64).reshape(-1) for a in first.outputs.values()])
    values = values[np.isfinite(values) & (values != 0)]
    if not values.size or (values.size > 1 and (values == values[0]).all()):
        return False  # as good as nothing
    before = attempt(implementation, replace(question, inputs=question.others), FIRST)
    return not before.fault and _same(first, before) and not _equal(question.inputs, question.others)


def _equal(a: Tensors, b: Tensors) -> bool:
    pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]] = [(a[name], b[name]) for name in a]
    return all(x is y or (x is not None and y is not None and x.tobytes() == y.tobytes()) for x, y in pairs)
