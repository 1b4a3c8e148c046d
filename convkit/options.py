"""Options as users write them -> values that are checked: integers, pairs, flags, shapes.

An error names the option, what it must be, and what was given.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from .errors import OptionError, ShapeError

#: The largest stride, padding, dilation, or extent of a window.
MAX_OPTION = 2**31 - 1


def integer(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int; bools, floats and values outside [least, most] are refused by name."""
    if type(value) is int and (least is None or value >= least) and (most is None or value <= most):
        return value
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} must be an integer, not {value!r}") from None
    if least is not None and number < least:
        raise OptionError(f"{name} must be at least {least}, not {number}")
    if most is not None and number > most:
        raise OptionError(f"{name} must be at most {most}, not {number}")
    return number


def pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """An int, or a (vertical, horizontal) pair of ints."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise OptionError(f"{name} must be an int or a pair (vertical, horizontal), not {value!r}")
        return integer(name, value[0], least, MAX_OPTION), integer(name, value[1], least, MAX_OPTION)
    number = integer(name, value, least, MAX_OPTION)
    return number, number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool: True and False, 0 and 1; words and arrays are refused by name."""
    if isinstance(value, (bool, np.bool_, int)) and value in (0, 1):
        return bool(value)
    raise OptionError(f"{name} must be True or False, not {value!r}")


def finite(name: str, value: Any, least: float | None = None) -> float:
    """`value` as a finite float of at least `least`."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"{name} must be a number, not {value!r}") from None
    if not np.isfinite(number) or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise OptionError(f"{name} must be a finite number{bound}, not {value!r}")
    return number


def shape_of(name: str, value: Any, rank: int, letters: str) -> tuple[int, ...]:
    """`value` as a shape of `rank` extents, each at least 1 (the batch, which comes first, at least 0)."""
    if hasattr(value, "shape"):
        raise ShapeError(f"{name} must be a shape {letters}, not an array: pass its .shape")
    try:
        shape = tuple(value)
    except TypeError:
        raise ShapeError(f"{name} must be a shape {letters}, not {value!r}") from None
    if len(shape) != rank:
        raise ShapeError(f"{name} must have {rank} dimensions {letters}, not {len(shape)}: {shape}")
    extents = shape
    if not all(type(v) is int for v in shape):
        extents = tuple(integer(f"each extent of {name}", v) for v in shape)
    if extents[0] < 0 or any(v < 1 for v in extents[1:]):
        raise ShapeError(f"every extent of {name} {letters} must be positive, not {extents}")
    return extents
