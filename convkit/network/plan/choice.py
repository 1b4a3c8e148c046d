"""Which implementation runs each op of a network, and in which layouts its activations lie.

This is the one place where that is decided; a plan, a benchmark and a table ask here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from ... import layouts
from ...errors import ConvkitError, NoImplementation, OptionError
from ...layouts import NCHW, Layout
from ...ops.elementwise import Elementwise
from ...ops.reorder import Reorder
from ...registry import Implementation, current_choice, implementations, select
from . import fusion
from .graph import VIEW, Graph, Node, Stage, Value, gradient

#: What a change of layout costs, in passes over a tensor: it is read and written, forward and backward. A
#: tensor that stays in the users' order costs one: kernels that compute in another pack it themselves.
REORDER = 4


@dataclass
class Chooser:
    """What implementations there are, for one device and one choice of the user's.

    Attributes
    ----------
    device : {"cpu", "cuda"}
    math : str, optional
    names : mapping
        For each layer, names of implementations by op; the key "" is for all layers.
    values : dict of str to Value
    own : set of str
        The ops of the layers themselves: each runs in NCHW, by the reference if by nothing else.
    layouts : dict of str to Layout
        Of activations; a gradient has the layout of what it is the gradient of, unless it is named itself.
    """

    device: str
    math: str | None
    names: Mapping[str, Mapping[str, str]]
    values: dict[str, Value]
    own: frozenset[str] = frozenset()
    layouts: dict[str, Layout] = field(default_factory=dict)

    @classmethod
    def of(
        cls, graph: Graph, device: str, math: str | None, names: Mapping[str, Mapping[str, str]]
    ) -> Chooser:
        """For a graph, with what `convkit.use` has chosen here, under the layers' own choices."""
        own = {n.op for s in graph.stages for n in (s.forward, *s.backward)}
        choice = {"": dict(current_choice().names), **names}
        return cls(device, math, choice, graph.values, frozenset(own | {VIEW}))

    # -- names ------------------------------------------------------------------------------------------
    def name(self, layers: Sequence[str], op: str) -> str | None:
        """The implementation of an op that the user has named for these layers, or None."""
        # An update is its parameter's: "conv1.w" belongs to conv1.
        owners = [layer.rpartition(".")[0] for layer in layers] if op == "sgd_momentum" else ()
        for layer in (*layers, *owners, ""):
            if (found := self.names.get(layer, {}).get(op)) is not None:
                return found
        return None

    def named(self, layers: Sequence[str], *ops: str) -> bool:
        """Whether the user has named an implementation of one of these ops."""
        return any(self.name(layers, op) is not None for op in ops)

    # -- layouts ----------------------------------------------------------------------------------------
    def layout(self, value: str) -> Layout:
        """Layout of a value."""
        if value not in self.layouts:
            value = self.values[value].of or self.values[value].beside
        return self.layouts.get(value, NCHW)

    def declaration(self, node: Node) -> str | None:
        """What an implementation of the node has to declare, or None where its values do not go together."""
        found = {name: self.layout(value) for name, value in node.tensors.items()}
        if isinstance(node.problem, Elementwise):  # any order of the elements will do, but for a counted one
            rows = set(found.values())
            counted = "offset" in node.options or node.op == VIEW
            return NCHW.name if len(rows) == 1 and not (counted and rows != {NCHW}) else None
        try:
            return layouts.named(found)
        except OptionError:
            return None

    # -- implementations --------------------------------------------------------------------------------
    def pick(self, node: Node) -> Implementation:
        """The implementation that runs a node.

        Raises
        ------
        NoImplementation, OptionError
            As `registry.select`; they begin with the name of the op.
        """
        layout = self.declaration(node)
        try:
            if layout is None:
                raise NoImplementation(f"{node.layer}: its tensors' layouts do not go together")
            return select(
                node.op,
                node.problem,
                device=self.device,
                math=self.math,
                layout=layout,
                impl=self.name(node.layers, node.op),
                flags=node.flags,
            )
        except ConvkitError as error:
            error.op = error.op or node.op
            raise

    def fits(self, node: Node) -> bool:
        """Whether the node can be run as its values lie; not by the reference, unless it was named."""
        layout = self.declaration(node)
        if layout is None or (layout == NCHW.name and node.op in self.own):
            return layout is not None
        try:
            found = self.pick(node)
        except (NoImplementation, OptionError):
            return False
        return found.name != "reference" or self.name(node.layers, node.op) is not None


# ---------------------------------------------------------------------------------------------------
# Fusion of stages, and layouts: one search
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Way:
    """Stages up to some activation, and the layouts on the way, at some cost.

    The cost is in elements that are not in a layout in which kernels compute, for an image; then in stages.
    """

    cost: tuple[int, int] = (0, 0)
    stages: tuple[Stage, ...] = ()
    layouts: tuple[tuple[str, Layout], ...] = ()


