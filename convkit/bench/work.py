"""What is measured: an op on a problem, from a network's layers, from an op's name, or from a geometry.

An `Item` holds no array. Its id names everything that decides what the work is, so that rows of two runs can
be matched: "alexnet-paper/conv2/conv2d_fprop/N=16/float32/fp32".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any

from ..errors import ConvkitError, OptionError, unknown
from ..network.layers import Conv, Dropout, Layer, Lrn, MaxPool, Relu
from ..network.layers import Linear as LinearLayer
from ..network.presets import preset
from ..network.update import Update
from ..op import OPS, Problem, Shape
from ..ops.conv2d import Conv2d
from ..ops.elementwise import Elementwise
from ..ops.linear import Linear
from ..ops.lrn import LRN
from ..ops.lrn_maxpool2d import LrnMaxPool2d
from ..ops.maxpool2d import Pool2d
from ..ops.reorder import Reorder
from ..ops.softmax_xent import SoftmaxXent
from ..registry import ALL_DTYPES, MATH
from .geometries import GEOMETRIES
from .geometries import QUICK as QUICK_GEOMETRIES

#: What `--directions` takes, in the order of the tables. "update" is the rule that changes the weights.
DIRECTIONS = ("fwd", "dgrad", "wgrad", "bgrad", "update")
#: Those that are measured unless others are asked for; a bias's gradient and the update are pure traffic.
USUAL = ("fwd", "dgrad", "wgrad")
NETS = ("alexnet",)
#: The "ops" of rows that are a network's: a training step, its forward pass, the memory of a step.
STEP, FORWARD, MEMORY = NETWORK_OPS = ("step", "forward", "memory")
#: The layer of a row that is an op's first call in a process.
FIRST_CALL = "first call"
#: Points along one side of the largest tile of a fast convolution: with more, float32 loses too many digits.
FAST_TILE = 8
#: More than any extent has; Python reads no number of more than 4300.
MOST_DIGITS = 100
#: The options of `--conv`, and what they set.
_CONV_OPTIONS = {"stride": "stride", "pad": "padding", "dilation": "dilation", "groups": "groups"}
_PAIRS = ("stride", "pad", "dilation")
_SIZES = ("N", "C", "H", "W", "K", "R", "S")
CONV_FORM = "N,C,H,W,K,R,S[,stride=1][,pad=0][,dilation=1][,groups=1]"


@dataclass(frozen=True)
class Item:
    """One op on one problem.

    Attributes
    ----------
    id : str
    op : str
        Name in the registry.
    problem : Problem
    dtype, math : str
        Storage, and the coarsest float32 arithmetic that its entries may use.
    layer, net : str
        Where it comes from; `net` is empty for a geometry that a user typed.
    batch : int
    options : mapping
        Keyword arguments of an implementation (relu, lr, ...).
    absent : tuple of str
        Optional inputs that are None.
    """

    id: str
    op: str
    problem: Problem
    dtype: str = "float32"
    math: str = "fp32"
    layer: str = ""
    net: str = ""
    batch: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    @property
    def direction(self) -> str:
        """One of `DIRECTIONS`."""
        return OPS[self.op].direction

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are there."""
        return tuple(name for name in OPS[self.op].inputs if name not in self.absent)

    @property
    def flops(self) -> int:
        """By the definition of the op: a fast algorithm may do with fewer."""
        return self.problem.flops(self.op)

    @property
    def fast_flops(self) -> int:
        """The least that any algorithm does with: see `fast_share`."""
        return int(self.flops * fast_share(self.problem))

    @property
    def bytes(self) -> int:
        """Each input read once, each output written once."""
        return self.problem.bytes(*self.inputs, *OPS[self.op].outputs)

    @property
    def kind(self) -> str:
        """What is measured of it: see `kind_of`."""
        return kind_of(self.op, self.layer)

    @property
    def text(self) -> str:
        """The problem in a few words: see `text_of`."""
        return text_of(self)

    def fields(self) -> dict[str, Any]:
        """The problem as plain values, for a result file."""
        return asdict(self.problem)


