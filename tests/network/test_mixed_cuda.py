"""Mixed precision on CUDA, under the emulator: NHWC inside, copies in KRSC, one graph. No GPU has run it."""

from __future__ import annotations

import sys

import fake_cupy
import numpy as np
import pytest

import convkit as ck
from convkit import check, devices
from convkit.cuda.emulate import Emulator
from convkit.cuda.null import nulled
from convkit.network import layers

SIXTEEN = ("bfloat16", "float16")
RNG = np.random.default_rng(5)
X = RNG.standard_normal((8, 2, 6, 6), np.float32)
Y = np.arange(8) % 5


def tiny(**options) -> ck.Network:
    init = layers.Normal(0.2)
    return ck.Network(
        (
            layers.Conv("conv1", 4, 3, init, init, padding=1),
            layers.Relu("relu1"),
            layers.Flatten("flatten"),
            layers.Dropout("drop1"),
            layers.Linear("fc2", None, init, init),
        ),
        (2, 6, 6),
        5,
        **{"seed": 1, "device": "cuda", **options},
    )


@pytest.fixture
def cupy(monkeypatch, compiler):
    module = fake_cupy.module(watch_races=True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    yield module
    devices.gpu_found.cache_clear()  # which may have seen the stand-in's


@pytest.mark.parametrize(
    ("preset", "dtype"),
    [
        ("small", "bfloat16"),
        ("paper", "float16"),
        pytest.param("2012", "bfloat16", marks=pytest.mark.slow),
        pytest.param("owt", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_layouts(preset, dtype):
    """Inside, all is NHWC and KRSC; images and rows are packed once each way."""
    net = ck.AlexNet(preset, dtype=dtype)
    with nulled():
        calls = net.plan(4).calls()
        pair = f"{dtype}/float32"
        maps = [c for c in calls if c.op.name.startswith(("conv2d", "lrn", "maxpool2d"))]
        assert {c.implementation.layout for c in maps} == {"NHWC", "NHWC, KRSC"}
        packed = [
            c.implementation.layout for c in calls if c.op.name == "reorder" and c.problem.dtype == dtype
        ]
        assert sorted(packed) == ["NCHW>NHWC", "NCHW>NHWC", "NHWC>NCHW", "NHWC>NCHW"]
        casts = [c for c in calls if c.op.name == "reorder" and c.problem.dtype == pair]
        assert len(casts) == len(net.params) and {c.implementation.device for c in calls} == {"cuda"}
        assert sum(c.problem.bytes("x", "y") for c in casts) == 6 * sum(w.size for w in net.params.values())
        wide = {c.op.name for c in calls if c.problem.dtype == "float32"}
        assert wide <= {"loss_summary", "sgd_momentum", "rescale", "adjust_loss_scale"}


@pytest.mark.parametrize(
    "dtype", [pytest.param(d, marks=[pytest.mark.slow] * (d == "float16")) for d in SIXTEEN]
)
def test_a_step_is_one_graph(cupy, dtype):
    """With the loss scale on the device: an overflow within a graph skips the step, and halves the scale."""
    net, eager = tiny(dtype=dtype), tiny(dtype=dtype, graph=False)
    for number in range(5):
        if number == 3 and dtype == "float16":
            net.loss_scale = eager.loss_scale = 2.0**40
        before = {name: w.get() for name, w in net.params.items()}
        x = X[:4] * (1 + number)
        found, wanted = net.step(cupy.asarray(x), Y[:4], lr=0.1), eager.step(x, Y[:4], lr=0.1)
        assert (found, found.finite, found.overflow) == (wanted, wanted.finite, wanted.overflow)
        assert found.overflow == (dtype == "float16" and number >= 3)
        for name, w in net.params.items():
            assert np.array_equal(before[name], w.get()) == found.overflow, name
            assert np.array_equal(w.get(), eager.params[name].get()), name
        assert net.loss_scale == eager.loss_scale
    assert devices.current().captured == 1 and str(net.plan(4)).endswith("a step is one CUDA graph")
    assert net.loss_scale == (2.0**38 if dtype == "float16" else 1)
    logits = net.forward(X)
    assert logits.dtype == np.float32 and net.backward(logits).dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_alexnet_learns_as_on_the_cpu(dtype, compiler):
    """Ten steps: losses differ by no more than two right ways on the CPU do."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 3, 32, 32), np.float32), np.array([3, 7])
    nets = [ck.AlexNet("small", dtype=dtype, seed=1) for _ in range(3)]
    losses = [[float(net.step(x, labels, lr=0.005)) for _ in range(10)] for net in nets[:1]]
    with ck.use(conv2d_fprop="im2col_gemm", conv2d_wgrad="im2col_gemm", conv2d_dgrad="im2col_gemm"):
        losses.append([float(nets[1].step(x, labels, lr=0.005)) for _ in range(10)])
    with ck.emulate():
        losses.append([float(nets[2].step(x, labels, lr=0.005)) for _ in range(10)])
    one, other, cuda = np.array(losses)
    assert np.abs(cuda - one).max() <= 4 * max(np.abs(other - one).max(), 2.0**-8) and cuda[-1] < cuda[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_every_call_of_a_step_is_right(dtype, compiler):
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 3, 32, 32), np.float32), np.array([3, 7])
    with ck.emulate():
        verdicts = check.check_step(ck.AlexNet("small", dtype=dtype, seed=1), x, labels)
    assert len(verdicts) > 60 and all(v.ok for v in verdicts), [v for v in verdicts if not v.ok]
