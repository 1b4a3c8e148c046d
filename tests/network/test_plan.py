"""How a network is planned: patterns of fusion, memory, and that a plan computes what its layers say.

The last is tested on random networks, against an interpreter that runs one layer after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
from stacks import Where, batch, check_passes, check_step, describe, draw
from strategies import seeded

import convkit as ck
from convkit import layouts, registry
from convkit.network import layers as L
from convkit.network.plan import fusion
from convkit.network.plan.graph import Graph, Node, lower
from convkit.network.plan.program import Program
from convkit.op import OPS
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.elementwise import Elementwise

INIT = L.Normal(0.1)
#: The ops that are several in one, with these.
PARTS = {op.name: op.parts for op in OPS.values() if op.parts}


def conv(name: str, filters: int = 16, **options) -> L.Conv:
    return L.Conv(name, filters, 3, INIT, INIT, padding=1, **options)


def linear(name: str, filters: int | None = None) -> L.Linear:
    return L.Linear(name, filters, INIT, INIT)


# ---------------------------------------------------------------------------------------------------
# Patterns, on graphs alone
# ---------------------------------------------------------------------------------------------------
@dataclass
class Choices:
    """Every op has an implementation, but for `unfit`; the user has named `ops`; `coarse` compute in tf32."""

    ops: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
    coarse: tuple[str, ...] = ()

    def named(self, layers: Sequence[str], *ops: str) -> bool:
        return bool(set(ops) & set(self.ops))

    def fits(self, node: Node) -> bool:
        return node.op not in self.unfit

    def finer(self, node: Node, parts: Sequence[Node]) -> bool:
        return node.op not in self.coarse and any(part.op in self.coarse for part in parts)


def graph(*layers: L.Layer) -> Graph:
    """Layers in a row, of which the last need not make logits."""
    of = lower((*layers, L.Flatten("end")), (2, 16, 8, 8), 10, "float32")
    return replace(of, stages=of.stages[:-1], logits=of.stages[-1].x)


def said(nodes: Sequence[Node]) -> list[str]:
    return [f"{node.layer} {node.op}" for node in nodes]


def backward(of: Graph, choices: Choices | None = None) -> list[Node]:
    """The fused backward pass of a graph whose stages stay apart."""
    nodes = [node for stage in reversed(of.stages) for node in stage.backward]
    return fusion.backward(nodes, of.values, choices or Choices())


def chained(nodes: Sequence[Node], start: str, end: str) -> bool:
    """Whether each gradient of an activation is made once, before it is read, down to the input's."""
    known = {start}
    for node in nodes:
        reads = {v for v in node.reads if v.startswith("d(")}
        if not reads <= known or known & set(node.writes):
            return False
        known |= set(node.writes)
    return end in known


@pytest.mark.parametrize("first", [conv("a"), linear("a", 5)], ids=["conv", "linear"])
def test_a_relu_becomes_an_epilogue(first):
    before = (L.Flatten("f"),) if isinstance(first, L.Linear) else ()
    a, b = graph(*before, first, L.Relu("r")).stages[-2:]
    one = fusion.epilogue(a, b)
    assert one.layers == ("a", "r") and (one.x, one.y) == (a.x, "r.y")
    assert one.forward.op == a.forward.op and one.forward.options == {"relu": True}
    assert one.forward.tensors == {**a.forward.tensors, "y": "r.y"}
    assert said(one.backward) == [f"a+r {node.op}" for node in (*b.backward, *a.backward)]
    assert fusion.epilogue(b, a) is None and fusion.epilogue(a, a) is None
    assert a.forward.options == {"relu": False}  # which the pattern leaves as it was


def test_lrn_and_pool_become_one():
    of = graph(L.Lrn("n"), L.MaxPool("p"), L.Relu("r"), L.Lrn("m", region="within_channel"), L.MaxPool("q"))
    n, p, r, m, q = of.stages
    one = fusion.lrn_maxpool(n, p)
    assert one.forward.op == "lrn_maxpool2d_fprop" and one.layers == ("n", "p")
    assert one.forward.tensors == {"x": "x", "y": "p.y", "argmax": "p.argmax"}
    assert one.forward.problem.lrn == n.forward.problem and one.forward.problem.pool == p.forward.problem
    assert [fusion.lrn_maxpool(*pair) for pair in ((p, n), (p, r), (m, q), (n, r))] == [None] * 4

    (back,) = fusion.backward(one.backward, of.values, Choices())
    assert back.op == "lrn_maxpool2d_dgrad" and back.layers == ("n", "p") and back.options == {"relu": False}
    assert back.tensors == {"dy": "d(p.y)", "argmax": "p.argmax", "x": "x", "dx": "d(x)"}
    within = [*q.backward, *m.backward]
    assert fusion.backward(within, of.values, Choices()) == within


