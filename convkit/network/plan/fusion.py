"""Which ops become one: tables of patterns, and the rules by which they are applied.

A pattern takes neighbours and returns the node or stage that replaces them, or None where it does not fit.
Three more conditions are the same for all patterns, and are asked of `Choices`: there is an implementation of
the result; the user has not named an implementation of one of the replaced ops; and none of these would run
in a coarser arithmetic, which saves more than a pass over memory does; forward, `arrange` weighs that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Protocol

from ...op import OPS
from ...ops.elementwise import Elementwise
from ...ops.lrn import LRN
from ...ops.lrn_maxpool2d import LrnMaxPool2d
from ...ops.maxpool2d import Pool2d
from .graph import FINITE, VIEW, Graph, Node, Stage, Value, gradient, velocity


class Choices(Protocol):
    """What the patterns ask; `choice.Chooser` answers."""

    def named(self, layers: Sequence[str], *ops: str) -> bool:
        """Whether the user has named an implementation of one of these ops, which must then run."""

    def fits(self, node: Node) -> bool:
        """Whether there is an implementation for the node, in the layouts of its values."""

    def finer(self, node: Node, parts: Sequence[Node]) -> bool:
        """Whether it would run in a finer arithmetic than one of the nodes that it would replace."""


# ---------------------------------------------------------------------------------------------------
# Forward: two stages in a row
# ---------------------------------------------------------------------------------------------------
def epilogue(a: Stage, b: Stage) -> Stage | None:
    """Convolution or fully connected layer, then ReLU: the ReLU runs before the result is stored."""
    if a.forward.op not in ("conv2d_fprop", "linear_fprop") or b.forward.op != "relu_fprop":
        return None
    forward = replace(
        a.forward,
        layers=(*a.layers, *b.layers),
        tensors={**a.forward.tensors, "y": b.y},
        options={**a.forward.options, "relu": True},
    )
    return _together(a, b, forward)


def lrn_maxpool(a: Stage, b: Stage) -> Stage | None:
    """LRN across channels, then max pooling: the normalised values are not stored."""
    if (a.forward.op, b.forward.op) != ("lrn_fprop", "maxpool2d_fprop"):
        return None
    problem = _lrn_maxpool(a.forward, b.forward)
    if problem is None:
        return None
    forward = replace(
        b.forward,
        layers=(*a.layers, *b.layers),
        op="lrn_maxpool2d_fprop",
        problem=problem,
        tensors={**b.forward.tensors, "x": a.x},
    )
    return _together(a, b, forward)


def _lrn_maxpool(lrn: Node, pool: Node) -> LrnMaxPool2d | None:
    """The problem of both as one, where the normalisation is across channels."""
    normalised, pooled = lrn.problem, pool.problem
    assert isinstance(normalised, LRN) and isinstance(pooled, Pool2d)
    if normalised.region != "across_channels":
        return None
    return LrnMaxPool2d(normalised, pooled, normalised.dtype)


def _together(a: Stage, b: Stage, forward: Node) -> Stage:
    own = {*a.layers, *b.layers}
    backward = tuple(
        replace(node, layers=forward.layers) if own.issuperset(node.layers) else node
        for node in (*b.backward, *a.backward)
    )
    return Stage(forward, backward, a.x, b.y, copies=(*a.copies, *b.copies))


#: (pattern, the ops that it replaces)
FORWARD: tuple[tuple[Callable[[Stage, Stage], Stage | None], tuple[str, ...]], ...] = (
    (epilogue, ("relu_fprop", "relu_dgrad")),
    (lrn_maxpool, ("lrn_fprop", "lrn_dgrad", "maxpool2d_fprop", "maxpool2d_dgrad")),
)


# ---------------------------------------------------------------------------------------------------
# Backward: a node, and the next one that reads its output
# ---------------------------------------------------------------------------------------------------
def lrn_maxpool_dgrad(a: Node, b: Node) -> Node | None:
    """Gradient of a pool, then of the LRN below it."""
    if (a.op, b.op) != ("maxpool2d_dgrad", "lrn_dgrad"):
        return None
    problem = _lrn_maxpool(b, a)
    if problem is None:
        return None
    names = {"dy": a.tensors["dy"], "argmax": a.tensors["argmax"]}
    return Node(
        (*b.layers, *a.layers) if a.layers != b.layers else a.layers,
        "lrn_maxpool2d_dgrad",
        problem,
        {**names, "x": b.tensors["x"], "dx": b.tensors["dx"]},
        {"relu": False},
    )


def conv_relu_dgrad(a: Node, b: Node) -> Node | None:
    """Gradient of a convolution's input, then of the ReLU that made it."""
    if (a.op, b.op) != ("conv2d_dgrad", "relu_dgrad"):
        return None
    names = {"dy": a.tensors["dy"], "w": a.tensors["w"], "x": b.tensors["y"], "dx": b.tensors["dx"]}
    return replace(a, op="conv2d_dgrad_relu", tensors=names)


