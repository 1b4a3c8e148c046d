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

from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import unknown
from .init import Constant, FanInUniform, He, Init, Normal
from .layers import Conv, Dropout, Flatten, Layer, Linear, Lrn, MaxPool, Relu
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
    """fc6 to fc8 as all presets but torchvision's have them: dropout after each of the two hidden layers."""
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
