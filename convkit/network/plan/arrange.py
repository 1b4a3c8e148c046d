"""In which layouts the activations of a network lie, and which stages run as one: a single search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from ... import layouts
from ...layouts import NCHW, WEIGHTS, Layout
from ...ops.reorder import Reorder
from ...registry import implementations
from . import fusion
from .choice import Chooser
from .graph import Graph, Node, Stage, Value, gradient, working_copy

#: Cost of a change of layout, in passes over a tensor: it is read and written; and so is its gradient, which
#: the network's input has none of in a step. A tensor that stays in NCHW costs one pass: kernels that
#: compute in another layout pack it themselves.
REORDER = 2


@dataclass(frozen=True)
class _Way:
    """Stages from the input to some activation, with the layouts of the activations between, and the cost.

    The cost: FLOPs in a finer arithmetic than they might have; elements of an image that kernels have to
    bring into another layout; and stages. In this order: what a convolution saves on tensor cores is far more
    than a few passes over its tensors.
    """

    cost: tuple[int, int, int] = (0, 0, 0)
    stages: tuple[Stage, ...] = ()
    layouts: tuple[tuple[str, Layout], ...] = ()


def arrange(graph: Graph, chooser: Chooser, *, fuse: bool = True) -> tuple[Stage, ...]:
    """The stages that run: some fused, with changes of layout between them; fills the chooser's layouts.

    Dynamic programming along the row: for each activation and each layout of it, the cheapest way there.
    """
    # On a GPU, first among layouts in which everything has a kernel. Where there are none, `pick` says why.
    chooser.strict = chooser.device == "cuda"
    way = _cheapest(graph.stages, chooser, fuse)
    if way is None:
        chooser.strict = False
        way = _cheapest(graph.stages, chooser, fuse)
    assert way is not None
    chooser.layouts.clear()
    chooser.layouts.update(way.layouts)
    return way.stages


def _cheapest(stages: Sequence[Stage], chooser: Chooser, fuse: bool) -> _Way | None:
    """The cheapest way from the input to the logits, both in NCHW; None where there is none."""
    rows = _computed_in(chooser)
    best: list[dict[Layout, _Way]] = [{NCHW: _Way()}, *({} for _ in stages)]
    for i in range(len(stages)):
        for stage, j in _candidates(stages, i, chooser, fuse):
            for x_layout, before in best[i].items():
                reorder = REORDER * (1 if i == 0 else 2) * _elements(chooser.values[stage.x])
                for way, y_layout in _ways(stage, x_layout, before, chooser, rows, reorder):
                    known = best[j].get(y_layout)
                    if known is None or way.cost < known.cost:
                        best[j][y_layout] = way
    return best[-1].get(NCHW)


def _computed_in(chooser: Chooser) -> list[Layout]:
    """The layouts of activations in which implementations for the device compute, NCHW last."""
    found = {NCHW}
    for implementation in implementations(device=chooser.device, layout=None):
        if implementation.op != "reorder":
            declared = layouts.declared(implementation.layout)
            found |= {declared.x, declared.y}
    return sorted(found, key=lambda row: (row == NCHW, row.name))


def _candidates(stages: Sequence[Stage], i: int, chooser: Chooser, fuse: bool) -> list[tuple[Stage, int]]:
    """The stages that may begin at an activation, with the number of the activation at their end."""
    found = [(stages[i], i + 1)]
    for pattern, replaced in fusion.FORWARD if fuse else ():
        one = pattern(stages[i], stages[i + 1]) if i + 1 < len(stages) else None
        if one is not None and not chooser.named(one.layers, *replaced):
            found.append((one, i + 2))
    return found


def _ways(
    stage: Stage, x_layout: Layout, before: _Way, chooser: Chooser, rows: Sequence[Layout], reorder: int
) -> Iterator[tuple[_Way, Layout]]:
    """Each way extended by a stage, from an input in that layout; with the layout of the output.

    `reorder` is what it costs to change the input's layout first.
    """
    x, y = chooser.values[stage.x], chooser.values[stage.y]
    for inner in _possible(x.shape, rows):
        entered = stage if inner == x_layout else _reordered(stage, x_layout, inner, chooser)
        for y_layout in _possible(y.shape, rows) if entered else ():
            assert entered is not None
            found = _fitting(entered, inner, y_layout, chooser)
            if found is None:
                continue
            one, inside, missed = found
            moved = 0 if entered is stage else reorder
            moved += 0 if y_layout.axes else _elements(y)
            chosen = {**inside, entered.x: inner, stage.x: x_layout, stage.y: y_layout}
            flops, elements, stages = before.cost
            yield (
                _Way(
                    (flops + missed, elements + moved, stages + 1),
                    (*before.stages, one),
                    (*before.layouts, *chosen.items()),
                ),
                y_layout,
            )


def _possible(shape: Sequence[int], rows: Sequence[Layout]) -> list[Layout]:
    """Layouts that an activation of that shape may have: those without padding channels."""
    if len(shape) != 4:
        return [NCHW]
    return [row for row in rows if not row.block or shape[1] % row.block == 0]


def _elements(value: Value) -> int:
    """Elements of one image's feature maps."""
    return prod(value.shape[1:]) if len(value.shape) == 4 else 0


