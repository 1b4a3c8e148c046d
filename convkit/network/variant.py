"""Variants of a preset: for other images, with other widths, or with another initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm
from typing import Any

import numpy as np

from ..errors import OptionError, ShapeError, unknown
from ..options import finite, integer
from .init import Constant, He, Init
from .layers import Conv, Layer, Linear, Lrn
from .presets import Preset

#: By name, an initialisation for any preset: of its weights and of its biases.
INITS: dict[str, tuple[Init, Init]] = {"he": (He(), Constant(0))}


def variant(
    p: Preset,
    *,
    image_size: int | None = None,
    channels: int = 3,
    widths: float | Sequence[int] | None = None,
    init: str | None = None,
) -> Preset:
    """A preset for other images, with other widths or another initialisation.

    Parameters
    ----------
    p : Preset
    image_size : int, optional
        Height and width of the input; by default the preset's. The size to which photographs are resized
        changes in proportion.
    channels : int
        Of the input.
    widths : float, or sequence of seven ints, optional
        A factor for the outputs of conv1 to conv5, fc6 and fc7, each rounded to what the groups allow; or the
        seven numbers.
    init : {"he"}, optional
        Weights normal with sigma sqrt(2/fan in), biases 0.

    Returns
    -------
    Preset
        Of the same name.

    Raises
    ------
    ShapeError
        Where the image is too small; the message says the smallest size. And where a width is not divisible
        by the groups that its channels are divided into.
    OptionError
        For a number out of its range, and an `init` that is not known.
    """
    size = p.image_size if image_size is None else integer("image_size", image_size, 1)
    channels = integer("channels", channels, 1)
    layers = p.layers if widths is None else _widened(p, widths)
    if init is not None:
        if init not in INITS:
            raise unknown("init", init, INITS)
        w, b = INITS[init]
        layers = tuple(
            replace(layer, weights=w, bias=b) if isinstance(layer, (Conv, Linear)) else layer
            for layer in layers
        )
    _require_size(p.name, layers, channels, size)
    resize = round(p.preprocess.resize * size / p.image_size)
    preprocess = replace(p.preprocess, resize=max(resize, size))
    return replace(p, image_size=size, layers=layers, preprocess=preprocess)


def _require_size(name: str, layers: Sequence[Layer], channels: int, size: int) -> None:
    """Refuse an image into which a window does not fit."""

    def run(size: int) -> ShapeError | None:
        shape: tuple[int, ...] = (1, channels, size, size)
        try:
            for layer in layers:
                shape = layer.output_shape(shape, 1)
        except ShapeError as error:
            return error
        return None

    if (error := run(size)) is None:
        return
    smallest = next((s for s in range(size + 1, 1024) if run(s) is None), None)
    if smallest is None:  # it is not the size
        raise error
    raise ShapeError(
        f"preset {name!r} takes images of at least {smallest} x {smallest} pixels, not {size} x {size}"
    )


def _widened(p: Preset, widths: Any) -> tuple[Layer, ...]:
    """The layers with other numbers of outputs; the last one's are the classes."""
    own = {layer.name: layer.filters for layer in p.layers if isinstance(layer, (Conv, Linear))}
    names = [name for name, filters in own.items() if filters is not None]
    divisors = _divisors(p.layers)
    if isinstance(widths, (list, tuple, np.ndarray)) and np.shape(widths):
        if len(widths) != len(names):
            raise OptionError(
                f"widths must be a factor, or {len(names)} numbers, for {', '.join(names)}; not {len(widths)}"
            )
        new = {name: integer(f"the width of {name}", n, 1) for name, n in zip(names, widths)}
        for name, n in new.items():
            if n % divisors[name]:
                raise ShapeError(
                    f"the width of {name} must be divisible by {divisors[name]}, as its channels are divided "
                    f"into groups; not {n}"
                )
    else:
        factor = _factor(widths)
        new = {
            name: max(1, round(filters * factor / divisors[name])) * divisors[name]
            for name, filters in own.items()
            if filters is not None
        }
    return tuple(
        replace(layer, filters=new[layer.name])
        if isinstance(layer, (Conv, Linear)) and layer.name in new
        else layer
        for layer in p.layers
    )


def _factor(value: Any) -> float:
    if isinstance(value, (str, bool)) or (factor := finite("widths", value, 0)) == 0:
        raise OptionError(f"widths must be a positive factor, or seven numbers, not {value!r}")
    return factor


def _divisors(layers: Sequence[Layer]) -> dict[str, int]:
    """What each layer's outputs must be divisible by: its own groups, and those of the layers after it."""
    found: dict[str, int] = {}
    name = ""
    for layer in layers:
        if isinstance(layer, (Conv, Lrn)) and name:
            found[name] = lcm(found[name], layer.groups)
        if isinstance(layer, (Conv, Linear)):
            name = layer.name
            found[name] = layer.groups if isinstance(layer, Conv) else 1
    return found
