"""The gate: no implementation is right until it has passed here.

`check` runs implementations on real layers, edge cases, awkward data and random geometries, and holds each
output element to a bound that follows from the length of its reduction (`tolerance`). `verdicts` says what
is watched besides. The tests, the bench, the command line and users all call the same code.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import checked
from ..cuda.emulate import emulate
from ..devices import emulating, gpu_found
from ..errors import OptionError, unknown
from ..op import OPS, Problem
from ..options import integer
from ..registry import Implementation, implementations
from . import process, sizes
from .attempt import FIRST, Question, attempt
from .cases import Case, all_cases, cases, random_cases, varied
from .explain import blocks, summary
from .faults import LACKING
from .like import like
from .network import check_step
from .process import Contained, Limits, Lost
from .rerun import Sanitizer
from .verdicts import Verdict, judge, judge_launch

__all__ = [
    "Case",
    "Limits",
    "Question",
    "Verdict",
    "blocks",
    "cases",
    "check",
    "check_step",
    "judge",
    "like",
    "random_cases",
    "summary",
]

Progress = Callable[[int, int, str], None]


def check(
    op: str | None = None,
    impl: str | None = None,
    *,
    device: str = "cpu",
    quick: bool = False,
    seed: int | None = None,
    progress: Progress | None = None,
    contained: bool = True,
    limits: Limits | None = None,
) -> list[Verdict]:
    """Put implementations through the gate.

    Parameters
    ----------
    op : str, optional
        Only this op; all by default.
    impl : str, optional
        Only implementations of this name.
    device : {"cpu", "cuda"}
        CUDA kernels run on the GPU, or, where there is none or in a `with convkit.emulate()`, under the
        emulator.
    quick : bool
        Leave out the cases of real layers' size, and most random ones.
    seed : int, optional
        Of the inputs and of the random geometries; the same seed asks the same questions. A fresh one by
        default: each verdict has it.
    progress : callable, optional
        Called as ``progress(done, total, what)``.
    contained : bool
        Run implementations that convkit does not ship in processes of their own: a file is loaded there
        anew, a function of a notebook is sent there by value. A function that cannot be sent runs in this
        process, and its verdicts say so. False: all run in this process, for a debugger.
    limits : Limits, optional
        What such a process may take: `Limits(timeout=60, memory=4 << 30)`.

    Returns
    -------
    list of Verdict
        One for each implementation, case and dtype. `declined` ones were not run, and are `ok`; an
        implementation that declines everything has one more verdict, which is not.

    Raises
    ------
    OptionError
        If `op` or `impl` is not known.

    Examples
    --------
    >>> verdicts = convkit.check.check("conv2d_fprop", "reference", quick=True)
    >>> [v for v in verdicts if not v.ok]
    []
    """
    chosen = implementations(op, device=device, layout=None)
    if impl is not None:
        known = {i.name for i in chosen}
        if impl not in known:
            raise unknown(f"implementation of {op}" if op else "implementation", impl, known)
        chosen = [i for i in chosen if i.name == impl]
    seed = fresh_seed() if seed is None else integer("seed", seed, 0)
    apart = (limits or Limits()) if contained else None
    return check_these(chosen, quick=quick, seed=seed, progress=progress, limits=apart)


def fresh_seed() -> int:
    """A seed that cannot be known beforehand, short enough to be typed."""
    return secrets.randbelow(10**9)


def check_these(
    chosen: Iterable[Implementation],
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    random: int | None = None,
    limits: Limits | None = None,
    shipped_too: bool = False,
    printed: Callable[[str, str], None] | None = None,
    only: str = "",
    more: Sequence[Case] = (),
) -> list[Verdict]:
    """Put these implementations through the gate; see `check`.

    `only`: of all cases those with this text in their name, which is `Verdict.case`. `more`: further cases.

    Without `limits` they run in this process. `shipped_too`: those that convkit ships are put into another
    process as well. `printed` is called with the name of each process's file and what the process printed,
    where it did; by default that goes to standard error.
    """
    printed = printed or print_apart
    # Copies: what they declare before they first run, they are held to.
    chosen = given = [replace(i) for i in chosen]
    asked = {
        "quick": quick, "seed": seed, "progress": progress, "random": random, "only": only, "more": more,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        if not emulating() and not gpu_found() and any(i.device == "cuda" for i in chosen):
            stack.enter_context(emulate())
        groups: list[Contained] = []
        if limits is not None:
            there = stack.enter_context(process.contained(chosen, limits, all_of_them=shipped_too))
            chosen, groups = there
        passed: list[Asked] = []
        verdicts = list(in_turn(chosen, passed=passed, **asked))  # type: ignore[arg-type]
        verdicts += _second_look(groups, passed, seed)
        for i, registered in zip(chosen, given, strict=True):
            mine = [v for v in verdicts if (v.op, v.implementation, v.device) == (i.op, i.label, i.device)]
            verdicts += (rest := _about_the_rest(i, mine, seed))
            if not only or any(not v.ok for v in mine):  # some cases tell of a fault, not of a pass
                checked.record(registered, [*mine, *rest], quick=quick or random is not None)
        for group in groups:
            group.close()
            if text := group.printed():
                printed(group.name, text)
    ops = dict.fromkeys(i.op for i in chosen)
    order = {(i.op, i.label): n for n, i in enumerate(i for op in ops for i in chosen if i.op == op)}
    return sorted(verdicts, key=lambda v: order[v.op, v.implementation])


def print_apart(name: str, text: str) -> None:
    """Print what a candidate's process has printed."""
    print(f"\n{name} printed:\n{textwrap.indent(text.rstrip(), '  | ', lambda line: True)}", file=sys.stderr)


