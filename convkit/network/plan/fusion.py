"""Which ops become one: three tables of patterns, and the rules by which they are applied.

A pattern takes neighbours and returns what stands for them, or None where it does not fit. Whether there is
an implementation of the result, and whether the user has named one of the ops that would vanish, is asked
here once for all of them (`Choices`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from ...ops.elementwise import Elementwise
from ...ops.lrn import LRN
from ...ops.lrn_maxpool2d import LrnMaxPool2d
from ...ops.maxpool2d import Pool2d
from .graph import FINITE, VIEW, Node, Stage, Value, gradient, velocity

#: The ops that are several, with those that they stand for.
PARTS = {
    "conv2d_dgrad_relu": ("conv2d_dgrad", "relu_dgrad"),
    "lrn_maxpool2d_fprop": ("lrn_fprop", "maxpool2d_fprop"),
    "lrn_maxpool2d_dgrad": ("lrn_dgrad", "maxpool2d_dgrad"),
    "linear_wgrad_sgd": ("linear_wgrad", "sgd_momentum"),
    "linear_dgrad_wgrad_sgd": ("linear_dgrad", "linear_wgrad", "sgd_momentum"),
}


class Choices(Protocol):
    """What the patterns ask: see `choice.Choices`."""

    def named(self, layers: Sequence[str], *ops: str) -> bool:
        """Whether the user has named an implementation of one of these ops: it must be seen to run."""

    def fits(self, node: Node) -> bool:
        """Whether there is an implementation for the node, in the layouts of its values."""


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
    lrn, pool = a.forward.problem, b.forward.problem
    if not (isinstance(lrn, LRN) and isinstance(pool, Pool2d)) or lrn.region != "across_channels":
        return None
    forward = replace(
        b.forward,
        layers=(*a.layers, *b.layers),
        op="lrn_maxpool2d_fprop",
        problem=LrnMaxPool2d(lrn, pool, lrn.dtype),
        tensors={**b.forward.tensors, "x": a.x},
    )
    return _together(a, b, forward)


def _together(a: Stage, b: Stage, forward: Node) -> Stage:
    backward = tuple(replace(node, layers=forward.layers) for node in (*b.backward, *a.backward))
    return Stage(forward, backward, a.x, b.y)


#: (pattern, ops that vanish)
FORWARD: tuple[tuple[Callable[[Stage, Stage], Stage | None], tuple[str, ...]], ...] = (
    (epilogue, ("relu_fprop", "relu_dgrad")),
    (lrn_maxpool, ("lrn_fprop", "lrn_dgrad", "maxpool2d_fprop", "maxpool2d_dgrad")),
)


# ---------------------------------------------------------------------------------------------------
# Backward: a node, and the next one that reads what it wrote
# ---------------------------------------------------------------------------------------------------
def lrn_maxpool_dgrad(a: Node, b: Node) -> Node | None:
    """Gradient of a pool, then of the LRN below it."""
    if (a.op, b.op) != ("maxpool2d_dgrad", "lrn_dgrad"):
        return None
    lrn, pool = b.problem, a.problem
    if not (isinstance(lrn, LRN) and isinstance(pool, Pool2d)) or lrn.region != "across_channels":
        return None
    names = {"dy": a.tensors["dy"], "argmax": a.tensors["argmax"]}
    return Node(
        (*b.layers, *a.layers) if a.layers != b.layers else a.layers,
        "lrn_maxpool2d_dgrad",
        LrnMaxPool2d(lrn, pool, lrn.dtype),
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


#: (pattern, ops that vanish)
BACKWARD: tuple[tuple[Callable[[Node, Node], Node | None], tuple[str, ...]], ...] = (
    (lrn_maxpool_dgrad, PARTS["lrn_maxpool2d_dgrad"]),
    (conv_relu_dgrad, PARTS["conv2d_dgrad_relu"]),
    (lrn_maxpool_relu_dgrad, ("relu_dgrad",)),
)

#: Gradients that a ReLU's may be taken before as well: what these ops let through is positive where their
#: output is. A pool's output has a fraction of the elements.
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
            if (one := _fused(found[i], b, choices)) is not None:
                found[j : j + 1], found[i : i + 1] = [], [one]
            elif (two := _above(found[i], b, values, choices)) is not None:
                found[j : j + 1], found[i : i + 1] = [], two
            else:
                continue
            changed = True
            break
    return found


def _fused(a: Node, b: Node, choices: Choices) -> Node | None:
    for pattern, vanishing in BACKWARD:
        one = pattern(a, b)
        if one and not choices.named((*a.layers, *b.layers), *vanishing) and choices.fits(one):
            return one
    return None


def _above(a: Node, relu: Node, values: dict[str, Value], choices: Choices) -> list[Node] | None:
    """The gradient of a ReLU taken before `a` instead of behind it."""
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
# Update: the gradients of a layer's weights, and what is made of them
# ---------------------------------------------------------------------------------------------------
def updates(nodes: Sequence[Node], rules: Sequence[Node], choices: Choices) -> tuple[list[Node], list[Node]]:
    """A backward pass and the update rules behind it: weights are updated as their gradient is made, where
    there is an implementation. Such a gradient is never stored.
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
        if dgrad is None:
            one = replace(
                wgrad, op="linear_wgrad_sgd", options=rule.options,
                tensors={"x": wgrad.tensors["x"], "dy": wgrad.tensors["dy"], "w": w, **tail},
            )  # fmt: skip
            gone = [wgrad]
        else:
            one, gone = _linear(wgrad, dgrad, w, tail, rule, found, choices)
        if not choices.fits(one) or choices.named(wgrad.layers, *(n.op for n in gone)):
            rest.append(rule)
            continue
        found[found.index(wgrad)] = one
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
    """Both gradients and the update as one node, with the ReLU's below; and the nodes that it stands for."""
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


def rule(parameter: str, value: Value) -> Node:
    """The update of one parameter, which a step forbids whose loss is not finite."""
    tensors = {
        "w": parameter, "dw": gradient(parameter), "v": velocity(parameter),
        "w_new": parameter, "v_new": velocity(parameter), "finite": FINITE,
    }  # fmt: skip
    return Node((parameter,), "sgd_momentum", Elementwise(value.shape, value.dtype), tensors, UNSET)
