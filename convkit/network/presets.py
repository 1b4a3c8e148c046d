"""The AlexNets: four published versions of one network, exact to their sources, a small one, and a differ.

The published ones share a name and differ in the order of layers, in LRN's constants, in how the first
layer's 55 x 55 map comes about, in initialisation, dropout and the update rule. A preset is data; `diff`
prints every entry in which two of them differ.

Sources
-------
2012    the authors' own code and configuration (computerhistory/AlexNet-Source-Code, layers-145.cfg with
        layer-params-145.cfg), the run whose log ends at the paper's 40.7 % / 18.2 % error
paper   Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks",
        NIPS 2012, as printed
caffe   BVLC Caffe, models/bvlc_alexnet (train_val.prototxt, solver.prototxt)
owt     "One weird trick for parallelizing convolutional neural networks" (2014), as torchvision has it

`small` is convkit's own: an AlexNet in its order of layers, for images of 28 to 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import lcm
from typing import Any

import numpy as np

from ..errors import OptionError, ShapeError, unknown
from ..options import finite, integer
from .layers import (
    Constant,
    Conv,
    Dropout,
    FanInUniform,
    Flatten,
    He,
    Init,
    Layer,
    Linear,
    Lrn,
    MaxPool,
    Normal,
    Relu,
)
from .update import Update


@dataclass(frozen=True)
class Preprocess:
    """From a photograph to the network's input: (channels in `order` * scale - mean) / std.

    The shorter side is resized to `resize` pixels, and the centre cropped.
    """

    order: str = "RGB"
    scale: float = 1.0
    mean: tuple[float, float, float] = (127.3, 119.7, 104.9)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: int = 256


@dataclass(frozen=True)
class Preset:
    """One AlexNet.

    Attributes
    ----------
    name : str
    image_size : int
        Height and width of the input.
    layers : tuple of Layer
    update : Update
    preprocess : Preprocess
    recipe : dict
        How it was trained, in words: for the reader and for `diff`.
    num_classes : int
        Classes of the data that it was made for.
    """

    name: str
    image_size: int
    layers: tuple[Layer, ...]
    update: Update = field(default_factory=Update)
    preprocess: Preprocess = Preprocess()
    recipe: dict[str, str] = field(default_factory=dict)
    num_classes: int = 1000


def _head(w: Init, w8: Init, b: Init, b8: Init, keep_scale: bool, width: int = 4096) -> tuple[Layer, ...]:
    """fc6 to fc8 as all but torchvision have them: dropout behind the two hidden layers."""
    return (
        Flatten("flatten"),
        Linear("fc6", width, w, b), Relu("relu6"), Dropout("drop6", 0.5, inverted=not keep_scale),
        Linear("fc7", width, w, b), Relu("relu7"), Dropout("drop7", 0.5, inverted=not keep_scale),
        Linear("fc8", None, w8, b8),
    )  # fmt: skip


# The input is printed as 224 x 224, and the first map as 55 x 55. Without padding 224 gives 54.25; the
# authors' code rounds up, so that the last window overhangs the image by 3 pixels on the right and at the
# bottom, where it sees zeros. That is the one reading that gives both printed numbers.
_OVERHANG = ((0, 3), (0, 3))


def _preset_2012() -> Preset:
    norm: dict[str, Any] = {
        "size": 5,
        "alpha": 1e-4,
        "beta": 0.75,
        "k": 2.0,
        "groups": 2,
    }  # groups: the two GPUs
    zero, one, w01, w03 = Constant(0), Constant(1), Normal(0.01), Normal(0.03)
    return Preset(
        "2012",
        224,
        (
            Conv("conv1", 96, 11, w01, zero, stride=4, padding=_OVERHANG),
            Lrn("norm1", **norm), MaxPool("pool1"), Relu("relu1"),
            Conv("conv2", 256, 5, w01, one, padding=2, groups=2), Relu("relu2"),
            Lrn("norm2", **norm),
            Lrn("cnorm2", size=5, alpha=1e-3, beta=0.75, k=1.0, region="within_channel"),
            MaxPool("pool2"),
            Conv("conv3", 384, 3, w03, zero, padding=1), Relu("relu3"),
            Conv("conv4", 384, 3, w03, one, padding=1, groups=2), Relu("relu4"),
            Conv("conv5", 256, 3, w03, one, padding=1, groups=2), MaxPool("pool5"), Relu("relu5"),
            *_head(w01, w01, one, zero, keep_scale=True),
        ),
        # The biases' rate was never lowered, except in conv1.
        Update(bias_lr_multiplier=2.0, bias_lr_fixed=0.02),
        recipe={
            "batch": "128",
            "schedule": "0.01; 0.001 from epoch 25, 1e-4 from 51, 1e-5 from 79 (conv1: 1e-5 from 67, frozen "
            "from 72); ended at 91",
            "crops": "a random 224 crop of 256 and a flip, one for each 32 images; test: 5 crops x 2 flips",
            "colour noise": "0.1 * N(0,1) * standard deviation * eigenvector, then / 1.1; off from epoch 67",
            "mean": "an image, per pixel",
        },
    )  # fmt: skip


def _preset_paper() -> Preset:
    # Printed undivided: alpha = 1e-4 times the sum; ops divide by the size. "N is the total number of
    # kernels in the layer", so that windows cross from one GPU's half to the other's.
    norm: dict[str, Any] = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}
    zero, one, w = Constant(0), Constant(1), Normal(0.01)
    return Preset(
        "paper",
        224,
        (
            Conv("conv1", 96, 11, w, zero, stride=4, padding=_OVERHANG), Relu("relu1"),
            Lrn("norm1", **norm), MaxPool("pool1"),
            Conv("conv2", 256, 5, w, one, padding=2, groups=2), Relu("relu2"),
            Lrn("norm2", **norm), MaxPool("pool2"),
            Conv("conv3", 384, 3, w, zero, padding=1), Relu("relu3"),
            Conv("conv4", 384, 3, w, one, padding=1, groups=2), Relu("relu4"),
            Conv("conv5", 256, 3, w, one, padding=1, groups=2), Relu("relu5"), MaxPool("pool5"),
            *_head(w, w, one, zero, keep_scale=True),
        ),
        recipe={
            "batch": "128",
            "schedule": "0.01, divided by 10 three times, when the validation error stopped improving; "
            "about 90 epochs",
            "crops": "a random 224 crop of 256 and a flip per image; test: 5 crops x 2 flips",
            "colour noise": "eigenvector * eigenvalue * N(0, 0.1)",
            "mean": "the mean activity over the training set, from each pixel",
        },
    )  # fmt: skip


def _preset_caffe() -> Preset:
    norm: dict[str, Any] = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}
    zero, tenth, w, w_fc = Constant(0), Constant(0.1), Normal(0.01), Normal(0.005)
    return Preset(
        "caffe",
        227,
        (
            Conv("conv1", 96, 11, w, zero, stride=4), Relu("relu1"), Lrn("norm1", **norm), MaxPool("pool1"),
            Conv("conv2", 256, 5, w, tenth, padding=2, groups=2), Relu("relu2"),
            Lrn("norm2", **norm), MaxPool("pool2"),
            Conv("conv3", 384, 3, w, zero, padding=1), Relu("relu3"),
            Conv("conv4", 384, 3, w, tenth, padding=1, groups=2), Relu("relu4"),
            Conv("conv5", 256, 3, w, tenth, padding=1, groups=2), Relu("relu5"), MaxPool("pool5"),
            *_head(w_fc, w, tenth, zero, keep_scale=False),
        ),
        Update(bias_lr_multiplier=2.0),
        Preprocess("BGR", mean=(104.0, 117.0, 123.0)),
        recipe={
            "batch": "256",
            "schedule": "0.01, divided by 10 each 100,000 steps; 450,000 steps",
            "crops": "a random 227 crop of 256 and a flip per image; test: the centre",
            "colour noise": "none",
            "mean": "an image, per pixel; deployed: per channel, BGR",
        },
    )  # fmt: skip


def _preset_owt() -> Preset:
    # torch.nn's default for weights and biases alike.
    init, pool = FanInUniform(), {"ceil_mode": False}
    return Preset(
        "owt",
        224,
        (
            Conv("conv1", 64, 11, init, init, stride=4, padding=2), Relu("relu1"), MaxPool("pool1", **pool),
            Conv("conv2", 192, 5, init, init, padding=2), Relu("relu2"), MaxPool("pool2", **pool),
            Conv("conv3", 384, 3, init, init, padding=1), Relu("relu3"),
            Conv("conv4", 256, 3, init, init, padding=1), Relu("relu4"),
            Conv("conv5", 256, 3, init, init, padding=1), Relu("relu5"), MaxPool("pool5", **pool),
            Flatten("flatten"),
            Dropout("drop6", 0.5), Linear("fc6", 4096, init, init), Relu("relu6"),
            Dropout("drop7", 0.5), Linear("fc7", 4096, init, init), Relu("relu7"),
            Linear("fc8", None, init, init),
        ),
        Update(weight_decay=1e-4, bias_decay=1e-4, lr_in_velocity=False),
        Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        recipe={
            "batch": "32 on each of 8 GPUs",
            "schedule": "0.01, divided by 10 each 30 epochs; 90 epochs",
            "crops": "a random resized 224 crop and a flip per image; test: the centre",
            "colour noise": "none",
            "mean": "per channel, with standard deviation",
        },
    )  # fmt: skip


def _preset_small() -> Preset:
    # The paper's LRN: with k = 2 it takes back what the pools' maxima add to the scale of the activations.
    norm: dict[str, Any] = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}
    zero, w = Constant(0), He()
    return Preset(
        "small",
        32,
        (
            Conv("conv1", 32, 5, w, zero, padding=2), Relu("relu1"), Lrn("norm1", **norm), MaxPool("pool1"),
            Conv("conv2", 64, 5, w, zero, padding=2, groups=2), Relu("relu2"),
            Lrn("norm2", **norm), MaxPool("pool2"),
            Conv("conv3", 96, 3, w, zero, padding=1), Relu("relu3"),
            Conv("conv4", 96, 3, w, zero, padding=1, groups=2), Relu("relu4"),
            Conv("conv5", 64, 3, w, zero, padding=1, groups=2), Relu("relu5"), MaxPool("pool5"),
            # Small weights at the end: the first loss is that of equal chances, ln 10.
            *_head(w, Normal(0.01), zero, zero, keep_scale=False, width=256),
        ),
        preprocess=Preprocess(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), resize=32),
        num_classes=10,
    )  # fmt: skip


#: The versions that have a source.
PUBLISHED = ("paper", "2012", "caffe", "owt")
PRESETS: dict[str, Preset] = {
    p.name: p for p in (_preset_paper(), _preset_2012(), _preset_caffe(), _preset_owt(), _preset_small())
}
#: Starts that any preset can be given, by name: of its weights and of its biases.
INITS: dict[str, tuple[Init, Init]] = {"he": (He(), Constant(0))}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises
    ------
    OptionError
        If there is none; lists the known ones.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def variant(
    p: Preset,
    *,
    image_size: int | None = None,
    channels: int = 3,
    widths: float | Sequence[int] | None = None,
    init: str | None = None,
) -> Preset:
    """A preset for other images, with other widths or another start.

    Parameters
    ----------
    p : Preset
    image_size : int, optional
        Height and width of the input, where it is not the preset's own. What photographs are resized to
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
    """What each layer's outputs must be divisible by: its own groups, and those of the layers behind it."""
    found: dict[str, int] = {}
    name = ""
    for layer in layers:
        if isinstance(layer, (Conv, Lrn)) and name:
            found[name] = lcm(found[name], layer.groups)
        if isinstance(layer, (Conv, Linear)):
            name = layer.name
            found[name] = layer.groups if isinstance(layer, Conv) else 1
    return found


