"""What the gate asks of an implementation: AlexNet's layers, edge cases, awkward data, random geometries.

A case names an op, a problem, the options, and how the inputs are filled. It holds no array, and no dtype:
each is tried in every dtype that the implementation declares (a `heavy` one in float32 alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any

import numpy as np

from ..errors import ConvkitError, unknown
from ..op import OPS, Problem
from . import sizes


@dataclass(frozen=True)
class Case:
    """One question to an implementation.

    Attributes
    ----------
    op : str
    problem : Problem
    name : str
        What is special about it, in a few words.
    options : dict
        Keyword arguments of the implementation.
    fill : str
        How the inputs are filled: a key of `inputs.FILLS`.
    absent : tuple of str
        Optional inputs that are None.
    flags : dict of str to int
        Flags of the op that are given, and what they hold. An implementation may decline one.
    heavy : bool
        Of a real layer's size: float32 only, and left out where time is short.
    sized : bool
        One extent of it is stretched: float32, and one other dtype at a time.
    unrun : bool
        Too large to run: a kernel's launch is judged by its header.
    """

    op: str
    problem: Problem
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    fill: str = "normal"
    absent: tuple[str, ...] = ()
    flags: dict[str, int] = field(default_factory=dict)
    heavy: bool = False
    sized: bool = False
    unrun: bool = False

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.problem}"]
        parts += [f"{k}={v}" for k, v in self.options.items() if v is not False]
        parts += [f"no {a}" for a in self.absent]
        parts += [f"{k}=[{v}]" for k, v in self.flags.items()]
        parts += [f"{self.fill} data"] if self.fill != "normal" else []
        return ", ".join(parts)

    def of(self, dtype: str) -> Case:
        """The same case in another dtype."""
        return replace(self, problem=replace(self.problem, dtype=dtype))  # type: ignore[call-arg]

    @property
    def rectified(self) -> bool:
        """Whether the inputs that are a ReLU's output look like it: in every other case."""
        return len(self.name) % 2 == 1

    @property
    def facts(self) -> dict[str, Any]:
        """What is special about it, as plain values for JSON.

        The problem's numbers and texts, the options and flags by their names, "b is None" and the like for
        each optional input, and "data" for how the inputs are filled.
        """
        problem, op = self.problem, OPS[self.op]
        own = {f.name: getattr(problem, f.name) for f in fields(problem)}
        found: dict[str, Any] = {k: v for k, v in own.items() if isinstance(v, (int, float, str))}
        found |= {k: v for k, v in problem.scalars().items() if k not in found}
        found |= {k: v for k, v in self.options.items() if isinstance(v, (bool, int, float, str))}
        found |= {f"{name} is None": name in self.absent for name in op.optional}
        found |= {name: self.flags.get(name, "not given") for name in op.flags}
        for name in (op.inputs[0], op.outputs[0]):
            found[f"elements of {name}"] = prod(problem.shape(name))
        if op.rectified:
            found["an input is rectified"] = self.rectified
        return {**found, "data": self.fill, "case": self.name}


def cases(op: str) -> Iterator[Case]:
    """The fixed cases of an op: real layers, edges, and awkward data.

    Parameters
    ----------
    op : str
        Name of an op, such as "conv2d_fprop".
    """
    if op not in OPS:
        raise unknown("op", op, OPS)
    asked = OPS[op].cases
    for name, problem in asked.layers():
        yield Case(op, problem, name, _usual_options(op), heavy=True)
    for index, (name, problem) in enumerate(asked.edges()):
        yield varied(op, problem, name, index)
    yield from _option_cases(op)
    for index, (fill, problem) in enumerate(_data(op)):
        # The first five options leave no factor at zero, which would turn an infinity into NaN or not.
        case = replace(varied(op, problem, f"{fill} data", index % 5), fill=fill)
        yield case
        if fill == "nan" and "relu" in case.options:
            yield replace(case, options={**case.options, "relu": not case.options["relu"]})
    yield from _flag_cases(op)