def kind_of(op: str, layer: str) -> str:
    """What a row measures: "time", of one call of many; `MEMORY`; or `FIRST_CALL`, which is a time too."""
    return MEMORY if op == MEMORY else FIRST_CALL if layer == FIRST_CALL else "time"


def fast_share(problem: Problem) -> float:
    """The share of the definition's multiplications that a fast algorithm needs at least.

    A minimal filter makes m outputs of r taps with m + r - 1 products, along each axis. Long windows are cut
    into shorter ones, and a stride is taken away by making channels of the pixels that it skips.
    """
    if not isinstance(problem, Conv2d):
        return 1.0
    axes = ((problem.R, problem.stride_h), (problem.S, problem.stride_w))
    return prod(
        min(1.0, *(_along(taps, stride, cuts) for cuts in range(1, taps + 1))) for taps, stride in axes
    )


def _along(taps: int, stride: int, cuts: int) -> float:
    """The share along one axis, where the window is cut into so many."""
    short = -(-taps // (stride * cuts))
    outputs = FAST_TILE + 1 - short
    return 1.0 if outputs < 1 else cuts * stride * FAST_TILE / outputs / taps


def identity(net: str, layer: str, op: str, batch: int, dtype: str, math: str) -> str:
    """The id of an item; a geometry that a user typed has no net, and itself for a layer."""
    return f"{net or 'conv'}/{layer}/{op}/N={batch}/{dtype}/{math}"


def text_of(item: Item) -> str:
    """The problem in a few words: as it describes itself, or the shapes of its tensors and its constants."""
    g = item.problem
    if "__str__" in vars(type(g)):
        return str(g)
    words = [f"{name}{g.shape(name)}" for name in item.inputs]
    if isinstance(g, LRN):
        words += [f"size {g.size} alpha {g.alpha:g} beta {g.beta:g} k {g.k:g}"]
        words += [f"groups {g.groups}"] if g.groups > 1 else []
        words += ["within a channel"] if g.region == "within_channel" else []
    return " ".join(words)


def item_of(row: Mapping[str, Any]) -> Item:
    """The item that a row of a result file was measured on.

    Raises
    ------
    ConvkitError
        If the row does not describe one.
    """
    op = row["op"]
    if op not in OPS:
        raise unknown("op", op, OPS)
    try:
        problem = _problem(OPS[op].problem, row["problem"])
    except (TypeError, KeyError, ValueError, ArithmeticError) as error:
        raise OptionError(f"row {row['id']}: its problem cannot be read: {error}") from None
    return Item(
        row["id"], op, problem, row["dtype"], row["math"], row["layer"], row["net"], row["batch"],
        row.get("options", {}), tuple(row.get("absent", ())),
    )  # fmt: skip


def _problem(kind: type[Problem], values: Mapping[str, Any]) -> Problem:
    if kind is LrnMaxPool2d:
        return LrnMaxPool2d(LRN(**values["lrn"]), Pool2d(**values["pool"]), values["dtype"])
    if kind is Elementwise:
        return Elementwise(tuple(values["dims"]), values["dtype"])
    return kind(**values)


# ---------------------------------------------------------------------------------------------------
# From what the user typed
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    net: str = "alexnet"
    preset: str = "paper"
    layers: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    batches: tuple[int, ...] = (16,)
    ops: tuple[str, ...] = ()
    convs: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    math: str = "fp32"
    geometries: tuple[str, ...] = ()


def items(wanted: Wanted) -> list[Item]:
    """Every item that is asked for, in the order of the network.

    Raises
    ------
    OptionError, ShapeError
        For a name that is not known, or a geometry that cannot be; the message says which, and what is known.
    """
    check_names("direction", wanted.directions, DIRECTIONS)
    check_names("op", wanted.ops, OPS)
    check_names("dtype", wanted.dtypes, ALL_DTYPES)
    check_names("geometry", wanted.geometries, GEOMETRIES)
    if wanted.math not in MATH:
        raise unknown("math", wanted.math, MATH)
    found: list[Item] = []
    for dtype in wanted.dtypes:
        for text in wanted.convs:
            found += _of_conv(text, dtype, wanted)
        for name in wanted.geometries:
            found += _of_conv(GEOMETRIES[name], dtype, wanted, name)
        if (wanted.convs or wanted.geometries) and not (wanted.layers or wanted.ops):
            continue
        for batch in wanted.batches:
            found += _of_net(wanted, batch, dtype)
    if not found:
        which = ", ".join((*wanted.ops, *wanted.layers)) or wanted.net
        what = f"op in {', '.join(wanted.directions)}" if wanted.directions else "row of its own"
        raise OptionError(f"nothing to measure: {which} has no {what}")
    return list({item.id: item for item in found}.values())


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not known."""
    for name in names:
        if name not in known:
            raise unknown(what, name, known)


def _of_net(wanted: Wanted, batch: int, dtype: str) -> list[Item]:
    if wanted.net not in NETS:
        raise unknown("network", wanted.net, NETS)
    whole = list(of_preset(wanted.preset, batch, dtype, wanted.math))
    names = dict.fromkeys(item.layer for item in whole)
    check_names(f"layer of {wanted.net} ({wanted.preset})", wanted.layers, names)
    chosen = [item for item in whole if not wanted.layers or item.layer in wanted.layers]
    if wanted.ops:
        elsewhere = [] if wanted.layers else [op for op in wanted.ops if all(i.op != op for i in whole)]
        chosen += [item for op in elsewhere for item in of_cases(op, batch, dtype, wanted.math)]
        return [
            item
            for item in chosen
            if item.op in wanted.ops and item.direction in (wanted.directions or DIRECTIONS)
        ]
    return [item for item in chosen if item.direction in (wanted.directions or USUAL)]


def _of_conv(text: str, dtype: str, wanted: Wanted, name: str = "") -> Iterator[Item]:
    problem = replace(convolution(text), dtype=dtype)
    for op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"):
        if OPS[op].direction not in (wanted.directions or USUAL):
            continue
        label = name or "".join(text.split())
        yield Item(
            identity("", label, op, problem.N, dtype, wanted.math),
            *(op, problem, dtype, wanted.math),
            layer=label,
            batch=problem.N,
            options={"relu": False} if op == "conv2d_fprop" else {},
            absent=("b",) if op == "conv2d_fprop" else (),
        )


def convolution(text: str) -> Conv2d:
    """A convolution from `CONV_FORM`, such as "8,64,56,56,128,3,3,stride=2,pad=1".

    An option is one number, or two with an x between them: vertical, horizontal.
    """
    shown = "".join(text.split())
    if not shown:
        raise OptionError(f"--conv takes 7 sizes, {CONV_FORM}, not {text!r}")
    numbers: list[int] = []
    options: dict[str, Any] = {}
    for word in (part.strip() for part in text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals and not options and name not in _CONV_OPTIONS:
            numbers.append(_size(shown, len(numbers), word))
            continue
        if not equals:
            known = name in _CONV_OPTIONS
            hint = f"{name} needs a value, such as {name}=1" if known else f"{word!r} is no option=value"
            raise OptionError(f"--conv {shown}: {hint}; the sizes come before the options: {CONV_FORM}")
        if name not in _CONV_OPTIONS:
            raise OptionError(f"--conv {shown}: {unknown('option', name, _CONV_OPTIONS)}")
        if _CONV_OPTIONS[name] in options:
            raise OptionError(f"--conv {shown}: {name} is there twice; two numbers are {name}=2x1")
        options[_CONV_OPTIONS[name]] = _pair(shown, name, value)
    if len(numbers) != 7:
        raise OptionError(f"--conv takes 7 sizes, {CONV_FORM}, not {len(numbers)}: {text!r}")
    if numbers[0] < 1:
        raise OptionError(f"--conv {shown}: an empty batch takes no time")
    N, C, H, W, K, R, S = numbers
    groups = options.get("groups", 1)
    if isinstance(groups, tuple):
        raise OptionError(f"--conv {shown}: groups is one number, not '{groups[0]}x{groups[1]}'")
    try:
        if groups < 1 or C % groups:
            raise OptionError(f"C = {C} channels are not divisible by groups = {groups}")
        return Conv2d.of((N, C, H, W), (K, C // groups, R, S), **options)
    except ConvkitError as error:
        raise type(error)(f"--conv {shown}: {error}") from None


def _size(text: str, index: int, word: str) -> int:
    """One of the sizes, by its place."""
    if index < len(_SIZES):
        return _number(text, _SIZES[index], word, word)
    if not (word.isascii() and word.isdigit()):
        raise OptionError(f"--conv {text}: {word!r} is neither a size nor option=value; {CONV_FORM}")
    return 0  # one too many, which is told with their count


def _pair(text: str, name: str, value: str) -> int | tuple[int, int]:
    parts = [_number(text, name, part, value) for part in value.split("x")]
    if len(parts) > 2:
        raise OptionError(f"--conv {text}: {name} is one number, or two such as 2x1, not {value!r}")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _number(text: str, name: str, word: str, value: str) -> int:
    """A whole number that is all or half of what was given for `name`."""
    if not (word.isascii() and word.isdigit()):
        what = "a whole number" + (", or two such as 2x1" if name in _PAIRS else "")
        raise OptionError(f"--conv {text}: {name} must be {what}, not {value!r}; {CONV_FORM}")
    if len(word) > MOST_DIGITS:
        raise OptionError(f"--conv: {name} is a number of {len(word)} digits, more than {MOST_DIGITS}")
    return int(word)


# ---------------------------------------------------------------------------------------------------
# From a network
# ---------------------------------------------------------------------------------------------------
def of_preset(name: str, batch: int, dtype: str = "float32", math: str = "fp32") -> Iterator[Item]:
    """Every op of a training step of an AlexNet, each alone, and those that convkit has as one.

    Convolutions stand without bias and ReLU, which is what every library can be asked for; "conv1+relu1" is
    the same with both, "norm1+pool1" LRN with its pool, and "fc6+update" the gradients of a fully connected
    layer with the update of its weights.
    """
    chosen = preset(name)
    size = chosen.image_size
    shape: Shape = (batch, 3, size, size)
    net = f"alexnet-{name}"

    def item(layer: str, op: str, problem: Problem, absent: tuple[str, ...] = (), **options: Any) -> Item:
        name = identity(net, layer, op, batch, dtype, math)
        return Item(name, op, problem, dtype, math, layer, net, batch, options, absent)

    layers = chosen.layers
    previous: Layer | None = None
    for layer, after in pairwise((*layers, None)):
        assert layer is not None
        y = layer.output_shape(shape, chosen.num_classes)
        for record in _of_layer(layer, shape, chosen.num_classes, dtype):
            yield item(*record[:-1], **record[-1])
        for record in _fused(layer, previous, after, shape, y, dtype, chosen.update):
            yield item(*record[:-1], **record[-1])
        previous, shape = layer, y
    problem = SoftmaxXent(batch, chosen.num_classes, dtype)
    yield item("loss", "softmax_xent_fprop", problem)
    yield item("loss", "softmax_xent_dgrad", problem)


def of_cases(op: str, batch: int, dtype: str, math: str) -> Iterator[Item]:
    """An op that no AlexNet has, on the layers that its own cases name."""
    row = OPS[op]
    stretch = row.cases.extents.get("N")
    options = dict(row.cases.options[0]) if row.cases.options else {}
    for name, plain in row.cases.layers():
        problem: Any = stretch(plain, batch) if stretch else plain
        problem = replace(problem, dtype=dtype)
        identifier = identity("cases", name, op, batch, dtype, math)
        yield Item(identifier, op, problem, dtype, math, name, "cases", batch, options, row.optional)


#: (layer's name, op, problem, absent inputs, options)
Record = tuple[str, str, Problem, tuple[str, ...], dict[str, Any]]


def _of_layer(layer: Layer, x: Shape, num_classes: int, dtype: str) -> Iterator[Record]:
    """A layer's own ops, one by one, in the order of `DIRECTIONS`."""
    passes = layer.passes(x, num_classes, dtype)
    if passes.forward is None:
        yield layer.name, "reorder", Reorder(*x, dtype), (), {}  # type: ignore[call-arg, arg-type]
        return
    training = {**layer.options(True), "seed": 1} if isinstance(layer, Dropout) else {}
    uses = sorted((passes.forward, *passes.backward), key=lambda use: DIRECTIONS.index(OPS[use.op].direction))
    for use in uses:
        yield layer.name, use.op, use.problem, OPS[use.op].optional, {**use.options, **training}


def _fused(
    layer: Layer, before: Layer | None, after: Layer | None, x: Shape, y: Shape, dtype: str, update: Update
) -> Iterator[Record]:
    """What convkit does in one op that begins with this layer."""
    relu = after.name if isinstance(after, Relu) else ""
    if isinstance(layer, Conv):
        conv = layer.problem(x, dtype)
        if relu:
            yield f"{layer.name}+{relu}", "conv2d_fprop", conv, (), {"relu": True}
        if isinstance(before, Relu):
            yield f"{before.name}+{layer.name}", "conv2d_dgrad_relu", conv, (), {}
    elif isinstance(layer, LinearLayer):
        linear = Linear(x[0], x[1], y[1], dtype)
        if relu:
            yield f"{layer.name}+{relu}", "linear_fprop", linear, (), {"relu": True}
        rule = {
            "lr": update.lr, "momentum": update.momentum, "weight_decay": update.weight_decay,
            "dampening": 0.0, "nesterov": False, "lr_in_velocity": update.lr_in_velocity,
        }  # fmt: skip
        yield f"{layer.name}+update", "linear_wgrad_sgd", linear, (), rule
        yield f"{layer.name}+update", "linear_dgrad_wgrad_sgd", linear, (), {"relu": False, **rule}
        yield f"{layer.name}.w", "sgd_momentum", Elementwise((y[1], x[1]), dtype), (), rule
    elif isinstance(layer, Lrn) and isinstance(after, MaxPool) and layer.region == "across_channels":
        lrn, pool = layer.problem(x), after.problem(x)
        both, name = LrnMaxPool2d(lrn, pool, dtype), f"{layer.name}+{after.name}"
        yield name, "lrn_maxpool2d_fprop", both, (), {}
        yield name, "lrn_maxpool2d_dgrad", both, (), {"relu": isinstance(before, Relu)}


#: Layers of the paper's network for a first look.
QUICK_LAYERS = ("conv1", "conv2", "conv3", "norm1", "pool1", "relu1", "fc7", "norm1+pool1")


def quick(wanted: Wanted) -> Wanted:
    """The same for a minute's look: some layers, a small batch, forward alone; what was named stays."""
    plain = Wanted()
    known = preset(wanted.preset).layers
    names = {layer.name for layer in known} | {"norm1+pool1"}
    rest = not (wanted.layers or wanted.ops or wanted.convs or wanted.geometries)
    return replace(
        wanted,
        layers=tuple(n for n in QUICK_LAYERS if n in names) if rest else wanted.layers,
        geometries=tuple(name for name in wanted.geometries if name in QUICK_GEOMETRIES),
        directions=("fwd",) if rest and not wanted.directions else wanted.directions,
        batches=(2,) if wanted.batches == plain.batches else wanted.batches,
    )


def describe(items: Sequence[Item]) -> str:
    """What they are, in a line."""
    nets = ", ".join(dict.fromkeys(item.net or "a geometry" for item in items))
    batches = ", ".join(dict.fromkeys(str(item.batch) for item in items))
    return f"{len(items)} rows of {nets}, N = {batches}"
