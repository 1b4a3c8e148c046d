"""The FFMA kernels of convolution and of the fully connected layers, under the emulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import convkit as ck
from convkit.check import Case, Question
from convkit.cuda.header import KernelFile, read
from convkit.cuda.prepare import Runner
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.paths import kernels_dir

pytestmark = pytest.mark.usefixtures("compiler")

PASSES = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "linear_fprop", "linear_dgrad", "linear_wgrad")
NAIVE = [f"{op}_naive" for op in PASSES]
CONV = [f"conv2d_{p}_implicit_gemm" for p in ("fprop", "dgrad", "wgrad")]
LINEAR = [f"linear_{p}_gemm" for p in ("fprop", "dgrad", "wgrad")]
BOTH = "conv2d_wgrad_bgrad_implicit_gemm"
TILED = [*CONV, *LINEAR, BOTH]

#: Few outputs and long sums, so that each pass is cut into slices in one of them.
SLICED = {
    "conv2d": [
        Conv2d.of((1, 130, 3, 3), (67, 130, 3, 3), padding=1),
        Conv2d.of((3, 4, 23, 21), (6, 2, 3, 3), groups=2, padding=((0, 2), (1, 0))),
        Conv2d.of((1, 3, 17, 19), (70, 3, 5, 5), stride=2, padding=1),
    ],
    "linear": [Linear.of((3, 1001), (5, 1001)), Linear.of((1, 8), (1030, 8)), Linear.of((530, 4), (8, 4))],
}
SMALL = {
    "conv2d": [
        Conv2d.of((2, 3, 13, 11), (5, 3, 2, 2), stride=(5, 4)),
        Conv2d.of((1, 6, 11, 11), (4, 3, 3, 2), dilation=3, groups=2, stride=2, padding=1),
        Conv2d.of((3, 1, 1, 1), (1, 1, 1, 1), stride=5),
    ],
    "linear": [Linear.of((3, 37), (9, 37)), Linear.of((4, 16), (8, 16))],
}
#: The convolutions of the paper's AlexNet.
LAYERS = {
    "conv1": ((3, 227, 227), (96, 3, 11, 11), {"stride": 4}),
    "conv2": ((96, 27, 27), (256, 48, 5, 5), {"padding": 2, "groups": 2}),
    "conv3": ((256, 13, 13), (384, 256, 3, 3), {"padding": 1}),
    "conv4": ((384, 13, 13), (384, 192, 3, 3), {"padding": 1, "groups": 2}),
    "conv5": ((384, 13, 13), (256, 192, 3, 3), {"padding": 1, "groups": 2}),
}


def kernel(stem: str, **tile: int) -> KernelFile:
    found = read(kernels_dir() / f"{stem}.cu")
    return replace(found, header=replace(found.header, tile={**found.header.tile, **tile}))


def options(stem: str) -> dict[str, Any]:
    return {"relu": 1} if "fprop" in stem else {}


def question(stem: str, problem: Any) -> Question:
    case = Case(kernel(stem).header.op, problem, "test", options(stem))
    return Question.of(case, "float32")


def launch(kernel: KernelFile, asked: Question, **how: Any) -> list[np.ndarray]:
    """What the kernel makes of the inputs; its workspace and its outputs are NaN at first."""
    runner, problem = Runner(kernel), asked.problem
    out = [np.full(problem.shape(name), np.nan, np.float32) for name in asked.op.outputs]
    workspace = np.full(runner.workspace(problem), 0xFF, np.uint8) if kernel.header.workspace else None
    with ck.emulate(**how):
        runner(problem, *asked.inputs.values(), *out, workspace=workspace, **asked.case.options)
    return out


def run(stem: str, problem: Any, *tensors: Any, **options: Any) -> None:
    """A kernel on tensors of the caller's; its workspace is NaN at first."""
    runner = Runner(kernel(stem))
    workspace = np.full(runner.workspace(problem), 0xFF, np.uint8) if runner.kernel.header.workspace else None
    with ck.emulate(check=True):
        runner(problem, *tensors, workspace=workspace, **options)


def assert_right(found: list[np.ndarray], asked: Question) -> None:
    for got, (name, wanted) in zip(found, asked.wanted.items(), strict=True):
        excess = np.abs(got - wanted.value) / wanted.bound()
        assert np.all(excess <= 1), f"{name}: {np.nanmax(excess)} times the bound, or not written"


