"""Pair dtypes: 16-bit activations beside float32 parameters, from the problem to a kernel's source."""

from __future__ import annotations

import numpy as np
import pytest

import convkit as ck
from convkit import check, registry
from convkit.arrays import DTYPES
from convkit.check.attempt import Question
from convkit.check.cases import Case
from convkit.check.verdicts import judge
from convkit.cuda import header
from convkit.cuda.null import nulled
from convkit.cuda.prepare import implementation
from convkit.cuda.source import translation_unit
from convkit.errors import DtypeError, NoImplementation, OptionError
from convkit.layouts import Tensor
from convkit.op import OPS, PAIRS, pair_dtype, param_dtype, storage_dtype
from convkit.ops.conv2d import Conv2d
from convkit.ops.linear import Linear
from convkit.ops.reorder import Reorder
from convkit.paths import kernels_dir

SIXTEEN = ("bfloat16", "float16")


def arrays(*shapes, dtype):
    rng = np.random.default_rng(5)
    return [rng.standard_normal(shape, np.float32).astype(DTYPES[dtype]) for shape in shapes]


def test_parts_of_a_pair():
    assert (storage_dtype("bfloat16/float32"), param_dtype("bfloat16/float32")) == ("bfloat16", "float32")
    assert storage_dtype("float64") == param_dtype("float64") == "float64"
    assert (
        pair_dtype("float16", "float32") == "float16/float32"
        and pair_dtype("float32", "float32") == "float32"
    )
    with pytest.raises(DtypeError, match="bfloat16 arrays.* must be bfloat16 or float32, not float64"):
        pair_dtype("bfloat16", "float64")
    with pytest.raises(DtypeError, match="must be float32, not float16"):
        pair_dtype("float32", "float16")


def test_ops_that_take_pairs():
    """Those that meet tensors of parameters; to all others, storage is all there is."""
    assert {op.name for op in OPS.values() if op.pairs} == {
        "conv2d_wgrad", "conv2d_bgrad", "conv2d_wgrad_bgrad", "linear_wgrad", "linear_bgrad", "reorder",
        "linear_wgrad_sgd", "linear_dgrad_wgrad_sgd",
    }  # fmt: skip
    assert OPS["linear_wgrad_sgd"].parameters == {"w", "v", "w_new", "v_new"}
    assert OPS["linear_fprop"].parameters == OPS["sgd_momentum"].parameters == frozenset()


def test_problems_know_each_tensors_dtype_and_bytes():
    g = Conv2d(1, 2, 5, 5, 3, 3, 3, dtype="bfloat16/float32")
    assert {name: g.dtype_of(name) for name in ("x", "dy", "w", "dw", "db")} == {
        "x": "bfloat16", "dy": "bfloat16", "w": "bfloat16", "dw": "float32", "db": "float32",
    }  # fmt: skip
    assert g.bytes("x", "dy", "dw") == 2 * 2 * 25 + 2 * 3 * 9 + 4 * 3 * 2 * 9
    assert Linear(1, 2, 3, "float16/float32").dtype_of("finite") == "int32"
    cast = Reorder(2, 3, 4, 5, "float16/float32")
    assert (cast.dtype_of("x"), cast.dtype_of("y"), cast.bytes("x", "y")) == ("float32", "float16", 6 * 120)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_gradients_of_parameters_may_be_float32(dtype):
    """Also from a bound call, the second time; and then nothing is rounded to 16 bits."""
    x, dy = arrays((2, 4, 9, 8), (2, 6, 7, 6), dtype=dtype)
    rows, drows = x.reshape(2, -1), dy.reshape(2, -1)
    calls = [
        lambda **d: ck.conv2d_wgrad(x, dy, (6, 4, 3, 3), **d),
        lambda **d: ck.conv2d_bgrad(dy, **d),
        lambda **d: ck.conv2d_wgrad_bgrad(x, dy, (6, 4, 3, 3), **d)[1],
        lambda **d: ck.linear_wgrad(rows, drows, **d),
        lambda **d: ck.linear_bgrad(drows, **d),
    ]
    for call in calls:
        plain = [call(), call(dtype=dtype)]
        assert {a.dtype for a in plain} == {DTYPES[dtype]}
        wide = [call(dtype="float32") for _ in range(2)]
        assert {a.dtype for a in wide} == {np.dtype(np.float32)}
        assert any(np.asarray(wide[0].astype(DTYPES[dtype]) != wide[0]).ravel())
        np.testing.assert_array_equal(wide[0].astype(DTYPES[dtype]), plain[0])
        assert call().dtype == DTYPES[dtype]


def test_gradients_of_other_dtypes_are_refused():
    x, dy = arrays((2, 5), (2, 3), dtype="bfloat16")
    with pytest.raises(DtypeError, match="beside bfloat16 arrays"):
        ck.linear_wgrad(x, dy, dtype="float64")
    with pytest.raises(OptionError, match="unknown dtype 'float3'"):
        ck.linear_bgrad(dy, dtype="float3")
    with pytest.raises(DtypeError, match="must have dtype float32, not bfloat16"):
        ck.linear_bgrad(dy, dtype="float32", out=np.empty(3, DTYPES["bfloat16"]))
    single = x.astype(np.float32)
    with pytest.raises(DtypeError, match="beside float32 arrays"):
        ck.linear_bgrad(single, dtype="bfloat16")


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_reorder_casts(dtype, layout):
    (x,) = arrays((2, 3, 4, 5), dtype="float32")
    x.flat[:4] = np.inf, -np.inf, 1e6, 1e-7
    with np.errstate(over="ignore"):
        rounded = x.astype(DTYPES[dtype])
    if layout == "NCHW":
        for _ in range(2):  # the second time no bound call may answer, whose `out` was another one
            narrow = ck.reorder(x, out=np.empty(x.shape, DTYPES[dtype]))
            np.testing.assert_array_equal(narrow, rounded)
            assert ck.reorder(x).dtype == np.float32
    else:
        out = Tensor.empty(x.shape, dtype, layout)
        assert ck.reorder(x, out=out) is out
        np.testing.assert_array_equal(out.logical(), rounded)
    with pytest.raises(DtypeError, match=f"must have dtype {dtype}, not float32"):
        ck.reorder(rounded, out=x)


