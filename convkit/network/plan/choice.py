"""Which implementation runs each op of a network, in the layouts that its values have.

This is the one place where that is decided; a plan, a benchmark and a table ask here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ... import layouts
from ...errors import ConvkitError, NoImplementation, OptionError
from ...layouts import NCHW, Layout
from ...op import OPS
from ...registry import MATH, Implementation, current_choice, implementations, select
from .graph import VIEW, Graph, Node, Value


@dataclass
class Chooser:
    """The implementations for one device, under one choice of the user.

    Attributes
    ----------
    device : {"cpu", "cuda"}
    math : str, optional
        The coarsest arithmetic of float32 that may run; None is "fp32".
    names : mapping
        For each layer, names of implementations by op; the key "" is for all layers.
    values : dict of str to Value
    own : set of str
        The ops of the layers themselves. In NCHW each of them is taken to run: on a CPU, at the least the
        reference does. What does not run after all, `pick` says.
    strict : bool
        Whether that is not taken for granted: on a GPU, an op may have kernels in another layout alone. What
        only packs its tensors for those does not count.
    layouts : dict of str to Layout
        Of activations. A gradient that is not in it has the layout of its activation.
    """

    device: str
    math: str | None
    names: Mapping[str, Mapping[str, str]]
    values: dict[str, Value]
    own: frozenset[str] = frozenset()
    layouts: dict[str, Layout] = field(default_factory=dict)
    strict: bool = False

    @classmethod
    def of(
        cls, graph: Graph, device: str, math: str | None, names: Mapping[str, Mapping[str, str]]
    ) -> Chooser:
        """For a graph: first the layers' own choices count, then what `convkit.use` has chosen here."""
        own = {n.op for s in graph.stages for n in (s.forward, *s.backward)}
        choice = {"": dict(current_choice().names), **names}
        return cls(device, math, choice, graph.values, frozenset(own | {VIEW}))

    # -- names ------------------------------------------------------------------------------------------
    def name(self, layers: Sequence[str], op: str) -> str | None:
        """The implementation of an op that the user has named for these layers, or None."""
        # The update of a parameter, "conv1.w", belongs to its layer, "conv1".
        updates = op != VIEW and OPS[op].direction == "update"
        owners = [layer.rpartition(".")[0] for layer in layers] if updates else ()
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
        """The layouts that an implementation of the node must declare; None where no declaration fits."""
        found = {name: self.layout(value) for name, value in node.tensors.items()}
        if node.op == VIEW or OPS[node.op].inplace:
            # Elementwise ops take any layout that all their tensors share. Only NCHW fits a view, and an op
            # that counts the elements in their order.
            rows = set(found.values())
            ordered = node.op == VIEW or "offset" in OPS[node.op].options
            return NCHW.name if len(rows) == 1 and not (ordered and rows != {NCHW}) else None
        if node.op == "reorder":  # of weights, whose axes have other letters
            found = {name: _as_maps(row) for name, row in found.items()}
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
        """Whether the node can run in the layouts of its values; by the reference only where it is named."""
        layout = self.declaration(node)
        own = layout == NCHW.name and node.op in self.own
        if layout is None or node.op == VIEW or (own and not self.strict):
            return layout is not None
        try:
            found = self.pick(node)
        except (NoImplementation, OptionError):
            return False
        if self.strict and found.packs:  # it packs its tensors at each call; a plan, once at the edges
            return False
        return own or found.name != "reference" or self.name(node.layers, node.op) is not None

    # -- arithmetic -------------------------------------------------------------------------------------
    @property
    def coarser(self) -> bool:
        """Whether a coarser arithmetic than fp32 may run, as tensor cores have it."""
        return self.math not in (None, MATH[-1])

    def finer(self, node: Node, parts: Sequence[Node]) -> bool:
        """Whether a node would run in a finer arithmetic than one of `parts`; not where it is named."""
        if not self.coarser or self.name(node.layers, node.op) is not None:
            return False
        grade = self._grade(node)
        return grade < len(MATH) and any(self._grade(part) < grade for part in parts)

    def missed(self, nodes: Sequence[Node]) -> int:
        """FLOPs that run in a finer arithmetic than one that may run, and that the op has kernels for."""
        if not (self.coarser and self.strict):
            return 0
        ran = [node for node in nodes if node.op != VIEW]
        return sum(node.problem.flops(node.op) for node in ran if self._grade(node) > self._coarsest(node))

    def _grade(self, node: Node) -> int:
        """What a node runs in, as a place in `MATH`, and behind it where nothing runs it."""
        try:
            return MATH.index(self.pick(node).math)
        except (NoImplementation, OptionError):
            return len(MATH)

    def _coarsest(self, node: Node) -> int:
        """The least place in `MATH` that may run, of all implementations of a node's op, in any layout."""
        dtype, accepted = node.problem.dtype, MATH.index(self.math or MATH[-1])  # type: ignore[attr-defined]
        found = implementations(node.op, device=self.device, layout=None)
        grades = [MATH.index(i.math) for i in found if dtype in i.dtypes]
        return min((grade for grade in grades if grade >= accepted), default=len(MATH))


def _as_maps(row: Layout) -> Layout:
    """The layout of activations with the same order of axes: of KRSC, NHWC."""
    return next(one for one in layouts.ACTIVATIONS.values() if (one.axes, one.block) == (row.axes, row.block))
