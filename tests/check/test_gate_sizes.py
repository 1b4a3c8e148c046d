"""Wrong kernels that are right for the sizes that a test happens to have: each must be refused.

Each fault has a limit: a batch, a multiple of a block, an extent, a grid. The gate knows none of them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convkit import check, emulate, registry
from convkit.check import check_these, sizes, tolerance
from convkit.check.cases import all_cases, size_cases
from convkit.cuda.prepare import implementation as kernel_implementation
from convkit.op import OPS
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.ops.lrn import LRN
from convkit.ops.maxpool2d import Pool2d
from convkit.registry import Implementation, implementations

RIGHT = {op: OPS[op].define for op in OPS}


def first_failure(implementation: Implementation, seed: int = 0):
    """The first verdict that is not ok, small cases first; None where the implementation passes."""
    dtype = implementation.dtypes[0]
    cases = list(all_cases(implementation.op, quick=False, seed=seed))
    large = [c for c in size_cases(implementation.op) if c.heavy]
    for case in [*(c for c in reversed(cases) if not c.heavy), *large]:
        if implementation.refusal(replace(case.problem, dtype=dtype), implementation.math) is None:
            verdict = check.judge(implementation, check.Question.of(case, dtype, seed))
            if not verdict.ok:
                return verdict
    return None


# ---------------------------------------------------------------------------------------------------
# A limit in one extent: what lies beyond is left as the last one within, or is wrong
# ---------------------------------------------------------------------------------------------------
def beyond(op: str, wrong):
    """Right where `wrong(g)` does not hold; elsewhere the first element of the first output is off."""

    def run(g, *arguments, **options):
        RIGHT[op](g, *arguments, **options)
        if wrong(g):
            out = arguments[-len(OPS[op].outputs)].reshape(-1)
            out[:1] += out.dtype.type(1) if out.dtype.kind == "u" else 1 + abs(out[:1])

    return run


def per_group(g):
    return g.C // g.groups, g.K // g.groups


LIMITS = {
    "conv2d_fprop": {
        "5 images": lambda g: g.N > 4,
        "9 images": lambda g: g.N > 8,
        "33 images": lambda g: g.N > 32,
        "65 images": lambda g: g.N > 64,
        "between two batches": lambda g: 40 < g.N < 120,
        "more than 8 groups": lambda g: g.groups > 8,
        "more than 512 channels a group": lambda g: per_group(g)[0] > 512,
        "more than 384 filters": lambda g: g.K > 384,
        "a stride of 6": lambda g: g.stride_h > 5,
        "a horizontal stride of 6": lambda g: g.stride_w > 5,
        "13 rows of taps": lambda g: g.R > 12,
        "13 columns of taps": lambda g: g.S > 12,
        "a dilation of 5": lambda g: g.dilation_w > 4,
        "padding of 6": lambda g: g.pad_left > 5,
        "whole tiles of 64 filters": lambda g: g.K % 64 == 0,
        "whole blocks of 256 channels": lambda g: g.C % 256 == 0,
        "a row of 1024": lambda g: g.W >= 1024,
        "one column, two strides": lambda g: g.W == 1 and g.H > 1 and g.stride_w > g.stride_h,
        "one row of outputs": lambda g: g.P == 1 and g.Q > 1 and g.stride_h > 3,
    },
    "conv2d_dgrad": {
        "17 images": lambda g: g.N > 16,
        "one row, two strides": lambda g: g.H == 1 and g.W > 1 and g.stride_h > g.stride_w,
    },
    "conv2d_wgrad": {
        "more than 65,536 pixels": lambda g: g.N * g.P * g.Q > 65_536,
        "more than 128 images": lambda g: g.N > 128,
        "whole blocks of 64 channels": lambda g: g.C % 64 == 0,
    },
    "conv2d_bgrad": {"more than 512 channels": lambda g: g.K > 512, "128 images": lambda g: g.N > 127},
    "lrn_fprop": {
        "more than 512 channels": lambda g: g.C > 512,
        "5 images": lambda g: g.N > 4,
        "a window of 13": lambda g: g.size > 12,
        "whole blocks of 64 columns": lambda g: g.W % 64 == 0,
    },
    "lrn_dgrad": {"more than 256 pixels": lambda g: g.H * g.W > 512, "9 images": lambda g: g.N > 8},
    "maxpool2d_fprop": {
        "9 images": lambda g: g.N > 8,
        "more than 512 maps": lambda g: g.N * g.C > 512,
        "a stride of 7": lambda g: g.stride_w > 6,
        "windows of more than 20 rows": lambda g: g.R > 20,
    },
    "maxpool2d_dgrad": {"5 images": lambda g: g.N > 4, "a window of 13": lambda g: g.R > 12},
    "linear_fprop": {
        "33 rows": lambda g: g.N > 32,
        "whole tiles of 64 outputs": lambda g: g.K % 64 == 0 and g.N > 1,
        "more than 1000 inputs, few rows": lambda g: 1000 < g.C < 2000,
    },
    "linear_bgrad": {"65,537 rows": lambda g: g.N > 65_536, "whole blocks of 256": lambda g: g.K % 256 == 0},
    "relu_fprop": {
        "whole blocks of 64": lambda g: g.size % 64 == 0 and g.size > 64,
        "whole blocks of 256": lambda g: g.size % 256 == 0,
        "whole blocks of 1024": lambda g: g.size and g.size % 1024 == 0,
        "between two sizes": lambda g: 5_000 < g.size < 90_000,
        "2 million": lambda g: g.size > 2_000_000,
    },
    "dropout_fprop": {
        "whole blocks of 512": lambda g: g.size % 512 == 0,
        "half a million": lambda g: g.size > 500_000,
    },
    "sgd_momentum": {
        "whole blocks of 128": lambda g: g.size % 128 == 0,
        "half a million": lambda g: g.size > 500_000,
    },
    "softmax_xent_fprop": {
        "more than 512 classes": lambda g: 512 < g.K < 1000,
        "whole warps of classes": lambda g: g.K % 64 == 0,
        "65,537 rows": lambda g: g.N > 65_536,
    },
    "label_rank": {"whole warps of classes": lambda g: g.K % 64 == 0, "65,537 rows": lambda g: g.N > 65_536},
    "loss_summary": {"more than 1024 rows": lambda g: g.N > 1024, "256 rows": lambda g: g.N == 256},
    "softmax_xent_dgrad": {"more than 512 rows": lambda g: g.N > 513},
    "crop_images": {
        "17 images": lambda g: g.N > 16,
        "crops of more than 64 pixels": lambda g: g.size > 64,
        "5 channels": lambda g: g.C > 4,
        "whole registers": lambda g: g.size % 16 == 0,
        "65,537 columns": lambda g: g.W > 65_536,
    },
    "reorder": {"129 channels": lambda g: g.C > 128, "17 images": lambda g: g.N > 40},
    "lrn_maxpool2d_fprop": {
        "9 images": lambda g: g.N > 8,
        "more than 512 channels": lambda g: g.pool.C > 512,
    },
}


@pytest.mark.parametrize("op, what", [(op, what) for op, found in LIMITS.items() for what in found])
def test_a_kernel_with_a_limit_is_refused(op, what):
    verdict = first_failure(Implementation(op, "limited", beyond(op, LIMITS[op][what])))
    assert verdict is not None, f"{op}: {what} passed"


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_asked_about_each_extent(op):
    """And about more than any fixed case has; so that a new op cannot be forgotten."""
    stretched = {c.name.rpartition(" ")[0] for c in size_cases(op)}
    extents = set(OPS[op].cases.extents) - {"elements"}
    assert extents <= stretched, op


# ---------------------------------------------------------------------------------------------------
# Faults of other kinds
# ---------------------------------------------------------------------------------------------------
def refused(op: str, run, reason: str, **declared):
    failed = []
    for verdict in check.in_turn([Implementation(op, "mine", run, **declared)], quick=True):
        if not verdict.ok:
            failed.append(verdict)
            if re.search(reason, verdict.reason):
                return
    raise AssertionError("\n".join(map(str, failed[:4])) or "passed")


def behind(a):
    """The element behind an array's last."""
    return np.lib.stride_tricks.as_strided(a, (a.size + 1,), (a.itemsize,))[-1:]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("value", ["the next input's", "zero of it", "its own"])
