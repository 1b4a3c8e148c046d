"""Shape plumbing: operators that move elements, or make them, and compute nothing."""

from __future__ import annotations

from math import prod

import numpy as np

from ...errors import OptionError, ShapeError
from ..table import operator

Array = np.ndarray


@operator("Identity")
def identity(x):
    return x


@operator("Constant")
def constant(*, value=None, value_float=None, value_floats=None, value_int=None, value_ints=None):
    for given, dtype in ((value_float, "f4"), (value_floats, "f4"), (value_int, "i8"), (value_ints, "i8")):
        if given is not None:
            return np.array(given, dtype)
    return value


def _given_shape(shape: Array) -> list[int]:
    if shape.ndim != 1 or shape.dtype.kind not in "iu":
        raise ShapeError(f"shape must be a row of integers, not {shape.dtype} {shape.shape}")
    return [int(extent) for extent in shape]


@operator("ConstantOfShape")
def constant_of_shape(shape, *, value=None):
    fill, dtype = (0, np.float32) if value is None else (value.item(), value.dtype)
    return np.full(_given_shape(shape), fill, dtype)


@operator("Flatten")
def flatten(x, *, axis=1):
    if not -x.ndim <= axis <= x.ndim:
        raise OptionError(f"axis must lie in [{-x.ndim}, {x.ndim}], not {axis}")
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Reshape")
def reshape_by_attribute(x, *, shape):
    return reshape(x, np.array(shape, np.int64))


@operator("Reshape", since=5)
def reshape(x, shape, *, allowzero=0):
    target = _given_shape(shape)
    if min(target, default=0) < -1:
        raise ShapeError(f"shape {target} has an extent below -1")
    if not allowzero:
        if any(extent == 0 for extent in target[x.ndim :]):
            raise ShapeError(f"shape {target} copies an extent that x of shape {x.shape} does not have")
        target = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(target)]
    return x.reshape(target)


@operator("Transpose")
def transpose(x, *, perm=None):
    return x.transpose(perm)
