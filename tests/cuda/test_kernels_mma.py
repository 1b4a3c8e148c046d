"""Convolutions and linear layers on tensor cores, on the ways that the gate's own cases seldom take.

The gate's cases, which tests/cuda/test_ptx_kernels.py asks every kernel, have odd channels: of them these
kernels fetch element by element. Here they copy asynchronously.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit.arrays import np_dtype
from convkit.check.attempt import FIRST, Question, attempt
from convkit.check.cases import Case
from convkit.check.verdicts import judge
from convkit.cuda.header import KernelFile, read
from convkit.cuda.prepare import Runner, implementation
from convkit.op import OPS, Problem
from convkit.ops.conv2d import Conv2d
from convkit.ops.linear import Linear
from convkit.paths import kernels_dir
from convkit.registry import select

pytestmark = pytest.mark.usefixtures("compiler")

KERNELS = {
    path.stem: path for path in sorted(kernels_dir().glob("*.cu")) if path.stem.endswith(("_mma", "_tf32"))
}
ENGINES = {"fast": {}, "check": {"check": True}, "ptx": {"engine": "ptx"}}
CONV = {
    "few channels": Conv2d.of((2, 16, 9, 7), (24, 16, 3, 3), padding=1),
    "two tiles each way": Conv2d.of((1, 40, 12, 12), (136, 40, 3, 3), padding=1),
    "many channels": Conv2d.of((1, 136, 9, 16), (40, 136, 3, 3), padding=1),
    "groups": Conv2d.of((1, 96, 7, 7), (80, 48, 5, 5), padding=2, groups=2),
    "all options": Conv2d.of(
        (3, 8, 11, 9), (16, 8, 3, 2), stride=(2, 1), dilation=(1, 2), padding=((0, 2), (1, 0))
    ),
    "four classes": Conv2d.of((2, 24, 13, 12), (32, 24, 3, 3), stride=2, padding=1),
    "more than a turn of the ring": Conv2d.of((1, 264, 5, 5), (264, 264, 1, 1)),
    "several chunks of pixels": Conv2d.of((2, 8, 30, 30), (16, 8, 3, 3), padding=1),
}
ROWS = {
    "conv1": Conv2d.of((1, 3, 40, 44), (96, 3, 11, 11), stride=4, padding=((0, 3), (0, 3))),
    "padding": Conv2d.of((1, 3, 24, 26), (64, 3, 11, 11), stride=4, padding=2),
    "rows at odd elements": Conv2d.of((2, 3, 21, 23), (72, 3, 7, 7), stride=2, padding=3),
    "one channel": Conv2d.of((2, 1, 28, 28), (20, 1, 5, 5)),
    "all options": Conv2d.of((2, 2, 15, 14), (40, 2, 3, 3), stride=(1, 2), padding=1, dilation=(2, 1)),
    "two tiles each way": Conv2d.of((1, 6, 16, 20), (136, 6, 9, 9), padding=4),
    "whole tiles": Conv2d.of((1, 3, 16, 20), (96, 3, 8, 8)),
}
LINEAR = {
    "small": Linear(5, 16, 24),
    "two tiles each way": Linear(136, 136, 136),
    "slices, many inputs": Linear(8, 1024, 136),
    "slices, many outputs": Linear(8, 136, 1024),
    "slices, many rows": Linear(700, 64, 72),
}
#: What is asked in the fast suite, of a kernel of each kind; the rest takes longer.
QUICK = {
    "conv2d_dgrad_relu_implicit_gemm_mma": "four classes",
    "conv2d_fprop_implicit_gemm_mma": "all options",
    "conv2d_fprop_tap_rows_mma": "all options",
    "conv2d_wgrad_bgrad_implicit_gemm_mma": "all options",
    "conv2d_wgrad_bgrad_tap_rows_mma": "rows at odd elements",
    "conv2d_dgrad_implicit_gemm_tf32": "four classes",
    "conv2d_fprop_implicit_gemm_tf32": "all options",
    "conv2d_wgrad_bgrad_implicit_gemm_tf32": "all options",
    "linear_dgrad_gemm_mma": "small",
    "linear_fprop_gemm_tf32": "small",
    "linear_wgrad_gemm_mma": "small",
}


def problems(stem: str) -> dict[str, Problem]:
    return ROWS if "tap_rows" in stem else LINEAR if stem.startswith("linear") else CONV  # type: ignore[return-value]


def first_dtype(stem: str) -> str:
    """The first that the kernel declares: bfloat16, or in tf32 float32."""
    return read(KERNELS[stem]).header.dtypes[0]


def asked(stem: str, name: str, dtype: str = "", of: Problem | None = None) -> Question:
    dtype = dtype or first_dtype(stem)
    op = read(KERNELS[stem]).header.op
    options = dict(next(iter(OPS[op].cases.options), {}))
    if "relu" in OPS[op].options:
        options["relu"] = name != "groups"
    return Question.of(Case(op, of or problems(stem)[name], name, options=options), dtype)


def cases() -> list:
    """Each kernel, problem and dtype on each engine; the slow suite has bfloat16 on two of them."""
    found = []
    for stem, path in KERNELS.items():
        for dtype in read(path).header.dtypes:
            for name in problems(stem):
                for engine in ENGINES:
                    quick = QUICK.get(stem) == name and dtype == first_dtype(stem) and engine != "fast"
                    slow = not dtype.startswith("float16") and engine != "fast"
                    marks = (
                        []
                        if quick
                        else [pytest.mark.slow]
                        if slow
                        else [pytest.mark.slow, pytest.mark.thorough]
                    )
                    found.append(pytest.param(stem, name, dtype, engine, marks=marks))
    return found


@pytest.mark.parametrize(("stem", "name", "dtype", "engine"), cases())
def test_the_gate(stem, name, dtype, engine):
    if engine == "ptx":
        need("cuda.core")
    one = implementation(KERNELS[stem])
    with ck.emulate(**ENGINES[engine]):
        verdict = judge(one, asked(stem, name, dtype))
    assert verdict.ok and not verdict.declined, verdict.reason


LAYERS = {
    "vgg conv1_1": Conv2d.of((1, 3, 224, 224), (64, 3, 3, 3), padding=1),
    "vgg conv3_1": Conv2d.of((1, 128, 56, 56), (256, 128, 3, 3), padding=1),
    "vgg conv5_1": Conv2d.of((2, 512, 14, 14), (512, 512, 3, 3), padding=1),
    "resnet conv1": Conv2d.of((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    "resnet 1x1": Conv2d.of((1, 256, 56, 56), (64, 256, 1, 1)),
    "resnet 3x3, stride 2": Conv2d.of((2, 128, 28, 28), (256, 128, 3, 3), stride=2, padding=1),
    "resnet 1x1, stride 2": Conv2d.of((2, 256, 28, 28), (512, 256, 1, 1), stride=2),
}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("stem", [stem for stem in KERNELS if stem.startswith("conv2d")])
@pytest.mark.parametrize("name", [*LAYERS, *(name for name, _ in OPS["conv2d_fprop"].cases.layers())])
def test_layers_of_known_networks(name, stem):
    problem = LAYERS.get(name) or dict(OPS["conv2d_fprop"].cases.layers())[name]
    one = implementation(KERNELS[stem])
    if Runner(read(KERNELS[stem])).refusal(replace(problem, dtype=first_dtype(stem))):
        pytest.skip("not a problem of this kernel")
    with ck.emulate():
        verdict = judge(one, asked(stem, name, of=problem))
    assert verdict.ok and not verdict.declined, verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fast", "ptx"])
@pytest.mark.parametrize("stem", KERNELS)
def test_the_same_bits_in_any_order(stem, engine):
    if engine == "ptx":
        need("cuda.core")
    one, found = implementation(KERNELS[stem]), set()
    for seed in (None, 1, 2):
        with ck.emulate(**ENGINES[engine], seed=seed):
            run = attempt(one, asked(stem, "two tiles each way"), FIRST)
        assert not run.fault, run.fault
        found.add(b"".join(array.tobytes() for array in run.outputs.values()))
    assert len(found) == 1


def whole_numbers(op: str, problem: Problem, seed: int = 0) -> dict[str, np.ndarray | None]:
    """Inputs whose products and sums are exact, in NCHW and KCRS."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(-3, 4, problem.shape(name)).astype(np_dtype(problem.dtype_of(name)))
        for name in OPS[op].inputs
    }