def test_one_element_too_many_is_seen_whatever_is_written(dtype, value):
    """A guard band that maps onto itself: max(x, 0) of a positive number, or of a NaN."""

    def run(g, x, y):
        RIGHT["relu_fprop"](g, x, y)
        if y.size and x.ctypes.data != y.ctypes.data:
            given = {
                "the next input's": behind(x),
                "zero of it": np.maximum(behind(x), 0),
                "its own": behind(x) * 1,
            }
            behind(y)[...] = given[value]

    refused("relu_fprop", run, "wrote outside its output y", dtypes=(dtype,))


def test_each_output_has_a_band_of_its_own():
    def run(g, w, dw, v, w_new, v_new, **options):
        RIGHT["sgd_momentum"](g, w, dw, v, w_new, v_new, **options)
        if g.size and w.ctypes.data != w_new.ctypes.data and v.ctypes.data != v_new.ctypes.data:
            behind(w_new)[...] = behind(v_new)

    refused("sgd_momentum", run, "wrote outside its output w_new")


def test_windows_of_minus_infinity():
    def starts_at_the_smallest(g, x, y, argmax):
        RIGHT["maxpool2d_fprop"](g, x, y, argmax)
        np.maximum(y, np.float32(-3.4e38), out=y)

    def finds_nothing_larger(g, x, y, argmax):
        RIGHT["maxpool2d_fprop"](g, x, y, argmax)
        argmax[y == -np.inf] = 0

    refused("maxpool2d_fprop", starts_at_the_smallest, r"y\[[\d, ]+\] is -3\.\d+e\+38, expected -inf")
    refused("maxpool2d_fprop", finds_nothing_larger, r"argmax\[[\d, ]+\] is 0, expected \d")