def _reordered(stage: Stage, outer: Layout, inner: Layout, chooser: Chooser) -> Stage | None:
    """The stage on a copy of its input in another layout; None where there is no copy in both directions."""
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
    return replace(stage, forward=forward, backward=(*backward, back), x=copy, before=there)


def _fitting(
    stage: Stage, x_layout: Layout, y_layout: Layout, chooser: Chooser
) -> tuple[Stage, dict[str, Layout], int] | None:
    """The stage as it runs between these two layouts; None where it does not.

    With the layouts of what is inside it, gradients and copies of weights, and with the FLOPs that
    `Chooser.missed` counts.
    """
    ends = {stage.x: x_layout, stage.y: y_layout}
    chooser.layouts.update(ends)
    chooser.layouts.update({gradient(value): layout for value, layout in ends.items()})
    for one, copies in _on_copies(stage, chooser):
        chooser.layouts.update(copies)
        if not all(chooser.fits(node) for node in (*one.copies, one.forward)):
            continue
        nodes = [node for node in one.backward if node.op != "reorder"]
        inner = [v for n in nodes for v in n.writes if (of := chooser.values[v].of) and of not in ends]
        for middle in dict.fromkeys((y_layout, x_layout)):
            inside = dict.fromkeys(inner, middle)
            chooser.layouts.update(inside)
            backward = fusion.backward(nodes, chooser.values, chooser)
            if all(chooser.fits(node) for node in backward):
                return one, {**inside, **copies}, chooser.missed((one.forward, *backward))
    return None


def _on_copies(stage: Stage, chooser: Chooser) -> Iterator[tuple[Stage, dict[str, Layout]]]:
    """The stage on working copies of its weights, with their layouts; as users have them, in KCRS, is last.

    In mixed precision there are copies in any case. Else the stage reads its parameters themselves, unless
    tensor cores may run it, whose kernels want weights in another layout.
    """
    copies = [value for node in stage.copies for value in node.writes]
    maps = [value for value in copies if len(chooser.values[value].shape) == 4]
    plain = dict.fromkeys(copies, NCHW)
    for row in WEIGHTS.values():
        if row.axes and maps:
            yield stage, {**plain, **dict.fromkeys(maps, row)}
        elif row.axes and not copies and chooser.device == "cuda" and chooser.coarser:
            yield from _with_copy(stage, row, chooser)
    yield stage, plain


def _with_copy(stage: Stage, row: Layout, chooser: Chooser) -> Iterator[tuple[Stage, dict[str, Layout]]]:
    """The stage on a copy of its weights in that layout, where they are a convolution's, in float32."""
    w = stage.forward.tensors.get("w", "")
    value = chooser.values.get(w)
    if value is None or len(value.shape) != 4 or value.dtype != "float32":
        return
    copy = f"{w} in {row.name}"
    chooser.values[copy] = Value(value.shape, value.dtype)
    made = working_copy(w, copy, value.shape, value.dtype)
    forward, *backward = (node.renamed(w, copy) for node in (stage.forward, *stage.backward))
    yield replace(stage, forward=forward, backward=tuple(backward), copies=(made,)), {copy: row}
