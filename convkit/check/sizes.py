"""Sizes that a kernel may have a limit at: one extent of a small problem is stretched at a time.

A kernel that is right for four images, for 300 filters, or wherever the last block is not full, may be wrong
beyond. So each extent of each op climbs a ladder with a step below, at and beyond each power of two, while
the others stay small, which keeps a case cheap. `own_cases` adds what one candidate alone gives reason to
ask: sizes around the numbers in its header and its code, and the largest that its `when` accepts.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np

from ..cuda.prepare import Runner
from ..errors import ConvkitError
from ..op import OPS, Problem
from ..registry import Implementation

#: Values of an extent that tensors have. Whole blocks of 64 to 1024, and one element more than fits them.
LADDER = (5, 9, 17, 33, 64, 65, 129, 256, 513, 1024)
#: Values of windows, strides, dilations and paddings.
OPTIONS = (4, 6, 7, 13)

#: What a case may cost that is not heavy: elements of all tensors, FLOPs.
CHEAP = 300_000, 4e6


def cost(op: str, problem: Problem) -> tuple[int, float]:
    """Elements of all tensors, and FLOPs."""
    names = (*OPS[op].inputs, *OPS[op].outputs)
    return sum(prod(problem.shape(name)) for name in names), problem.flops(op)


def within(op: str, problem: Problem, limit: tuple[int, float]) -> bool:
    """Whether a problem costs no more than the limit."""
    return all(a <= b for a, b in zip(cost(op, problem), limit, strict=True))


# ---------------------------------------------------------------------------------------------------
# One extent at a time
# ---------------------------------------------------------------------------------------------------
def _stretched(op: str, base: Problem, extent: str, value: int) -> Problem | None:
    """The base with that extent, or None where there is no such problem."""
    stretch = OPS[op].cases.extents.get(extent)
    if stretch is None:
        return None
    try:
        return stretch(base, value)
    except ConvkitError:
        return None


def stretched_at_random(op: str, problem: Problem, rng: np.random.Generator) -> Problem:
    """The problem with one extent drawn anew, if it stays cheap: each octave up to 1024 is as likely."""
    extents = list(OPS[op].cases.extents)
    if not extents:
        return problem
    extent, value = extents[int(rng.integers(len(extents)))], int(2 ** rng.uniform(0, 10))
    found = _stretched(op, problem, extent, value)
    return found if found is not None and within(op, found, CHEAP) else problem


def _ladder(op: str) -> Iterator[tuple[str, Problem]]:
    """(name, problem) for each rung of each extent."""
    near, *_, far = OPS[op].cases.bases() * 2
    for extent in OPS[op].cases.extents:
        rungs: tuple[int, ...] = OPTIONS if extent in OPS[op].cases.small else LADDER
        if extent in ("R", "S"):
            rungs = (*OPTIONS, 33, 47)
        if extent == "groups":  # many small products, one after the other, in the reference
            rungs = (*(value for value in rungs if value <= 65), 97)
        for value in rungs:
            if (problem := _stretched(op, near if value < 200 else far, extent, value)) is not None:
                yield f"{extent} {value}", problem


def problems(op: str) -> Iterator[tuple[str, Problem, bool]]:
    """(name, problem, whether it is heavy) for every size that the gate asks of an op."""
    asked = OPS[op].cases
    ladder = asked.ladder()
    for name, problem in (*(_ladder(op) if ladder is None else ladder), *asked.more()):
        yield name, problem, not within(op, problem, CHEAP)
    for name, problem in asked.large():
        yield name, problem, True


# ---------------------------------------------------------------------------------------------------
# What a candidate itself gives reason to ask
# ---------------------------------------------------------------------------------------------------
def _integers(text: str) -> list[int]:
    """Integer literals of C++ source; comments and the parts of names and of fractions left out."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    found = re.findall(r"(?<![\w.])(0[xX][0-9a-fA-F]+|\d+)(?![\w.]*\.)[uUlL]*\b(?!\.)", code)
    return [int(n, 0) if n[:2].lower() == "0x" else int(n) for n in found]