# ---------------------------------------------------------------------------------------------------
# What a candidate gives away
# ---------------------------------------------------------------------------------------------------
SECRET = 77


def test_numbers_in_the_code_are_asked_about():
    """Just below, at, just above, wherever the number stands: in the function, beside it, in a closure."""

    def literal(g, x, w, b, y, relu):
        RIGHT["linear_fprop"](g, x, w, b, y, relu)
        if g.K == 43:
            y[...] = 0

    def beside(g, x, w, b, y, relu):
        RIGHT["linear_fprop"](g, x, w, b, y, relu)
        if g.C == SECRET + 1:
            y[...] = 0

    hidden = 219

    def closed_over(g, x, w, b, y, relu):
        RIGHT["linear_fprop"](g, x, w, b, y, relu)
        if hidden == g.N:
            y[...] = 0

    for run in (literal, beside, closed_over):
        mine = Implementation("linear_fprop", "mine", run)
        own = sizes.own_problems(mine, 32, np.random.default_rng(0), lambda problem: True)
        asked = [check.Case("linear_fprop", problem, name, {"relu": False}) for name, problem in own]
        verdicts = [check.judge(mine, check.Question.of(case, "float32")) for case in asked]
        assert any(not v.ok and "it has the number" in v.case for v in verdicts), run.__name__


def test_the_largest_that_it_accepts_is_asked_about():
    """A `when` that lets through what the function cannot do."""

    def run(g, x, w, b, y, relu):
        RIGHT["linear_fprop"](g, x, w, b, y, relu)
        if g.C == 700:
            y[...] = 0

    when = eval("lambda g: None if g.C <= 7 * 100 else 'C at most 700'", {})
    failed = [
        v
        for v in check_these([Implementation("linear_fprop", "mine", run, when=when)], quick=True)
        if not v.ok
    ]
    assert any("the largest that it takes" in v.case or "number 700" in v.case for v in failed)
    assert not [v for v in failed if " C 701" in v.case]


KERNEL = """// relu_fprop_wide
// /// kernel
// op = "relu_fprop"
// tile = { THREADS = 96, ROWS = 40 }
// grid = ["1", "ceil_div(size, THREADS * 2)"]
// block = ["THREADS"]
// rank = -90
// when = "size < 8000000000"
// ///
// 12345 in a comment is no limit
extern "C" __global__ void relu_fprop_wide(GEOMETRY(Elementwise), const float* x, float* y) {
    long long i = blockIdx.y * 2LL * THREADS + threadIdx.x;
    for (; i < g.size && i < 0x1f40; i += 1.5f > 0 ? 192 : 3u)
        y[i] = x[i] < 0 ? 0 : x[i];
}
"""


@pytest.fixture
def wide(tmp_path):
    path = tmp_path / "relu_fprop_wide.cu"
    path.write_text(KERNEL)
    return kernel_implementation(path)


def test_constants_of_a_kernel_file(wide):
    declared, code = sizes.constants(*sizes.hints(wide)[:2])
    assert declared == [96, 40, 2] and set(code) == {8000, 192, 3}


