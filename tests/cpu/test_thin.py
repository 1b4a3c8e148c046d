"""Every op with a window, by every implementation, on thin and lopsided geometries."""

from __future__ import annotations

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

import convkit as ck
from convkit import check, registry
from convkit.cpu import extension
from convkit.ops.conv2d import Conv2d

#: Each op with its strategy, and examples for each instruction set.
OPS = {
    "conv2d_fprop": (strategies.conv2d, 100),
    "conv2d_dgrad": (strategies.conv2d, 100),
    "conv2d_dgrad_relu": (strategies.conv2d, 100),
    "conv2d_wgrad": (strategies.conv2d, 100),
    "maxpool2d_fprop": (strategies.pool2d, 100),
    "maxpool2d_dgrad": (strategies.pool2d, 100),
    "lrn_fprop": (strategies.lrn_within, 40),
    "lrn_dgrad": (strategies.lrn_within, 40),
    "lrn_maxpool2d_fprop": (strategies.lrn_pool, 40),
    "lrn_maxpool2d_dgrad": (strategies.lrn_pool, 40),
}
#: Without C++ kernels, what there is otherwise is tried; with them, once.
ISAS = (extension.NONE, *extension.isas())


def candidates(op: str, isa: str) -> list[registry.Implementation]:
    """Of every layout; those in C++ at an instruction set, the others without one."""
    return [
        i
        for i in registry.implementations(op, device="cpu", layout=None)
        if i.name != "reference" and (i.missing is extension.kernels_missing) == (isa != extension.NONE)
    ]


PAIRS = [(op, isa) for op in OPS for isa in ISAS if candidates(op, isa)]


@pytest.mark.parametrize("op, isa", PAIRS)
def test_thin_geometries(op, isa):
    strategy, examples = OPS[op]

    @settings(max_examples=examples)
    @given(strategy(), st.sampled_from(["float32", "float32", "float16", "bfloat16"]), st.booleans())
    def holds(problem, dtype, relu):
        options = {"relu": relu} if "relu" in registry.OPS[op].options else {}
        case = check.Case(op, problem, "thin", options).of(dtype)
        takers = [i for i in candidates(op, isa) if i.refusal(case.problem) is None]
        if takers:
            question = check.Question.of(case, dtype)
            wrong = [v for v in (check.judge(i, question) for i in takers) if not v.ok]
            assert not wrong, "\n".join(map(str, wrong))

    with extension.using(isa):
        holds()


COLUMN = np.arange(1, 8, dtype=np.float32).reshape(1, 1, 7, 1)
ONE = np.ones((1, 1, 1, 1), np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("isa", extension.isas())
def test_a_stride_along_an_axis_of_one_output_means_nothing(isa, dtype):
    """direct took a column for one row, and went through it at the stride of the other axis."""
    from convkit.arrays import np_dtype

    x, w = COLUMN.astype(np_dtype(dtype)), ONE.astype(np_dtype(dtype))
    with extension.using(isa):
        for stride in ((1, 2), (1, 3), (1, 2**31 - 1)):
            assert np.array_equal(ck.conv2d_fprop(x, w, stride=stride, impl="direct"), x)
            assert np.array_equal(ck.conv2d_dgrad(x, w, x.shape, stride=stride, impl="direct"), x)
            row, strides = x.reshape(1, 1, 1, 7), stride[::-1]
            assert np.array_equal(ck.conv2d_fprop(row, w, stride=strides, impl="direct"), row)
            assert np.array_equal(ck.conv2d_dgrad(row, w, row.shape, stride=strides, impl="direct"), row)
            masked = ck.conv2d_dgrad_relu(x, w, x - 3, stride=stride, impl="direct")
            assert np.array_equal(masked, np.where(x > 3, x, 0))


@pytest.mark.parametrize("isa", extension.isas())
@pytest.mark.parametrize("stride", [8, 16, 64])
def test_a_long_column_with_a_stride_across(isa, stride):
    dy = np.ones((4, 32, 5000, 1), np.float32)
    with extension.using(isa):
        dx = ck.conv2d_dgrad(dy, np.ones((32, 32, 1, 1), np.float32), dy.shape, stride=(1, stride))
    assert (dx == 32).all()


@pytest.mark.parametrize("isa", extension.isas())
def test_pixels_that_no_window_sees_leave_nothing(isa):
    """Winograd's tiles have them in their sums, and that was all where windows saw padding alone."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((1, 3, 40, 2), np.float32), rng.standard_normal((1, 8, 40, 1), np.float32)
    options = {"stride": (1, 17), "padding": ((2, 2), (5, 2))}
    with extension.using(isa):
        assert not ck.conv2d_wgrad(x, dy, (8, 3, 5, 5), **options).any()
        assert not ck.conv2d_fprop(x, np.ones((8, 3, 5, 5), np.float32), **options).any()
        assert not ck.conv2d_dgrad(dy, np.ones((8, 3, 5, 5), np.float32), x.shape, **options).any()
    problem = Conv2d.of(x.shape, (8, 3, 5, 5), **options)
    (winograd,) = (i for i in registry.implementations("conv2d_wgrad", device="cpu") if i.name == "winograd")
    assert "reach all pixels" in (winograd.refusal(problem) or "")
