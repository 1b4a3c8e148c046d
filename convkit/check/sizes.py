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
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..cuda.prepare import Runner
from ..errors import ConvkitError
from ..geometry import (
    LRN,
    ChannelSum,
    Conv2d,
    Linear,
    LossSummary,
    LrnMaxPool2d,
    Pointwise,
    Pool2d,
    Problem,
    Reorder,
    SoftmaxXent,
    window_span,
)
from ..registry import OPS, Implementation

#: Gives the problem with one extent changed, and with whatever else has to follow.
Stretch = Callable[[Any, int], Problem]

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
def _fitting(g: Any) -> Problem:
    """The problem with an image that its window fits into, and padding that a pool accepts."""
    span_h, span_w = window_span(g.R, g.dilation_h), window_span(g.S, g.dilation_w)
    if isinstance(g, Pool2d):
        pads = {name: min(getattr(g, name), span_h - 1) for name in ("pad_top", "pad_bottom")}
        pads |= {name: min(getattr(g, name), span_w - 1) for name in ("pad_left", "pad_right")}
        g = _with(g, **pads)
    high, wide = span_h - g.pad_top - g.pad_bottom, span_w - g.pad_left - g.pad_right
    return _with(g, H=max(g.H, high), W=max(g.W, wide))


def _with(g: Any, **changes: Any) -> Any:
    """A changed copy; what cannot be computed before the window fits is not looked at yet."""
    values = {name: getattr(g, name) for name in g.__dataclass_fields__}
    made = object.__new__(type(g))
    for name, value in {**values, **changes}.items():
        object.__setattr__(made, name, value)
    return made


def _checked(g: Any) -> Problem:
    """The problem as its own constructor makes it, which may refuse."""
    return replace(g)


def _field(name: str) -> Stretch:
    def stretch(g: Any, value: int) -> Problem:
        changed = _with(g, **{name: value})
        return _checked(_fitting(changed) if isinstance(g, (Conv2d, Pool2d)) else changed)

    return stretch


def _conv_channels(g: Conv2d, value: int) -> Problem:
    return replace(g, C=value * g.groups)


def _conv_filters(g: Conv2d, value: int) -> Problem:
    return replace(g, K=value * g.groups)


