"""Scratch memory follows the tensors' sizes, whatever strides, paddings, dilations and windows are."""

from __future__ import annotations

import resource
from math import prod

import numpy as np
import pytest
import strategies
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import convkit as ck
from convkit import check, registry
from convkit.cpu import extension
from convkit.cpu.native_call import FLOOR, FOLD
from convkit.ops.conv2d import Conv2d
from convkit.ops.lrn import LRN

CONVOLUTIONS = ("conv2d_fprop", "conv2d_dgrad", "conv2d_dgrad_relu", "conv2d_wgrad")
POOLS = ("maxpool2d_fprop", "maxpool2d_dgrad")
LARGEST = strategies.LARGEST
FEW = 20_000  # elements that may be computed


def elements(problem) -> int:
    """Of all tensors."""
    return sum(prod(shape) for shape in problem.shapes.values())


@pytest.mark.parametrize("isa", extension.isas() or (extension.NONE,))
def test_workspace_is_bounded_by_the_tensors(isa):
    @settings(max_examples=300)
    @given(st.one_of(strategies.absurd_conv2d(), strategies.conv2d()))
    def holds(problem):
        own = 4 * sum(prod(problem.shape(name)) for name in ("x", "w", "y"))
        for op in CONVOLUTIONS:
            if op != "conv2d_dgrad_relu":  # which nothing takes but C++ and the reference
                assert registry.select(op, problem).name != "reference"
            for i in registry.implementations(op, device="cpu", layout=None):
                if i.workspace is not None and i.refusal(problem, i.math) is None:
                    assert 0 <= i.workspace(problem) <= FOLD * own + FLOOR, f"{i.label}: {problem}"

    with extension.using(isa):
        holds()


def memory() -> int:
    """The most bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("op", CONVOLUTIONS + POOLS)
@pytest.mark.parametrize("isa", (extension.NONE, *extension.isas()))
def test_absurd_options_on_small_tensors(op, isa):
    """For real: right, within a second or so for all of them, and without memory to speak of."""

    @settings(max_examples=100)
    @given(strategies.absurd_pool2d() if op in POOLS else strategies.absurd_conv2d())
    def holds(problem):
        assume(elements(problem) <= FEW)
        case = check.Case(op, problem, "absurd", {"relu": True} if op == "conv2d_fprop" else {})
        takers = [
            i
            for i in registry.implementations(op, device="cpu", layout=None)
            if (i.missing is extension.kernels_missing) == (isa != extension.NONE)
            and i.refusal(problem, i.math) is None
        ]
        question = check.Question.of(case, "float32")
        wrong = [v for v in (check.judge(i, question) for i in takers) if not v.ok]
        assert not wrong, "\n".join(map(str, wrong))

    before = memory()
    with extension.using(isa):
        holds()
    assert memory() - before < 4 * FLOOR


def test_weight_gradients_of_few_channels_with_any_stride():
    """few_channels cut rows into as many parts as the stride is wide, and wanted a terabyte."""
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5), np.float32)
    dy = np.ones((2, 4, 1, 1), np.float32)
    for stride in (LARGEST, (1, LARGEST), (LARGEST, 7)):
        problem = Conv2d.of(x.shape, (4, 3, 5, 5), stride=stride)
        for i in registry.implementations("conv2d_wgrad", device="cpu"):
            if i.workspace is not None and i.refusal(problem, i.math) is None:
                assert i.workspace(problem) < FLOOR, i.name
        dw = ck.conv2d_wgrad(x, dy, (4, 3, 5, 5), stride=stride)
        np.testing.assert_allclose(dw, np.broadcast_to(x.sum(axis=0), dw.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("W", [30_000, 30_001])
def test_long_rows_need_no_large_column_matrix(W):
    """Of a row of any length, im2col_gemm takes some 1000 columns at a time."""
    problem = Conv2d.of((2, 1, 2, W), (2, 1, 2, 101), stride=(1, 2), dilation=2, padding=((1, 0), (3, 100)))
    for op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"):
        (i,) = (i for i in registry.implementations(op, device="cpu") if i.name == "im2col_gemm")
        assert i.workspace(problem) < 4 << 20
        question = check.Question.of(check.Case(op, problem, "a long row"), "float32")
        assert check.judge(i, question).ok


@pytest.mark.parametrize("region", ["across_channels", "within_channel"])
@pytest.mark.parametrize("op", ["lrn_fprop", "lrn_dgrad"])
def test_lrn_windows_of_any_size(op, region):
    for size in (LARGEST, LARGEST - 1, 1000):
        for shape in ((2, 5, 3, 4), (1, 3, 1, 40), (1, 2, 40, 1)):
            problem = LRN.of(shape, size=size, alpha=0.5 * size, region=region)
            question = check.Question.of(check.Case(op, problem, "absurd"), "float32")
            for i in registry.implementations(op, device="cpu"):
                verdict = check.judge(i, question)
                assert verdict.ok, verdict
