"""What a network runs, decided but without memory: nodes in order, implementations and layouts.

A `Program` is made from layers and shapes alone, in milliseconds. It is what to ask which implementation
convkit picks for a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...devices import emulating
from ...errors import NoImplementation, OptionError
from ...layouts import Layout
from ...op import Shape
from ...registry import Implementation
from ..layers import Layer
from . import fusion
from .arrange import arrange
from .choice import Chooser
from .graph import VIEW, Graph, Node, gradient, lower


@dataclass(frozen=True)
class Step:
    """A training step after the loss.

    Attributes
    ----------
    backward, update : tuple of Node
        Where the update of a layer's weights is fused with their gradient, it stands in `backward`.
    """

    backward: tuple[Node, ...]
    update: tuple[Node, ...]


class Program:
    """The passes of a network for one batch size and one choice of implementations.

    Parameters
    ----------
    layers : sequence of Layer
    input_shape : (N, C, H, W)
    num_classes : int
    dtype : str
    device : {"cpu", "cuda", "cuda:1", ...}
    math : str, optional
    names : mapping, optional
        For each layer, names of implementations by op; besides them `convkit.use` holds.
    fuse : bool
        Whether ops may become one; if not, each layer's ops stand alone.

    Attributes
    ----------
    graph : Graph
        The network as its layers say it, without fusion.
    forward, loss : tuple of Node
    backward : tuple of Node
        Gradients of all parameters, and of the input; no update is fused into it.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Shape,
        num_classes: int,
        dtype: str = "float32",
        device: str = "cpu",
        math: str | None = None,
        names: Mapping[str, Mapping[str, str]] | None = None,
        *,
        fuse: bool = True,
    ) -> None:
        self.graph: Graph = lower(layers, input_shape, num_classes, dtype)
        where = "cuda" if emulating() else device.partition(":")[0]
        self.chooser = Chooser.of(self.graph, where, math, names or {})
        stages = arrange(self.graph, self.chooser, fuse=fuse)
        self.forward = tuple(
            node
            for stage in stages
            for node in (*stage.copies, stage.before, stage.forward)
            if node is not None
        )
        self.loss = self.graph.loss
        nodes = [node for stage in reversed(stages) for node in stage.backward]
        fused = fusion.backward(nodes, self.graph.values, self.chooser) if fuse else nodes
        self.backward = tuple(fused)

    def gradients(self, nodes: Iterable[Node], wanted: Collection[str]) -> tuple[Node, ...]:
        """The nodes on which the wanted values depend; of a node of which not all is wanted, the parts.

        The flag does not count as one: it looks at the gradients that are wanted, and at no others.
        """
        needed, found = set(wanted), []
        for node in reversed(tuple(nodes)):
            whole = not node.parts or needed.issuperset(node.writes)
            for one in (node,) if whole else reversed(node.parts):
                if needed.intersection(one.writes):
                    needed.update(value for value in one.reads if value != self.graph.flag)
                    found.append(one)
        return tuple(reversed(found))

    def step(self, parameters: Iterable[str], *, fused: bool = True) -> Step:
        """The backward pass and the update of these parameters.

        Parameters
        ----------
        parameters : iterable of str
            Those that are updated.
        fused : bool
            Whether an update may be made with its gradient, which is then not stored.
        """
        names = tuple(parameters)
        update = [self._rule(name) for name in names]
        backward = self.gradients(self.backward, [gradient(name) for name in names])
        if not fused:
            return Step(backward, tuple(update))
        made, rest = fusion.updates(backward, update, self.chooser)
        return Step(tuple(made), tuple(rest))

    def _rule(self, name: str) -> Node:
        """The update of a parameter; without the flag "finite" where no implementation takes it."""
        node = fusion.rule(name, self.graph.values[name], self.graph.flag)
        try:
            self.pick(node)
        except (NoImplementation, OptionError):
            return replace(node, tensors={t: v for t, v in node.tensors.items() if t not in node.flags})
        return node

    def pick(self, node: Node) -> Implementation:
        """The implementation of a node; see `Chooser.pick`."""
        return self.chooser.pick(node)

    def layout(self, value: str) -> Layout:
        """Layout of a value."""
        return self.chooser.layout(value)

    def runs(self, nodes: Iterable[Node]) -> list[Node]:
        """The nodes that run something: all but views."""
        return [node for node in nodes if node.op != VIEW]