def test_a_grid_that_cuda_refuses_is_found_without_a_launch(wide):
    """At 10^10 elements, by the header alone; a `when` that excludes them is respected."""
    fault = sizes.launch_fault(wide, Elementwise((2**31,)))
    assert fault == "grid.y of relu_fprop_wide would be 11,184,811; CUDA allows 65,535"
    assert not sizes.launch_fault(wide, Elementwise((10**6,)))
    case = check.Case("relu_fprop", Elementwise((2**31,)), "huge", unrun=True)
    verdict = check.verdicts.judge_launch(wide, case)
    assert not verdict.ok and verdict.unrun and "grid.y" in str(verdict)
    far = check.Case("relu_fprop", Elementwise((10**10,)), "huge", unrun=True)
    assert check.verdicts.judge_launch(wide, far).declined


def test_what_would_take_the_emulator_minutes_is_declined(compiler):
    """One block for each of 65,537 channels; where a GPU runs it, it is asked."""
    (reduce,) = [i for i in implementations("conv2d_bgrad", device="cuda") if i.name == "reduce"]
    (case,) = [c for c in size_cases("conv2d_bgrad") if c.name == "65,537 channels"]
    with emulate():
        verdict = check.judge(reduce, check.Question.of(case, "float32"))
    assert verdict.declined and "threads are too many for the emulator" in verdict.reason
    assert sizes.too_many_threads(reduce, next(check.cases("conv2d_bgrad")).problem) is None


def test_a_header_that_breaks_at_huge_problems_is_a_fault(tmp_path):
    path = tmp_path / "relu_fprop_wide.cu"
    path.write_text(KERNEL.replace('"ceil_div(size, THREADS * 2)"', '"size // (size - 2147483648)"'))
    fault = sizes.launch_fault(kernel_implementation(path), Elementwise((2**31,)))
    assert "divides by zero" in fault
    path.write_text(KERNEL.replace('block = ["THREADS"]', 'block = ["size // 1000"]'))
    assert "CUDA allows 1024 threads" in sizes.launch_fault(
        kernel_implementation(path), Elementwise((2**22,))
    )
    path.write_text(KERNEL.replace("rank = -90", 'shared = "size // 10"'))
    assert "shared memory" in sizes.launch_fault(kernel_implementation(path), Elementwise((3_000_000,)))


@pytest.mark.parametrize(
    "kernel", implementations(device="cuda", layout=None), ids=lambda i: f"{i.op}-{i.label}"
)
def test_shipped_kernels_can_be_launched_at_any_size(kernel):
    verdicts = [
        check.verdicts.judge_launch(
            kernel, check.Case(kernel.op, replace(g, dtype=kernel.dtypes[0]), "huge", unrun=True)
        )
        for g in OPS[kernel.op].cases.huge()
    ]
    assert not [str(v) for v in verdicts if not v.ok]
    assert any(not v.declined for v in verdicts)


def test_stretching_keeps_a_problem_valid():
    """The window fits, padding stays within a pool's window, groups divide."""
    rng = np.random.default_rng(1)
    for op in OPS:
        for base in OPS[op].cases.bases():
            for _ in range(60):
                problem = sizes.stretched_at_random(op, base, rng)
                assert all(
                    v >= 0 for name in (*OPS[op].inputs, *OPS[op].outputs) for v in problem.shape(name)
                )
                if isinstance(problem, Pool2d):
                    Pool2d.of(
                        problem.shape("x"),
                        window=(problem.R, problem.S),
                        padding=(
                            (problem.pad_top, problem.pad_bottom),
                            (problem.pad_left, problem.pad_right),
                        ),
                        dilation=(problem.dilation_h, problem.dilation_w),
                    )
                if isinstance(problem, Conv2d):
                    assert problem.C % problem.groups == problem.K % problem.groups == 0


# ---------------------------------------------------------------------------------------------------
# Bounds
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [0, 5, -3.4e38, np.nan, -np.inf])
@pytest.mark.parametrize(
    "op", ["relu_fprop", "conv2d_fprop", "linear_fprop", "maxpool2d_fprop", "dropout_fprop"]
)
def test_nothing_passes_for_an_infinity(op, number):
    def run(g, *arguments, **options):
        RIGHT[op](g, *arguments, **options)
        out = arguments[-len(OPS[op].outputs)]
        out[out == np.inf] = number

    infinite = [c for c in check.cases(op) if c.fill == "inf"]
    verdicts = [
        check.judge(Implementation(op, "mine", run), check.Question.of(c, "float32")) for c in infinite
    ]
    assert any("expected inf" in v.reason for v in verdicts if not v.ok)