def _of_code(code: types.CodeType, names: dict[str, Any], depth: int = 0) -> Iterator[int]:
    """Integers in a Python function: its constants, and the globals that it names, functions included."""
    for constant in code.co_consts:
        parts = constant if isinstance(constant, (tuple, frozenset)) else (constant,)
        yield from (p for p in parts if type(p) is int)
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant, names, depth)
    for name in code.co_names:
        yield from _of_value(names.get(name), depth + 1)


def _of_value(value: Any, depth: int = 0) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, functools.partial):
        yield from _of_value(value.func, depth)
        for argument in (*value.args, *value.keywords.values()):
            yield from _of_value(argument, depth + 1)
    elif isinstance(value, types.FunctionType) and depth < 3:
        yield from _of_code(value.__code__, value.__globals__, depth)
        for cell in value.__closure__ or ():
            try:
                yield from _of_value(cell.cell_contents, depth + 1)
            except ValueError:  # a cell that is still empty
                pass


def _expressions_of(header: Any) -> Iterator[str]:
    yield from header.let.values()
    yield from (text for text in (header.when, header.workspace) if text)
    for launch in header.launches:
        yield from (*launch.grid, *launch.block, launch.shared)


def runner(implementation: Implementation) -> Runner | None:
    """What launches a kernel file, in whichever process its kernels run; None for anything else."""
    run = getattr(implementation.run, "runner", implementation.run)
    return run if isinstance(run, Runner) else None


def hints(implementation: Implementation) -> tuple[list[int], list[int], str]:
    """What a candidate's text says of its limits: integers that it declares, those of its code, and the text.

    Of a kernel file: the tile and the numbers in the header's expressions; those in the source. Of a Python
    function: those that `when` mentions; those of the function and of what it calls in its own module.
    """
    launched = runner(implementation)
    if launched is not None:
        header = launched.kernel.header
        declared = [v for tile in (header.tile, *header.tiles) for v in tile.values()]
        for expression in _expressions_of(header):
            declared += _integers(expression)
        source = launched.kernel.source
        return declared, _integers(source), "\n".join((*_expressions_of(header), source))
    if ask := getattr(implementation.run, "hints", None):  # it is in another process
        return ask()
    text = ""
    for function in (implementation.run, implementation.when):
        with contextlib.suppress(OSError, TypeError):  # typed into a console, or no function
            text += inspect.getsource(function)  # type: ignore[arg-type]
    return [*_of_value(implementation.when)], [*_of_value(implementation.run)], text


def constants(declared: list[int], code: list[int]) -> tuple[list[int], list[int]]:
    """Integers that may be a limit of a candidate, each once: those it declares, those of its code."""
    first = dict.fromkeys(n for n in declared if 2 <= n <= 2**17)
    rest = dict.fromkeys(n for n in code if 2 <= n <= 2**17 and n not in first)
    return [*first], [*rest]


#: What code calls an extent that has another name here.
_CALLED = {"C": "channels", "K": "filters", "size": "elements"}


def _named(text: str, extents: list[str]) -> Iterator[tuple[str, int]]:
    """(extent, number) for each comparison or remainder of the two that the code spells out."""
    for name, number in re.findall(r"\b(\w+)\s*(?:[<>=!]=?|%)\s*(\d+)\b", text):
        extent = name if name in extents else _CALLED.get(name, "")
        if extent in extents and 2 <= int(number) <= 2**17:
            yield extent, int(number)


def _pairs(
    implementation: Implementation, extents: list[str], rng: np.random.Generator
) -> Iterator[tuple[str, int]]:
    """(extent, number), each once: what the code names first, then extents of tensors, then the others."""
    small = OPS[implementation.op].cases.small
    *numbers, text = hints(implementation)
    declared, code = constants(*numbers)
    rng.shuffle(code)
    seen = dict.fromkeys(_named(text, extents))
    yield from seen
    turns = []
    for number in (*declared, *code):
        order = [extents[i] for i in rng.permutation(len(extents))]
        turns.append([(extent, number) for extent in sorted(order, key=small.__contains__)])
    for turn in zip(*turns):
        yield from (pair for pair in turn if pair not in seen)


