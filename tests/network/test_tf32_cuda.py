"""Float32 networks that accept tf32, on CUDA: convolutions in NHWC on tensor cores. No GPU has run it."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import fake_cupy
import numpy as np
import pytest
from stacks import batch, draw
from strategies import seeded

import convkit as ck
from convkit import check, devices, registry
from convkit.call import Call
from convkit.cuda.emulate import Emulator
from convkit.cuda.null import nulled
from convkit.network import layers as L
from convkit.op import OPS

INIT = L.Normal(0.2)


def calls_of(net: ck.Network, n: int = 4) -> list[Call]:
    return net.plan(n).calls()


def said(net: ck.Network) -> list[str]:
    return [f"{c.layer} {c.op.name} {c.implementation.label}" for c in calls_of(net)]


@pytest.mark.parametrize(
    "preset", ["small", *(pytest.param(p, marks=pytest.mark.slow) for p in ("paper", "2012", "owt"))]
)
def test_layouts(preset):
    """As in mixed precision: inside all is NHWC, and the weights of convolutions are copied to KRSC, once."""
    net = ck.AlexNet(preset, math="tf32")
    convs = [layer.name for layer in net.layers if isinstance(layer, L.Conv)]
    with nulled():
        plan = net.plan(4)
        calls = plan.calls()
        maps = [c for c in calls if c.op.name.startswith(("conv2d", "lrn", "maxpool2d"))]
        assert {c.implementation.layout for c in maps} == {"NHWC", "NHWC, KRSC"}
        products = [c for c in calls if c.op.name.startswith("conv2d") and c.op.name != "conv2d_bgrad"]
        assert {c.implementation.math for c in products} == {"tf32"}
        moved = [(c.layer, c.implementation.layout) for c in calls if c.op.name == "reorder"]
        copies = [(f"{name}.w", "NCHW>NHWC") for name in convs]
        assert [one for one in moved if one[0].endswith(".w")] == copies and len(moved) == len(copies) + 4
        # Gradients, velocities and updates are those of the parameters, as users have them.
        assert {c.outputs[0].shape for c in plan.update} == {w.shape for w in net.params.values()}
        lines = str(plan).splitlines()
        shown = [line for line in lines if " tf32 " in line and " conv2d_" in line]
        assert " math " in lines[0] and len(shown) == len(products)


def test_nothing_else_changes():
    """On a CPU, in fp32 on a GPU, and in mixed precision, a plan is what it was without `math`."""
    for where, dtype, math in (
        (nullcontext, "float32", "tf32"), (nulled, "float32", "fp32"), (nulled, "bfloat16", "tf32"),
    ):  # fmt: skip
        with where():
            plain, other = ck.AlexNet("small", dtype=dtype), ck.AlexNet("small", dtype=dtype, math=math)
            assert said(plain) == said(other) and str(plain.plan(4)) == str(other.plan(4))
            if dtype == "float32":
                assert not any(".w reorder" in text for text in said(plain))


def test_a_convolution_that_needs_no_copy_has_none():
    """Where the user names a kernel in NCHW, the stage reads its parameter; the others keep their copies."""
    net = ck.AlexNet("small", math="tf32")
    net.use("conv2", **dict.fromkeys(("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"), "implicit_gemm"))
    with nulled():
        calls = calls_of(net)
        copied = [c.layer for c in calls if c.op.name == "reorder" and c.layer.endswith(".w")]
        assert copied == ["conv1.w", "conv3.w", "conv4.w", "conv5.w"]
        (conv2,) = (c for c in calls if c.layer == "conv2+relu2" and c.op.name == "conv2d_fprop")
        assert conv2.implementation.label == "implicit_gemm"
        assert np.shares_memory(conv2.inputs[1], net.params["conv2.w"])


def test_tensor_cores_count_before_passes_over_tensors():
    """One small convolution, which costs more to bring into NHWC than the same in NCHW would."""
    layers = (L.Conv("conv", 4, 3, INIT, INIT, padding=1), L.Flatten("f"), L.Linear("fc", None, INIT, INIT))
    net = ck.Network(layers, (2, 6, 6), 5, math="tf32")
    with nulled():
        ran = {c.op.name: c.implementation.math for c in calls_of(net) if c.layer == "conv"}
    assert {ran["conv2d_fprop"], ran["conv2d_dgrad"], ran["conv2d_wgrad_bgrad"]} == {"tf32"}


@pytest.fixture
def cupy(monkeypatch, compiler):
    module = fake_cupy.module(watch_races=True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    yield module
    devices.gpu_found.cache_clear()  # which may have seen the stand-in's


@pytest.mark.slow
def test_a_step_is_one_graph(cupy):
    """The copies of weights are within it: a replay reads what the last one has updated."""

    def tiny(**options) -> ck.Network:
        layers = (
            L.Conv("conv1", 4, 3, INIT, INIT, padding=1), L.Relu("relu1"),
            L.Conv("conv2", 8, 3, INIT, INIT, padding=1, groups=2), L.Relu("relu2"), L.Flatten("flatten"),
            L.Dropout("drop2"), L.Linear("fc3", None, INIT, INIT),
        )  # fmt: skip
        return ck.Network(layers, (2, 6, 6), 5, seed=1, device="cuda", math="tf32", **options)

    net, eager = tiny(), tiny(graph=False)
    x = np.random.default_rng(5).standard_normal((4, 2, 6, 6), np.float32)
    for number in range(5):
        images, labels = x * (1 + number), np.arange(4)
        assert net.step(cupy.asarray(images), labels, lr=0.1) == eager.step(images, labels, lr=0.1)
        for name, w in net.params.items():
            assert np.array_equal(w.get(), eager.params[name].get()), name
    assert devices.current().captured == 1 and str(net.plan(4)).endswith("a step is one CUDA graph")
    assert "tf32" in str(net.plan(4))
    net.params["conv1.w"][...] = 0
    net.params["conv1.b"][...] = 0
    # They are copied whatever has written into the parameters.
    assert np.array_equal(net.forward(x * 0).get(), net.forward(x).get())


@pytest.mark.slow
def test_every_call_of_a_step_is_right(compiler):
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 3, 32, 32), np.float32), np.array([3, 7])
    with ck.emulate():
        verdicts = check.check_step(ck.AlexNet("small", seed=1, math="tf32"), x, labels)
    assert len(verdicts) > 55 and all(v.ok for v in verdicts), [v for v in verdicts if not v.ok]
    assert any("tf32" in v.implementation for v in verdicts)


@pytest.mark.slow
def test_every_call_of_random_networks_is_right(compiler):
    """Groups, strides, odd channels, pools and normalisation in any order."""
    for seed in range(12):
        net = draw(seeded(np.random.default_rng(seed)), seed=seed, math="tf32")
        with ck.emulate():
            verdicts = check.check_step(net, *batch(net, np.random.default_rng(seed), 3))
        assert all(v.ok for v in verdicts), (seed, [v for v in verdicts if not v.ok])


def rounded(a: np.ndarray) -> np.ndarray:
    """Float32 with the ten bits of mantissa that tf32 has, rounded to nearest, ties away from zero."""
    return ((a.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def plant_in_tf32(op: str) -> None:
    """What the CPU runs, of factors rounded to tf32."""
    factors = [name in ("x", "w", "dy") for name in OPS[op].inputs]
    usual = next(i for i in ck.implementations(op, device="cpu") if i.name in ("im2col_gemm", "gemm"))

    def run(problem, *arrays, **options):
        given = [rounded(a) if is_factor else a for a, is_factor in zip(arrays, factors, strict=False)]
        usual.run(problem, *given, *arrays[len(factors) :], **options)

    declared = {"math": "tf32", "error": 4e-4, "workspace": usual.workspace}
    registry.add(registry.Implementation(op, "rounded", run, **declared))


@pytest.mark.slow
def test_alexnet_learns_as_in_fp32(compiler, monkeypatch):
    """Ten steps: losses are off by no more than with the CPU's kernels on factors rounded to tf32.

    The rates are low, so that no step doubles the loss: it would double each difference, too.
    """
    registry.builtin()
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 3, 32, 32), np.float32), np.array([3, 7])

    def losses(math: str | None, where=nullcontext, **names) -> np.ndarray:
        net = ck.AlexNet("small", seed=1, math=math)
        with where(), ck.use(**names):
            return np.array([float(net.step(x, labels, lr=0.0003)) for _ in range(10)])

    fp32, cuda = losses(None), losses("tf32", ck.emulate)
    on_tensor_cores = {i.op for i in ck.implementations(device="cuda", layout=None) if i.math == "tf32"}
    parts = [f"{kind}_{way}" for kind in ("conv2d", "linear") for way in ("fprop", "dgrad", "wgrad")]
    ops = [op for op in parts if op in on_tensor_cores]
    for op in ops:
        plant_in_tf32(op)
    tf32 = losses("tf32", **dict.fromkeys(ops, "rounded"))
    # 2^-11 is what rounding a factor is off by. Nothing but a sum's order differs before the first update.
    assert np.abs(cuda - fp32).max() <= 4 * max(np.abs(tf32 - fp32).max(), 2.0**-11) and cuda[-1] < cuda[0]
    assert np.abs(cuda - tf32)[0] < np.abs(tf32 - fp32)[0] / 2