@pytest.mark.parametrize("dtype", registry.ALL_DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_the_reference_passes_whatever_the_data(op, dtype):
    """Rounded once to storage, it is as right as can be: also beside infinities, NaN and large numbers."""
    problems = {
        LRN: LRN.of((3, 16, 4, 4), alpha=1e-4),
        Linear: Linear(3, 5, 4),
        Elementwise: Elementwise((3, 7)),
        Conv2d: Conv2d.of((2, 3, 6, 5), (4, 3, 3, 2)),
        Pool2d: Pool2d.of((2, 3, 7, 6)),
    }
    like = next(c for c in check.cases(op) if c.fill == "nan")
    case = replace(like, problem=problems.get(OPS[op].problem, like.problem))
    chosen = Implementation(op, "reference", RIGHT[op], dtypes=registry.ALL_DTYPES, error=0.0)
    for fill in ("normal", "inf", "nan", "large", "minus_inf", "offset"):
        for seed in range(6):
            verdict = check.judge(chosen, check.Question.of(replace(case, fill=fill), dtype, seed))
            assert verdict.ok, verdict


def test_a_declared_error_and_storage_add_up():
    """In 16 bits, an error that is allowed may carry a value across the middle between two numbers."""
    case = check.Case("conv2d_dgrad", Conv2d.of((1, 8, 12, 11), (9, 8, 3, 3), padding=1), "storage")
    question = check.Question.of(case, "float16")
    want = question.wanted["dx"]
    for error in (1e-5, 1e-6):
        allowed = want.bound(error)
        arithmetic = np.maximum(want.rounding, 10 * error * want.scale if error > tolerance.PLAIN else 0)
        assert (allowed >= arithmetic + want.storage).all()
    off = want.value + 5e-5 * np.sign(want.value)
    chosen = Implementation("conv2d_dgrad", "tiles", RIGHT["conv2d_dgrad"], dtypes=("float16",), error=1e-5)
    assert not tolerance.compare("dx", off.astype(np.float16), want, chosen, "conv2d_dgrad").reason


# ---------------------------------------------------------------------------------------------------
# Labels on a device
# ---------------------------------------------------------------------------------------------------
UNGUARDED = """// softmax_xent_dgrad_plain
// /// kernel
// op = "softmax_xent_dgrad"
// grid = ["N"]
// block = ["32"]
// rank = -90
// ///
extern "C" __global__ void softmax_xent_dgrad_plain(GEOMETRY(SoftmaxXent), const float* probs,
                                                    const long long* labels, const float* dloss,
                                                    float* dlogits) {
    const long long n = blockIdx.x, label = labels[n];
    const bool known = GUARD;
    for (int k = threadIdx.x; k < g.K; k += 32) {
        const float d = (probs[n * g.K + k] - (k == label ? 1.0f : 0.0f)) * dloss[n];
        dlogits[n * g.K + k] = known ? d : nanf("");
    }
}
"""


@pytest.mark.parametrize("guard, passes", [("label >= 0 && label < g.K", True), ("true", False)])
def test_a_label_outside_the_classes_is_asked_about_on_a_device(guard, passes, compiler, tmp_path):
    path = tmp_path / "softmax_xent_dgrad_plain.cu"
    path.write_text(UNGUARDED.replace("GUARD", guard))
    failed = [v for v in check_these([kernel_implementation(path)], quick=True, random=0) if not v.ok]
    assert bool(failed) != passes, failed[:2]
    assert all("stray labels" in v.case and "expected NaN" in v.reason for v in failed)


def test_a_kernel_that_overwrites_what_it_still_reads_is_refused(compiler):
    early = kernel_implementation(Path(__file__).parents[1] / "cuda" / "planted" / "relu_dgrad_early.cu")
    with emulate():
        verdict = next(v for v in check.in_turn([early], quick=True, random=0) if not v.ok)
    assert "with dx in place of dy" in verdict.reason


def test_a_check_of_a_kernel_file_judges_its_launches(wide):
    asked = [case for case, _, _ in check._its_own(wide, True, 0, None) if case.unrun]
    assert {case.problem for case in asked} == set(OPS["relu_fprop"].cases.huge())