def slices(stem: str, problem: Any) -> int:
    runner = Runner(kernel(stem))
    return runner.extents(runner.kernel.header.launches[0], problem)[0][2]


@pytest.mark.parametrize("stem", NAIVE + TILED)
def test_check_mode_is_clean(stem):
    kind = stem.split("_")[0]
    for problem in SMALL[kind] + (SLICED[kind] if stem in TILED else []):
        asked = question(stem, problem)
        assert_right(launch(kernel(stem), asked, check=True), asked)


@pytest.mark.parametrize("stem", TILED)
def test_any_order_of_threads_gives_the_same_bits(stem):
    kind = stem.split("_")[0]
    counts = []
    for problem in SLICED[kind]:
        asked = question(stem, problem)
        counts.append(slices(stem, problem))
        first = launch(kernel(stem), asked)
        assert_right(first, asked)
        for seed in range(4):
            for again, out in zip(launch(kernel(stem), asked, seed=seed), first, strict=True):
                assert again.tobytes() == out.tobytes()
    assert max(counts) > 1, "no problem here is cut into slices"


@pytest.mark.parametrize("problem", [*SMALL["conv2d"], *SLICED["conv2d"]], ids=str)
def test_the_gradient_with_a_relu_below_is_the_gradient_alone_or_zero(problem):
    """The bits of conv2d_dgrad where x is positive or NaN: whole or in slices, x aligned as dx or not."""
    alone = question("conv2d_dgrad_implicit_gemm", problem)
    (dx,) = launch(kernel("conv2d_dgrad_implicit_gemm"), alone)
    fused = kernel("conv2d_dgrad_relu_implicit_gemm")
    assert slices(fused.stem, problem) == slices("conv2d_dgrad_implicit_gemm", problem)
    rng = np.random.default_rng(5)
    for start in range(2):
        x = rng.standard_normal(dx.size + start, np.float32)[start:].reshape(dx.shape)
        x.flat[::7] = rng.choice([0.0, -0.0, np.nan], x.flat[::7].shape)
        got = np.full(dx.shape, np.nan, np.float32)
        run(fused.stem, problem, *alone.inputs.values(), x, got)
        np.testing.assert_array_equal(got, np.where(x <= 0, np.float32(0), dx))


#: Slices, and several tiles each way, so that of the blocks that read the same filters one adds them up.
SEVERAL = Conv2d.of((3, 20, 17, 16), (150, 20, 3, 3))