def test_lrn_and_pool_take_the_relu_below_them():
    nodes = backward(graph(L.Relu("r"), L.Lrn("n"), L.MaxPool("p")))
    (one,) = nodes
    assert one.op == "lrn_maxpool2d_dgrad" and one.options == {"relu": True}
    assert one.tensors == {"dy": "d(p.y)", "argmax": "p.argmax", "x": "r.y", "dx": "d(x)"}


def test_the_gradient_of_a_convolution_takes_the_relu_below_it():
    nodes = backward(graph(L.Relu("r"), conv("c")))
    assert said(nodes) == ["c conv2d_wgrad_bgrad", "c conv2d_dgrad_relu"]
    assert nodes[-1].tensors == {"dy": "d(c.y)", "w": "c.w", "x": "r.y", "dx": "d(x)"}


@pytest.mark.parametrize(
    ("above", "ops"),
    [
        ((L.MaxPool("p"),), ["r relu_dgrad", "p maxpool2d_dgrad"]),
        ((L.Dropout("d"),), ["r relu_dgrad", "d dropout_dgrad"]),
        ((L.Flatten("f"),), ["r relu_dgrad", "f view"]),
        (
            (L.MaxPool("p"), L.Dropout("d"), L.Flatten("f")),
            ["r relu_dgrad", "f view", "d dropout_dgrad", "p maxpool2d_dgrad"],
        ),
    ],
    ids=["pool", "dropout", "view", "all"],
)
def test_the_gradient_of_a_relu_moves_up(above, ops):
    of = graph(L.Relu("r"), *above)
    nodes = backward(of)
    top = of.logits
    assert said(nodes) == ops and chained(nodes, f"d({top})", "d(x)")
    relu = nodes[0]
    # It starts from the output of what it has passed, whose shape it has.
    assert relu.tensors["dy"] == f"d({top})" and relu.tensors["y"] == top
    assert relu.problem.shape("dy") == of.values[top].shape
    assert nodes[-1].writes[0] == "d(x)"


def test_the_gradient_of_a_relu_moves_up_through_a_change_of_layout():
    of = graph(L.Relu("r"), conv("c"))
    relu, second = of.stages
    of.values["r.y in B"] = of.values["r.y"]
    of.values["d(r.y in B)"] = replace(of.values["d(r.y)"], of="r.y in B")
    problem = Elementwise((2, 16, 8, 8))
    back = Node(("c",), "reorder", problem, {"x": "d(r.y in B)", "y": "d(r.y)"})
    above = [node.renamed("d(r.y)", "d(r.y in B)").renamed("r.y", "r.y in B") for node in second.backward]
    nodes = fusion.backward([*above, back, *relu.backward], of.values, Choices())
    # Up to the convolution, which then takes it.
    assert said(nodes)[1:] == ["c conv2d_dgrad_relu", "c reorder"]
    assert nodes[1].tensors["x"] == "r.y in B" and chained(nodes, "d(c.y)", "d(x)")


def test_the_gradients_of_weights_and_bias_become_one():
    of = graph(conv("a"), conv("b"))
    (one, dgrad, other, _), (bgrad, wgrad, *_) = backward(of), of.stages[1].backward
    assert one.op == other.op == "conv2d_wgrad_bgrad" and one.problem == wgrad.problem
    assert one.tensors == {"x": "a.y", "dy": "d(b.y)", "dw": "d(b.w)", "db": "d(b.b)"}
    assert one.parts == (bgrad, wgrad) and not dgrad.parts and (one.layer, other.layer) == ("b", "a")
    # In whatever order a layer lists them; of one layer alone.
    (turned, *_) = fusion.backward([wgrad, dgrad, bgrad], of.values, Choices())
    assert turned == replace(one, parts=(wgrad, bgrad))
    assert fusion.conv_parameters(bgrad, of.stages[0].backward[1]) is None
    assert fusion.conv_parameters(wgrad, wgrad) is None


def test_two_relus_move_up_in_turn():
    nodes = backward(graph(L.Relu("r"), L.Relu("s"), L.MaxPool("p")))
    assert said(nodes) == ["s relu_dgrad", "r relu_dgrad", "p maxpool2d_dgrad"]
    assert chained(nodes, "d(p.y)", "d(x)")


def test_a_relu_stays_below_what_lets_no_zero_through():
    for layer in (L.Lrn("n"), L.Lrn("n", region="within_channel")):
        assert said(backward(graph(L.Relu("r"), layer))) == ["n lrn_dgrad", "r relu_dgrad"]


