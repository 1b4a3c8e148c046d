"""A network's passes as data: ops on named values, layer by layer.

Values have names: "x" is the network's input, "conv1.y" a layer's output, "conv1.w" a parameter, "d(conv1.y)"
the gradient of a value, "v(conv1.w)" a velocity. Nothing here has memory, or an implementation.

In mixed precision (`MIXED`) activations have 16 bits, and parameters, their gradients and velocities are
float32. The layers' ops read working copies of the parameters, "conv1.w in bfloat16", which each forward pass
makes anew: so they are right whatever has written into the parameters. In float16 the loss is scaled: see
`lower`. Float32 weights have such a copy, "conv1.w in KRSC", where `arrange` wants them in another layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...op import OPS, Problem, Shape, pair_dtype
from ...ops import loss_scale
from ...ops.elementwise import Elementwise
from ...ops.loss_scale import LossScale
from ...ops.loss_summary import LossSummary
from ...ops.reorder import Reorder
from ...ops.softmax_xent import SoftmaxXent
from ..layers import Layer, Use

#: The value that says whether a step's loss is finite, which an update reads.
FINITE = "finite"
#: Where the loss is scaled, updates read this one: whether all gradients are finite, too.
SOUND = "sound"
#: The loss scale, and the steps since it last changed.
SCALE, GOOD_STEPS = "loss scale", "good steps"
#: What parameters are stored in, for activations of each of these dtypes; else they are of the same dtype.
MIXED = {"bfloat16": "float32", "float16": "float32"}
#: Dtypes whose gradients need a loss scale.
SCALED = ("float16",)
#: The op of a node that runs nothing: its output is its input in another shape.
VIEW = "view"


def gradient(value: str) -> str:
    """Name of the gradient of a value."""
    return f"d({value})"


def velocity(parameter: str) -> str:
    """Name of the velocity of a parameter."""
    return f"v({parameter})"


def scaled(parameter: str) -> str:
    """Name of the gradient of a parameter as the backward pass makes it, where the loss is scaled."""
    return f"scaled d({parameter})"


@dataclass(frozen=True)
class Value:
    """Shape and dtype of a value, and the activation that it belongs to.

    Attributes
    ----------
    shape : tuple of int
        Logical shape.
    dtype : str
    of : str
        The activation of which it is the gradient, or empty.
    beside : str
        The activation that the same op writes, or empty: of a pool's argmax, its y.
    """

    shape: Shape
    dtype: str
    of: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Node:
    """An op on values.

    Attributes
    ----------
    layers : tuple of str
        The layers that it belongs to; of what is done for one parameter alone, that parameter.
    op : str
        In `op.OPS`, or `VIEW`.
    problem : Problem
    tensors : mapping
        For each of the op's tensors, by its name in the op, the value. An optional input may be missing.
    options : mapping
        Keyword arguments of an implementation.
    parts : tuple of Node
        The nodes that it stands for, where each of them may run in its place: alone, or all in this order.
    """

    layers: tuple[str, ...]
    op: str
    problem: Problem
    tensors: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Node, ...] = ()

    @property
    def layer(self) -> str:
        """The layers as one name, for tables: "conv1+relu1"."""
        return "+".join(self.layers)

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of the op that are given."""
        return () if self.op == VIEW else tuple(f for f in OPS[self.op].flags if f in self.tensors)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The op's names of its outputs."""
        return ("y",) if self.op == VIEW else OPS[self.op].outputs

    @property
    def reads(self) -> tuple[str, ...]:
        """Values that it reads."""
        return tuple(value for name, value in self.tensors.items() if name not in self.outputs)

    @property
    def writes(self) -> tuple[str, ...]:
        """Values that it writes."""
        return tuple(self.tensors[name] for name in self.outputs)

    def renamed(self, before: str, after: str) -> Node:
        """The node with one value replaced by another."""
        names = {name: after if value == before else value for name, value in self.tensors.items()}
        return replace(self, tensors=names)