#: The case of a verdict on all that was not run any more.
REST = "the remaining cases"


def _about_the_rest(i: Implementation, mine: list[Verdict], seed: int) -> list[Verdict]:
    """A verdict on cases that were not run, where that is more than single ones."""
    blank = Verdict(*(i.op, i.label, "all cases", i.dtypes[0], False), device=i.device, seed=seed)
    group = process.group_of(i)
    if group is not None and group.stopped:
        case = REST if mine else "before the first case"
        return [replace(blank, case=case, reason=f"not run: {group.why_stopped}", contained=True)]
    if not all(v.declined or v.unrun for v in mine):
        return []
    lacking = [v for v in mine if v.missing]
    lacks, why = bool(lacking), f": {(lacking or mine)[0].reason}" if mine else ""
    reason = f"not one case could be run, so nothing is known about it{why}"
    lack = {"ok": lacks, "declined": lacks, "missing": lacks}
    return [replace(blank, reason=reason, contained=group is not None, **lack)]  # type: ignore[arg-type]


#: Cases of each implementation that are asked once more in a new process.
_AGAIN = 3


def _second_look(groups: Sequence[Contained], passed: list[Asked], seed: int) -> list[Verdict]:
    """Verdicts on some cases that passed, in new processes: what depends on the calls before shows."""
    rng = np.random.default_rng([seed, 2])
    found: list[Verdict] = []
    for group in groups:
        mine = [p for p in passed if process.group_of(p.implementation) is group and not p.case.heavy]
        if group.stopped or not mine:
            continue
        group.renew()
        by_name: dict[str, list[Asked]] = {}
        for one in mine:
            by_name.setdefault(f"{one.implementation.op} {one.implementation.label}", []).append(one)
        for several in by_name.values():
            for n in rng.permutation(len(several))[:_AGAIN]:
                one = several[n]
                verdict = judge(one.implementation, Question.of(one.case, one.dtype, seed))
                if not verdict.ok:
                    reason = f"passed at first, and then, in a new process: {verdict.reason}"
                    found.append(replace(verdict, reason=reason, seed=seed, contained=True))
    return found


#: A case in one dtype, and whom it is asked.
Item = tuple[Case, str, list[Implementation]]


class Asked(NamedTuple):
    """A case that an implementation has been asked."""

    implementation: Implementation
    case: Case
    dtype: str


def in_turn(
    chosen: Iterable[Implementation],
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    random: int | None = None,
    passed: list[Asked] | None = None,
    only: str = "",
    more: Sequence[Case] = (),
) -> Iterator[Verdict]:
    """The verdicts of `check_these` as they are found, case by case, so that a caller may stop early.

    What passes is added to `passed`.
    """
    by_op: dict[str, list[Implementation]] = {}
    for implementation in chosen:
        by_op.setdefault(implementation.op, []).append(implementation)
    plan: list[Item] = []
    for op, group in by_op.items():
        for case in more:
            plan += _with_dtypes(case, group, None) if case.op == op else []
        for index, case in enumerate(all_cases(op, quick=quick, seed=seed, random=random)):
            plan += _with_dtypes(case, group, index if quick or case.sized else None)
        for implementation in group:
            plan += _its_own(implementation, quick, seed, random)
    if only:
        plan = [item for item in plan if only in str(item[0].of(item[1]))]
        if not plan:
            raise OptionError(f"no case has {only!r} in its name, with this seed and these options")
    sanitizer, hopeless = Sanitizer(), _Hopeless()
    for done, (case, dtype, group) in enumerate(plan):
        if progress:
            progress(done, len(plan), f"{case.op}, {case.name}")
        # The reference need not be asked about a real layer: what it would be held against is itself.
        group = [i for i in group if not (case.heavy and i.name == "reference") and not _stopped(i)]
        case = case.of(dtype)
        # Where no implementation takes it, the reference's work is spared.
        taken = not case.unrun and any(_takes(i, case) for i in group)
        question = Question.of(case, dtype, seed) if taken else Question(case, {}, {}, {})
        for i in group:
            if _stopped(i) or hopeless(i, dtype):  # since just now: it may share its process with another one
                continue
            if case.unrun:
                verdict = judge_launch(i, case)
            else:
                verdict = hopeless.seen(i, sanitizer.look(i, question, judge(i, question)), case)
            if passed is not None and verdict.ok and not verdict.declined and not case.unrun:
                passed.append(Asked(i, case, dtype))
            yield replace(verdict, seed=seed, contained=process.group_of(i) is not None)
    if progress:
        progress(len(plan), len(plan), "")