def _conv_groups(g: Conv2d, value: int) -> Problem:
    return replace(g, C=g.C // g.groups * value, K=g.K // g.groups * value, groups=value)


def _groups(g: LRN, value: int) -> Problem:
    return replace(g, C=g.C // g.groups * value, groups=value)


def _lrn_channels(g: LRN, value: int) -> Problem:
    return replace(g, C=value * g.groups)


def _fused(name: str) -> Stretch:
    """An extent of LRN and of the pool behind it."""

    def stretch(g: LrnMaxPool2d, value: int) -> Problem:
        if name == "size":
            return replace(g, lrn=replace(g.lrn, size=value))
        pool: Any = _field(name)(g.pool, value)
        C = pool.C - pool.C % g.lrn.groups or g.lrn.groups
        pool = replace(pool, C=C)
        return replace(g, pool=pool, lrn=replace(g.lrn, N=pool.N, C=C, H=pool.H, W=pool.W))

    return stretch


def _elements(g: Pointwise, value: int) -> Problem:
    return replace(g, dims=(value,))


def _fields(*names: str) -> dict[str, Stretch]:
    return {name: _field(name) for name in names}


_WINDOW = ("R", "S", "stride_h", "stride_w", "dilation_h", "dilation_w")
_PADS = ("pad_top", "pad_bottom", "pad_left", "pad_right")
#: The extents of each kind of problem: those of tensors, and those of windows and the like.
EXTENTS: dict[type[Problem], dict[str, Stretch]] = {
    Conv2d: {
        **_fields("N", "H", "W", *_WINDOW, *_PADS),
        "channels": _conv_channels,
        "filters": _conv_filters,
        "groups": _conv_groups,
    },
    Pool2d: _fields("N", "C", "H", "W", *_WINDOW, *_PADS),
    LRN: {**_fields("N", "H", "W", "size"), "channels": _lrn_channels, "groups": _groups},
    LrnMaxPool2d: {name: _fused(name) for name in ("N", "C", "H", "W", "size", *_WINDOW, *_PADS)},
    Reorder: _fields("N", "C", "H", "W"),
    ChannelSum: _fields("N", "K", "P", "Q"),
    Linear: _fields("N", "C", "K"),
    Pointwise: {"elements": _elements},
    SoftmaxXent: _fields("N", "K"),
    LossSummary: _fields("N"),
}
_SMALL = {*_WINDOW, *_PADS, "size"}


def bases(op: str) -> list[Problem]:
    """Small problems whose extents are stretched: one where nothing is even, equal or one, and plainer ones.

    The last has so few elements that it may be stretched far.
    """
    kind = OPS[op].problem
    if kind is Conv2d:
        wide, plain = Conv2d(2, 2, 5, 4, 3, 2, 3, 1, 2, 1, 0, 1, 2), Conv2d(1, 3, 1, 2, 2, 1, 1)
        return [wide, plain, Conv2d(1, 2, 2, 3, 2, 2, 2)]
    if kind is Pool2d:
        return [Pool2d(2, 3, 7, 6, 3, 2, 2, 1, 1, 0, 0, 1), Pool2d(1, 1, 2, 3, 2, 2, 1, 1)]
    if kind is LRN:
        inside = LRN(2, 2, 5, 4, 3, 0.5, region="within_channel")
        return [LRN(2, 7, 3, 2, 5, 0.5), inside, LRN(1, 4, 2, 1, 4, 0.5, 1.0, 2.0, 2)]
    if kind is LrnMaxPool2d:
        shapes = (2, 5, 7, 6), (1, 16, 5, 3), (1, 3, 3, 3)
        return [LrnMaxPool2d(LRN(*x, 5, 0.5), Pool2d(*x, 3, 3, 2, 2)) for x in shapes]
    if kind is Reorder:
        return [Reorder(2, 3, 3, 5), Reorder(1, 1, 2, 1)]
    if kind is ChannelSum:
        return (
            [ChannelSum(2, 3, 3, 5, 4), ChannelSum(1, 2, 1, 3, 4)]
            if op == "conv2d_bgrad"
            else [ChannelSum(3, 5, 1, 1, 2)]
        )
    if kind is Linear:
        return [Linear(3, 5, 7), Linear(2, 3, 1)]
    if kind is SoftmaxXent:
        return [SoftmaxXent(3, 5)]
    if kind is LossSummary:
        return [LossSummary(3)]
    return [Pointwise((3, 5))]


def _stretched(op: str, base: Problem, extent: str, value: int) -> Problem | None:
    """The base with that extent, or None where there is no such problem."""
    stretch = EXTENTS[type(base)].get(extent)
    if stretch is None or (extent in ("P", "Q") and getattr(base, "rank", 4) == 2):
        return None
    try:
        return stretch(base, value)
    except ConvkitError:
        return None


def stretched_at_random(op: str, problem: Problem, rng: np.random.Generator) -> Problem:
    """The problem with one extent drawn anew, if it stays cheap: each octave up to 1024 is as likely."""
    extents = list(EXTENTS[type(problem)])
    extent, value = extents[int(rng.integers(len(extents)))], int(2 ** rng.uniform(0, 10))
    found = _stretched(op, problem, extent, value)
    return found if found is not None and within(op, found, CHEAP) else problem


def _ladder(op: str) -> Iterator[tuple[str, Problem]]:
    """(name, problem) for each rung of each extent."""
    near, *_, far = bases(op) * 2
    for extent in EXTENTS[type(near)]:
        if extent == "elements":
            continue
        rungs: tuple[int, ...] = OPTIONS if extent in _SMALL else LADDER
        if extent in ("R", "S"):
            rungs = (*OPTIONS, 33, 47)
        if extent == "groups":  # many small products, one after the other, in the reference
            rungs = (*(value for value in rungs if value <= 65), 97)
        for value in rungs:
            if (problem := _stretched(op, near if value < 200 else far, extent, value)) is not None:
                yield f"{extent} {value}", problem


def _elementwise(op: str) -> Iterator[tuple[str, Problem]]:
    """Whole blocks, one element more, and octaves up to millions of elements, as far as that is cheap."""
    for exponent in range(6, 18):
        whole, more = 1 << exponent, (1 << exponent) + 1
        if exponent > 12:  # one of the two, in the middle of the octave
            sizes: tuple[int, ...] = (3 * whole // 2 + exponent % 2,)
        else:
            sizes = whole, more
        for size in sizes:
            yield f"{size:,} elements", Pointwise((size,))
    # Beyond, as far as it is cheap to judge. A grid that is too small shows at any size beyond its own.
    for most in (2_200_000,) if op == "relu_fprop" else (600_000,):
        yield f"{most:,} elements", Pointwise((most,))


def _strides_and_dilations(op: str) -> Iterator[tuple[str, Problem]]:
    """Each stride up to 3 beside each dilation up to 3, along one axis and then the other."""
    base = bases(op)[0]
    if not isinstance(base, (Conv2d, Pool2d)):
        return
    for stride in (1, 2, 3):
        for dilation in (1, 2, 3):
            along = "hw"[(stride + dilation) % 2]
            options = {f"stride_{along}": stride, f"dilation_{along}": dilation}
            other = {"H": 1, "W": 11, "R": 1, "S": 3} if along == "w" else {"H": 11, "W": 1, "R": 3, "S": 1}
            plain = dict.fromkeys(("stride_h", "stride_w", "dilation_h", "dilation_w"), 1)
            pads = dict.fromkeys(_PADS, 0)
            changed: Any = {**plain, **pads, **other, **options}
            yield f"stride {stride}, dilation {dilation}", replace(base, **changed)


def _large(op: str) -> Iterator[tuple[str, Problem]]:
    """Beyond what a grid's y and z may count (65,535), or with very long sums."""
    many = 65_537
    kind = OPS[op].problem
    if kind is Conv2d:
        yield "66,049 pixels", Conv2d(1, 2, 257, 257, 3, 3, 3, 1, 1, 1, 1, 1, 1)
        yield "65,537 images", Conv2d(many, 1, 1, 2, 2, 1, 2)
        yield "65,537 filters", Conv2d(1, 2, 1, 1, many, 1, 1)
    elif kind is Pool2d:
        yield "66,049 maps", Pool2d(257, 257, 2, 1, 2, 1, 1, 1)
    elif kind is LRN:
        yield "65,537 images", LRN(many, 1, 1, 1, 5, 0.5)
        yield "66,049 pixels", LRN(1, 2, 257, 257, 5, 0.5)
    elif kind is LrnMaxPool2d:
        yield "65,537 images", LrnMaxPool2d(LRN(many, 1, 2, 1, 5, 0.5), Pool2d(many, 1, 2, 1, 2, 1, 1, 1))
    elif kind is Reorder:
        yield "65,537 images", Reorder(many, 1, 1, 1)
        yield "65,537 channels", Reorder(1, many, 1, 1)
    elif op == "conv2d_bgrad":
        yield "65,537 channels", ChannelSum(1, many, 1, 2, 4)
        yield "65,537 images", ChannelSum(many, 2, 1, 1, 4)
    elif kind is ChannelSum:
        yield "65,537 channels", ChannelSum(2, many, 1, 1, 2)
        yield "65,537 rows", ChannelSum(many, 3, 1, 1, 2)
    elif kind is Linear:
        yield "65,537 rows", Linear(many, 2, 1)
        yield "65,537 inputs", Linear(2, many, 1)
        yield "65,537 outputs", Linear(1, 2, many)
    elif kind is SoftmaxXent:
        yield "65,537 rows", SoftmaxXent(many, 3)
        yield "65,537 classes", SoftmaxXent(2, many)
    elif kind is LossSummary:
        yield "65,537 rows", LossSummary(many)


def problems(op: str) -> Iterator[tuple[str, Problem, bool]]:
    """(name, problem, whether it is heavy) for every size that the gate asks of an op."""
    found = _elementwise(op) if OPS[op].problem is Pointwise else _ladder(op)
    for name, problem in (*found, *_strides_and_dilations(op)):
        yield name, problem, not within(op, problem, CHEAP)
    for name, problem in _large(op):
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


def constants(implementation: Implementation) -> tuple[list[int], list[int]]:
    """Integers that may be a limit of a candidate: those of its declarations, and those of its code.

    Of a kernel file: the tile and the numbers in the header's expressions; those in the source. Of a Python
    function: those that `when` mentions; those of the function and of what it calls in its own module.
    """
    run = implementation.run
    if isinstance(run, Runner):
        header = run.kernel.header
        declared = [*header.tile.values()]
        for text in _expressions_of(header):
            declared += _integers(text)
        code = _integers(run.kernel.source)
    else:
        declared, code = [*_of_value(implementation.when)], [*_of_value(run)]
    first = dict.fromkeys(n for n in declared if 2 <= n <= 2**17)
    rest = dict.fromkeys(n for n in code if 2 <= n <= 2**17 and n not in first)
    return [*first], [*rest]


#: What code calls an extent that has another name here.
_CALLED = {"C": "channels", "K": "filters", "size": "elements"}


def _named(implementation: Implementation, extents: list[str]) -> Iterator[tuple[str, int]]:
    """(extent, number) for each comparison or remainder of the two that the code spells out."""
    run = implementation.run
    if isinstance(run, Runner):
        text = "\n".join((*_expressions_of(run.kernel.header), run.kernel.source))
    else:
        text = ""
        for function in (run, implementation.when):
            with contextlib.suppress(OSError, TypeError):  # typed into a console, or no function
                text += inspect.getsource(function)  # type: ignore[arg-type]
    for name, number in re.findall(r"\b(\w+)\s*(?:[<>=!]=?|%)\s*(\d+)\b", text):
        extent = name if name in extents else _CALLED.get(name, "")
        if extent in extents and 2 <= int(number) <= 2**17:
            yield extent, int(number)


def _pairs(
    implementation: Implementation, extents: list[str], rng: np.random.Generator
) -> Iterator[tuple[str, int]]:
    """(extent, number), each once: what the code names first, then extents of tensors, then the others."""
    declared, code = constants(implementation)
    rng.shuffle(code)
    seen = dict.fromkeys(_named(implementation, extents))
    yield from seen
    turns = []
    for number in (*declared, *code):
        order = [extents[i] for i in rng.permutation(len(extents))]
        turns.append([(extent, number) for extent in sorted(order, key=lambda extent: extent in _SMALL)])
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
        Further problems to stretch, where it does not take `bases`.
    """
    op = implementation.op
    stretchable = [p for p in (*bases(op), *more) if accepts(p)][:3]
    if not stretchable:
        return []
    extents = list(EXTENTS[OPS[op].problem])
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
def huge(op: str) -> list[Problem]:
    """Problems that a large GPU has the memory for, but no check the time: 10^5 maps, 10^10 elements."""
    many, row = 100_000, 10_000
    kind = OPS[op].problem
    if kind is Conv2d:
        return [
            Conv2d(many, 3, 16, 16, 64, 3, 3),
            Conv2d(1, many, 8, 8, 64, 3, 3),
            Conv2d(1, 64, 8, 8, many, 3, 3),
            Conv2d(1, many, 8, 8, many, 3, 3, groups=many),
            Conv2d(1, 1, many, many, 1, 3, 3),
            Conv2d(512, 256, 256, 256, 64, 3, 3, 1, 1, 1, 1, 1, 1),
            Conv2d(1, 64, 2, 2_000_000, 64, 1, 3),
            Conv2d(1, 64, 2_000_000, 2, 64, 3, 1),
        ]
    if kind is Pool2d:
        return [
            Pool2d(many, 3, 32, 32, 3, 3, 2, 2),
            Pool2d(512, 512, 200, 200, 3, 3, 2, 2),
            Pool2d(1, 1, many, many, 3, 3, 2, 2),
            Pool2d(1, 2, 2, 2_000_000, 2, 3, 1, 2),
            Pool2d(1, 2, 2_000_000, 2, 3, 2, 2, 1),
        ]
    if kind is LRN:
        across = [LRN(many, 3, 32, 32), LRN(512, 512, 200, 200), LRN(1, 5, many, row), LRN(2, many, 16, 16)]
        return [*across, *(replace(g, region="within_channel", size=3) for g in across)]
    if kind is LrnMaxPool2d:
        shapes = (many, 16, 32, 32), (512, 512, 200, 200)
        return [LrnMaxPool2d(LRN(*x), Pool2d(*x, 3, 3, 2, 2)) for x in shapes]
    if kind is Reorder:
        return [Reorder(many, 3, 32, 32), Reorder(512, 512, 200, 200), Reorder(1, 16, many, row)]
    if op == "conv2d_bgrad":
        return [
            ChannelSum(many, 64, 32, 32, 4),
            ChannelSum(1, many, 100, 100, 4),
            ChannelSum(1, 1, many, many, 4),
        ]
    if kind is ChannelSum:
        return [ChannelSum(10_000_000, 1000, 1, 1, 2), ChannelSum(10, 100_000_000, 1, 1, 2)]
    if kind is Linear:
        return [Linear(10_000_000, 64, 64), Linear(1, many, many), Linear(16, 64, 10_000_000)]
    if kind is SoftmaxXent:
        return [SoftmaxXent(100_000_000, 10), SoftmaxXent(10, 100_000_000)]
    if kind is LossSummary:
        return [LossSummary(2_000_000_000)]
    return [Pointwise((10_000_000_000,)), Pointwise((2**31,)), Pointwise((2**31 - 1,))]


#: From CUDA's programming guide, for every GPU of compute capability 7.5 and up; shared memory is Hopper's.
GRID, BLOCK, THREADS, SHARED = (2**31 - 1, 65_535, 65_535), (1024, 1024, 64), 1024, 227 * 1024


#: Threads that the emulator runs in some seconds where they meet at barriers.
EMULATED = 2_000_000


def too_many_threads(implementation: Implementation, problem: Problem) -> str | None:
    """Why a kernel file's launches would take the emulator too long, or None."""
    run = implementation.run
    if not isinstance(run, Runner):
        return None
    threads = sum(prod(grid) * prod(block) for _, grid, block, _ in run.ready(problem).launches)
    return f"{threads:,} threads are too many for the emulator" if threads > EMULATED else None


def launch_fault(implementation: Implementation, problem: Problem) -> str:
    """What CUDA would refuse of a kernel file's launches for a problem, by the header alone; or nothing."""
    run = implementation.run
    if not isinstance(run, Runner):
        return ""
    try:
        for launch in run.kernel.header.launches:
            grid, block, shared = run.extents(launch, problem)
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