def _limit(op: str, base: Problem, extent: str, accepts: Callable[[Problem], bool]) -> int | None:
    """The largest value of an extent that is accepted, where one beyond it, no dearer, is not."""

    def good(value: int) -> bool | None:
        problem = _stretched(op, base, extent, value) if value <= 2**17 else None
        if problem is None or not within(op, problem, CHEAP):
            return None
        return accepts(problem)

    low, high = 1, 2
    while (state := good(high)) is True:
        low, high = high, 2 * high
    if state is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low if good(low) else None


def own_problems(
    implementation: Implementation,
    count: int,
    rng: np.random.Generator,
    accepts: Callable[[Problem], bool],
    more: Iterable[Problem] = (),
) -> list[tuple[str, Problem]]:
    """Problems at the limits of one candidate: just below, at and just above each.

    Parameters
    ----------
    implementation : Implementation
    count : int
        So many at the most.
    rng : Generator
        Draws which, where there are more.
    accepts : callable
        Whether the candidate takes a problem.
    more : iterable of Problem
        Further problems to stretch, where it does not take the op's `bases`.
    """
    op = implementation.op
    stretchable = [p for p in (*OPS[op].cases.bases(), *more) if accepts(p)][:3]
    if not stretchable:
        return []
    extents = list(OPS[op].cases.extents)
    found: dict[Problem, str] = {}

    def add(extent: str, value: int, why: str) -> None:
        base = stretchable[int(rng.integers(len(stretchable)))]
        problem = _stretched(op, base, extent, value)
        if problem is not None and within(op, problem, CHEAP) and problem not in found and accepts(problem):
            found[problem] = f"{extent} {value:,}: {why}"

    if implementation.when is not None:
        for base in stretchable:
            for extent in extents:
                if (value := _limit(op, base, extent, accepts)) is not None:
                    problem = _stretched(op, base, extent, value)
                    assert problem is not None
                    found.setdefault(problem, f"{extent} {value:,}: the largest that it takes")
    limits = min(len(found), count // 2)
    found = dict(list(found.items())[:limits])
    for extent, value in _pairs(implementation, extents, rng):
        for near in (value, value + 1, value - 1):
            if near >= 1 and len(found) < count:
                add(extent, near, f"it has the number {value}")
        if len(found) >= count:
            break
    return [(name, problem) for problem, name in found.items()]


# ---------------------------------------------------------------------------------------------------
# Launches that are too large to run
# ---------------------------------------------------------------------------------------------------
#: From CUDA's programming guide, for every GPU of compute capability 7.5 and up; shared memory is Hopper's.
GRID, BLOCK, THREADS, SHARED = (2**31 - 1, 65_535, 65_535), (1024, 1024, 64), 1024, 227 * 1024


#: Threads that the emulator runs in some seconds where they meet at barriers.
EMULATED = 2_000_000


def too_many_threads(implementation: Implementation, problem: Problem) -> str | None:
    """Why a kernel file's launches would take the emulator too long, or None."""
    if (run := runner(implementation)) is None:
        return None
    threads = sum(
        prod(grid) * prod(block)
        for part, own in run.parts(problem)
        for _, grid, block, _ in part.ready(own).launches
    )
    return f"{threads:,} threads are too many for the emulator" if threads > EMULATED else None


def launch_fault(implementation: Implementation, problem: Problem) -> str:
    """What CUDA would refuse of a kernel file's launches for a problem, by the header alone; or nothing."""
    if (run := runner(implementation)) is None:
        return ""
    try:
        launches = [
            (part, own, launch) for part, own in run.parts(problem) for launch in part.kernel.header.launches
        ]
        for part, own, launch in launches:
            grid, block, shared = part.extents(launch, own)
            for axis, number, most in zip("xyz", grid, GRID, strict=True):
                if not 0 <= number <= most:
                    return f"grid.{axis} of {launch.entry} would be {number:,}; CUDA allows {most:,}"
            if not all(1 <= n <= most for n, most in zip(block, BLOCK, strict=True)) or prod(block) > THREADS:
                return f"a block of {launch.entry} would be {block}; CUDA allows {THREADS} threads"
            if not 0 <= shared <= SHARED:
                return f"{launch.entry} would take {shared:,} bytes of shared memory; a GPU has {SHARED:,}"
        problem.struct()
    except ConvkitError as error:
        return str(error)
    return ""