class _Hopeless:
    """Kernels that do not compile in a dtype: what one case has shown need not be shown by a hundred."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], bool] = {}

    def __call__(self, i: Implementation, dtype: str) -> bool:
        return self._found.get((i.op, i.label, i.device, dtype), False)

    def seen(self, i: Implementation, verdict: Verdict, case: Case) -> Verdict:
        """Take note of the verdict on a case; the first one that has run something decides."""
        if (verdict.declined and not verdict.missing) or case.problem.empty:
            return verdict
        bad = verdict.kind in ("compile error", *LACKING)
        if self._found.setdefault((i.op, i.label, i.device, verdict.dtype), bad) and bad:
            more = f"the other cases in {verdict.dtype} were not tried"
            return replace(verdict, reason=f"{verdict.reason}\n{more}")
        return verdict


def _stopped(implementation: Implementation) -> bool:
    group = process.group_of(implementation)
    return group is not None and group.stopped


def _with_dtypes(case: Case, group: list[Implementation], rare: int | None) -> list[Item]:
    found = []
    for number, dtype in enumerate(dict.fromkeys(d for i in group for d in i.dtypes)):
        takers = [i for i in group if dtype in i.dtypes]
        if rare is not None and dtype != "float32":  # a third of these cases in each other dtype
            takers = [i for i in takers if (rare + number) % 3 == 0 or "float32" not in i.dtypes]
        if case.heavy:  # the others would ask the same question again, slowly
            takers = [i for i in takers if dtype == ("float32" if "float32" in i.dtypes else i.dtypes[0])]
        if takers:
            found.append((case, dtype, takers))
    return found


def _its_own(implementation: Implementation, quick: bool, seed: int, random: int | None) -> list[Item]:
    """Problems that this implementation alone gives reason to ask about.

    Those at its limits; random ones, where it is made for few and those of everyone pass it by; and for a
    kernel file launches that are too large to run, which are judged by its header.
    """
    op, count = implementation.op, random if random is not None else 5 if quick else 40

    def accepts(problem: Problem) -> bool:
        return _takes(implementation, Case(op, problem, ""), any_dtype=True)

    drawn = [c.problem for c in random_cases(op, count, seed)]
    asked: list[Case] = []
    own: list[Case] = []
    if implementation.when is not None and 2 * sum(map(accepts, drawn)) < count:
        asked += random_cases(op, count, seed + 1, accepts, draws=200)
    if random != 0:
        rng = np.random.default_rng([seed, *map(ord, implementation.label)])
        fixed = [c.problem for c in cases(op) if not c.heavy and not c.problem.empty]
        more = [*(c.problem for c in asked), *drawn, *fixed]
        limits = sizes.own_problems(implementation, 8 if quick else 24, rng, accepts, more)
        own = [varied(op, problem, name, index) for index, (name, problem) in enumerate(limits)]
    if implementation.device == "cuda":
        asked += [Case(op, g, name, fill=fill) for name, fill, g in OPS[op].cases.on_device()]
    plan = [(case, dtype, [implementation]) for case in asked for dtype in implementation.dtypes]
    for index, case in enumerate(own):
        plan += _with_dtypes(case, [implementation], index)
    if sizes.runner(implementation) is not None:
        far = [Case(op, problem, "not run, its launch alone", unrun=True) for problem in OPS[op].cases.huge()]
        plan += [(case, implementation.dtypes[0], [implementation]) for case in far]
    return plan


def _takes(implementation: Implementation, case: Case, any_dtype: bool = False) -> bool:
    try:
        if any_dtype:
            case = case.of(implementation.dtypes[0])
        return implementation.refusal(case.problem, implementation.math, flags=case.flags) is None
    except Exception:
        return True  # judge() says what it raised


#: Work that the counting emulator does in some seconds.
_COUNTED_FLOPS = 3e7


def count(implementation: Implementation) -> tuple[Case, str | None, list[Any]]:
    """How each line of a CUDA kernel uses memory, in the largest case that is quick enough, emulated.

    Returns
    -------
    case : Case
    fault : str or None
        What went wrong with it.
    counted : list
        The emulator's counters, one for each line that accesses memory.
    """
    op = implementation.op
    fitting = [c for c in cases(op) if not c.problem.empty and _fits(implementation, c)]
    case = max(fitting, key=lambda c: c.problem.flops(op))
    with emulate(counters=True) as emulator:
        fault = attempt(implementation, Question.of(case, implementation.dtypes[0]), FIRST).fault
    return case, fault, emulator.counted


def _fits(implementation: Implementation, case: Case) -> bool:
    flops = case.problem.flops(implementation.op)
    return flops < _COUNTED_FLOPS and _takes(implementation, case, any_dtype=True)