def lrn_maxpool_relu_dgrad(a: Node, b: Node) -> Node | None:
    """Gradient of LRN and pool, then of the ReLU below them."""
    if (a.op, b.op) != ("lrn_maxpool2d_dgrad", "relu_dgrad"):
        return None
    return replace(a, tensors={**a.tensors, "dx": b.tensors["dx"]}, options={**a.options, "relu": True})


#: Each with the ops that it replaces.
Patterns = tuple[tuple[Callable[[Node, Node], Node | None], tuple[str, ...]], ...]
BACKWARD: Patterns = (
    (lrn_maxpool_dgrad, OPS["lrn_maxpool2d_dgrad"].parts),
    (conv_relu_dgrad, OPS["conv2d_dgrad_relu"].parts),
    (lrn_maxpool_relu_dgrad, ("relu_dgrad",)),
)

#: Gradients that commute with a ReLU's: an element that the forward op passes on is positive exactly where
#: the op's output is positive. The ReLU's gradient is cheaper before a pool's: there are fewer elements.
TRANSPARENT = ("maxpool2d_dgrad", "dropout_dgrad", "reorder", VIEW)


def backward(nodes: Sequence[Node], values: dict[str, Value], choices: Choices) -> list[Node]:
    """The backward pass with every pattern applied; new values are added to `values`."""
    found, changed = list(nodes), True
    while changed:
        changed = False
        for j, b in enumerate(found):
            i = next((i for i, a in enumerate(found[:j]) if set(a.writes) & set(b.reads)), None)
            if i is None or sum(found[i].writes[0] in node.reads for node in found) > 1:
                continue
            if (one := _fused(BACKWARD, found[i], b, choices)) is not None:
                found[j : j + 1], found[i : i + 1] = [], [one]
            elif (two := _above(found[i], b, values, choices)) is not None:
                found[j : j + 1], found[i : i + 1] = [], two
            else:
                continue
            changed = True
            break
    return _beside(found, choices)


def _fused(patterns: Patterns, a: Node, b: Node, choices: Choices) -> Node | None:
    for pattern, replaced in patterns:
        one = pattern(a, b)
        if one is None or choices.named((*a.layers, *b.layers), *replaced):
            continue
        if choices.fits(one) and not choices.finer(one, (a, b)):
            return one
    return None


def _above(a: Node, relu: Node, values: dict[str, Value], choices: Choices) -> list[Node] | None:
    """The gradient of a ReLU taken before `a` instead of after it."""
    if relu.op != "relu_dgrad" or a.op not in TRANSPARENT or choices.named(relu.layers, "relu_dgrad"):
        return None
    before = a.tensors["dy" if "dy" in a.tensors else "x"]
    masked = f"{before} of {relu.layer}"
    values[masked] = value = values[before]
    first = replace(
        relu,
        problem=Elementwise(value.shape, value.dtype),
        tensors={"dy": before, "y": value.of, "dx": masked},
    )
    return [first, a.renamed(before, masked).renamed(a.writes[0], relu.tensors["dx"])]


# ---------------------------------------------------------------------------------------------------
# Backward: two nodes that read the same gradient
# ---------------------------------------------------------------------------------------------------
def conv_parameters(a: Node, b: Node) -> Node | None:
    """Gradients of a convolution's bias and weights: dy is read once."""
    gradients = {node.op: node for node in (a, b)}
    if gradients.keys() != {"conv2d_bgrad", "conv2d_wgrad"}:
        return None
    bgrad, wgrad = gradients["conv2d_bgrad"], gradients["conv2d_wgrad"]
    if bgrad.tensors["dy"] != wgrad.tensors["dy"]:
        return None
    tensors = {**wgrad.tensors, "db": bgrad.tensors["db"]}
    return replace(wgrad, op="conv2d_wgrad_bgrad", tensors=tensors, parts=(a, b))


#: Where a step wants one of two gradients, the node that makes it alone runs: they are the `parts` of a node.
BESIDE: Patterns = ((conv_parameters, OPS["conv2d_wgrad_bgrad"].parts),)


