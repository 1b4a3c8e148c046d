"""The C++ convolutions: the gate at every instruction set of this machine, what dispatch picks, and bits."""

from __future__ import annotations

import os

import numpy as np
import pytest
from blocks import blocked

import convkit as ck
from convkit import check, layouts
from convkit.arrays import empty
from convkit.cpu import extension
from convkit.ops.conv2d import Conv2d
from convkit.registry import implementations, select

ALGORITHMS = ("winograd", "direct", "narrow_groups", "few_channels", "pointwise")
OPS = ("conv2d_fprop", "conv2d_dgrad", "conv2d_dgrad_relu", "conv2d_wgrad")


@pytest.fixture(autouse=True)
def kernels():
    missing = extension.kernels_missing()
    if missing is not None:
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)


def mine(op: str | None = None, algorithm: str | None = None):
    return [
        i
        for i in implementations(op, device="cpu", layout=None)
        if i.name in ((algorithm,) if algorithm else ALGORITHMS) and i.op in OPS
    ]


def failures(verdicts) -> str:
    return "\n".join(str(v) for v in verdicts if not v.ok)


@pytest.mark.parametrize("isa", extension.isas())
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gate(isa, algorithm):
    with extension.using(isa):
        verdicts = check.check_these(mine(algorithm=algorithm), quick=True)
    assert not failures(verdicts)
    assert sum(not v.declined for v in verdicts) > 35


@pytest.mark.slow
@pytest.mark.parametrize(
    "isa", [pytest.param(isa, marks=[pytest.mark.thorough] * (isa == "v2")) for isa in extension.isas()]
)
@pytest.mark.parametrize("op", OPS)
def test_gate_on_real_layers(isa, op):
    with extension.using(isa):
        verdicts = check.check_these(mine(op))
    assert not failures(verdicts)
    assert any("2012 conv3" in v.case and not v.declined for v in verdicts)


def channels(draw: int) -> int:
    """Around the widths of registers and blocks."""
    return (1, 3, 15, 16, 17, 31, 32, 33, 48, 50)[draw]


@pytest.mark.parametrize("isa", extension.isas())
def test_many_channels_in_random_geometries(isa):
    # The gate's own random geometries have few channels; these fill several blocks and tiles, with tails.
    rng = np.random.default_rng(0)
    found = 0
    with extension.using(isa):
        while found < 40:
            groups = int(rng.choice([1, 1, 2]))
            C, K = (channels(i) * groups for i in rng.integers(0, 10, 2))
            R = int(rng.integers(1, 6))
            stride, pad = int(rng.choice([1, 1, 2, 3, 4])), int(rng.integers(0, R))
            H, W = (int(v) for v in rng.integers(R, 24, 2))
            shape = (int(rng.integers(1, 4)), C, H, W)
            problem = Conv2d.of(shape, (K, C // groups, R, R), stride=stride, padding=pad, groups=groups)
            found += 1
            for op in OPS:
                case = check.Case(
                    op, problem, f"channels {found}", {"relu": True} if op.endswith("fprop") else {}
                )
                fitting = [i for i in mine(op) if i.refusal(problem) is None]
                question = check.Question.of(case, "float32")
                verdicts = [check.judge(i, question) for i in fitting]
                assert not failures(verdicts)


def run(name: str, problem: Conv2d, seed: int = 0) -> list[np.ndarray]:
    """fprop, dgrad and wgrad of one algorithm."""
    rng = np.random.default_rng(seed)
    x, w, dy = (rng.standard_normal(problem.shape(t), np.float32) for t in ("x", "w", "dy"))
    found = []
    for op, inputs, out in (
        ("conv2d_fprop", (x, w, None), "y"),
        ("conv2d_dgrad", (dy, w), "dx"),
        ("conv2d_wgrad", (x, dy), "dw"),
    ):
        (i,) = [i for i in implementations(op, device="cpu") if i.name == name]
        result = np.full(problem.shape(out), np.nan, np.float32)
        options = {"workspace": empty((i.workspace(problem),), "uint8")}
        i.run(problem, *inputs, result, **options)
        found.append(result)
    return found


@pytest.mark.parametrize("name", ["winograd", "direct"])
@pytest.mark.parametrize("N", [1, 5, 64])  # 64: chunks of its own for each thread
def test_same_bits_for_any_number_of_threads(name, N, monkeypatch):
    problem = Conv2d.of((N, 40, 19, 18), (50, 40, 3, 3), padding=1)
    runs = []
    for threads in (1, 2, 3, 7, 64):
        monkeypatch.setenv("CONVKIT_NUM_THREADS", str(threads))
        runs.append(run(name, problem))
    for other in runs[1:]:
        for a, b in zip(runs[0], other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["winograd", "direct"])
def test_an_image_has_the_same_bits_in_any_batch(name):
    problem = Conv2d.of((7, 32, 13, 13), (48, 32, 3, 3), padding=1)
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal(problem.shape("x"), np.float32),
        rng.standard_normal(problem.shape("w"), np.float32),
    )
    whole = ck.conv2d_fprop(x, w, padding=1, impl=name)
    np.testing.assert_array_equal(ck.conv2d_fprop(x[3:4], w, padding=1, impl=name)[0], whole[3])


@pytest.mark.parametrize("isa", extension.isas())
@pytest.mark.parametrize("name", ["winograd", "direct", "few_channels", "narrow_groups"])
def test_error_of_weight_gradients_does_not_grow_with_the_pixels(isa, name):
    # A sum over so many pixels, taken in one go, was 2e-5 (winograd) and 4e-6 (direct) away.
    shape, w = (
        ((8, 3, 224, 224), (8, 3, 3, 3)) if name == "few_channels" else ((8, 8, 224, 224), (8, 8, 3, 3))
    )
    groups = 1
    if name == "narrow_groups":
        w, groups = (8, 4, 3, 3), 2
    problem = Conv2d.of(shape, w, padding=1, groups=groups)
    (i,) = [i for i in implementations("conv2d_wgrad", device="cpu") if i.name == name]
    assert i.refusal(problem) is None
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(problem.shape(t), np.float32) for t in ("x", "dy"))
    dw, exact = np.empty(problem.shape("dw"), np.float32), np.empty(problem.shape("dw"))
    with extension.using(isa):
        i.run(problem, x, dy, dw, workspace=empty((i.workspace(problem),), "uint8"))
    for r in range(3):
        for s in range(3):
            part = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))[:, :, r : r + 224, s : s + 224]
            for g in range(groups):
                c, k = problem.C // groups, problem.K // groups
                rows = part[:, g * c : (g + 1) * c].transpose(1, 0, 2, 3).reshape(c, -1).astype(np.float64)
                columns = dy[:, g * k : (g + 1) * k].transpose(1, 0, 2, 3).reshape(k, -1).astype(np.float64)
                exact[g * k : (g + 1) * k, :, r, s] = columns @ rows.T
    error = np.sqrt(np.mean((dw - exact) ** 2) / np.mean(exact**2))
    assert error <= i.error


