"""A network's passes as data: ops on named values, layer by layer.

Values have names: "x" is the network's input, "conv1.y" a layer's output, "conv1.w" a parameter, "d(conv1.y)"
the gradient of a value, "v(conv1.w)" a velocity. Nothing here has memory, or an implementation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...op import OPS, Problem, Shape
from ...ops.elementwise import Elementwise
from ...ops.loss_summary import LossSummary
from ...ops.softmax_xent import SoftmaxXent
from ..layers import Layer, Use

#: The value that says whether a step's loss is finite, which an update reads.
FINITE = "finite"
#: The op of a node that runs nothing: its output is its input in another shape.
VIEW = "view"


def gradient(value: str) -> str:
    """Name of the gradient of a value."""
    return f"d({value})"


def velocity(parameter: str) -> str:
    """Name of the velocity of a parameter."""
    return f"v({parameter})"


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
        The layers that it belongs to.
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
    """

    forward: Node
    backward: tuple[Node, ...]
    x: str
    y: str
    before: Node | None = None

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
    """

    stages: tuple[Stage, ...]
    loss: tuple[Node, ...]
    values: dict[str, Value]
    parameters: tuple[str, ...]
    logits: str


def lower(layers: Sequence[Layer], input_shape: Shape, num_classes: int, dtype: str) -> Graph:
    """The passes of layers in a row, and the loss, for images of shape (N, C, H, W)."""
    values = {"x": Value(input_shape, dtype), gradient("x"): Value(input_shape, dtype, "x")}
    stages, parameters = [], []
    x, shape = "x", input_shape
    for layer in layers:
        y, y_shape = f"{layer.name}.y", layer.output_shape(shape, num_classes)
        names = {"x": x, "dx": gradient(x), "y": y, "dy": gradient(y)}
        values[y], values[gradient(y)] = Value(y_shape, dtype), Value(y_shape, dtype, y)
        for parameter, (w_shape, _) in layer.parameters(shape, num_classes).items():
            w = f"{layer.name}.{parameter}"
            parameters.append(w)
            names |= {parameter: w, f"d{parameter}": gradient(w)}
            for value in (w, gradient(w), velocity(w)):
                values[value] = Value(w_shape, dtype)
        passes = layer.passes(shape, num_classes, dtype)
        if passes.forward is None:
            view, back = Elementwise(shape, dtype), Elementwise(y_shape, dtype)
            forward = Node((layer.name,), VIEW, view, {"x": x, "y": y})
            backward = [Node((layer.name,), VIEW, back, {"x": gradient(y), "y": gradient(x)})]
        else:
            forward = _node(layer.name, passes.forward, names, values)
            backward = [_node(layer.name, use, names, values) for use in passes.backward]
        stages.append(Stage(forward, tuple(backward), x, y))
        x, shape = y, y_shape
    return Graph(tuple(stages), _loss(x, values, dtype), values, tuple(parameters), x)


def _node(layer: str, use: Use, names: dict[str, str], values: dict[str, Value]) -> Node:
    """A use with the layer's values; a further output of the op becomes a new value of the layer."""
    op = OPS[use.op]
    for name in op.outputs:
        if name not in names:
            names[name] = f"{layer}.{name}"
            shape, dtype = use.problem.shape(name), use.problem.dtype_of(name)
            values[names[name]] = Value(shape, dtype, beside=names["y"])
    return Node(
        (layer,), use.op, use.problem, {name: names[name] for name in (*op.inputs, *op.outputs)}, use.options
    )


def _loss(logits: str, values: dict[str, Value], dtype: str) -> tuple[Node, ...]:
    """Cross-entropy of the logits with the labels, the ranks of the labels, and the sums of both."""
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
    return tuple(found)
