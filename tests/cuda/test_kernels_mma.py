"""The convolution on tensor cores where it copies asynchronously: C/groups a multiple of 8, arrays aligned.

The gate's own cases, which tests/cuda/test_ptx_kernels.py asks every kernel, have odd channels: of them it
fetches element by element.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit.check.attempt import FIRST, Question, attempt
from convkit.check.cases import Case
from convkit.check.verdicts import judge
from convkit.cuda.prepare import implementation
from convkit.ops.conv2d import Conv2d
from convkit.paths import kernels_dir

pytestmark = pytest.mark.usefixtures("compiler")

KERNEL = kernels_dir() / "conv2d_fprop_implicit_gemm_mma.cu"
ENGINES = {"fast": {}, "check": {"check": True}, "ptx": {"engine": "ptx"}}
PROBLEMS = {
    "few channels": Conv2d.of((2, 16, 9, 7), (24, 16, 3, 3), padding=1),
    "two tiles each way": Conv2d.of((1, 40, 12, 12), (136, 40, 3, 3), padding=1),
    "groups": Conv2d.of((1, 96, 7, 7), (80, 48, 5, 5), padding=2, groups=2),
    "all options": Conv2d.of(
        (3, 8, 11, 9), (10, 8, 3, 2), stride=(2, 1), dilation=(1, 2), padding=((0, 2), (1, 0))
    ),
    "more than a turn of the ring": Conv2d.of((1, 264, 5, 5), (8, 264, 1, 1)),
}


def asked(name: str, dtype: str) -> Question:
    case = Case("conv2d_fprop", PROBLEMS[name], name, options={"relu": name != "groups"})
    return Question.of(case, dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] * (dtype == "float16" and name != "all options"))
        for name in PROBLEMS
        for dtype in ("bfloat16", "float16")
    ],
)
def test_the_gate(name, dtype, engine):
    if engine == "ptx":
        need("cuda.core")
    one = implementation(KERNEL)
    with ck.emulate(**ENGINES[engine]):
        verdict = judge(one, asked(name, dtype))
    assert verdict.ok and not verdict.declined, verdict.reason


@pytest.mark.parametrize("engine", ["fast", "ptx"])
def test_the_same_bits_in_any_order(engine):
    if engine == "ptx":
        need("cuda.core")
    one, found = implementation(KERNEL), set()
    for seed in (None, 1, 2):
        with ck.emulate(**ENGINES[engine], seed=seed):
            run = attempt(one, asked("two tiles each way", "bfloat16"), FIRST)
        assert not run.fault, run.fault
        found.add(run.outputs["y"].tobytes())
    assert len(found) == 1


def test_both_engines_have_the_bits_of_numpy_where_sums_are_exact():
    need("cuda.core")
    problem = replace(PROBLEMS["two tiles each way"], dtype="float16")
    rng = np.random.default_rng(0)
    x, w, b = (rng.integers(-3, 4, problem.shape(name)).astype(np.float16) for name in ("x", "w", "b"))
    wanted = ck.conv2d_fprop(x, w, b, padding=1, impl="reference")
    in_memory = [np.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in (x, w)]
    for how in ENGINES.values():
        y = np.full(problem.shape("y"), np.nan, np.float16).transpose(0, 2, 3, 1).copy()
        with ck.emulate(**how):
            implementation(KERNEL).prepare(problem)(*in_memory, b, y, relu=False)
        np.testing.assert_array_equal(y.transpose(0, 3, 1, 2), wanted)


def test_shared_memory_without_bank_conflicts():
    """Every copy, load and store takes as few wavefronts as its bytes need."""
    one = implementation(KERNEL)
    with ck.emulate(counters=True) as how:
        verdict = judge(one, asked("two tiles each way", "bfloat16"))
    assert verdict.ok, verdict.reason
    rows = [row for row in how.counted if row.kind.startswith("shared")]
    lines = KERNEL.read_text().splitlines()
    seen = {
        word
        for row in rows
        for word in ("cp_async", "ldmatrix", "Pair", "uint4")
        if word in lines[row.line - 1]
    }
    assert seen == {"cp_async", "ldmatrix", "Pair", "uint4"}
    assert [(row.line, row.kind, row.ratio) for row in rows if row.ratio > 1] == []