def test_max_error_decides():
    problem = Conv2d.of((16, 256, 13, 13), (384, 256, 3, 3), padding=1)
    assert select("conv2d_fprop", problem).name == "winograd"
    with ck.use(max_error=1e-6):
        assert select("conv2d_fprop", problem).name == "direct"
        assert select("conv2d_wgrad", problem).name == "direct"
        net = ck.AlexNet("owt", num_classes=10)
        names = {c.implementation.name for c in net.plan(16).forward if c.op.name == "conv2d_fprop"}
        assert names == {"direct"}


def test_what_is_picked():
    picked = {
        (1, 1): "pointwise", (3, 1): "winograd", (5, 1): "winograd", (7, 1): "direct", (3, 2): "direct",
    }  # fmt: skip
    for (R, stride), name in picked.items():
        problem = Conv2d.of((8, 64, 28, 28), (64, 64, R, R), padding=R // 2, stride=stride)
        assert select("conv2d_fprop", problem).name == name, (R, stride)
    depthwise = Conv2d.of((8, 64, 28, 28), (64, 1, 3, 3), padding=1, groups=64)
    assert select("conv2d_fprop", depthwise).name == "narrow_groups"
    strided_and_dilated = Conv2d.of((8, 64, 28, 28), (64, 64, 3, 3), stride=2, dilation=2)
    assert select("conv2d_fprop", strided_and_dilated).name == "im2col_gemm"


def test_winograd_is_as_exact_as_it_declares():
    # On the reductions of real layers, which the gate's small cases do not have.
    for name, bound in (("winograd", 1e-5), ("direct", 1e-6)):
        problem = Conv2d.of((2, 256, 13, 13), (64, 256, 3, 3), padding=1)
        rng = np.random.default_rng(1)
        x, w = (rng.standard_normal(problem.shape(t)) for t in ("x", "w"))
        exact = ck.conv2d_fprop(x, w, padding=1)
        got = ck.conv2d_fprop(x.astype(np.float32), w.astype(np.float32), padding=1, impl=name)
        exact = ck.conv2d_fprop(*(a.astype(np.float32).astype(np.float64) for a in (x, w)), padding=1)
        assert np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2)) < bound


def test_blocked_tensors_through_the_public_ops():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 20, 9, 11), np.float32), rng.standard_normal((18, 20, 3, 3), np.float32)
    y = ck.conv2d_fprop(blocked(x), w, padding=1)
    assert isinstance(y, layouts.Tensor) and y.shape == (2, 18, 9, 11)
    np.testing.assert_array_equal(y.logical(), ck.conv2d_fprop(x, w, padding=1))
    assert not y.data[:, -1, ..., 2:].any()  # the spare channels


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_storage(dtype):
    problem = Conv2d.of((2, 32, 10, 10), (32, 32, 3, 3), padding=1, dtype=dtype)
    assert select("conv2d_fprop", problem).name == "winograd"
    verdicts = [
        check.judge(i, check.Question.of(check.Case(op, problem, "narrow"), dtype))
        for op in ("conv2d_dgrad", "conv2d_wgrad")
        for i in mine(op)
        if i.refusal(problem) is None
    ]
    assert not failures(verdicts)


@pytest.mark.parametrize("shape", [(2, 7, 8, 1), (2, 7, 1, 8), (1, 7, 2, 2)])
def test_winograd_declines_what_lies_mostly_in_the_padding(shape):
    """Its relative error was twice as large: some taps give the sum, and all of them the rounding."""
    g = Conv2d.of(shape, (764, 7, 3, 3), padding=((3, 1), (1, 2)))
    for op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"):
        for implementation in implementations(op, device="cpu", layout=None):
            if implementation.name == "winograd":
                assert "larger than the image" in implementation.refusal(g)
    case = check.Case("conv2d_dgrad", g, "thin")
    chosen = select("conv2d_dgrad", g, device="cpu")
    assert check.judge(chosen, check.Question.of(case, "float32", 1005)).ok