@dataclass(frozen=True)
class Stage:
    """The ops between two activations: a layer, or several that run as one.

    Attributes
    ----------
    forward : Node
        Makes y of x.
    backward : tuple of Node
        In the order in which they run; from the gradient of y to that of x.
    x, y : str
        Values.
    before : Node, optional
        Copies the input into another layout; x is then the copy.
    copies : tuple of Node
        They make the working copies of parameters that the stage reads: of all of its own in mixed precision,
        of float32 weights where they are wanted in another layout.
    """

    forward: Node
    backward: tuple[Node, ...]
    x: str
    y: str
    before: Node | None = None
    copies: tuple[Node, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        return self.forward.layers


@dataclass(frozen=True)
class Graph:
    """A network, layer by layer.

    Attributes
    ----------
    stages : tuple of Stage
    loss : tuple of Node
    values : dict of str to Value
        Every value that the nodes name.
    parameters : tuple of str
    logits : str
    flag : str
        The value that updates read: an update is made where it is not 0.
    adjust : Node, optional
        The last op of a step, where the loss is scaled: it makes the scale of the next step.
    """

    stages: tuple[Stage, ...]
    loss: tuple[Node, ...]
    values: dict[str, Value]
    parameters: tuple[str, ...]
    logits: str
    flag: str = FINITE
    adjust: Node | None = None


def lower(layers: Sequence[Layer], input_shape: Shape, num_classes: int, dtype: str) -> Graph:
    """The passes of layers in a row, and the loss, for images of shape (N, C, H, W).

    Parameters
    ----------
    layers : sequence of Layer
    input_shape : (N, C, H, W)
    num_classes : int
    dtype : str
        Of the activations. One of `MIXED` means mixed precision. For one of `SCALED`, the gradient of the
        loss is multiplied by a scale, and that of each parameter divided by it as soon as it is made. Updates
        come after all of these, and read whether all of the gradients were finite.
    """
    parameters_dtype, scales = MIXED.get(dtype, dtype), dtype in SCALED
    values = {"x": Value(input_shape, dtype), gradient("x"): Value(input_shape, dtype, "x")}
    stages, parameters = [], []
    x, shape = "x", input_shape
    for layer in layers:
        y, y_shape = f"{layer.name}.y", layer.output_shape(shape, num_classes)
        names = {"x": x, "dx": gradient(x), "y": y, "dy": gradient(y)}
        values[y], values[gradient(y)] = Value(y_shape, dtype), Value(y_shape, dtype, y)
        copies: list[Node] = []
        unscale: list[Node] = []
        for parameter, (w_shape, _) in layer.parameters(shape, num_classes).items():
            w = f"{layer.name}.{parameter}"
            parameters.append(w)
            names |= {parameter: w, f"d{parameter}": gradient(w)}
            for value in (w, gradient(w), velocity(w)):
                values[value] = Value(w_shape, parameters_dtype)
            if parameters_dtype != dtype:
                names[parameter] = copy = f"{w} in {dtype}"
                values[copy] = Value(w_shape, dtype)
                copies.append(working_copy(w, copy, w_shape, pair_dtype(dtype, parameters_dtype)))
            if scales:
                names[f"d{parameter}"] = scaled(w)
                values[scaled(w)] = Value(w_shape, parameters_dtype)
                unscale.append(_rescale(w, scaled(w), gradient(w), SOUND, w_shape, True))
        passes = layer.passes(shape, num_classes, dtype)
        if passes.forward is None:
            view, back = Elementwise(shape, dtype), Elementwise(y_shape, dtype)
            forward = Node((layer.name,), VIEW, view, {"x": x, "y": y})
            backward = [Node((layer.name,), VIEW, back, {"x": gradient(y), "y": gradient(x)})]
        else:
            pair = pair_dtype(dtype, parameters_dtype)
            forward = _node(layer.name, passes.forward, names, values, pair)
            backward = [_node(layer.name, use, names, values, pair) for use in passes.backward] + unscale
        stages.append(Stage(forward, tuple(backward), x, y, copies=tuple(copies)))
        x, shape = y, y_shape
    loss = _loss(x, values, dtype, scales)
    adjust, flag = (_adjust(values), SOUND) if scales else (None, FINITE)
    return Graph(tuple(stages), loss, values, tuple(parameters), x, flag, adjust)


def working_copy(parameter: str, copy: str, shape: Shape, dtype: str) -> Node:
    """Makes a copy of a parameter, which stands for its layer. A reorder takes four axes of that memory."""
    problem = Reorder(*shape, *(1,) * (4 - len(shape)), dtype=dtype)  # type: ignore[misc, arg-type]
    return Node((parameter,), "reorder", problem, {"x": parameter, "y": copy})


def _rescale(of: str, x: str, y: str, before: str, shape: Shape, inverse: bool) -> Node:
    """A value times the loss scale, or divided by it; `SOUND` is `before`, and whether it is finite."""
    tensors = {"x": x, "scale": SCALE, "sound": before, "x_new": y, "sound_new": SOUND}
    return Node((of,), "rescale", Elementwise(shape), tensors, {"inverse": inverse})


def _adjust(values: dict[str, Value]) -> Node:
    tensors = {
        "scale": SCALE,
        "steps": GOOD_STEPS,
        "sound": SOUND,
        "scale_new": SCALE,
        "steps_new": GOOD_STEPS,
    }
    problem = LossScale()
    values |= {v: Value(problem.shape(t), problem.dtype_of(t)) for t, v in tensors.items()}
    options = {
        "growth": loss_scale.GROWTH, "backoff": loss_scale.BACKOFF, "interval": loss_scale.INTERVAL,
    }  # fmt: skip
    return Node(("loss",), "adjust_loss_scale", problem, tensors, options)


def _node(layer: str, use: Use, names: dict[str, str], values: dict[str, Value], pair: str) -> Node:
    """A use with the layer's values; a further output of the op becomes a new value of the layer.

    Where the op makes the gradients of parameters, its dtype is the pair of storage and parameters.
    """
    op = OPS[use.op]
    if op.pairs:
        use = replace(use, problem=replace(use.problem, dtype=pair))  # type: ignore[call-arg]
    for name in op.outputs:
        if name not in names:
            names[name] = f"{layer}.{name}"
            shape, dtype = use.problem.shape(name), use.problem.dtype_of(name)
            values[names[name]] = Value(shape, dtype, beside=names["y"])
    return Node(
        (layer,), use.op, use.problem, {name: names[name] for name in (*op.inputs, *op.outputs)}, use.options
    )


def _loss(logits: str, values: dict[str, Value], dtype: str, scales: bool) -> tuple[Node, ...]:
    """Cross-entropy of the logits with the labels, the ranks of the labels, and the sums of both.

    Where the loss is scaled, its gradient is multiplied by the scale before that of the logits is made of it.
    """
    N, K = values[logits].shape
    rows = SoftmaxXent(N, K, dtype)
    whole = LossSummary(N, rows.dtype_of("loss"))
    tensors = {"logits": logits, "dlogits": gradient(logits)}
    found = []
    for name, problem in (
        ("softmax_xent_fprop", rows),
        ("label_rank", rows),
        ("loss_summary", whole),
        ("softmax_xent_dgrad", rows),
    ):
        names = (*OPS[name].inputs, *OPS[name].outputs)
        for tensor in names:
            if tensor not in tensors:
                tensors[tensor] = tensor
                values[tensor] = Value(problem.shape(tensor), problem.dtype_of(tensor))
        found.append(Node(("loss",), name, problem, {tensor: tensors[tensor] for tensor in names}))
    if scales:
        of_logits = found.pop()
        values["scaled dloss"] = values["dloss"]
        found += [
            _rescale("loss", "dloss", "scaled dloss", FINITE, (N,), False),
            of_logits.renamed("dloss", "scaled dloss"),
        ]
    return tuple(found)