def test_a_named_relu_is_not_moved():
    for layer in (L.MaxPool("p"), L.Dropout("d"), L.Flatten("f")):
        nodes = backward(graph(L.Relu("r"), layer), Choices(ops=("relu_dgrad",)))
        assert nodes[-1].op == "relu_dgrad" and nodes[-1].problem.shape("dx") == (2, 16, 8, 8)


def all_of(*layers: L.Layer, choices: Choices | None = None) -> tuple[list[Node], list[Node]]:
    of = graph(L.Flatten("f"), *layers)
    rules = [fusion.rule(name, of.values[name]) for name in of.parameters]
    nodes = backward(of, choices)
    needed = {v for node in nodes for v in node.reads}
    kept = [n for n in nodes if not n.writes[0].startswith("d(x") or n.writes[0] in needed]
    return fusion.updates(kept, rules, choices or Choices())


@pytest.mark.parametrize("relu", [False, True])
def test_both_gradients_of_a_linear_layer_and_its_update_become_one(relu):
    below = (linear("a", 6), *((L.Relu("r"),) if relu else ()))
    made, rest = all_of(*below, linear("b"))
    (one,) = [node for node in made if node.op == "linear_dgrad_wgrad_sgd" and "b" in node.layers]
    end = "d(a.y)"
    x = "r.y" if relu else "a.y"
    assert one.options["relu"] is relu and said(rest) == ["a.b sgd_momentum", "b.b sgd_momentum"]
    assert one.tensors == {
        "dy": "d(b.y)", "w": "b.w", "x": x, "dx": end, "v": "v(b.w)", "w_new": "b.w", "v_new": "v(b.w)",
        "finite": "finite",
    }  # fmt: skip
    ops = [node.op for node in made]
    assert "relu_dgrad" not in ops and "linear_wgrad" not in ops


def test_the_first_linear_layer_has_no_gradient_of_its_input():
    of = graph(L.Flatten("f"), linear("a", 6), linear("b"))
    rules = [fusion.rule(name, of.values[name]) for name in of.parameters]
    nodes = [node for node in backward(of) if set(node.writes) - {"d(f.y)", "d(x)"}]
    made, rest = fusion.updates(nodes, rules, Choices())
    assert said(made) == [
        "b linear_bgrad", "b linear_dgrad_wgrad_sgd", "a linear_bgrad", "a linear_wgrad_sgd",
    ]  # fmt: skip
    first = made[-1]
    assert first.tensors == {
        "x": "f.y", "dy": "d(a.y)", "w": "a.w", "v": "v(a.w)", "w_new": "a.w", "v_new": "v(a.w)",
        "finite": "finite",
    }  # fmt: skip
    assert said(rest) == ["a.b sgd_momentum", "b.b sgd_momentum"]


def test_only_what_has_an_implementation_becomes_one():
    layers = (L.Relu("r"), conv("c"), L.Relu("s"), L.Lrn("n"), L.MaxPool("p"))
    parts = backward(graph(*layers), Choices(unfit=tuple(PARTS)))
    assert not {node.op for node in parts} & set(PARTS)
    whole = backward(graph(*layers))
    fused = {"conv2d_dgrad_relu", "conv2d_wgrad_bgrad", "lrn_maxpool2d_dgrad"}
    assert {node.op for node in whole} & set(PARTS) == fused
    for op in ("linear_dgrad_wgrad_sgd", "linear_wgrad_sgd"):
        made, rest = all_of(linear("a", 6), L.Relu("r"), linear("b"), choices=Choices(unfit=(op,)))
        assert op not in {node.op for node in made} and any(node.op == "sgd_momentum" for node in rest)


def test_nothing_becomes_one_in_a_finer_arithmetic():
    """An op in tf32 stands alone rather than in one of fp32, which saves a pass but multiplies slower."""
    layers = (L.Relu("r"), conv("c"))
    tf32 = Choices(coarse=("conv2d_dgrad", "conv2d_wgrad"))
    assert said(backward(graph(*layers), tf32)) == [
        "c conv2d_bgrad", "c conv2d_wgrad", "c conv2d_dgrad", "r relu_dgrad",
    ]  # fmt: skip
    fused = Choices(coarse=(*tf32.coarse, "conv2d_dgrad_relu", "conv2d_wgrad_bgrad"))
    assert backward(graph(*layers), fused) == backward(graph(*layers))

    layers = (linear("a", 6), L.Relu("r"), linear("b"))
    apart = ("linear_dgrad", "linear_wgrad")
    made, rest = all_of(*layers, choices=Choices(coarse=apart))
    assert not any("sgd" in node.op for node in made) and len(rest) == 4
    made, rest = all_of(*layers, choices=Choices(coarse=(*apart, "linear_wgrad_sgd")))
    # The weights are updated when the gradient of the input has read them.
    assert [text for text in said(made) if text[0] in "br"] == [
        "b linear_bgrad", "b linear_dgrad", "b linear_wgrad_sgd", "r relu_dgrad",
    ]  # fmt: skip
    assert said(rest) == ["a.b sgd_momentum", "b.b sgd_momentum"]
    assert all_of(*layers, choices=Choices(coarse=(*apart, "linear_dgrad_wgrad_sgd"))) == all_of(*layers)


