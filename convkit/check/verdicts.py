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

import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import layouts
from ..call import Call
from ..devices import emulating
from ..op import OPS, Op, Problem, Tensors
from ..registry import Implementation
from . import inputs as fill
from . import sizes
from .cases import Case
from .device import Twins
from .guarded import LARGE, NAN, SMALL, Guarded
from .tolerance import Comparison, Expected, compare, expected, kept

#: Bands around inputs and outputs by the setting's (`None`: that one): numbers of either sign, and no
#: output's is an input's, so that what is computed of one tensor's band and written to another's shows.
INPUT_BANDS = {NAN: (None,), LARGE: (None, 0xDA, 0x5B, 0xDB), 0: (None,)}
OUTPUT_BANDS = {NAN: (0x7E, 0xFE, 0x7D), LARGE: (0xBC, 0x3B, 0xBB), 0: (0x7E, 0xFE, 0x7D)}


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

    def __str__(self) -> str:
        word = "declines" if self.declined else "passes" if self.ok else "FAILS"
        drawn = "" if self.ok else f" (seed {self.seed})"
        return f"{self.op} {self.implementation!r} {word} {self.dtype}, {self.case}{drawn}" + (
            f"\n    {self.reason}" if self.reason else ""
        )

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Question:
    """A case in one dtype, with its inputs and what is expected; one serves every implementation."""

    case: Case
    inputs: Tensors
    others: Tensors
    wanted: dict[str, Expected]

    @classmethod
    def of(cls, case: Case, dtype: str, seed: int = 0) -> Question:
        """Make inputs, reference and bounds.

        Parameters
        ----------
        case : Case
        dtype : str
        seed : int
            The same seed gives the same inputs.
        """
        case = case.of(dtype)
        inputs = fill.make(case, seed)
        opposite = {name: int(not value) for name, value in case.flags.items()}
        others = fill.make(replace(case, fill="normal", flags=opposite), seed, salt=1)
        return cls(case, inputs, others, expected(case.op, case.problem, inputs, case.options))

    @property
    def problem(self) -> Problem:
        return self.case.problem

    @property
    def op(self) -> Op:
        return OPS[self.case.op]


@dataclass(frozen=True)
class Setting:
    """What surrounds the tensors in one run, and what lies in the memory that is to be written."""

    band: int = NAN
    poison: int = NAN
    scratch: int = NAN
    aligned: bool = True

    def around(self, number: int, output: bool) -> int:
        """The band of a tensor, the how-manieth input or output it is."""
        bands = (OUTPUT_BANDS if output else INPUT_BANDS)[self.band]
        found = bands[number % len(bands)]
        return self.band if found is None else found


FIRST = Setting()
SECOND = Setting(LARGE, SMALL, LARGE, aligned=False)


@dataclass
class Run:
    """The outputs of a run, and what the implementation did that it must not (empty: nothing)."""

    outputs: dict[str, np.ndarray]
    fault: str = ""


def attempt(
    implementation: Implementation,
    question: Question,
    setting: Setting,
    *,
    first_on: Tensors | None = None,
    inplace: dict[str, str] | None = None,
) -> Run:
    """Run an implementation once, and look at the memory around its tensors.

    Parameters
    ----------
    implementation : Implementation
    question : Question
    setting : Setting
    first_on : dict, optional
        Tensors of a run before this one, in the same memory.
    inplace : dict, optional
        For an output's name, the input in whose place it is written.
    """
    op, problem, inplace = question.op, question.problem, inplace or {}
    given, taken = _memory(implementation, question, setting, inplace)
    seen: list[np.ndarray | None] = []
    for name in op.inputs:
        array = given[name].array.view() if name in given else None
        if array is not None and name not in inplace.values():
            array.flags.writeable = False
        seen.append(array)
    outputs = tuple(taken[name].array for name in op.outputs)

    options = dict(question.case.options)
    for name in question.case.flags:
        flag = given[name].array.view()
        flag.flags.writeable = False
        options[name] = flag
    scratch = None
    for inputs in (first_on, question.inputs):
        if inputs is None:
            continue
        for name, memory in given.items():
            array = inputs[name]
            assert array is not None
            memory.put(array)
        for name, memory in taken.items():
            if name not in inplace:
                memory.bytes.fill(setting.poison)
        try:
            if implementation.workspace is not None and not problem.empty:
                wanted = int(implementation.workspace(problem))
                scratch = Guarded((wanted,), "uint8", setting.around(len(op.outputs), output=True))
                scratch.bytes.fill(setting.scratch)
                options["workspace"] = scratch.array
            call = Call(op, implementation, problem, tuple(seen), outputs, options)
            if implementation.device == "cuda" and not emulating():
                _run_on_gpu(call, given, taken, scratch)
            else:
                call.run()
        except (Exception, SystemExit) as error:
            return Run({}, "raised " + _last_line(error))
    fault = _trespass(question, given, taken, scratch, inplace)
    return Run({name: memory.get() for name, memory in taken.items()}, fault)