def entries(p: Preset) -> dict[str, str]:
    """A preset as flat text: one entry per fact, by a dotted name."""
    flat = {
        "image_size": str(p.image_size),
        "num_classes": str(p.num_classes),
        "order": " ".join(layer.name for layer in p.layers),
    }
    for layer in p.layers:
        for f in fields(layer):
            if f.name != "name":
                flat[f"{layer.name}.{f.name}"] = str(getattr(layer, f.name))
    for part in ("update", "preprocess"):
        for f in fields(getattr(p, part)):
            flat[f"{part}.{f.name}"] = str(getattr(getattr(p, part), f.name))
    flat.update({f"recipe.{key}": text for key, text in p.recipe.items()})
    return flat


def diff(a: str, b: str) -> list[tuple[str, str, str]]:
    """Every entry in which two presets differ.

    Parameters
    ----------
    a, b : str
        Names of presets.

    Returns
    -------
    list of (entry, value in a, value in b)
        "-" where a preset has no such layer.

    Examples
    --------
    >>> diff("paper", "caffe")[0]
    ('image_size', '224', '227')
    """
    left, right = entries(preset(a)), entries(preset(b))
    names = list(left) + [name for name in right if name not in left]
    rows = ((name, left.get(name, "-"), right.get(name, "-")) for name in names)
    return [row for row in rows if row[1] != row[2]]