def run(kernel: KernelFile, problem: Problem, inputs: dict, first: int = 0) -> dict[str, np.ndarray]:
    """Outputs of the kernel in NCHW and KCRS; all arrays begin `first` elements behind an aligned address."""
    op, weights = OPS[kernel.header.op], kernel.header.layout.endswith("KRSC")

    def channels_last(name: str, array: np.ndarray) -> bool:
        return array.ndim == 4 and (name not in ("w", "dw") or weights)

    def placed(name: str, array: np.ndarray) -> np.ndarray:
        source = array.transpose(0, 2, 3, 1) if channels_last(name, array) else array
        room = np.empty(source.size + first + 64, source.dtype)
        begin = -room.ctypes.data % 64 // room.itemsize + first
        there = room[begin : begin + source.size].reshape(source.shape)
        there[...] = source
        return there

    given = [placed(name, inputs[name]) for name in op.inputs]
    made = {
        name: placed(name, np.zeros(problem.shape(name), np_dtype(problem.dtype_of(name))))
        for name in op.outputs
    }
    for array in made.values():
        array[...] = np.nan
    options = {"relu": False} if "relu" in op.options else {}
    runner = Runner(kernel)
    workspace = np.empty(runner.workspace(problem), np.uint8)
    runner(problem, *given, *made.values(), workspace=workspace, **options)
    return {
        name: array.transpose(0, 3, 1, 2) if channels_last(name, array) else array
        for name, array in made.items()
    }


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(stem, marks=[] if stem in QUICK else [pytest.mark.slow])
        for stem, path in KERNELS.items()
        if not OPS[read(path).header.op].updates
    ],
)
def test_arrays_that_begin_anywhere(stem):
    """The same numbers, whichever way they are copied: those of the definition, where sums are exact.

    Not of an update, which rounds.
    """
    kernel = read(KERNELS[stem])
    problem = replace(
        problems(stem)["small" if stem.startswith("linear") else "all options"],
        dtype="float32" if stem.endswith("_tf32") else "float16",
    )
    inputs = whole_numbers(kernel.header.op, problem)
    op = OPS[kernel.header.op]
    wanted = op.evaluate(problem, inputs, {"relu": False} if "relu" in op.options else {})
    for first in (0, 1, 2):
        with ck.emulate(check=True):
            found = run(kernel, problem, inputs, first)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name].astype(np.float64), array)


