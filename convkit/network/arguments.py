"""Checks of what a network is given: layers, a device, images, labels, a shard, hooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import arrays
from ..arrays import Array
from ..errors import DtypeError, OptionError, ShapeError, unknown
from ..op import Shape
from ..options import integer
from .layers import Layer


def named_layers(layers: Any) -> tuple[Layer, ...]:
    """Layers in a tuple, after a check of their names."""
    found = tuple(layers) if isinstance(layers, Iterable) else (layers,)
    for layer in found:
        if not isinstance(layer, Layer):
            raise OptionError(f"layers must be a sequence of convkit.layers, and not hold {layer!r}")
        if not isinstance(layer.name, str) or not layer.name:
            raise OptionError(f"a layer's name must be a str, and not empty: {layer!r}")
    names = [layer.name for layer in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"every layer needs a name of its own; more than once: {', '.join(twice)}")
    return found


def image_shape(shape: Any) -> Shape:
    """(C, H, W), each at least 1."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise OptionError(f"input_shape must be (C, H, W), not {shape!r}")
    C, H, W = (integer("an extent of input_shape", extent, 1) for extent in shape)
    return C, H, W


def seed(value: Any) -> int:
    """An integer of 64 bits, at least 0."""
    number = integer("seed", value, 0)
    if number >= 2**64:
        raise OptionError(f"seed must be below 2^64, not {number}")
    return number


def require_device(device: Any) -> None:
    """Refuse a name that is no device, and a GPU that does not exist."""
    if device == "cpu":
        return
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:[0-9]{1,4})?", device):
        raise OptionError(f"{unknown('device', device, ('cpu', 'cuda'))}; a GPU's number: cuda:1")
    if ":" in device:
        count = arrays.gpus()
        if int(device.removeprefix("cuda:")) >= count:
            seen = f"{count}, from cuda:0 to cuda:{count - 1}" if count else "no GPU"
            raise OptionError(f"there is no {device}: CuPy sees {seen}")


def require_hook(name: str, hook: Any) -> None:
    """Refuse a hook that cannot be called."""
    if hook is not None and not callable(hook):
        raise OptionError(f"{name} must be a function or None, not {hook!r}")


def shard(value: Any, N: int) -> tuple[int, int]:
    """(first, total) of a shard of N images."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise OptionError(f"shard must be (first, total), not {value!r}")
    first, total = integer("shard[0]", value[0], 0), integer("shard[1]", value[1], 1)
    if first + N > total:
        raise OptionError(f"shard {(first, total)}: {N} images from {first} on are more than {total}")
    return first, total


def images(x: Any, input_shape: Shape, dtype: str, mixed: bool) -> tuple[Array, arrays.Kind]:
    """A batch of images as NumPy's or CuPy's array, and the kind that it came as.

    In mixed precision it may be of float32 or uint8 as well, and is then cast where it is copied.
    """
    kind = arrays.kind_of("x", x)
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != 4 or shape[1:] != input_shape:
        C, H, W = input_shape
        raise ShapeError(f"x must have shape (N, {C}, {H}, {W}), not {shape}")
    return tensor("x", x, shape, dtype, ("float32", "uint8") if mixed else ()), kind


def tensor(name: str, value: Any, shape: Shape, dtype: str, others: Sequence[str] = ()) -> Array:
    """An argument of that shape and of the network's dtype, or of `others`, as NumPy's or CuPy's array."""
    array = arrays.view(name, value)
    if array.shape != shape:
        raise ShapeError(f"{name} must have shape {shape}, not {array.shape}")
    if any(array.dtype == arrays.np_dtype(known) for known in (dtype, *others)):
        return array
    takes = f", which takes {' and '.join(others)} too" if others else ""
    raise DtypeError(f"{name} has dtype {array.dtype}, but the network is {dtype}{takes}")


def labels(value: Any, num_classes: int) -> Array:
    """Labels as NumPy's or CuPy's array; on the CPU each is checked to be a class.

    On a GPU, a look at the values would have to wait for it.
    """
    arrays.kind_of("labels", value)
    found = arrays.view("labels", value)
    if found.dtype.kind not in "iu":
        raise DtypeError(f"labels must be of an integer dtype, not {found.dtype}")
    on_host = isinstance(found, np.ndarray)
    if on_host and found.size and (found.min() < 0 or found.max() >= num_classes):
        bad = found.min() if found.min() < 0 else found.max()
        raise OptionError(f"labels must each be a class, 0 <= value < {num_classes}; found {bad}")
    return found