@pytest.mark.parametrize("op", sorted({"relu_dgrad", *(part for parts in PARTS.values() for part in parts)}))
def test_a_pattern_leaves_a_named_op(op):
    def ops(choices: Choices) -> list[str]:
        layers = (L.Relu("r"), conv("c"), L.Relu("s"), L.Lrn("n"), L.MaxPool("p"), L.Flatten("f"))
        of = graph(*layers, linear("a", 6), L.Relu("t"), linear("b"))
        rules = [fusion.rule(name, of.values[name]) for name in of.parameters]
        made, rest = fusion.updates(backward(of, choices), rules, choices)
        return [node.op for node in (*made, *rest)]

    plain = ops(Choices(ops=tuple(part for parts in PARTS.values() for part in parts)))
    assert ops(Choices(ops=(op,))).count(op) == plain.count(op)
    if not op.endswith("fprop"):
        assert ops(Choices()).count(op) < plain.count(op)


# ---------------------------------------------------------------------------------------------------
# Patterns, in plans
# ---------------------------------------------------------------------------------------------------
def whole(**options) -> ck.Network:
    """Everything that may become one."""
    return ck.Network(
        (
            conv("conv1"), L.Relu("relu1"), conv("conv2"), L.Relu("relu2"), L.Lrn("norm2"),
            L.MaxPool("pool2"), L.Flatten("flatten"), linear("fc6", 24), L.Relu("relu6"),
            L.Dropout("drop6"), linear("fc7", 16), L.Relu("relu7"), linear("fc8"),
        ),
        (3, 9, 9),
        10,
        **options,
    )  # fmt: skip


def step_of(net: ck.Network) -> list[str]:
    return [f"{c.layer} {c.op.name}" for calls in net.plan(2).phases().values() for c in calls]


FUSED = {
    "conv1+relu1 conv2d_fprop", "norm2+pool2 lrn_maxpool2d_fprop", "norm2+pool2 lrn_maxpool2d_dgrad",
    "fc6+relu6 linear_fprop",
}  # fmt: skip


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("where", [nullcontext, ck.emulate], ids=["cpu", "cuda"])
def test_a_plan_applies_every_pattern(where):
    with where():
        calls = step_of(whole())
        only = step_of(ck.Network((L.Flatten("f"), linear("fc")), (3, 4, 4), 10))
    assert set(calls) >= {*FUSED, "conv2+relu2 conv2d_dgrad_relu", "fc8 linear_dgrad_wgrad_sgd"}
    assert not any(call.endswith((" relu_fprop", " lrn_dgrad", " linear_wgrad")) for call in calls)
    # For the CPU there is no kernel that makes both.
    both = {f"{layer} conv2d_wgrad_bgrad" for layer in ("conv1+relu1", "conv2+relu2")}
    assert both & set(calls) == (both if where is ck.emulate else set())
    assert "fc linear_wgrad_sgd" in only


#: The fused ops of a backward pass.
BACKWARD = [op for op in PARTS if "fprop" not in op]
#: What leaves every kernel of a backward pass apart.
APART = {
    "relu_dgrad": "vectorized", "lrn_dgrad": "sliding", "conv2d_dgrad": "implicit_gemm",
    "conv2d_wgrad": "implicit_gemm", "linear_wgrad": "gemm",
}  # fmt: skip


def test_emulated_steps_of_fused_kernels_are_those_of_kernels_apart(compiler):
    """To within rounding: LRN's fused kernel rounds in another order. The others give the same bits."""
    rule = ck.Update(momentum=0.9)
    fused, apart = whole(seed=1, update=rule), whole(seed=1, update=rule)
    rng = np.random.default_rng(3)
    for _ in range(2):
        x, y = rng.standard_normal((2, 3, 9, 9), np.float32), rng.integers(0, 10, 2)
        with ck.emulate():
            loss = fused.step(x, y, lr=0.1)
            with ck.use(**APART):
                assert apart.step(x, y, lr=0.1) == pytest.approx(loss, rel=1e-5)
                assert not {call.split()[-1] for call in step_of(apart)} & set(BACKWARD)
    for name, got in fused.params.items():
        scale = np.abs(apart.params[name]).max()
        np.testing.assert_allclose(got, apart.params[name], rtol=0, atol=2e-6 * scale, err_msg=name)