def _memory(
    implementation: Implementation, question: Question, setting: Setting, inplace: dict[str, str]
) -> tuple[dict[str, Guarded], dict[str, Guarded]]:
    """Memory of the inputs that are there, and of the outputs, some of which lie in an input's place."""
    problem = question.problem

    def guarded(name: str, number: int, output: bool) -> Guarded:
        return Guarded(
            problem.shape(name),
            problem.dtype_of(name),
            setting.around(number, output=output),
            aligned=setting.aligned,
            layout=layouts.of(implementation.layout, name),
        )

    given = {
        name: guarded(name, number, output=False)
        for number, (name, array) in enumerate(question.inputs.items())
        if array is not None
    }
    taken = {
        name: given[inplace[name]] if name in inplace else guarded(name, number, output=True)
        for number, name in enumerate(question.op.outputs)
    }
    return given, taken


def _run_on_gpu(
    call: Call, given: dict[str, Guarded], taken: dict[str, Guarded], scratch: Guarded | None
) -> None:
    """Run a call on copies of its memory on the GPU, and copy that back, guard bands and all."""
    memories = [*given.values(), *taken.values(), *([scratch] if scratch else [])]
    twins = Twins(memories)
    options = {**call.options, **({"workspace": twins.array(scratch)} if scratch else {})}
    options |= {name: twins.array(given[name]) for name in call.op.flags if name in given}
    inputs = tuple(twins.array(given[name]) if name in given else None for name in call.op.inputs)
    outputs = tuple(twins.array(taken[name]) for name in call.op.outputs)
    replace(call, inputs=inputs, outputs=outputs, options=options).run()
    twins.bring_back()


def _trespass(
    question: Question,
    given: dict[str, Guarded],
    taken: dict[str, Guarded],
    scratch: Guarded | None,
    inplace: dict[str, str],
) -> str:
    for name, memory in taken.items():
        if where := memory.trespass():
            return f"wrote outside its output {name}: {where}"
        if not question.problem.empty and (what := memory.spare()):
            return f"{what}: output {name}"
    for name, memory in given.items():
        if where := memory.trespass():
            return f"wrote outside its input {name}: {where}"
        before = question.inputs[name]
        if before is None or name in inplace.values():
            continue
        if not np.array_equal(_bits(memory.get(copy=False)), _bits(before)) or memory.spare():
            return f"changed its input {name}"
    if scratch is not None and (where := scratch.trespass()):
        return f"wrote outside its workspace of {scratch.bytes.size} bytes: {where}"
    return ""


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = traceback.format_exception_only(type(error), error)[-1].strip()
    return f"{text} ({Path(frame.filename).name}:{frame.lineno})"


def judge_launch(implementation: Implementation, case: Case) -> Verdict:
    """The verdict on a kernel's launches for a problem that is too large to run: its header says them."""
    blank = Verdict(
        *(case.op, implementation.label, str(case), case.problem.dtype, True),  # type: ignore[attr-defined]
        device=implementation.device,
        unrun=True,
    )
    try:
        refusal = implementation.refusal(case.problem, implementation.math)
    except Exception as error:
        return replace(blank, ok=False, reason="its `when` or `missing` raised " + _last_line(error))
    if refusal:
        return replace(blank, declined=True, reason=refusal)
    fault = sizes.launch_fault(implementation, case.problem)
    return replace(blank, ok=not fault, reason=fault)


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
    try:
        refusal = implementation.refusal(problem, implementation.math, flags=case.flags)
    except Exception as error:
        return replace(blank, ok=False, reason="its `when` or `missing` raised " + _last_line(error))
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
        if not np.array_equal(_bits(run.outputs[name]), _bits(before)):
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
def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def _same(a: Run, b: Run) -> bool:
    """Whether the outputs agree to the bit; any NaN is as good as another."""
    return all(_first_difference(a, b, name) is None for name in a.outputs)


def _first_difference(a: Run, b: Run, name: str) -> tuple[int, ...] | None:
    x, y = a.outputs[name], b.outputs[name]
    differ = _bits(x) != _bits(y)
    if differ.any() and x.dtype.kind not in "iu":
        differ &= ~(np.isnan(x) & np.isnan(y)).reshape(-1)
    if not differ.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(differ)), x.shape))


def _unwritten(first: Run, second: Run) -> str:
    """Elements that hold the poison after both runs."""
    for name, array in first.outputs.items():
        size = array.dtype.itemsize
        a, b = _bits(array), _bits(second.outputs[name])
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
