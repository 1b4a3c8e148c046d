"""One implementation, one case: run it where every liberty that it takes shows, and judge what comes out.

Each tensor lies between guard bands inside a larger buffer, an output between bands of another content than
any input's. The implementation runs several times:

1. on other inputs of the same shapes, in the same memory, so that a result which is kept shows;
2. on the inputs of the case, with the inputs' bands, the outputs and the workspace full of 0xFF (a NaN in
   every float type);
3. again, at an address that is aligned to the element alone, with bands and workspace of large numbers of
   either sign, outputs of 0x40 (a small one, to which adding shows), and a kernel's live options in memory.
   The bits must be those of run 2: an element that is not written, an output that is added to, a read beyond
   an input's end, a number that is not read where it should be, and chance differ.
4. in place, once for each input that an output may overwrite, where the op allows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..devices import emulating
from ..op import Op, Tensors
from ..registry import Implementation
from . import sizes
from .attempt import FIRST, SECOND, Question, Run, attempt, bits, last_line
from .cases import Case
from .elements import Place, look
from .faults import Lost, Misdeclared
from .guarded import LARGE, NAN, SMALL, WIDE
from .tolerance import Comparison, compare, expected, kept


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
    kind : str
        What kind of error it raised, where that is a `KernelError`: "compile error", "out of bounds", ...
    missing : bool
        It was not run because this machine, or the emulator, lacks what it needs; `declined` too.
    facts : dict
        What is special about the case, as plain values: see `Case.facts`.
    places : tuple of Place
        The wrong elements of each output.
    sanitized : bool
        Every access to memory was watched: races, bounds, uninitialised reads.
    line : str
        What that has found, file and line first.
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
    kind: str = ""
    missing: bool = False
    facts: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    places: tuple[Place, ...] = ()
    sanitized: bool = False
    line: str = ""

    @property
    def outcome(self) -> str:
        """ "passes", "FAILS", "declines", or "not run" where the machine or the emulator lacks something."""
        if not self.ok:
            return "FAILS"
        return "not run" if self.missing else "declines" if self.declined else "passes"

    def __str__(self) -> str:
        drawn = "" if self.ok else f" (seed {self.seed})"
        found = [*self.reason.splitlines(), *self.line.splitlines()]
        return f"{self.op} {self.implementation!r} {self.outcome} {self.dtype}, {self.case}{drawn}" + "".join(
            f"\n    {row}" for row in found
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
        facts=case.facts,
    )
    refusal, fault = _refusal(implementation, case)
    if fault:
        return replace(blank, ok=False, reason=fault)
    if refusal:
        return replace(blank, declined=True, missing=_missing(implementation), reason=refusal)
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


def _missing(implementation: Implementation) -> bool:
    """Whether this machine lacks what it needs."""
    try:
        return implementation.missing is not None and implementation.missing() is not None
    except Exception:
        return False


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
        facts=case.facts,
    )
    refusal, fault = _refusal(implementation, case)
    if fault:
        return replace(blank, ok=False, reason=fault)
    if not refusal and case.sized and emulating():
        refusal = sizes.too_many_threads(implementation, problem)
    if refusal:
        return replace(blank, declined=True, missing=_missing(implementation), reason=refusal)

    first = attempt(implementation, question, FIRST, first_on=question.others)
    if first.lacks:
        return replace(blank, declined=True, missing=True, reason=first.fault, kind=first.kind)
    if first.fault:
        return replace(blank, ok=False, reason=first.fault, kind=first.kind)
    second = attempt(implementation, question, SECOND)
    if second.fault:
        return replace(blank, ok=False, reason=second.fault, kind=second.kind)
    if reason := _unwritten(first, second):
        return replace(blank, ok=False, reason=reason, places=_unwritten_places(first, second))
    if not _same(first, second):
        return replace(
            blank,
            ok=False,
            reason=_why_different(implementation, question, first, second),
            places=_different_places(first, second),
        )

    found: dict[str, Comparison] = {}
    for name, want in question.wanted.items():
        found[name] = compare(name, first.outputs[name], want, implementation, case.op)
    worst = max(found.values(), key=lambda c: (bool(c.reason), c.ratio))
    rms = max((c.rms for c in found.values() if not np.isnan(c.rms)), default=float("nan"))
    blank = replace(
        blank, ratio=worst.ratio, rms=rms, index=worst.index, got=worst.got, expected=worst.wanted
    )
    if worst.reason:
        reason = "\n".join(c.reason for c in found.values() if c.reason)
        return replace(
            blank,
            ok=False,
            reason=reason + _hint(implementation, question, first),
            places=_wrong_places(question, first, found),
        )
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


def _differ(a: Run, b: Run, name: str) -> np.ndarray:
    """Which elements have other bits, in a row."""
    x, y = a.outputs[name], b.outputs[name]
    differ: np.ndarray = bits(x) != bits(y)
    if differ.any() and x.dtype.kind not in "iu":
        differ &= ~(np.isnan(x) & np.isnan(y)).reshape(-1)
    return differ


def _first_difference(a: Run, b: Run, name: str) -> tuple[int, ...] | None:
    differ = _differ(a, b, name)
    if not differ.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(differ)), a.outputs[name].shape))


def _untouched(first: Run, second: Run, name: str) -> np.ndarray:
    """Which elements hold the poison after both runs, in a row."""
    size = first.outputs[name].dtype.itemsize
    a, b = bits(first.outputs[name]), bits(second.outputs[name])
    left: np.ndarray = (a == int.from_bytes(bytes([NAN]) * size, "little")) & (
        b == int.from_bytes(bytes([SMALL]) * size, "little")
    )
    return left


def _unwritten_places(first: Run, second: Run) -> tuple[Place, ...]:
    return tuple(
        look(name, array, None, _untouched(first, second, name).reshape(array.shape), "which are not written")
        for name, array in first.outputs.items()
    )


def _different_places(first: Run, second: Run) -> tuple[Place, ...]:
    return tuple(
        look(name, array, None, _differ(first, second, name).reshape(array.shape), "which are not repeatable")
        for name, array in first.outputs.items()
    )


def _wrong_places(question: Question, run: Run, found: dict[str, Comparison]) -> tuple[Place, ...]:
    """The wrong elements of each output; nothing where the RMS error of a whole output is what is wrong."""
    if any(c.reason and c.wrong is None for c in found.values()):
        return ()
    places = []
    for name, comparison in found.items():
        got = run.outputs[name]
        wrong = np.zeros(got.shape, bool) if comparison.wrong is None else comparison.wrong
        places.append(look(name, got, question.wanted[name].value, wrong.reshape(got.shape)))
    return tuple(places)


def _unwritten(first: Run, second: Run) -> str:
    """Elements that hold the poison after both runs."""
    for name, array in first.outputs.items():
        left = _untouched(first, second, name)
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
            if far := _far(implementation, question):
                return f"{far}: {values}"
            return f"is not deterministic: the same inputs gave different results, {values}"
    if kind := _is_kept(implementation, question, first):
        return f"{kind}: {values}"
    if not _same(first, attempt(implementation, question, FIRST)):
        return f"depends on an earlier call: {values}"
    for change, meaning in (
        ({"poison": SMALL}, "depends on what its outputs hold before"),
        ({"band": LARGE}, "reads outside its inputs"),
        ({"scratch": LARGE}, "depends on what its workspace holds before"),
        ({"aligned": False}, "depends on the alignment of its arrays"),
        ({"live": True}, "does not read from memory what its header calls live"),
    ):
        setting = replace(FIRST, **change)
        run = attempt(implementation, question, setting, first_on=question.others)
        if run.fault or not _same(first, run):
            return f"{meaning}: {values}"
    return f"gave different results for the same inputs: {values}"


def _far(implementation: Implementation, question: Question) -> str:
    """Whether it writes or reads far outside its tensors, beyond the usual guard bands."""
    wide = [attempt(implementation, question, replace(FIRST, guard=WIDE, band=b)) for b in (NAN, NAN, LARGE)]
    if fault := next((run.fault for run in wide if run.fault.startswith("wrote outside")), ""):
        return fault
    if any(run.fault for run in wide) or not _same(wide[0], wide[1]):
        return ""
    return "" if _same(wide[0], wide[2]) else "reads far outside its inputs"


def _hint(implementation: Implementation, question: Question, first: Run) -> str:
    """What else is known about a wrong result."""
    other = attempt(implementation, question, replace(FIRST, band=0), first_on=question.others)
    if not other.fault and not _same(first, other):
        return " (it reads outside its inputs: other bands around them change the result)"
    if kind := _is_kept(implementation, question, first):
        return f" (it {kind})"
    return ""


def _is_kept(implementation: Implementation, question: Question, first: Run) -> str:
    """Whether the first run's outputs are those of the inputs before, which were others; and why."""
    values = np.concatenate([a.astype(np.float64).reshape(-1) for a in first.outputs.values()])
    values = values[np.isfinite(values) & (values != 0)]
    if not values.size or (values.size > 1 and (values == values[0]).all()):
        return ""  # as good as nothing
    if _equal(question.inputs, question.others):
        return ""
    before = attempt(implementation, replace(question, inputs=question.others), FIRST)
    if before.fault or not _same(first, before):
        return ""
    # What was kept is the right answer to those inputs; what never looked at any is the answer to none.
    case = question.case
    wanted = expected(case.op, case.problem, question.others, case.options)
    if all(
        not compare(name, first.outputs[name], want, implementation, case.op).reason
        for name, want in wanted.items()
    ):
        return "is the result of an earlier call, on other inputs"
    return "does not depend on its inputs: others give the same result"


def _equal(a: Tensors, b: Tensors) -> bool:
    pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]] = [(a[name], b[name]) for name in a]
    return all(x is y or (x is not None and y is not None and x.tobytes() == y.tobytes()) for x, y in pairs)