NAMED = [
    ("relu_fprop", "relu1"), ("relu_fprop", "relu6"), ("relu_dgrad", "relu1"), ("relu_dgrad", "relu2"),
    ("relu_dgrad", "relu6"), ("relu_dgrad", "relu7"), ("conv2d_dgrad", "conv2"), ("lrn_fprop", "norm2"),
    ("conv2d_wgrad", "conv1"), ("conv2d_bgrad", "conv2"),
    ("lrn_dgrad", "norm2"), ("maxpool2d_fprop", "pool2"), ("maxpool2d_dgrad", "pool2"),
    ("linear_wgrad", "fc6"), ("linear_dgrad", "fc8"), ("sgd_momentum", "fc8"),
]  # fmt: skip


def test_every_part_is_named_here():
    assert {op for op, _ in NAMED} == {"relu_fprop", *(p for parts in PARTS.values() for p in parts)}


@pytest.mark.parametrize("where", [nullcontext, ck.emulate], ids=["cpu", "cuda"])
@pytest.mark.parametrize(("op", "layer"), NAMED)
def test_a_named_op_is_not_fused_away(op, layer, where):
    with where():
        name = ck.implementations(op, device="cuda" if where is ck.emulate else "cpu")[-1].name
        net, other = whole(), whole()
        net.use(layer, **{op: name})

        def seen(of: ck.Network) -> set[str]:
            calls = [call for calls in of.plan(2).phases().values() for call in calls]
            found = [c for c in calls if c.op.name == op and c.implementation.name == name]
            return {c.layer.partition(".")[0] for c in found}

        assert layer in {own for layers in seen(net) for own in layers.split("+")}
        with ck.use(**{op: name}):
            # As often as where nothing is fused.
            apart = Program(other.layers, (2, 3, 9, 9), 10, fuse=False)
            rest = apart.step(other.params, fused=False)
            nodes = (*apart.forward, *rest.backward, *rest.update)
            wanted = {node.layer.partition(".")[0] for node in nodes if node.op == op}
            assert {own for layers in seen(other) for own in layers.split("+")} >= wanted
        net.use(layer, **{op: None})
        assert step_of(net) == step_of(other)


# ---------------------------------------------------------------------------------------------------
# What a step computes
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("frozen", "wanted"),
    [
        (("*",), []),
        (("conv*", "fc6.*", "fc7.*"), ["fc8 linear_bgrad", "fc8 linear_wgrad"]),
        (("*.w",), ["fc8 linear_bgrad", "fc8 linear_dgrad", "fc7 linear_bgrad", "fc7 linear_dgrad",
                    "fc6 linear_bgrad", "fc6 linear_dgrad", "conv2 conv2d_bgrad", "conv2 conv2d_dgrad",
                    "conv1 conv2d_bgrad"]),
        (("conv1.*", "*.b"), ["fc8 linear_wgrad", "fc8 linear_dgrad", "fc7 linear_wgrad", "fc7 linear_dgrad",
                              "fc6 linear_wgrad", "fc6 linear_dgrad", "conv2 conv2d_wgrad"]),
        (("conv1.*", "conv2.*", "fc6.w", "fc7.*"), ["fc8 linear_bgrad", "fc8 linear_wgrad",
                                                   "fc8 linear_dgrad", "fc7 linear_dgrad",
                                                   "fc6 linear_bgrad"]),
    ],
    ids=["all", "all below", "weights", "biases", "some"],
)  # fmt: skip
def test_a_step_computes_no_gradient_that_it_does_not_need(frozen, wanted):
    net = whole(update=ck.Update(frozen=frozen))
    parameters = {
        "conv2d_wgrad",
        "conv2d_bgrad",
        "linear_wgrad",
        "linear_bgrad",
        "linear_dgrad",
        "conv2d_dgrad",
    }

    def gradients() -> list[str]:
        calls = net.plan(2).phases()["backward"]
        found = [f"{c.layer.partition('+')[0]} {c.op.name.replace('_relu', '')}" for c in calls]
        return [call for call in found if call.split()[1] in parameters]

    net.on_gradient = lambda name, gradient: None  # the ops apart
    assert gradients() == wanted
    updates = {call.layer for call in net.plan(2).phases()["update"]}
    assert updates == {name for name in net.params if not net.update.is_frozen(name)}
    net.on_gradient = None
    assert set(gradients()) <= set(wanted)
    # What is fused stands for gradients of weights that are not frozen.
    for call in net.plan(2).phases()["backward"]:
        if "sgd" in call.op.name:
            assert f"{call.layer.partition('+')[0]}.w" not in net.plan(2).frozen


