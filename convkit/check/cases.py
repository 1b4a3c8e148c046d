"""What the gate asks of an implementation: AlexNet's layers, edge cases, awkward data, random geometries.

A case names an op, a problem, the options, and how the inputs are filled. It holds no array, and no dtype:
each is tried in every dtype that the implementation declares (a `heavy` one in float32 alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import ConvkitError, unknown
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
from ..registry import OPS
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


def cases(op: str) -> Iterator[Case]:
    """The fixed cases of an op: real layers, edges, and awkward data.

    Parameters
    ----------
    op : str
        Name of an op, such as "conv2d_fprop".
    """
    if op not in OPS:
        raise unknown("op", op, OPS)
    for name, problem, heavy in _layers(op):
        yield Case(op, problem, name, _usual_options(op), heavy=heavy)
    for index, (name, problem) in enumerate(_edges(op)):
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
    rng = np.random.default_rng([seed, list(OPS).index(op)])
    found = 0
    for _ in range(count * draws):
        if found == count:
            return
        try:
            problem = RANDOM[OPS[op].problem](rng, op)
        except ConvkitError:  # a window beyond its image: drawn, and thrown back
            continue
        if rng.random() < 0.25:
            problem = sizes.stretched_at_random(op, problem, rng)
        case = varied(op, problem, f"random {found}", int(rng.integers(1 << 30)), rng)
        if accepts(problem):
            found += 1
            yield case


# ---------------------------------------------------------------------------------------------------
# Real layers
# ---------------------------------------------------------------------------------------------------
#: name: (x, w, options) of each convolution; 2012's first image has 224 pixels and 3 more on two sides.
CONVOLUTIONS: dict[str, tuple[tuple, tuple, dict[str, Any]]] = {
    "2012 conv1": ((1, 3, 224, 224), (96, 3, 11, 11), {"stride": 4, "padding": ((0, 3), (0, 3))}),
    "caffe conv1": ((1, 3, 227, 227), (96, 3, 11, 11), {"stride": 4}),
    "2012 conv2": ((1, 96, 27, 27), (256, 48, 5, 5), {"padding": 2, "groups": 2}),
    "2012 conv3": ((1, 256, 13, 13), (384, 256, 3, 3), {"padding": 1}),
    "2012 conv4": ((1, 384, 13, 13), (384, 192, 3, 3), {"padding": 1, "groups": 2}),
    "2012 conv5": ((2, 384, 13, 13), (256, 192, 3, 3), {"padding": 1, "groups": 2}),
    "owt conv1": ((1, 3, 224, 224), (64, 3, 11, 11), {"stride": 4, "padding": 2}),
    "owt conv2": ((1, 64, 27, 27), (192, 64, 5, 5), {"padding": 2}),
    "owt conv3": ((1, 192, 13, 13), (384, 192, 3, 3), {"padding": 1}),
    "owt conv4": ((2, 384, 13, 13), (256, 384, 3, 3), {"padding": 1}),
}
FULLY_CONNECTED = {"fc6": (1, 9216, 4096), "fc7": (2, 4096, 4096), "fc8": (3, 4096, 1000)}


def _layers(op: str) -> Iterator[tuple[str, Problem, bool]]:
    kind = OPS[op].problem
    if kind is Conv2d:
        for name, (x, w, options) in CONVOLUTIONS.items():
            yield name, Conv2d.of(x, w, **options), True
    elif op == "conv2d_bgrad":
        for name, (x, w, options) in CONVOLUTIONS.items():
            yield name, ChannelSum.of(Conv2d.of(x, w, **options).shape("y"), 4), True
    elif op == "linear_bgrad":
        yield "fc6", ChannelSum.of((128, 4096), 2), True
    elif kind is Linear:
        for name, (N, C, K) in FULLY_CONNECTED.items():
            # Where weights are updated, the reference takes some twenty times their memory.
            if name == "fc8" or not _updates(op):
                yield name, Linear(N, C, K), True
    elif kind is Pool2d:
        for name, shape in (
            ("pool1", (1, 96, 55, 55)),
            ("pool2", (1, 256, 27, 27)),
            ("pool5", (2, 256, 13, 13)),
        ):
            yield name, Pool2d.of(shape), True
    elif kind is LRN:
        paper: dict[str, Any] = {"alpha": 1e-4, "beta": 0.75, "k": 2.0}
        yield "2012 norm1", LRN.of((1, 96, 55, 55), groups=2, **paper), True
        yield "2012 norm2", LRN.of((1, 256, 27, 27), groups=2, **paper), True
        yield "caffe norm1", LRN.of((1, 96, 55, 55)), True
        yield "caffe norm1, within the map", LRN.of((1, 96, 55, 55), region="within_channel"), True
    elif kind is Reorder:
        yield "pool5's output", Reorder(2, 256, 6, 6), True
    elif kind is LrnMaxPool2d:
        for name, shape in (("norm1 and pool1", (1, 96, 55, 55)), ("norm2 and pool2", (1, 256, 27, 27))):
            yield f"2012 {name}", _lrn_pool(shape, {"groups": 2, "k": 2.0}, {}), True
    elif kind is Pointwise:
        yield "conv1's output", Pointwise((1, 96, 55, 55)), True
    elif kind is SoftmaxXent:
        yield "1000 classes", SoftmaxXent(128, 1000), True
    elif kind is LossSummary:
        yield "a large batch", LossSummary(4096), True


# ---------------------------------------------------------------------------------------------------
# Edges
# ---------------------------------------------------------------------------------------------------
#: (name, x, w, options)
CONV_EDGES: tuple[tuple[str, tuple, tuple, dict[str, Any]], ...] = (
    ("one pixel", (1, 1, 1, 1), (1, 1, 1, 1), {}),
    ("one pixel seen by a 3 x 3 window", (2, 3, 1, 1), (4, 3, 3, 3), {"padding": 1}),
    ("1 x 1 window", (2, 5, 7, 6), (3, 5, 1, 1), {}),
    ("1 x 1 window on a larger map", (2, 18, 19, 17), (31, 18, 1, 1), {}),
    ("1 x 1 window on a map of 2 x 128 pixels", (1, 33, 2, 128), (14, 33, 1, 1), {}),
    ("1 x 1 window in groups", (2, 10, 16, 13), (6, 5, 1, 1), {"groups": 2}),
    ("1 x 1 window, stride 2", (2, 6, 7, 6), (4, 3, 1, 1), {"stride": 2, "groups": 2}),
    ("stride beyond the window", (2, 3, 13, 11), (5, 3, 2, 2), {"stride": (5, 4)}),
    ("rows that no window sees", (2, 2, 12, 11), (3, 2, 3, 3), {"stride": 4}),
    ("dilation", (2, 4, 13, 12), (5, 4, 3, 3), {"dilation": (2, 3), "padding": 2}),
    ("dilation in groups", (1, 6, 11, 11), (4, 3, 3, 2), {"dilation": 3, "groups": 2, "stride": 2}),
    ("padding that differs on each side", (2, 3, 6, 7), (4, 3, 3, 4), {"padding": ((0, 2), (3, 1))}),
    ("padding beyond the window", (1, 2, 3, 3), (3, 2, 2, 2), {"padding": 4}),
    ("taps wholly in the padding", (1, 2, 2, 2), (3, 2, 3, 3), {"dilation": 4, "padding": 4}),
    ("one window on the whole image", (3, 4, 6, 5), (7, 4, 6, 5), {}),
    ("depthwise", (2, 7, 8, 8), (7, 1, 3, 3), {"padding": 1, "groups": 7}),
    ("depthwise, two filters each", (1, 5, 9, 8), (10, 1, 3, 3), {"groups": 5, "stride": 2}),
    ("depthwise, three filters each", (2, 4, 5, 3), (12, 1, 2, 3), {"groups": 4, "padding": 1}),
    ("five images, five groups", (5, 10, 4, 3), (15, 2, 2, 2), {"groups": 5, "stride": (1, 2)}),
    ("one channel", (3, 1, 9, 9), (8, 1, 5, 5), {"padding": 2}),
    ("one filter", (2, 9, 9, 9), (1, 9, 3, 3), {"padding": 1}),
    ("primes", (3, 7, 17, 19), (11, 7, 5, 3), {"padding": ((1, 3), (2, 0)), "stride": (3, 2)}),
    ("many channels, few pixels", (2, 130, 3, 3), (67, 130, 3, 3), {"padding": 1}),
    ("few channels, many pixels", (1, 3, 37, 41), (16, 3, 3, 3), {"padding": 1}),
    ("a row", (2, 3, 1, 23), (4, 3, 1, 3), {"padding": (0, 1)}),
    ("a column", (2, 3, 23, 1), (4, 3, 3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    ("one column, one filter tap, strides that differ", (2, 3, 7, 1), (4, 3, 1, 1), {"stride": (1, 2)}),
    ("one row, one filter tap, strides that differ", (2, 3, 1, 7), (4, 3, 1, 1), {"stride": (2, 1)}),
    ("one column, a row of taps", (2, 3, 7, 1), (4, 3, 1, 3), {"stride": (1, 3), "padding": (0, 1)}),
    ("one row, a column of taps", (2, 3, 1, 7), (4, 3, 3, 1), {"stride": (3, 1), "padding": (1, 0)}),
    ("one column of outputs", (2, 3, 7, 4), (4, 3, 2, 3), {"stride": (1, 5)}),
    ("one row of outputs", (2, 3, 4, 9), (4, 3, 3, 2), {"stride": (5, 1)}),
    ("one pixel, strides that differ", (3, 5, 1, 1), (4, 5, 1, 1), {"stride": (1, 2)}),
    ("one output, dilation", (2, 3, 5, 1), (4, 3, 3, 1), {"stride": (2, 7), "dilation": (2, 3)}),
    (
        "padding on one side alone",
        (2, 3, 1, 5),
        (4, 3, 2, 1),
        {"padding": ((2, 0), (0, 0)), "stride": (1, 2)},
    ),
    ("a small conv1", (2, 3, 31, 31), (20, 3, 11, 11), {"stride": 4, "padding": ((0, 3), (0, 3))}),
    ("a small conv2", (2, 12, 9, 9), (24, 6, 5, 5), {"padding": 2, "groups": 2}),
    ("a small conv3", (2, 20, 13, 13), (36, 20, 3, 3), {"padding": 1}),
    ("empty batch", (0, 3, 7, 7), (4, 3, 3, 3), {}),
)
#: (name, x, options)
POOL_EDGES: tuple[tuple[str, tuple, dict[str, Any]], ...] = (
    ("one pixel", (1, 1, 1, 1), {"window": 1, "stride": 1}),
    ("1 x 1 window, stride 2", (2, 3, 7, 6), {"window": 1, "stride": 2}),
    ("window 2, stride 2", (2, 3, 8, 7), {"window": 2}),
    ("overlap", (2, 3, 9, 11), {"window": 3, "stride": 1, "padding": 1}),
    ("stride beyond the window", (2, 3, 13, 11), {"window": 2, "stride": (5, 4)}),
    ("ceil_mode overhang", (2, 3, 8, 6), {"ceil_mode": True}),
    (
        "ceil_mode drops a window behind the image",
        (1, 2, 4, 4),
        {"window": 1, "stride": 4, "ceil_mode": True},
    ),
    ("ceil_mode with padding", (1, 2, 8, 9), {"window": 3, "stride": 3, "padding": 1, "ceil_mode": True}),
    ("padding that differs on each side", (2, 3, 7, 8), {"window": 4, "padding": ((0, 3), (2, 1))}),
    ("dilation", (2, 3, 13, 12), {"dilation": (2, 3), "stride": 1}),
    ("taps wholly in the padding", (1, 2, 3, 3), {"dilation": 3, "padding": 3, "stride": 1}),
    ("one window on the whole image", (2, 3, 6, 5), {"window": (6, 5)}),
    ("primes", (3, 7, 17, 19), {"window": (5, 3), "stride": (3, 2)}),
    ("a row", (1, 3, 1, 23), {"window": (1, 3)}),
    ("a column", (1, 3, 23, 1), {"window": (3, 1)}),
    ("one column, strides that differ", (2, 3, 7, 1), {"window": (2, 1), "stride": (1, 2)}),
    ("one row, strides that differ", (2, 3, 1, 7), {"window": (1, 2), "stride": (2, 1)}),
    ("one column of outputs", (2, 3, 7, 4), {"window": (2, 3), "stride": (1, 5)}),
    ("one row of outputs", (2, 3, 4, 9), {"window": (3, 2), "stride": (5, 1)}),
    ("one pixel, a window of padding around", (3, 5, 1, 1), {"window": 3, "stride": (1, 2), "padding": 1}),
    ("padding up to the window's last tap", (2, 3, 5, 4), {"padding": 2}),
    ("padding beyond the image", (1, 2, 1, 1), {"window": 9, "stride": 3, "padding": 8}),
    ("65,538 taps: argmax of uint32", (1, 1, 2, 1), {"window": (65538, 1), "padding": ((65537, 0), (0, 0))}),
    ("256 taps: the last that fit uint8", (1, 2, 20, 19), {"window": 16, "stride": 2}),
    ("289 taps: argmax of uint16", (1, 2, 21, 20), {"window": 17, "stride": 2}),
    ("empty batch", (0, 3, 7, 7), {}),
)
LRN_EDGES: tuple[tuple[str, tuple, dict[str, Any]], ...] = (
    ("one element", (1, 1, 1, 1), {"alpha": 0.5}),
    ("size 1", (2, 5, 3, 4), {"size": 1, "alpha": 0.3}),
    ("size 2: even reaches ahead", (2, 5, 3, 4), {"size": 2, "alpha": 0.7}),
    ("size 4", (2, 9, 4, 3), {"size": 4, "alpha": 0.9, "beta": 0.5}),
    ("size beyond the channels", (2, 3, 4, 5), {"size": 9, "alpha": 1.3}),
    ("size 8 beyond the channels", (2, 3, 4, 5), {"size": 8, "alpha": 1.3}),
    ("size 8 within the channels", (2, 19, 3, 2), {"size": 8, "alpha": 1.3}),
    ("size 11 within the channels", (1, 23, 2, 3), {"size": 11, "alpha": 1.3, "beta": 0.72}),
    ("a window of 10 within the map", (1, 2, 13, 12), {"size": 10, "alpha": 1.3, "region": "within_channel"}),
    ("negative beta", (2, 6, 3, 4), {"alpha": 1.3, "beta": -0.5}),
    ("alpha that matters", (2, 7, 5, 6), {"size": 5, "alpha": 2.5, "k": 2.0}),
    ("beta 1", (2, 7, 5, 6), {"size": 3, "alpha": 0.5, "beta": 1.0}),
    ("beta 0", (1, 4, 3, 3), {"alpha": 0.5, "beta": 0.0}),
    ("alpha 0", (1, 4, 3, 3), {"alpha": 0.0, "k": 3.0}),
    ("small k", (1, 8, 3, 5), {"alpha": 1.0, "k": 1e-3}),
    ("groups", (2, 12, 5, 4), {"size": 5, "alpha": 1.5, "groups": 3}),
    ("groups of one channel", (2, 4, 5, 4), {"size": 5, "alpha": 1.5, "groups": 4}),
    ("within the map", (2, 3, 7, 6), {"size": 3, "alpha": 1.5, "region": "within_channel"}),
    ("within the map, even", (2, 3, 7, 6), {"size": 4, "alpha": 1.5, "region": "within_channel"}),
    ("within a smaller map", (1, 3, 2, 3), {"size": 7, "alpha": 1.5, "region": "within_channel"}),
    ("primes", (3, 17, 7, 5), {"alpha": 0.2}),
    ("many channels, one pixel", (2, 131, 1, 1), {"alpha": 0.2}),
    ("empty batch", (0, 5, 3, 3), {}),
)
#: (name, x, options of LRN, options of the pool)
LRN_POOL_EDGES: tuple[tuple[str, tuple, dict[str, Any], dict[str, Any]], ...] = (
    ("one pixel", (1, 1, 1, 1), {"alpha": 0.5}, {"window": 1}),
    ("a small norm1", (2, 32, 15, 15), {"alpha": 0.5, "k": 2.0, "groups": 2}, {}),
    ("a small norm2", (3, 48, 7, 9), {"alpha": 0.5, "k": 2.0}, {"ceil_mode": True}),
    ("even size", (1, 20, 9, 6), {"size": 4, "alpha": 0.7}, {"window": 2}),
    ("size beyond the channels", (2, 3, 8, 5), {"size": 9, "alpha": 1.3}, {}),
    ("another beta", (1, 17, 7, 7), {"beta": 0.5, "alpha": 0.9}, {"window": (3, 2), "stride": 1}),
    ("padding", (1, 16, 8, 9), {"alpha": 0.9}, {"padding": ((0, 1), (1, 0))}),
    ("windows apart", (1, 18, 13, 11), {"alpha": 0.9}, {"window": 2, "stride": (5, 4)}),
    ("dilation", (1, 16, 12, 13), {"alpha": 0.9}, {"dilation": (2, 3), "stride": 1}),
    ("one column", (2, 17, 7, 1), {"alpha": 0.9}, {"window": (2, 1), "stride": (1, 2)}),
    ("one row", (2, 17, 1, 7), {"alpha": 0.9}, {"window": (1, 2), "stride": (2, 1)}),
    ("empty batch", (0, 16, 7, 7), {}, {}),
)
LINEAR_EDGES = {
    "one number": (1, 1, 1),
    "one row": (1, 37, 11),
    "one input": (5, 1, 9),
    "one output": (5, 33, 1),
    "primes": (7, 101, 53),
    "blocks and one more": (17, 65, 129),
    "powers of two": (16, 64, 32),
    "long sum": (2, 3001, 3),
    "long sums, several outputs": (3, 700, 20),
    "blocks and one more each way": (33, 65, 66),
    "empty batch": (0, 7, 5),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "one number": (1,),
    "no axes": (),
    "three": (3,),
    "seven": (7,),
    "four axes": (2, 3, 5, 7),
    "4097": (4097,),
    "100,003": (100_003,),
    "empty": (0, 3),
}
SOFTMAX_EDGES = {
    "one class": (3, 1),
    "two classes": (1, 2),
    "one row": (1, 1000),
    "primes": (13, 17),
    "513 rows": (513, 10),
    "empty batch": (0, 5),
}


def _lrn_pool(shape: tuple[int, ...], lrn: dict[str, Any], pool: dict[str, Any]) -> LrnMaxPool2d:
    return LrnMaxPool2d(LRN.of(shape, **lrn), Pool2d.of(shape, **pool))


def _edges(op: str) -> Iterator[tuple[str, Problem]]:
    kind = OPS[op].problem
    if kind is Conv2d:
        for name, x, w, options in CONV_EDGES:
            yield name, Conv2d.of(x, w, **options)
    elif kind is Pool2d:
        for name, x, options in POOL_EDGES:
            yield name, Pool2d.of(x, **options)
    elif kind is LRN:
        for name, x, options in LRN_EDGES:
            yield name, LRN.of(x, **options)
    elif kind is Reorder:
        for extents in (
            (1, 1, 1, 1),
            (2, 16, 5, 7),
            (1, 35, 3, 16),
            (3, 3, 9, 17),
            (1, 50, 1, 33),
            (0, 16, 2, 2),
        ):
            yield "edge", Reorder(*extents)
    elif kind is LrnMaxPool2d:
        for name, x, lrn, pool in LRN_POOL_EDGES:
            yield name, _lrn_pool(x, lrn, pool)
    elif kind is Linear:
        for name, (N, C, K) in LINEAR_EDGES.items():
            yield name, Linear(N, C, K)
    elif kind is ChannelSum and op == "conv2d_bgrad":
        for image in (
            (1, 1, 1, 1),
            (3, 7, 5, 1),
            (2, 13, 17, 19),
            (1, 3, 100, 101),
            (17, 301, 1, 2),
            (0, 4, 3, 3),
        ):
            yield "edge", ChannelSum.of(image, 4)
    elif kind is ChannelSum:
        for row in ((1, 1), (3, 7), (128, 13), (1, 1000), (1001, 3), (0, 4)):
            yield "edge", ChannelSum.of(row, 2)
    elif kind is Pointwise:
        for name, shape in SHAPES.items():
            yield name, Pointwise(shape)
    elif kind is SoftmaxXent:
        for name, (N, K) in SOFTMAX_EDGES.items():
            yield name, SoftmaxXent(N, K)
    elif kind is LossSummary:
        for N in (1, 3, 32, 128, 257, 1025, 10_007, 0):
            yield f"{N} rows", LossSummary(N)


# ---------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------
DROPOUT: tuple[dict[str, Any], ...] = tuple(
    {"p": p, "seed": seed, "offset": offset, "scale": scale}
    for p, seed, offset, scale in (
        (0.5, 0, 0, 2.0),
        (0.0, 1, 0, 1.0),
        (1.0, 2, 0, 0.0),
        (0.5, 2**64 - 1, 12345, 1.0),
        (0.1, 2**32 + 7, 2**32 - 3, 1 / 0.9),  # the counter's low word runs over
        (1e-9, 3, 2**40 + 1, 1.0),
        (0.75, 0x0123456789ABCDEF, 2**63 - 2**20, 4.0),
        (0.0, 4, 7, 2.0),
    )
)
_SGD = {
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "dampening": 0.0,
    "nesterov": False,
    "lr_in_velocity": False,
}
SGD: tuple[dict[str, Any], ...] = (
    _SGD,
    {**_SGD, "lr_in_velocity": True},
    {**_SGD, "nesterov": True},
    {**_SGD, "dampening": 0.3, "lr": 0.7},
    {**_SGD, "dampening": 0.9, "nesterov": True, "weight_decay": 0.1},
    {**_SGD, "momentum": 0.0, "weight_decay": 0.0},
    {**_SGD, "momentum": 0.0, "lr": 1.5, "lr_in_velocity": True, "weight_decay": 0.2},
    {**_SGD, "lr": 0.0},
    # 1 - dampening in float32 would be off by 5e-5.
    {**_SGD, "dampening": 0.999, "momentum": 0.0, "weight_decay": 0.0},
)


def _usual_options(op: str) -> dict[str, Any]:
    options = dict(DROPOUT[0]) if op.startswith("dropout") else dict(SGD[0]) if _updates(op) else {}
    return {**options, **({"relu": True} if "relu" in OPS[op].options else {})}


def _updates(op: str) -> bool:
    return "momentum" in OPS[op].options


def varied(op: str, problem: Problem, name: str, index: int, rng: np.random.Generator | None = None) -> Case:
    """A case whose options and absent inputs go round with the index."""
    declared = OPS[op]
    options: dict[str, Any] = {}
    if op.startswith("dropout"):
        options = dict(DROPOUT[index % len(DROPOUT)])
        if rng is not None:
            options.update(
                p=float(rng.random()), seed=int(rng.integers(2**63)), offset=int(rng.integers(2**33))
            )
    elif _updates(op):
        options = dict(SGD[index % len(SGD)])
        if rng is not None:
            options.update(lr=float(rng.random()), momentum=float(rng.random()))
    if "relu" in declared.options:
        options["relu"] = index % 2 == 1
    absent = tuple(a for a in declared.optional if index // 2 % 3 == 2)
    return Case(op, problem, name, options, absent=absent)


def _option_cases(op: str) -> Iterator[Case]:
    """Every option beside every other one, on one problem."""
    declared = OPS[op]
    if "relu" in declared.options:
        conv = Conv2d.of((2, 6, 9, 8), (4, 3, 3, 3), padding=1, stride=2, groups=2)
        small: dict[type[Problem], Problem] = {
            Conv2d: conv,
            Linear: Linear(5, 23, 9),
            LrnMaxPool2d: _lrn_pool((2, 19, 9, 8), {"alpha": 0.5}, {}),
        }
        problem = small[declared.problem]
        for relu in (False, True):
            for absent in ((), declared.optional):
                yield Case(op, problem, "options", {**_usual_options(op), "relu": relu}, absent=absent)
    for options in DROPOUT if op.startswith("dropout") else SGD if _updates(op) else ():
        problem = Linear(5, 23, 9) if declared.problem is Linear else Pointwise((5, 7, 11))
        yield Case(op, problem, "options", {**_usual_options(op), **options})


#: What a flag holds: anything but 0 means the same, whichever of its bits are set.
FLAGS = (0, 1, -65536)


def _flag_cases(op: str) -> Iterator[Case]:
    """Every value of a flag, on every edge; and beside data of which nothing may come through."""
    flags = OPS[op].flags
    if not flags:
        return
    edges = list(_edges(op))
    if OPS[op].problem is Linear:  # beyond the batch that a kernel may take at once
        edges.append(("many rows", Linear(150, 20, 9)))
    for index, (name, problem) in enumerate(edges):
        for value in FLAGS if index % 3 == 0 else FLAGS[:1]:
            yield replace(varied(op, problem, f"flag, {name}", index), flags=dict.fromkeys(flags, value))
    for index, (fill, problem) in enumerate(_data(op)):
        if fill in ("nan", "inf", "zeros"):  # zeros of either sign
            case = varied(op, problem, f"flag, {fill} data", index % 5)
            for value in FLAGS[:2]:
                yield replace(case, fill=fill, flags=dict.fromkeys(flags, value))


# ---------------------------------------------------------------------------------------------------
# Awkward data
# ---------------------------------------------------------------------------------------------------
def _data(op: str) -> Iterator[tuple[str, Problem]]:
    """(fill, problem); where something is padded, also a problem without padding: see `inputs.plantable`."""
    kind = OPS[op].problem
    fills = ["nan", "inf", "nan beside zeros", "zeros", "ties", "constant", "offset", "rectified"]
    problems: list[Problem]
    if kind is Conv2d:
        problems = [
            Conv2d.of((2, 6, 11, 10), (8, 6, 3, 3), padding=1),
            Conv2d.of((2, 6, 12, 9), (4, 3, 3, 2), stride=2, groups=2),
        ]
    elif kind is Pool2d:
        problems = [
            Pool2d.of((2, 3, 11, 12), padding=1),
            Pool2d.of((2, 3, 9, 9)),
            Pool2d.of((1, 2, 8, 8), ceil_mode=True),
        ]
        fills = [*fills, "minus_inf"]
    elif kind is LRN:
        problems = [
            LRN.of((2, 9, 4, 5), alpha=0.5),
            LRN.of((2, 3, 6, 5), size=3, alpha=0.5, region="within_channel"),
        ]
        # Beyond an infinity, which power meets which product first decides between 0, NaN and infinity.
        fills = [f for f in fills if "inf" not in f or op == "lrn_fprop"] + ["large"]
    elif kind is Reorder:
        problems = [Reorder(2, 21, 3, 5)]
    elif kind is LrnMaxPool2d:
        problems = [
            _lrn_pool((2, 18, 9, 8), {"alpha": 0.5}, {}),
            _lrn_pool((1, 32, 8, 8), {"alpha": 0.5, "groups": 2}, {"ceil_mode": True}),
        ]
        # As for LRN; and a value that another one of its window overtakes hides an infinity beside it.
        fills = [f for f in fills if f != "inf"]
    elif kind is Linear:
        problems = [Linear(6, 35, 10), Linear(1, 16, 8)]
    elif kind is ChannelSum:
        problems = [ChannelSum(3, 5, 4, 3, 4) if op == "conv2d_bgrad" else ChannelSum(9, 5, 1, 1, 2)]
    elif kind is SoftmaxXent:
        problems = [SoftmaxXent(9, 11)]
        fills.append("large")
    elif kind is LossSummary:
        problems = [LossSummary(61), LossSummary(300)]
    else:
        problems = [Pointwise((5, 67)), Pointwise((43, 3))]
    for problem in problems:
        for fill in fills:
            yield fill, problem


# ---------------------------------------------------------------------------------------------------
# Random geometries
# ---------------------------------------------------------------------------------------------------
def _draw(rng: np.random.Generator, low: int, high: int, count: int) -> Any:
    return [int(v) for v in rng.integers(low, high + 1, count)]


def _random_extent(rng: np.random.Generator, window: int, dilation: int, before: int, after: int) -> int:
    """An image extent on which the window finds between one and a dozen pixels of room."""
    least = max(1, window_span(window, dilation) - before - after)
    return least + int(rng.integers(0, 12))


def _pads(rng: np.random.Generator, limit: int) -> Any:
    """Four pads below the limit; every other time, none."""
    return _draw(rng, 0, limit, 4) if limit and rng.random() < 0.6 else [0, 0, 0, 0]


def _thin(rng: np.random.Generator) -> tuple[int, int] | None:
    """Extents of an image of one or two rows, columns or both; two times in three, none."""
    if rng.random() < 0.65:
        return None
    short, long = int(rng.integers(1, 3)), int(2 ** rng.uniform(0, 6))
    return (short, long) if rng.random() < 0.5 else (long, short)


def _fit(extent: int, window: int, dilation: int, pads: int) -> tuple[int, int]:
    """Window and dilation that find room: as they are, without dilation, or one tap."""
    if window_span(window, dilation) <= extent + pads:
        return window, dilation
    return (window, 1) if window <= extent + pads else (1, dilation)


def _random_conv(rng: np.random.Generator, op: str) -> Conv2d:
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    (N,), (c, k), (R, S) = _draw(rng, 1, 3, 1), _draw(rng, 1, 9, 2), _draw(rng, 1, 5, 2)
    (u, v), (i, j), pads = _draw(rng, 1, 3, 2), _draw(rng, 1, 2, 2), _pads(rng, 3)
    if rng.random() < 0.25:  # the shape that fast algorithms are written for
        R, S, u, v, i, j = 3, 3, 1, 1, 1, 1
    H = _random_extent(rng, R, i, pads[0], pads[1])
    W = _random_extent(rng, S, j, pads[2], pads[3])
    if thin := _thin(rng):
        H, W = thin
        (R, i), (S, j) = _fit(H, R, i, pads[0] + pads[1]), _fit(W, S, j, pads[2] + pads[3])
    if rng.random() < 0.1:  # and that of a matrix product
        R, S, u, v, i, j, pads = 1, 1, 1, 1, 1, 1, [0, 0, 0, 0]
        H, W = _draw(rng, 8, 24, 2)
    return Conv2d(N, c * groups, H, W, k * groups, R, S, u, v, *pads, i, j, groups)  # type: ignore[call-arg]


def _random_pool(rng: np.random.Generator, op: str) -> Pool2d:
    (N, C), (R, S), (u, v), (i, j) = (
        _draw(rng, 1, 4, 2),
        _draw(rng, 1, 4, 2),
        _draw(rng, 1, 4, 2),
        _draw(rng, 1, 2, 2),
    )
    pads = _pads(rng, min(window_span(R, i), window_span(S, j)) - 1)
    H = _random_extent(rng, R, i, pads[0], pads[1])
    W = _random_extent(rng, S, j, pads[2], pads[3])
    if thin := _thin(rng):
        H, W = thin
        (R, i), (S, j) = _fit(H, R, i, 0), _fit(W, S, j, 0)
        pads = [
            min(p, window_span(n, d) - 1) for p, n, d in zip(pads, (R, R, S, S), (i, i, j, j), strict=True)
        ]
    return Pool2d(N, C, H, W, R, S, u, v, *pads, i, j, bool(rng.random() < 0.4))  # type: ignore[call-arg]


def _random_lrn(rng: np.random.Generator, op: str) -> LRN:
    groups, (N, c, H, W) = int(rng.choice([1, 1, 2, 3])), _draw(rng, 1, 9, 4)
    region = str(rng.choice(["across_channels", "across_channels", "within_channel"]))
    alpha, k = float(10 ** rng.uniform(-4, 1)), float(rng.uniform(0.1, 3))
    beta = float(rng.choice([0.75, 0.5, 1.0, rng.uniform(0, 2)]))
    return LRN(min(N, 3), c * groups, H, W, int(rng.integers(1, 8)), alpha, beta, k, groups, region)


def _random_channel_sum(rng: np.random.Generator, op: str) -> ChannelSum:
    N, K, P, Q = _draw(rng, 1, 20, 4)
    return ChannelSum(N, K, P, Q, 4) if op == "conv2d_bgrad" else ChannelSum(N * P, K, 1, 1, 2)


def _random_lrn_pool(rng: np.random.Generator, op: str) -> LrnMaxPool2d:
    pool = _random_pool(rng, op)
    C, groups = [(pool.C, 1), (16 * pool.C, 1), (32 * pool.C, 2)][int(rng.integers(3))]
    drawn = _random_lrn(rng, op)
    if rng.random() < 0.4:  # AlexNet's windows, which fast kernels are written for
        top, bottom = min(pool.pad_top, 2), min(pool.pad_bottom, 2)
        left, right = min(pool.pad_left, 2), min(pool.pad_right, 2)
        pool = Pool2d.of(
            (pool.N, pool.C, pool.H + 2, pool.W + 2),
            padding=((top, bottom), (left, right)),
            ceil_mode=pool.ceil_mode,
        )
        drawn = replace(drawn, size=int(rng.choice([3, 5])), k=float(rng.uniform(1, 3)))
    lrn = replace(
        drawn, N=pool.N, C=C, H=pool.H, W=pool.W, groups=groups, region="across_channels", beta=0.75
    )
    return LrnMaxPool2d(lrn, replace(pool, C=C))


RANDOM: dict[type[Problem], Callable[[np.random.Generator, str], Problem]] = {
    Conv2d: _random_conv,
    Pool2d: _random_pool,
    LRN: _random_lrn,
    LrnMaxPool2d: _random_lrn_pool,
    Reorder: lambda rng, op: Reorder(*_draw(rng, 1, 40, 4)),
    ChannelSum: _random_channel_sum,
    Linear: lambda rng, op: Linear(*_draw(rng, 1, 12, 1), *_draw(rng, 1, 150, 2)),
    Pointwise: lambda rng, op: Pointwise(tuple(_draw(rng, 1, 9, int(rng.integers(1, 5))))),
    SoftmaxXent: lambda rng, op: SoftmaxXent(*_draw(rng, 1, 30, 2)),
    LossSummary: lambda rng, op: LossSummary(*_draw(rng, 1, 3000, 1)),
}


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