@pytest.mark.parametrize(
    "tile",
    [
        pytest.param({}, id="first"),
        pytest.param({"TILE_K": 16}, id="16 pixels"),
        pytest.param({"TILE_M": 96, "THREAD_M": 12, "THREAD_N": 8}, id="96 rows", marks=pytest.mark.slow),
        pytest.param({"TILE_M": 64, "TILE_N": 256}, id="256 columns", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("problem", [SLICED["conv2d"][1], SEVERAL], ids=str)
def test_the_gradient_of_the_weights_beside_that_of_the_bias_is_the_one_alone(problem, tile):
    """To the same bits; and that of the bias is right, whichever block adds it up."""
    both, alone = question(BOTH, problem), question("conv2d_wgrad_implicit_gemm", problem)
    assert slices(BOTH, problem) == slices("conv2d_wgrad_implicit_gemm", problem) > 1
    found = launch(kernel(BOTH, **tile), both, check=True)
    assert_right(found, both)
    (dw,) = launch(kernel("conv2d_wgrad_implicit_gemm", **tile), replace(alone, inputs=both.inputs))
    assert found[0].tobytes() == dw.tobytes()


#: Gradients of a fully connected layer, and updates with one of them or both.
APART = {
    "fp32": (
        "linear_dgrad_gemm",
        "linear_wgrad_gemm",
        "linear_wgrad_sgd_gemm",
        "linear_dgrad_wgrad_sgd_gemm",
    ),
    "tf32": (
        "linear_dgrad_gemm_tf32",
        "linear_wgrad_gemm_tf32",
        "linear_wgrad_sgd_gemm_tf32",
        "linear_dgrad_wgrad_sgd_gemm_tf32",
    ),
}
#: Momentum of either kind, and Nesterov's.
RULES = [
    {"momentum": 0.9, "weight_decay": 5e-4, "dampening": 0.0, "nesterov": False, "lr_in_velocity": True},
    {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.999, "nesterov": True, "lr_in_velocity": False},
]


@pytest.mark.parametrize(
    "stems",
    [pytest.param(APART["fp32"], id="fp32"), pytest.param(APART["tf32"], id="tf32", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("apart", [False, True], ids=["in place", "apart"])
@pytest.mark.parametrize("problem", [*SMALL["linear"], *SLICED["linear"]], ids=str)
def test_an_update_with_its_gradients_is_what_the_kernels_apart_make(problem, apart, stems):
    """The same bits, whole or in slices, of either gradient; a flag of 0 changes no weight."""
    dgrad, wgrad, wgrad_sgd, dgrad_wgrad_sgd = stems
    rng = np.random.default_rng(6)

    def draw(name: str) -> np.ndarray:
        return rng.standard_normal(problem.shape(name), np.float32)

    x, dy, w, v = (draw(name) for name in ("x", "dy", "w", "v"))
    x[rng.random(x.shape) < 0.3] = 0
    dw, dx = np.empty_like(w), np.empty_like(x)
    run(wgrad, problem, x, dy, dw)
    run(dgrad, problem, dy, w, dx)
    for rule, relu, flag in ((RULES[0], True, None), (RULES[1], False, 1), (RULES[1], True, 0)):
        finite = None if flag is None else np.array([flag], np.int32)
        given = {"lr": 0.7, **rule, "finite": finite}
        wanted = [np.empty_like(w), np.empty_like(v)]
        run("sgd_momentum_vectorized", Elementwise(w.shape), w, dw, v, *wanted, **given)
        masked = np.where((x <= 0) & relu, np.float32(0), dx)

        old, got = [w.copy(), v.copy()], np.full(x.shape, np.nan, np.float32)
        new = [np.full(w.shape, np.nan, np.float32) for _ in old] if apart else old
        run(dgrad_wgrad_sgd, problem, dy, old[0], x, old[1], got, *new, relu=relu, **given)
        assert [a.tobytes() for a in (got, *new)] == [a.tobytes() for a in (masked, *wanted)]

        old = [w.copy(), v.copy()]
        new = [np.full(w.shape, np.nan, np.float32) for _ in old] if apart else old
        run(wgrad_sgd, problem, x, dy, *old, *new, **given)
        assert [a.tobytes() for a in new] == [a.tobytes() for a in wanted]


@pytest.mark.parametrize("stem", CONV)
@pytest.mark.parametrize("layer", LAYERS)
def test_alexnet(stem, layer):
    x, w, how = LAYERS[layer]
    asked = question(stem, Conv2d.of((1, *x), w, **how))
    assert_right(launch(kernel(stem), asked), asked)


@pytest.mark.parametrize("stem", CONV)
def test_a_batch_runs_over_tiles(stem):
    """Two images in one tile, and sums that one block makes alone."""
    asked = question(stem, Conv2d.of((2, 32, 13, 13), (40, 16, 3, 3), padding=1, groups=2))
    assert_right(launch(kernel(stem), asked), asked)


@pytest.mark.parametrize(
    ("stem", "tile"),
    [
        ("conv2d_fprop_implicit_gemm", {"TILE_M": 96, "THREAD_M": 12, "THREAD_N": 8}),
        ("conv2d_dgrad_implicit_gemm", {"TILE_K": 16, "TILE_N": 128, "THREAD_N": 8}),
        ("conv2d_wgrad_implicit_gemm", {"TILE_M": 64, "THREAD_N": 8}),
    ],
)
def test_other_tiles(stem, tile):
    asked = question(stem, SLICED["conv2d"][1])
    assert_right(launch(kernel(stem, **tile), asked), asked)


@pytest.mark.parametrize("stem", LINEAR)
def test_another_tile_of_linear(stem):
    small = kernel(stem, TILE_M=64, TILE_K=16, THREAD_N=8)
    for problem in SLICED["linear"]:
        asked = question(stem, problem)
        assert_right(launch(small, asked), asked)


def test_a_tile_that_cannot_be_is_refused():
    file = kernel("conv2d_fprop_implicit_gemm", TILE_M=100)
    asked = question(file.stem, SMALL["conv2d"][0])
    with pytest.raises(ck.ConvkitError, match="TILE_M: a multiple of a warp's"):
        launch(file, asked)