@pytest.mark.parametrize(
    ("frozen", "wanted"),
    [
        ((), ["conv2 conv2d_wgrad_bgrad", "conv1 conv2d_wgrad_bgrad"]),
        (("*.w",), ["conv2 conv2d_bgrad", "conv1 conv2d_bgrad"]),
        (("conv1.b", "conv2.*"), ["conv1 conv2d_wgrad"]),
    ],
    ids=["nothing", "weights", "some"],
)
def test_one_gradient_of_two_is_made_alone(frozen, wanted):
    """By the op that makes no other, where one op makes both; so it is with hooks and without."""
    parameters = ("conv2d_wgrad", "conv2d_bgrad", "conv2d_wgrad_bgrad")
    net = whole(update=ck.Update(frozen=frozen))
    for hook in (None, lambda name, gradient: None):
        net.on_gradient = hook
        with ck.emulate():
            plan = net.plan(2)
            calls = plan.phases()["backward"]
        made = [c for c in calls if c.op.name in parameters]
        assert [f"{c.layer.partition('+')[0]} {c.op.name}" for c in made] == wanted
        named = [name for c in made for name in plan.made_by(c)]
        assert sorted(named) == sorted(
            name for name in net.params if name.startswith("conv") and not net.update.is_frozen(name)
        )


def _batch(net: ck.Network):
    return batch(net, np.random.default_rng(0), 2)


def test_scratch_memory_is_shared_by_the_calls_of_every_step():
    """Also by those that come with a later step, whose parameters are others."""
    net = whole()
    for frozen in ((), ("fc8.*",), ("fc6.*", "fc7.*"), ()):
        net.update = ck.Update(frozen=frozen)
        net.step(*_batch(net))
        plan = net.plan(2)
        calls = [c for phase in plan.phases().values() for c in phase if c.implementation.workspace]
        assert all(c.options["workspace"].nbytes == c.workspace_bytes for c in calls)
        assert len({c.options["workspace"].ctypes.data for c in calls if c.workspace_bytes}) <= 1


# ---------------------------------------------------------------------------------------------------
# A layer of the user's own
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Gate(L.Layer):
    """A ReLU with a parameter, whose gradient is read behind an op that could work in place."""

    def parameters(self, x_shape, num_classes):
        return {"b": (x_shape[1:2], L.Constant(1))}

    def passes(self, x_shape, num_classes, dtype):
        g = Elementwise(x_shape, dtype)
        bias = ChannelSum.of(x_shape, len(x_shape), dtype)
        bgrad = "linear_bgrad" if len(x_shape) == 2 else "conv2d_bgrad"
        return L.Passes(L.Use("relu_fprop", g), (L.Use("relu_dgrad", g), L.Use(bgrad, bias)))


@dataclass(frozen=True)
class Backwards(L.Linear):
    """A linear layer whose gradients are listed the other way round."""

    def passes(self, x_shape, num_classes, dtype):
        found = super().passes(x_shape, num_classes, dtype)
        return L.Passes(found.forward, found.backward[::-1])


def test_a_layer_of_the_users_own_is_planned():
    def of(hidden, relu) -> ck.Network:
        layers = (L.Flatten("f"), hidden("a", 12, INIT, INIT), relu("r"), hidden("c", None, INIT, INIT))
        return ck.Network(layers, (3, 4, 4), 10, seed=1)

    for relu in (L.Relu, Gate):
        own, plain = of(Backwards, relu), of(L.Linear, L.Relu)
        x, labels = _batch(own)
        assert np.array_equal(own.forward(x), plain.forward(x))
        dlogits = np.ones((2, 10), np.float32)
        assert np.array_equal(own.backward(dlogits), plain.backward(dlogits))
        for name, gradient in plain.grads.items():
            assert np.array_equal(own.grads[name], gradient), name
        if relu is Gate:
            dy = ck.linear_dgrad(dlogits, own.params["c.w"])
            assert np.array_equal(own.grads["r.b"], ck.linear_bgrad(dy))
        for _ in range(2):
            assert own.step(x, labels) == plain.step(x, labels)
        for name, w in plain.params.items():
            np.testing.assert_allclose(own.params[name], w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [L.Linear, Backwards])