def _beside(nodes: Sequence[Node], choices: Choices) -> list[Node]:
    """The backward pass with these patterns applied: one node in the place of the first of two."""
    found = list(nodes)
    for a, b in combinations(nodes, 2):
        one = _fused(BESIDE, a, b, choices) if a in found and b in found else None
        if one is not None:
            found[found.index(a)] = one
            found.remove(b)
    return found


# ---------------------------------------------------------------------------------------------------
# Update: the gradients of a layer's weights, and the rules that use them
# ---------------------------------------------------------------------------------------------------
def updates(nodes: Sequence[Node], rules: Sequence[Node], choices: Choices) -> tuple[list[Node], list[Node]]:
    """A backward pass and its update rules, after fusion: (nodes, rules that are left).

    Weights are updated as their gradient is made, where there is an implementation. The gradient is then
    never stored. The gradient of the layer's input joins them, unless it has a coarser arithmetic of its own.
    """
    found, rest = list(nodes), []
    for rule in rules:
        wgrad = next((n for n in found if n.op == "linear_wgrad" and rule.tensors["dw"] in n.writes), None)
        if wgrad is None or choices.named((*rule.layers, *wgrad.layers), "linear_wgrad", "sgd_momentum"):
            rest.append(rule)
            continue
        w = rule.tensors["w"]
        tail = {name: rule.tensors[name] for name in ("v", "w_new", "v_new", *rule.flags)}
        dgrad = next((n for n in found if n.op == "linear_dgrad" and w in n.reads), None)
        one = replace(
            wgrad, op="linear_wgrad_sgd", options=rule.options,
            tensors={"x": wgrad.tensors["x"], "dy": wgrad.tensors["dy"], "w": w, **tail},
        )  # fmt: skip
        gone, place = [wgrad], wgrad
        if dgrad is not None:
            both, replaced = _linear(wgrad, dgrad, w, tail, rule, found, choices)
            if choices.finer(both, replaced):
                place = max(wgrad, dgrad, key=found.index)  # dgrad reads w before it is updated
            else:
                one, gone = both, replaced
        if (
            not choices.fits(one)
            or choices.finer(one, gone)
            or choices.named(wgrad.layers, *(n.op for n in gone))
        ):
            rest.append(rule)
            continue
        found.insert(found.index(place) + 1, one)
        found = [n for n in found if not any(n is g for g in gone)]
    return found, rest


def _linear(
    wgrad: Node,
    dgrad: Node,
    w: str,
    tail: dict[str, str],
    rule: Node,
    found: Sequence[Node],
    choices: Choices,
) -> tuple[Node, list[Node]]:
    """Both gradients, the update, and the ReLU below as one node; and the nodes that it replaces."""
    gone, dx, relu = [wgrad, dgrad], dgrad.tensors["dx"], False
    readers = [node for node in found if dx in node.reads]
    if len(readers) == 1 and (mask := readers[0]).op == "relu_dgrad":
        relu = mask.tensors["y"] == wgrad.tensors["x"] and not choices.named(mask.layers, "relu_dgrad")
    if relu:
        gone, dx = [*gone, mask], mask.tensors["dx"]
    one = replace(
        wgrad, op="linear_dgrad_wgrad_sgd", options={"relu": relu, **rule.options},
        tensors={
            "dy": wgrad.tensors["dy"], "w": w, "x": wgrad.tensors["x"], "dx": dx, **tail,
        },
    )  # fmt: skip
    return one, gone


#: Options of an update before a step has set its rates.
UNSET = {
    "lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "dampening": 0.0, "nesterov": False,
    "lr_in_velocity": False,
}  # fmt: skip


def rule(parameter: str, value: Value, flag: str = FINITE) -> Node:
    """The update of one parameter. It reads the flag that is 0 where the step must not count."""
    tensors = {
        "w": parameter, "dw": gradient(parameter), "v": velocity(parameter),
        "w_new": parameter, "v_new": velocity(parameter), "finite": flag,
    }  # fmt: skip
    return Node((parameter,), "sgd_momentum", Elementwise(value.shape, value.dtype), tensors, UNSET)


# ---------------------------------------------------------------------------------------------------
# Which ops a user may name
# ---------------------------------------------------------------------------------------------------
def ops_of(graph: Graph, layer: str) -> set[str]:
    """The ops that may run for a layer: its own, the update of its parameters, and fused ones of these."""
    nodes = [n for s in graph.stages for n in (s.forward, *s.backward) if layer in s.layers]
    own = {name for name in graph.parameters if name.rpartition(".")[0] == layer}
    nodes += [rule(name, graph.values[name]) for name in own]
    found = {node.op for node in nodes} - {VIEW}
    return found | {op.name for op in OPS.values() if found.intersection(op.parts)}