def test_all_engines_have_the_bits_of_numpy_where_sums_are_exact():
    need("cuda.core")
    kernel = read(KERNELS["conv2d_fprop_implicit_gemm_mma"])
    problem = replace(CONV["two tiles each way"], dtype="float16")
    inputs = whole_numbers("conv2d_fprop", problem)
    wanted = ck.conv2d_fprop(*inputs.values(), padding=1, impl="reference")
    for how in ENGINES.values():
        with ck.emulate(**how):
            np.testing.assert_array_equal(run(kernel, problem, inputs)["y"], wanted)


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(stem, marks=[] if stem == "conv2d_dgrad_implicit_gemm_mma" else [pytest.mark.slow])
        for stem in KERNELS
        if not stem.startswith("conv2d_wgrad_bgrad_tap_rows")  # the code of conv2d_wgrad_tap_rows; lanes that
    ],  # copy less than others, as beside its column of ones, confuse the counters
)
def test_shared_memory_without_bank_conflicts(stem):
    """Every copy, every load of a fragment, and the way out take as few wavefronts as their bytes need."""
    names = ["whole tiles"] if "tap_rows" in stem else ["two tiles each way", next(iter(problems(stem)))]
    seen, crowded, counted = set(), [], []
    for name in names:  # the second of one slice
        with ck.emulate(counters=True) as how:
            verdict = judge(implementation(KERNELS[stem]), asked(stem, name))
        assert verdict.ok, verdict.reason
        counted += how.counted
    for row in counted:
        if not row.kind.startswith("shared"):
            continue
        line = (kernels_dir() / Path(row.file).name).read_text().splitlines()[row.line - 1]
        words = [
            word
            for word in ("cp_async_16", "cp_async_4", "ldmatrix", "Pair*", "uint4*", "const unsigned*")
            if word in line
        ]
        seen.update(words)
        if words and row.ratio > 1:
            crowded.append((row.file, row.line, row.kind, row.ratio))
    by_words = stem.endswith("_tf32") and "wgrad" in stem and "dgrad" not in stem
    loads = "const unsigned*" if by_words else "ldmatrix"
    assert {"cp_async_16", loads} <= seen
    assert crowded == []


@pytest.mark.parametrize(
    ("op", "problem", "layout", "name"),
    [
        ("conv2d_fprop", ROWS["conv1"], "NHWC, KRSC", "tap_rows_tf32"),
        ("conv2d_wgrad_bgrad", ROWS["one channel"], "NHWC", "tap_rows_tf32"),
        ("conv2d_wgrad", Conv2d.of((1, 4, 9, 9), (8, 4, 3, 3)), "NHWC", "implicit_gemm_tf32"),
        *((op, LINEAR["small"], "NCHW", "gemm_tf32") for op in OPS if OPS[op].problem is Linear),
    ],
)
def test_where_tf32_is_accepted_it_runs(op, problem, layout, name):
    assert select(op, problem, device="cuda", layout=layout, math="tf32").name == name
    if layout == "NCHW":
        assert select(op, problem, device="cuda").name == "gemm"