def random_cases(
    op: str,
    count: int,
    seed: int = 0,
    accepts: Callable[[Problem], bool] = lambda problem: True,
    draws: int = 50,
) -> Iterator[Case]:
    """Random geometries with random options.

    Parameters
    ----------
    op : str
    count : int
        How many are wanted.
    seed : int
        The same seed gives the same cases.
    accepts : callable, optional
        Only problems for which it is true count.
    draws : int
        At most so many problems per wanted one are looked at.
    """
    if op not in OPS:
        raise unknown("op", op, OPS)
    rng = np.random.default_rng([seed, *op.encode()])
    found = 0
    for _ in range(count * draws):
        if found == count:
            return
        try:
            problem = OPS[op].cases.random(rng)
        except ConvkitError:  # a window beyond its image: drawn, and thrown back
            continue
        if rng.random() < 0.25:
            problem = sizes.stretched_at_random(op, problem, rng)
        case = varied(op, problem, f"random {found}", int(rng.integers(1 << 30)), rng)
        if accepts(problem):
            found += 1
            yield case


# ---------------------------------------------------------------------------------------------------
# Options, flags, awkward data
# ---------------------------------------------------------------------------------------------------
def _usual_options(op: str) -> dict[str, Any]:
    declared = OPS[op]
    options = dict(declared.cases.options[0]) if declared.cases.options else {}
    return {**options, **({"relu": True} if "relu" in declared.options else {})}


def varied(op: str, problem: Problem, name: str, index: int, rng: np.random.Generator | None = None) -> Case:
    """A case whose options and absent inputs go round with the index."""
    declared = OPS[op]
    tried = declared.cases.options
    options = dict(tried[index % len(tried)]) if tried else {}
    if rng is not None:
        options |= declared.cases.random_options(rng)
    if "relu" in declared.options:
        options["relu"] = index % 2 == 1
    absent = tuple(a for a in declared.optional if index // 2 % 3 == 2)
    return Case(op, problem, name, options, absent=absent)


def _option_cases(op: str) -> Iterator[Case]:
    """Every option beside every other one, on one problem."""
    declared = OPS[op]
    if "relu" in declared.options:
        for relu in (False, True):
            for absent in ((), declared.optional):
                options = {**_usual_options(op), "relu": relu}
                yield Case(op, declared.cases.tried(), "options", options, absent=absent)
    for options in declared.cases.options:
        yield Case(op, declared.cases.tried(), "options", {**_usual_options(op), **options})


#: What a flag holds: anything but 0 means the same, whichever of its bits are set.
FLAGS = (0, 1, -65536)


def _flag_cases(op: str) -> Iterator[Case]:
    """Every value of a flag, on every edge; and beside data of which nothing may come through."""
    flags = OPS[op].flags
    if not flags:
        return
    for index, (name, problem) in enumerate(OPS[op].cases.flagged()):
        for value in FLAGS if index % 3 == 0 else FLAGS[:1]:
            yield replace(varied(op, problem, f"flag, {name}", index), flags=dict.fromkeys(flags, value))
    for index, (fill, problem) in enumerate(_data(op)):
        if fill in ("nan", "inf", "zeros"):  # zeros of either sign
            case = varied(op, problem, f"flag, {fill} data", index % 5)
            for value in FLAGS[:2]:
                yield replace(case, fill=fill, flags=dict.fromkeys(flags, value))


def _data(op: str) -> Iterator[tuple[str, Problem]]:
    """(fill, problem) of every case of awkward data."""
    for problem in OPS[op].cases.data():
        for fill in OPS[op].cases.fills:
            yield fill, problem


def size_cases(op: str) -> Iterator[Case]:
    """One extent after another, stretched as far as it is cheap: see `sizes`."""
    for index, (name, problem, heavy) in enumerate(sizes.problems(op)):
        yield replace(varied(op, problem, name, index), heavy=heavy, sized=True)


def all_cases(op: str, *, quick: bool, seed: int, random: int | None = None) -> Iterable[Case]:
    """The fixed cases and some random ones; where `quick`, nothing heavy, and every third of the sizes."""
    for case in cases(op):
        if not (quick and case.heavy):
            yield case
    for index, case in enumerate(size_cases(op)):
        if not quick or (not case.heavy and index % 3 == seed % 3):
            yield case
    yield from random_cases(op, random if random is not None else 5 if quick else 40, seed)