def test_an_implementation_must_declare_a_pair():
    x, dy = arrays((2, 5), (2, 3), dtype="bfloat16")

    @ck.implements("linear_wgrad", name="plain", dtypes=("bfloat16",), rank=-1)
    def plain(problem, x, dy, dw):
        raise AssertionError("it has not declared the pair")

    with pytest.raises(NoImplementation, match="plain: takes bfloat16, not bfloat16/float32"):
        ck.linear_wgrad(x, dy, dtype="float32", impl="plain")
    with pytest.raises(OptionError, match="relu_fprop has no tensors of a second dtype"):
        ck.implements("relu_fprop", name="pair", dtypes=PAIRS)(lambda problem, x, y: None)
    with pytest.raises(OptionError, match="unknown dtype 'float64/float32'"):
        ck.implements("linear_wgrad", name="odd", dtypes=("float64/float32",))(
            lambda problem, x, dy, dw: None
        )


def _verdict(op, run, problem):
    found = registry.Implementation(op, "candidate", run, dtypes=PAIRS)
    question = Question.of(Case(op, problem, "a pair"), "bfloat16/float32")
    return judge(found, question)


def test_gate_holds_each_output_to_its_own_dtype():
    """A gradient that has been through 16 bits is no float32 gradient; a cast is exact."""
    g = Linear(40, 30, 20)

    def right(problem, x, dy, dw):
        dw[...] = dy.astype(np.float64).T @ x.astype(np.float64)

    def rounded(problem, x, dy, dw):
        right(problem, x, dy, dw)
        dw[...] = dw.astype(x.dtype)

    assert _verdict("linear_wgrad", right, g).ok
    assert not _verdict("linear_wgrad", rounded, g).ok

    def nearest(problem, x, y):
        y[...] = x

    def cut(problem, x, y):
        y[...] = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)

    assert _verdict("reorder", nearest, Reorder(2, 3, 4, 5)).ok
    assert not _verdict("reorder", cut, Reorder(2, 3, 4, 5)).ok


def test_a_kernel_is_told_both_dtypes():
    kernel = header.read(kernels_dir() / "linear_bgrad_reduce.cu")
    (problem, *_) = (case.of("bfloat16/float32").problem for case in check.cases("linear_bgrad"))
    source = translation_unit(kernel, problem)
    assert "#define CONVKIT_STORAGE_bfloat16 1" in source and "#define CONVKIT_PARAM_float32 1" in source
    plain = translation_unit(kernel, Case("linear_bgrad", problem, "").of("bfloat16").problem)
    assert "CONVKIT_PARAM" not in plain


def test_a_header_may_name_pairs_where_the_op_takes_them(tmp_path):
    text = (kernels_dir() / "relu_fprop_vectorized.cu").read_text()
    bad = tmp_path / "relu_fprop_pair.cu"
    bad.write_text(
        text.replace("relu_fprop_vectorized", "relu_fprop_pair").replace('"bfloat16"', '"bfloat16/float32"')
    )
    with pytest.raises(OptionError, match="relu_fprop has no tensors of a second dtype"):
        header.read(bad)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["linear_bgrad_reduce", "conv2d_bgrad_reduce"])
def test_bias_gradients_under_the_emulator(name, pair):
    found = implementation(kernels_dir() / f"{name}.cu")
    asked = [case for case in check.cases(found.op) if not case.heavy and not case.problem.empty][:4]
    with ck.emulate():
        for case in asked:
            verdict = judge(found, Question.of(case, pair))
            assert verdict.ok and not verdict.declined, verdict


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_an_update_of_float32_weights_by_16_bit_gradients(dtype):
    """The gradient is not rounded between the sums and the weights."""
    x, dy = arrays((7, 12), (7, 9), dtype=dtype)
    w, v = arrays((9, 12), (9, 12), dtype="float32")
    rule = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    found = ck.linear_wgrad_sgd(x, dy, w, v, **rule)
    apart = ck.sgd_momentum(w, ck.linear_wgrad(x, dy, dtype="float32"), v, **rule)
    for one, other in zip(found, apart):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(DtypeError, match="must share a dtype, not x: .*, w: float64"):
        ck.linear_wgrad_sgd(x, dy, w.astype(np.float64), v.astype(np.float64), **rule)
    with pytest.raises(DtypeError, match="must share a dtype"):
        ck.linear_wgrad_sgd(x, dy, w, v.astype(DTYPES[dtype]), **rule)


def test_a_step_in_bfloat16_updates_fully_connected_weights_with_their_gradient():
    with nulled():
        for dtype, fused in (("bfloat16", 3), ("float16", 0)):  # a scaled gradient is looked at first
            calls = ck.AlexNet(preset="paper", seed=0, dtype=dtype).plan(2).phases()["backward"]
            assert sum(call.op.name == "linear_wgrad_sgd" for call in calls) == fused