@pytest.mark.parametrize("whole", [False, True], ids=["apart", "both in one"])
def test_updates_of_linear_weights_run_in_the_arithmetic_of_their_gradients(hidden, whole, monkeypatch):
    """With implementations in tf32 of the parts, and of all in one; and w is read before it is updated."""

    def of(**options) -> ck.Network:
        layers = (L.Flatten("f"), *(hidden(n, k, INIT, INIT) for n, k in (("a", 12), ("b", 9), ("c", None))))
        return ck.Network(layers, (3, 4, 4), 10, seed=1, **options)

    both = "linear_dgrad_wgrad_sgd"
    ops = ("linear_fprop", "linear_dgrad", "linear_wgrad", "linear_wgrad_sgd", *((both,) if whole else ()))
    registry.builtin()
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    for i in ck.implementations(device="cpu"):
        if i.name == "reference" and i.op in ops:
            registry.implements(i.op, name="coarse", math="tf32", rank=10**6)(i.run)
    plain, net = of(), of(math="tf32")
    x, labels = _batch(net)
    for _ in range(3):
        assert net.step(x, labels, lr=0.5) == pytest.approx(plain.step(x, labels, lr=0.5), rel=1e-5)
    for name, w in plain.params.items():
        np.testing.assert_allclose(net.params[name], w, rtol=1e-4, atol=1e-6, err_msg=name)

    def ran(network: ck.Network) -> set[tuple[str, str]]:
        calls = [call for calls in network.plan(2).phases().values() for call in calls]
        return {(c.op.name, c.implementation.math) for c in calls if c.op.name.startswith("linear")}

    made = {(both, "tf32")} if whole else {("linear_dgrad", "tf32")}
    first = {("linear_fprop", "tf32"), ("linear_wgrad_sgd", "tf32"), ("linear_bgrad", "fp32")}
    assert ran(net) == made | first
    assert {op for op, _ in ran(plain)} == {"linear_fprop", "linear_wgrad_sgd", "linear_bgrad", both}
    net.use("c", **{both: "reference"})  # a name counts before the arithmetic
    assert (both, "fp32") in ran(net)