def arrange(graph: Graph, chooser: Chooser, *, fuse: bool = True) -> tuple[Stage, ...]:
    """The stages that run: some fused, with changes of layout between them; fills the chooser's layouts.

    Dynamic programming along the row: for each activation and each layout of it, the cheapest way there.
    """
    stages, rows = graph.stages, _computed_in(chooser)
    best: list[dict[Layout, _Way]] = [{NCHW: _Way()}, *({} for _ in stages)]
    for i in range(len(stages)):
        for stage, j in _candidates(stages, i, chooser, fuse):
            for x_layout, before in best[i].items():
                for way, y_layout in _ways(stage, x_layout, before, chooser, rows):
                    known = best[j].get(y_layout)
                    if known is None or way.cost < known.cost:
                        best[j][y_layout] = way
    way = best[-1][NCHW]
    chooser.layouts.clear()
    chooser.layouts.update(way.layouts)
    return way.stages


def _computed_in(chooser: Chooser) -> list[Layout]:
    """The layouts of activations in which implementations for the device compute, the users' own last."""
    found = {NCHW}
    for implementation in implementations(device=chooser.device, layout=None):
        if implementation.op != "reorder":
            declared = layouts.declared(implementation.layout)
            found |= {declared.x, declared.y}
    return sorted(found, key=lambda row: (row == NCHW, row.name))


def _candidates(stages: Sequence[Stage], i: int, chooser: Chooser, fuse: bool) -> list[tuple[Stage, int]]:
    """The stages that may begin at an activation, with the number of the activation at their end."""
    found = [(stages[i], i + 1)]
    for pattern, vanishing in fusion.FORWARD if fuse else ():
        one = pattern(stages[i], stages[i + 1]) if i + 1 < len(stages) else None
        if one is not None and not chooser.named(one.layers, *vanishing):
            found.append((one, i + 2))
    return found


def _ways(
    stage: Stage, x_layout: Layout, before: _Way, chooser: Chooser, rows: Sequence[Layout]
) -> Iterator[tuple[_Way, Layout]]:
    """The ways on through a stage, from an input in that layout."""
    x, y = chooser.values[stage.x], chooser.values[stage.y]
    for inner in _possible(x.shape, rows):
        entered = stage if inner == x_layout else _reordered(stage, x_layout, inner, chooser)
        for y_layout in _possible(y.shape, rows) if entered else ():
            assert entered is not None
            inside = _fitting(entered, inner, y_layout, chooser)
            if inside is None:
                continue
            cost = 0 if entered is stage else REORDER * _elements(x)
            cost += 0 if y_layout.axes else _elements(y)
            chosen = {**inside, entered.x: inner, stage.x: x_layout, stage.y: y_layout}
            yield (
                _Way(
                    (before.cost[0] + cost, before.cost[1] + 1),
                    (*before.stages, entered),
                    (*before.layouts, *chosen.items()),
                ),
                y_layout,
            )


def _possible(shape: Sequence[int], rows: Sequence[Layout]) -> list[Layout]:
    """Layouts in which an activation of that shape may lie: without padding channels."""
    if len(shape) != 4:
        return [NCHW]
    return [row for row in rows if not row.block or shape[1] % row.block == 0]


def _elements(value: Value) -> int:
    """Of one image's maps."""
    return prod(value.shape[1:]) if len(value.shape) == 4 else 0


def _reordered(stage: Stage, outer: Layout, inner: Layout, chooser: Chooser) -> Stage | None:
    """The stage on a copy of its input in another layout, where a copy can be made there and back."""
    value = chooser.values[stage.x]
    copy = f"{stage.x} in {inner.name}"
    chooser.values[copy] = Value(value.shape, value.dtype)
    chooser.values[gradient(copy)] = Value(value.shape, value.dtype, copy)
    chooser.layouts.update({stage.x: outer, copy: inner, gradient(stage.x): outer, gradient(copy): inner})
    problem = Reorder(*value.shape, value.dtype)  # type: ignore[call-arg, arg-type]
    there = Node(stage.layers, "reorder", problem, {"x": stage.x, "y": copy})
    back = Node(stage.layers, "reorder", problem, {"x": gradient(copy), "y": gradient(stage.x)})
    if not (chooser.fits(there) and chooser.fits(back)):
        return None
    forward, *backward = (
        node.renamed(stage.x, copy).renamed(gradient(stage.x), gradient(copy))
        for node in (stage.forward, *stage.backward)
    )
    return Stage(forward, (*backward, back), copy, stage.y, there)


def _fitting(stage: Stage, x_layout: Layout, y_layout: Layout, chooser: Chooser) -> dict[str, Layout] | None:
    """The layouts of the gradients inside of a stage with which it runs between these, or None."""
    ends = {stage.x: x_layout, stage.y: y_layout}
    chooser.layouts.update(ends)
    chooser.layouts.update({gradient(value): layout for value, layout in ends.items()})
    if not chooser.fits(stage.forward):
        return None
    nodes = [node for node in stage.backward if node.op != "reorder"]
    inner = [v for n in nodes for v in n.writes if (of := chooser.values[v].of) and of not in ends]
    for middle in dict.fromkeys((y_layout, x_layout)):
        inside = dict.fromkeys(inner, middle)
        chooser.layouts.update(inside)
        if all(chooser.fits(n) for n in fusion.backward(nodes, chooser.values, chooser)):
            return inside
    return None
