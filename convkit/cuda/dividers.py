"""Dividers: numbers by which a kernel divides, as multiplier and shift.

A header names them under `dividers`. They follow the problem's numbers in the struct that a kernel receives
by value, so that in the kernel they are members of `g`. `kernels/divider.cuh` has the mathematics.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import OptionError
from ..op import Problem
from . import expressions
from .header import Header

#: `struct Divider` of divider.cuh. Its first member makes it 8 bytes aligned.
DIVIDER = np.dtype(
    [("divisor", np.int64), ("multiplier", np.uint64), ("multiplier_32", np.uint32), ("shift", np.uint32)]
)


def divider(divisor: int) -> tuple[int, int, int, int]:
    """The members of a Divider.

    Parameters
    ----------
    divisor : int
        From 1 to 2**63 - 1.

    Returns
    -------
    tuple of int
        divisor, multiplier, multiplier_32, shift.
    """
    if not 1 <= divisor < 2**63:
        raise OptionError(f"a divider must be from 1 to 2**63 - 1, not {divisor}")
    shift = (divisor - 1).bit_length()
    multiplier = -(-(1 << 63 + shift) // divisor)
    multiplier_32 = -(-(1 << 31 + shift) // divisor) if divisor < 2**31 else 0
    return divisor, multiplier, multiplier_32, shift


def values(header: Header, problem: Problem) -> dict[str, tuple[int, int, int, int]]:
    """The header's dividers for a problem, by name."""
    scope = header.scope(problem)
    found = {}
    for name, text in header.dividers.items():
        if name in problem.scalars():
            raise OptionError(f"'dividers' names {name!r}, which is a member of g already")
        divisor = int(expressions.evaluate(text, scope))
        try:
            # An empty problem launches nothing, but its struct is made all the same.
            found[name] = divider(max(divisor, 1) if problem.empty else divisor)
        except OptionError as error:
            raise OptionError(f"divider {name} = {text!r}: {error}") from None
    return found


def struct(header: Header, problem: Problem) -> np.void:
    """What a kernel receives by value: the problem's numbers, and behind them the dividers."""
    numbers = problem.struct()[0]
    if not header.dividers:
        return numbers
    base = numbers.dtype
    fields: dict[str, Any] = {name: base.fields[name] for name in base.names}
    size = -(-base.itemsize // 8) * 8
    for name in header.dividers:
        fields[name] = (DIVIDER, size)
        size += DIVIDER.itemsize
    layout = np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": size,
        }
    )
    whole = np.zeros(1, layout)
    for name in base.names:
        whole[name] = numbers[name]
    for name, numbers_of_one in values(header, problem).items():
        whole[name] = numbers_of_one
    return whole[0]


def c_struct(header: Header, problem: Problem) -> str:
    """The declaration of that struct in C++, `Divided<Struct>`, behind that of the problem's own."""
    kind = type(problem).__name__
    members = " ".join(f"Divider {name};" for name in header.dividers)
    return (
        '#include "divider.cuh"\n'
        "template <class Problem> struct Divided;\n"
        f"template <> struct Divided<{kind}> : {kind} {{ {members} }};"
    )