@pytest.mark.parametrize("below", [conv("c"), linear("c", 9)], ids=["conv", "linear"])
def test_a_gradient_that_others_read_too_is_not_fused_away(below):
    """Of the op above and the ReLU inside of a layer that also reads the gradient between them."""
    flat = (L.Flatten("f"),)
    above = replace(below, name="d", **({"groups": 4} if isinstance(below, L.Conv) else {}))
    layers = (
        (below, Gate("g"), above, *flat) if isinstance(below, L.Conv) else (*flat, below, Gate("g"), above)
    )

    def of(**options) -> ck.Network:
        return ck.Network((*layers, linear("last")), (3, 6, 6), 10, update=ck.Update(momentum=0), **options)

    apart, net = of(), of()
    x, labels = _batch(net)
    apart.on_gradient = lambda name, gradient: None
    for _ in range(2):
        assert apart.step(x, labels) == pytest.approx(net.step(x, labels), rel=1e-5)
    for name, w in apart.params.items():
        np.testing.assert_allclose(net.params[name], w, rtol=1e-5, atol=1e-6, err_msg=name)
    logits = net.forward(x)
    _, probs = ck.softmax_xent_fprop(logits, labels)
    net.backward(ck.softmax_xent_dgrad(probs, labels))
    before = {name: w.copy() for name, w in net.params.items()}
    net.step(x, labels, lr=0.5)
    moved = (before["g.b"] - net.params["g.b"]) / 0.5
    np.testing.assert_allclose(moved, net.grads["g.b"], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------
# Random networks against their layers one by one
# ---------------------------------------------------------------------------------------------------
#: Of rounding, in parts of the largest element.
RTOL = {"float32": 2e-4, "float64": 1e-9}


def compare(seed: int, dtype: str, where: Where = nullcontext) -> None:
    """A random network, forward and backward in training and at test time, and steps of training.

    Two steps as they are, two with some parameters frozen, two with a hook besides.

    In float32, where two values differ by less than rounding, a ReLU or a pool may decide either way. So a
    network that differs gets one more try, with other images.
    """
    for attempt in range(2 if dtype == "float32" else 1):
        rng = np.random.default_rng(seed)
        net = draw(seeded(rng), seed=seed, dtype=dtype)
        N = int(rng.integers(1, 6))
        x, labels = batch(net, np.random.default_rng((seed, attempt)), N)
        dlogits = np.random.default_rng(seed).standard_normal((N, net.num_classes)).astype(dtype)
        try:
            for training in (True, False):
                check_passes(net, x, dlogits, training, RTOL[dtype], where)
            check_step(net, x, labels, RTOL[dtype], where)
            net.update = ck.Update(frozen=tuple(name for name in net.params if rng.random() < 0.4))
            check_step(net, x, labels, RTOL[dtype], where)
            net.on_gradient = lambda name, gradient: None
            check_step(net, x, labels, RTOL[dtype], where)
            check_passes(net, x, dlogits, True, RTOL[dtype], where)
            return
        except AssertionError as error:
            failed = f"seed {seed}, batch {N}, {dtype}: {error}\n{describe(net)}"
    pytest.fail(failed)


@pytest.mark.parametrize("dtype", RTOL)
def test_a_plan_computes_what_its_layers_say(dtype):
    for seed in range(30):
        compare(seed, dtype)


@pytest.mark.parametrize("seed", [639, 749, 1053, 17])
def test_dropout_on_maps_in_another_layout(seed):
    """Networks in which a dropout stands behind a change of layout, or before all weights."""
    compare(seed, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("part", range(4))
def test_many_plans_compute_what_their_layers_say(dtype, part):
    for seed in range(10_000 + 150 * part, 10_150 + 150 * part):
        compare(seed, dtype)


def test_a_plan_of_emulated_kernels_computes_what_its_layers_say(compiler):
    for seed in (1, 9):
        compare(seed, "float32", ck.emulate)


@pytest.mark.slow
def test_many_plans_of_emulated_kernels_compute_what_their_layers_say(compiler):
    for seed in range(20_000, 20_040):
        compare(seed, "float32", ck.emulate)


# ---------------------------------------------------------------------------------------------------
# Layouts
# ---------------------------------------------------------------------------------------------------
IN_NHWC = (
    *("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_bgrad"),
    *("lrn_fprop", "lrn_dgrad", "maxpool2d_fprop", "maxpool2d_dgrad"),
)


def plant_in_nhwc(op: str) -> None:
    """The reference, computing in NHWC."""
    declared, of = layouts.declared("NHWC"), registry.OPS[op]
    (reference,) = (i for i in ck.implementations(op, device="cpu") if i.name == "reference")

    def run(problem, *arrays, **options):
        names = (*of.inputs, *of.outputs)
        plain = [
            None if a is None else declared.of(name).unpack(a, problem.shape(name))
            for name, a in zip(names, arrays, strict=True)
        ]
        outputs = [np.empty(a.shape, a.dtype) for a in plain[len(of.inputs) :]]
        reference.run(problem, *plain[: len(of.inputs)], *outputs, **options)
        for name, made, array in zip(of.outputs, outputs, arrays[len(of.inputs) :], strict=True):
            declared.of(name).pack(made, array)

    registry.add(registry.Implementation(op, "nhwc", run, dtypes=("float64",), layout="NHWC"))


def test_a_plan_takes_whatever_layout_is_declared(monkeypatch):
    """Between copies into it and back where these cost less than they save; the results are the same."""
    registry.builtin()
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    stack = (
        *(conv("conv1", 6), L.Relu("relu1"), L.Lrn("norm1"), conv("conv2", 6, groups=2), L.Relu("relu2")),
        *(L.MaxPool("pool2"), conv("conv3", 5), L.Relu("relu3"), L.Flatten("flatten"), linear("fc")),
    )
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 3, 9, 9)), np.array([1, 2])
    plain, net = (ck.Network(stack, (3, 9, 9), 10, dtype="float64", seed=1) for _ in range(2))
    wanted = plain.step(x, labels)
    for op in IN_NHWC:
        plant_in_nhwc(op)
    calls = [call for calls in net.plan(2).phases().values() for call in calls]
    picked = {f"{call.layer} {call.op.name}": call.implementation.label for call in calls}
    for layer, op in (("conv1+relu1", "conv2d_fprop"), ("norm1", "lrn_dgrad"), ("pool2", "maxpool2d_dgrad")):
        assert picked[f"{layer} {op}"] == "nhwc NHWC"
    moved = [(call.layer, call.implementation.layout) for call in calls if call.op.name == "reorder"]
    assert moved == [
        ("conv1+relu1", "NCHW>NHWC"), ("flatten", "NHWC>NCHW"), ("flatten", "NCHW>NHWC")
    ]  # fmt: skip
    assert net.step(x, labels) == pytest.approx(wanted, rel=1e-13)
    for name, w in plain.params.items():
        np.testing.assert_allclose(net.params[name], w, rtol=1e-10, atol=1e-13, err_msg=name)
