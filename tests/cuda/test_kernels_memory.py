"""The memory-bound kernels under the emulator, beyond what the gate asks of every kernel (test_kernels.py).

Arrays that begin anywhere, arrays that are one, the paths made for AlexNet's layers, every value that `tune`
offers, random bits, and check mode.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest

import convkit as ck
from convkit import layouts
from convkit.arrays import np_dtype
from convkit.call import Call
from convkit.check.cases import Case
from convkit.check.inputs import make
from convkit.check.tolerance import expected
from convkit.cuda import emulator
from convkit.cuda.header import KernelFile, read
from convkit.cuda.launch import Argument
from convkit.cuda.null import nulled
from convkit.cuda.prepare import Runner, implementation
from convkit.cuda.source import translation_unit
from convkit.op import OPS, Problem
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.crop_images import CropImages
from convkit.ops.elementwise import Elementwise
from convkit.ops.loss_scale import LossScale
from convkit.ops.loss_summary import LossSummary
from convkit.ops.lrn import LRN
from convkit.ops.lrn_maxpool2d import LrnMaxPool2d
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.philox import words
from convkit.ops.reorder import Reorder
from convkit.ops.softmax_xent import SoftmaxXent
from convkit.paths import kernels_dir

OPS_HERE = (
    *("relu_fprop", "relu_dgrad", "dropout_fprop", "dropout_dgrad", "sgd_momentum", "lrn_fprop", "lrn_dgrad"),
    *("maxpool2d_fprop", "maxpool2d_dgrad", "softmax_xent_fprop", "softmax_xent_dgrad"),
    *("conv2d_bgrad", "linear_bgrad", "lrn_maxpool2d_fprop", "label_rank", "loss_summary"),
    *("crop_images", "lrn_maxpool2d_dgrad", "reorder", "rescale", "adjust_loss_scale"),
)
KERNELS = [
    k for k in map(read, sorted(kernels_dir().glob("*.cu"))) if k.header.op in OPS_HERE and k.header.rank >= 0
]
DTYPES = ("float32", "float16", "bfloat16")
#: The quick tests ask a dtype of each width, and no pair where it has others; the gate asks all of them.
IN_EACH_DTYPE = [
    pytest.param(
        k,
        d,
        id=f"{k.stem}-{d}",
        marks=[pytest.mark.slow] * (d == "bfloat16" or ("/" in d and "float32" in k.header.dtypes)),
    )
    for k in KERNELS
    for d in k.header.dtypes
]
SGD = {
    "lr": 0.7,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "dampening": 0.99,  # 1 - 0.99 must not suffer from 0.99's rounding to float
    "nesterov": True,
    "lr_in_velocity": False,
}
OPTIONS = {
    "dropout": {"p": 0.3, "seed": 7, "offset": 2**32 - 2, "scale": 1.25},
    "sgd": SGD,
    "rescale": {"inverse": True},
    "adjust_loss_scale": {"growth": 2.0, "backoff": 0.5, "interval": 7},
    "lrn_maxpool2d_dgrad": {"relu": True},
}


def lrn_pool(shape: tuple[int, ...], pool: dict | None = None, **lrn: object) -> LrnMaxPool2d:
    return LrnMaxPool2d(LRN.of(shape, **lrn), Pool2d.of(shape, **pool or {}))  # type: ignore[arg-type]


#: A problem of odd extents for each op, and one of even ones, whose packs are whole.
PROBLEMS: dict[type[Problem], tuple[Problem, ...]] = {
    Elementwise: (Elementwise((1, 4, 1031)), Elementwise((4096,))),
    LRN: (
        LRN.of((2, 14, 3, 5), groups=2, alpha=0.7),
        LRN.of((1, 75, 2, 8), size=3, beta=0.6, alpha=0.7),
        LRN.of((1, 6, 5, 4), size=4, alpha=0.7),
        LRN.of((1, 2, 7, 6), alpha=0.7, region="within_channel"),
        LRN.of((3, 248, 1, 3), alpha=0.7, k=2.0),
        LRN.of((2, 64, 3, 3), groups=2, size=7, alpha=0.7),
    ),
    Pool2d: (
        Pool2d.of((2, 3, 27, 13), ceil_mode=True, padding=((1, 0), (0, 2))),
        Pool2d.of((1, 2, 9, 10), window=(2, 4), stride=(3, 1), dilation=(2, 1), padding=1),
        Pool2d.of((2, 24, 6, 7), padding=1),
        Pool2d.of((1, 16, 5, 6), window=(2, 3), stride=1),
    ),
    LrnMaxPool2d: (
        lrn_pool((2, 54, 15, 23), groups=2, alpha=0.7),
        lrn_pool((3, 27, 9, 66), {"ceil_mode": True, "padding": ((1, 0), (0, 2))}, size=3, alpha=0.7, k=2.0),
        lrn_pool((1, 6, 5, 4), {"window": (2, 3), "dilation": (1, 2), "padding": 1}, size=4, beta=0.6),
        lrn_pool((1, 64, 7, 6), groups=2, alpha=0.7),
    ),
    SoftmaxXent: (SoftmaxXent(3, 1031), SoftmaxXent(2, 64)),
    LossSummary: (LossSummary(1031), LossSummary(64), LossSummary(5)),
    LossScale: (LossScale(5), LossScale(64)),
    CropImages: (
        CropImages(9, 13, 11, 3, 7, "image"),
        CropImages(8, 6, 9, 1, 8, "crop", reverse=True),
        CropImages(2, 16, 16, 4, 8),
    ),
    ChannelSum: (ChannelSum(5, 3, 29, 13, 4), ChannelSum(3, 2, 1, 1, 4), ChannelSum(3, 72, 5, 5, 4)),
    Reorder: (
        *(Reorder(2, 67, 9, 15), Reorder(1, 72, 8, 10), Reorder(3, 3, 37, 41), Reorder(2, 131, 3, 3)),
        *(Reorder(1, 16, 6, 6), Reorder(5, 1, 3, 3), Reorder(4097, 1, 1, 1)),
    ),
}


def problems(op: str, dtype: str = "float32") -> list[Problem]:
    found = [replace(p, dtype=dtype) for p in PROBLEMS[OPS[op].problem]]  # type: ignore[call-arg]
    if op == "linear_bgrad":
        found = [ChannelSum(67, 45, 1, 1, 2, dtype), ChannelSum(128, 64, 1, 1, 2, dtype)]
    return found


def options_of(op: str) -> dict:
    return next((o for name, o in OPTIONS.items() if op.startswith(name)), {})


def launch(
    kernel: KernelFile,
    problem: Problem,
    tensors: dict[str, np.ndarray],
    options: dict,
    *,
    check: bool = False,
    seed: int | None = None,
) -> None:
    """Each launch of the file, in order; a later one may read what an earlier one wrote.

    Tensors are in the logical order. What the kernel declares in another one gets memory of its own, which is
    aligned as the tensor is.
    """
    runner, declared = Runner(kernel), layouts.declared(kernel.header.layout)
    memory = {
        name: like(a, declared.of(name).packed(a)) if declared.of(name).axes else a
        for name, a in tensors.items()
    }
    scratch = np.full(runner.workspace(problem), 0xFF, np.uint8) if kernel.header.workspace else None
    for index, entry in enumerate(kernel.header.launches):
        function = emulator.compile(translation_unit(kernel, problem), entry.entry, check=check)
        grid, block, shared = runner.extents(entry, problem)
        if 0 in grid:
            continue
        given = arguments(runner, problem, list(memory.values()), options, scratch, index)
        function.launch(grid, block, given, shared=shared, seed=seed)
    for name, a in tensors.items():
        if memory[name] is not a and name in kernel.op.outputs:
            a[...] = declared.of(name).unpack(memory[name], a.shape)


def like(array: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """The memory, moved by an element where the array is."""
    return shifted(memory) if array.ctypes.data % 256 == array.itemsize else memory


def arguments(
    runner: Runner, problem: Problem, tensors: list, options: dict, scratch: Any = None, index: int = 0
) -> list[Argument]:
    """What a launch of the file gets."""
    with nulled():
        values = runner.prepare(problem).values(tensors, options, scratch)
    return [p.given(value) for p, value in zip(runner.parameters(index), values, strict=True)]


def question(op: str, problem: Problem) -> tuple[dict, dict[str, np.ndarray]]:
    """Inputs by name, and outputs full of NaN."""
    inputs = make(Case(op, problem, "memory", options_of(op)), 3)
    outputs = {
        n: np.frombuffer(b"\xff" * prod(problem.shape(n)) * np_dtype(problem.dtype_of(n)).itemsize, np.uint8)
        .copy()
        .view(np_dtype(problem.dtype_of(n)))
        .reshape(problem.shape(n))
        for n in OPS[op].outputs
    }
    return inputs, outputs


def judge(op: str, problem: Problem, inputs: dict, outputs: dict) -> None:
    for name, want in expected(op, problem, inputs, options_of(op)).items():
        got = outputs[name].astype(np.float64)
        if want.accepts:
            assert want.accepts(outputs[name]).all(), f"{name} of {problem}"
            continue
        assert np.all(np.abs(got - want.value) <= want.bound()), f"{name} of {problem}"


pytestmark = pytest.mark.usefixtures("compiler")


@pytest.mark.parametrize(("kernel", "dtype"), IN_EACH_DTYPE)
def test_check_mode_is_clean_and_the_results_are_right(kernel, dtype):
    op, ran = kernel.header.op, 0
    for problem in problems(op, dtype):
        if Runner(kernel).refusal(problem):
            continue
        inputs, outputs = question(op, problem)
        launch(kernel, problem, inputs | outputs, options_of(op), check=True)
        judge(op, problem, inputs, outputs)
        ran += 1
    assert ran


def variants() -> list[KernelFile]:
    """Each kernel with one value of its tile changed for another that `tune` offers."""
    found = []
    for kernel in KERNELS:
        for name, values in kernel.header.tune.items():
            for value in values:
                if value != kernel.header.tile[name]:
                    tile = {**kernel.header.tile, name: value}
                    found.append(replace(kernel, header=replace(kernel.header, tile=tile)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", variants(), ids=lambda k: f"{k.stem}-{'-'.join(map(str, k.header.tile.values()))}"
)
def test_every_tile_that_tune_offers_is_right(kernel):
    op = kernel.header.op
    for problem in problems(op, kernel.header.dtypes[0]):
        if not Runner(kernel).refusal(problem):
            inputs, outputs = question(op, problem)
            launch(kernel, problem, inputs | outputs, options_of(op))
            judge(op, problem, inputs, outputs)


def pointers(kernel: KernelFile) -> list[str]:
    return [*kernel.op.inputs, *kernel.op.outputs]


def wrapped(kernel: KernelFile, parameters: list[str], arguments: list[str]) -> str:
    """A kernel that calls the file's own with other pointers: under the emulator it is a function."""
    options = [f"{ctype} {name}" for name, ctype in kernel.header.options.items()]
    options += [f"const {kernel.header.options[name]}* live_{name}" for name in kernel.header.live]
    passed = [text.rpartition(" ")[2] for text in options]
    parameters = ["GEOMETRY(Elementwise)", *parameters, *options]
    return (
        f'\nextern "C" __global__ void wrapped({", ".join(parameters)}) {{\n'
        f"    {kernel.stem}({', '.join(['g', *arguments, *passed])});\n}}\n"
    )


def call_wrapped(
    kernel: KernelFile, problem: Problem, wrapper: str, arrays: list[Argument], options: dict
) -> None:
    function = emulator.compile(translation_unit(kernel, problem) + wrapper, "wrapped")
    plain = arguments(Runner(kernel), problem, [None] * len(pointers(kernel)), options)
    grid, block, _ = Runner(kernel).extents(kernel.header.launches[0], problem)
    function.launch(grid, block, [plain[0], *arrays, *plain[1 + len(pointers(kernel)) :]])


ELEMENTWISE = [k for k in KERNELS if OPS[k.header.op].inplace]


def shifted(array: np.ndarray) -> np.ndarray:
    """A copy that begins one element off a multiple of 256 bytes."""
    raw = np.empty(array.nbytes + 512, np.uint8)
    start = -raw.ctypes.data % 256 + array.itemsize
    moved = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize(("kernel", "dtype"), IN_EACH_DTYPE)
def test_arrays_that_are_not_aligned_give_the_same_bits(kernel, dtype):
    """Where the 128-bit accesses must give way: all arrays, and each one alone."""
    op, options = kernel.header.op, options_of(kernel.header.op)
    for problem in problems(op, dtype):
        if Runner(kernel).refusal(problem):
            continue
        inputs, outputs = question(op, problem)
        empty = {n: a.copy() for n, a in outputs.items()}
        launch(kernel, problem, inputs | outputs, options)
        judge(op, problem, inputs, outputs)
        tensors = inputs | empty
        for moved in (list(tensors), *([name] for name in tensors)):
            arrays = {n: shifted(a) if n in moved else a.copy() for n, a in tensors.items()}
            launch(kernel, problem, arrays, options)
            for name, a in outputs.items():
                assert arrays[name].tobytes() == a.tobytes(), f"{name} of {problem}, moved {moved}"


@pytest.mark.parametrize("kernel", ELEMENTWISE, ids=lambda k: k.stem)
def test_in_place_gives_the_same_bits(kernel):
    """Each output in the place of each input in turn."""
    op, options = kernel.header.op, options_of(kernel.header.op)
    problem = problems(op)[0]
    inputs, outputs = question(op, problem)
    launch(kernel, problem, inputs | outputs, options)
    for shared in itertools.permutations(inputs, len(outputs)):
        place = dict(zip(outputs, shared, strict=True))
        memory = {n: a.copy() for n, a in inputs.items()}
        wrapper = wrapped(
            kernel,
            [f"storage_t* {n}" for n in inputs],
            [*inputs, *(place[n] for n in outputs)],
        )
        arrays = [Argument(n, a, output=True, reads=True) for n, a in memory.items()]
        call_wrapped(kernel, problem, wrapper, arrays, options)
        for name, a in outputs.items():
            assert memory[place[name]].tobytes() == a.tobytes(), f"{name} in the place of {place[name]}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_flag_of_zero_keeps_every_bit_under_check_mode(dtype, inplace):
    """Where NaN fills the gradient; a whole pack, and elements behind the last one."""
    inputs, _ = question("sgd_momentum", Elementwise((4096 + 3,), dtype))
    w, v, dw = inputs["w"], inputs["v"], np.full_like(inputs["dw"], np.nan)
    old, flag = (w.copy(), v.copy()), np.zeros(1, np.int32)
    with ck.emulate(check=True):
        got = ck.sgd_momentum(w, dw, v, **SGD, finite=flag, out=(w, v) if inplace else None)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, old, strict=True))
        flag[...] = 1 << 16
        assert np.isnan(ck.sgd_momentum(w, dw, v, **SGD, finite=flag)[0].astype(np.float32)).all()


@pytest.mark.parametrize("bad", [None, 0, 4098], ids=["sound", "first", "last"])
def test_rescaling_in_place_under_check_mode(bad):
    """A whole block, and elements behind it; the flag falls, and does not rise again."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(4099).astype(np.float32)
    if bad is not None:
        x[bad] = np.nan if bad else -np.inf
    wanted, flag, scale = x / np.float32(1024), np.ones(1, np.int32), np.array([1024], np.float32)
    with ck.emulate(check=True):
        assert ck.rescale(x, scale, flag, inverse=True, out=(x, flag))[0] is x
        assert x.tobytes() == wanted.tobytes() and flag[0] == (bad is None)
        ck.rescale(np.ones(3, np.float32), scale, flag, out=(np.empty(3, np.float32), flag))
        assert flag[0] == (bad is None)


def kernel_named(stem: str) -> KernelFile:
    return read(kernels_dir() / f"{stem}.cu")


@pytest.mark.parametrize("p", [0.0, 2.0**-33, 1.5 * 2.0**-32, 2.5 * 2.0**-32, 0.1, 0.5, 1 - 2.0**-33, 1.0])
@pytest.mark.parametrize(
    ("seed", "offset"), [(0, 0), (2**64 - 1, 2**32 - 3), (0x0123456789ABCDEF, 2**63 - 2**20)]
)
def test_dropout_drops_what_the_reference_drops(p, seed, offset):
    """Bit for bit, thresholds that lie between two words or beyond the last one included."""
    problem, size = Elementwise((4099,)), 4099
    y = np.full(size, np.nan, np.float32)
    options = {"p": p, "seed": seed, "offset": offset, "scale": 1.0}
    launch(kernel_named("dropout_fprop_philox"), problem, {"x": np.ones(size, np.float32), "y": y}, options)
    drawn = words(size, seed, offset)
    np.testing.assert_array_equal(y == 0, drawn < np.uint64(round(p * 2**32)))


PADS = list(itertools.product(range(3), repeat=2))


#: The kernels of max pooling, forward and backward: in NCHW, and in NHWC.
POOLS = [
    ("maxpool2d_fprop_window", "maxpool2d_dgrad_gather"),
    ("maxpool2d_fprop_channels", "maxpool2d_dgrad_channels"),
]


@pytest.mark.parametrize("pool", POOLS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("fill", ["nan", "ties", "inf"])
@pytest.mark.parametrize(("top", "left"), PADS)
def test_the_pool_of_alexnet_with_every_padding(top, left, fill, pool):
    """3 x 3 at stride 2 has a path of its own in both directions; images of every parity, with overhang."""
    forward, backward = map(kernel_named, pool)
    for H, W, bottom, right, ceil in (
        (3, 8, 0, 2, True),
        (10, 5, 1, 0, False),
        (17, 4, 2, 1, True),
        (1, 2, 2, 2, False),
    ):
        problem = (
            Pool2d.of((2, 1, H, W), padding=((top, bottom), (left, right)), ceil_mode=ceil)
            if (H + top + bottom >= 3 and W + left + right >= 3)
            else None
        )
        if problem is None:
            continue
        x = make(Case("maxpool2d_fprop", problem, "pads", fill=fill), 1)["x"]
        y, argmax = (
            np.full(problem.shape("y"), np.nan, np.float32),
            np.full(problem.shape("y"), 255, np.uint8),
        )
        launch(forward, problem, {"x": x, "y": y, "argmax": argmax}, {})
        want = expected("maxpool2d_fprop", problem, {"x": x}, {})
        np.testing.assert_array_equal(y, want["y"].value.astype(np.float32))
        np.testing.assert_array_equal(argmax, want["argmax"].value)
        dy = np.random.default_rng(0).integers(-8, 9, y.shape).astype(np.float32)  # whose sums are exact
        dx = np.full(x.shape, np.nan, np.float32)
        launch(backward, problem, {"dy": dy, "argmax": argmax, "dx": dx}, {})
        np.testing.assert_array_equal(
            dx, expected("maxpool2d_dgrad", problem, {"dy": dy, "argmax": argmax}, {})["dx"].value
        )


@pytest.mark.parametrize("stem", [forward for forward, _ in POOLS])
def test_a_window_that_sees_nothing_and_one_that_sees_minus_infinity(stem):
    kernel = kernel_named(stem)
    blind = Pool2d.of((1, 1, 1, 1), window=2, stride=1, dilation=3, padding=2)
    for problem, value in ((blind, 5.0), (Pool2d.of((1, 1, 4, 4), padding=1, ceil_mode=True), -np.inf)):
        x = np.full(problem.shape("x"), value, np.float32)
        y, argmax = (
            np.full(problem.shape("y"), np.nan, np.float32),
            np.full(problem.shape("y"), 255, np.uint8),
        )
        launch(kernel, problem, {"x": x, "y": y, "argmax": argmax}, {})
        want = expected("maxpool2d_fprop", problem, {"x": x}, {})
        np.testing.assert_array_equal(y, want["y"].value)
        np.testing.assert_array_equal(argmax, want["argmax"].value)


@pytest.mark.parametrize("pool", POOLS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("window", [16, 17, 257], ids=["uint8", "uint16", "uint32"])
def test_argmax_of_every_width(window, pool):
    problem = Pool2d.of((1, 1, window + 2, window + 1), window=window, stride=1)
    inputs, outputs = question("maxpool2d_fprop", problem)
    launch(kernel_named(pool[0]), problem, inputs | outputs, {})
    judge("maxpool2d_fprop", problem, inputs, outputs)
    back = {"dy": inputs["x"][..., : problem.P, : problem.Q].copy(), "argmax": outputs["argmax"]}
    dx = np.full(problem.shape("dx"), np.nan, np.float32)
    launch(kernel_named(pool[1]), problem, {**back, "dx": dx}, {})
    judge("maxpool2d_dgrad", problem, back, {"dx": dx})


@pytest.mark.parametrize("idea", ["sliding", "lanes"])
@pytest.mark.parametrize("op", ["lrn_fprop", "lrn_dgrad"])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_no_nan_crosses_a_group_or_lingers(op, size, idea):
    """A NaN reaches the windows that hold it, in its own group, and nothing else."""
    problem = LRN.of((1, 3 * 70, 1, 3), size=size, groups=3, alpha=0.5)
    kernel = kernel_named(f"{op}_{idea}")
    for channel in (0, 31, 32, 69, 70, 139, 209):
        inputs, outputs = question(op, problem)
        inputs["x"][0, channel, 0, 1] = np.nan
        launch(kernel, problem, inputs | outputs, {})
        (got,) = outputs.values()
        (want,) = expected(op, problem, inputs, {}).values()
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want.value))
        good = ~np.isnan(want.value)
        assert np.all(np.abs(got - want.value)[good] <= want.bound()[good])


# ---------------------------------------------------------------------------------------------------
# LRN and max pooling as one op
# ---------------------------------------------------------------------------------------------------
LRN_POOL = [k for k in KERNELS if k.header.op == "lrn_maxpool2d_fprop"]


def takers(problem: LrnMaxPool2d) -> list[str]:
    return [k.name for k in LRN_POOL if k.header.layout == "NCHW" and Runner(k).refusal(problem) is None]


def test_which_kernel_takes_an_lrn_and_its_pool():
    """AlexNet's go to `sliding`; `band` takes the others, as long as its rows fit into shared memory."""
    alexnet = lrn_pool((128, 96, 55, 55), k=2.0, groups=2)
    assert takers(alexnet) == ["band", "sliding"]
    with ck.emulate():
        assert ck.registry.select("lrn_maxpool2d_fprop", alexnet, device="cuda").name == "sliding"
    shape = (2, 8, 9, 9)
    for other in (
        *(lrn_pool(shape, size=4), lrn_pool(shape, beta=0.5), lrn_pool(shape, k=0.999)),
        *(
            lrn_pool(shape, pool)
            for pool in ({"window": 2}, {"stride": 1}, {"dilation": 2}, {"stride": (2, 3)})
        ),
        lrn_pool(shape, region="within_channel"),
    ):
        assert takers(other) == ["band"], other
    assert takers(lrn_pool((1, 1, 99, 4096), {"stride": 1})) == ["band"]
    assert takers(lrn_pool((1, 1, 99, 4097), {"stride": 1})) == []


@pytest.mark.parametrize("width", [1, 122, 123, 300, 700, 1100, 4096])
def test_rows_that_fit_into_shared_memory(width):
    """As many as ROWS of outputs, or as fit; and one at least."""
    kernel = kernel_named("lrn_maxpool2d_fprop_band")
    problem = lrn_pool((1, 2, 100, width), {"window": (3, 1), "stride": (2, 5), "padding": (1, 0)}, alpha=0.7)
    inputs, outputs = question("lrn_maxpool2d_fprop", problem)
    launch(kernel, problem, inputs | outputs, {})
    judge("lrn_maxpool2d_fprop", problem, inputs, outputs)


@pytest.mark.parametrize("fill", ["nan", "ties"])
@pytest.mark.parametrize(("top", "left"), PADS)
def test_with_an_alpha_of_zero_it_is_the_pool(top, left, fill):
    """d is k = 1 then, so that ties are ties: every padding, images of every parity, with overhang."""
    for H, W, bottom, right, ceil in (
        (3, 8, 0, 2, True),
        (10, 5, 1, 0, False),
        (17, 4, 2, 1, True),
        (6, 65, 0, 0, True),
        (9, 6, 0, 0, True),
        (8, 9, 0, 0, True),
        (1, 2, 2, 2, False),
    ):
        if H + top + bottom < 3 or W + left + right < 3:
            continue
        pads = {"padding": ((top, bottom), (left, right)), "ceil_mode": ceil}
        problem = lrn_pool((2, 3, H, W), pads, alpha=0.0)
        x = make(Case("maxpool2d_fprop", problem.pool, "pads", fill=fill), 1)["x"]
        want = expected("lrn_maxpool2d_fprop", problem, {"x": x}, {})
        for kernel in LRN_POOL:
            _, outputs = question("lrn_maxpool2d_fprop", problem)
            launch(kernel, problem, {"x": x, **outputs}, {})
            np.testing.assert_array_equal(outputs["y"], want["y"].value.astype(np.float32))
            np.testing.assert_array_equal(outputs["argmax"], want["argmax"].value)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_entries_give_the_same_bits(size, dtype):
    """Windows inside the image, given to the entry that also knows edges."""
    kernel = kernel_named("lrn_maxpool2d_fprop_sliding")
    problem = replace(lrn_pool((3, 26, 17, 37), size=size, alpha=0.7), dtype=dtype)
    runner = Runner(kernel)
    (grid, block, _), (empty, _, _) = (runner.extents(one, problem) for one in kernel.header.launches)
    assert 0 not in grid and 0 in empty
    found = []
    for entry in kernel.header.launches:
        inputs, outputs = question("lrn_maxpool2d_fprop", problem)
        given = arguments(runner, problem, [*inputs.values(), *outputs.values()], {})
        emulator.compile(translation_unit(kernel, problem), entry.entry).launch(grid, block, given)
        judge("lrn_maxpool2d_fprop", problem, inputs, outputs)
        found.append({name: a.tobytes() for name, a in outputs.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("kernel", LRN_POOL, ids=lambda k: k.stem)
@pytest.mark.parametrize("size", [3, 5])
def test_no_nan_crosses_a_group_a_segment_or_a_lane(kernel, size):
    """A NaN reaches the windows that see it, through its own group of channels, and nothing else."""
    problem = lrn_pool((1, 3 * 50, 3, 9), size=size, groups=3, alpha=0.5)
    for channel, column in ((0, 0), (24, 1), (25, 2), (49, 4), (50, 5), (99, 6), (149, 8)):
        inputs, outputs = question("lrn_maxpool2d_fprop", problem)
        inputs["x"][0, channel, 1, column] = np.nan
        launch(kernel, problem, inputs | outputs, {})
        want = expected("lrn_maxpool2d_fprop", problem, inputs, {})
        y, lost = outputs["y"], np.isnan(want["y"].value)
        assert lost.any()
        np.testing.assert_array_equal(np.isnan(y), lost)
        np.testing.assert_array_equal(outputs["argmax"][lost], 3 + column - 2 * np.nonzero(lost)[3])
        assert np.all(np.abs(y - want["y"].value)[~lost] <= want["y"].bound()[~lost])


@pytest.mark.parametrize("idea", ["sliding", "lanes"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize(("top", "left"), PADS)
def test_backward_with_every_padding(top, left, relu, idea):
    """Images of every parity, with windows that overhang, and with pixels that no window sees."""
    kernel = kernel_named(f"lrn_maxpool2d_dgrad_{idea}")
    for H, W, bottom, right, ceil in (
        (3, 8, 0, 2, True),
        (10, 5, 1, 0, False),
        (6, 65, 0, 0, True),
        (9, 6, 0, 0, False),
        (1, 2, 2, 2, False),
    ):
        if H + top + bottom < 3 or W + left + right < 3:
            continue
        pads = {"padding": ((top, bottom), (left, right)), "ceil_mode": ceil}
        problem = lrn_pool((2, 7, H, W), pads, alpha=0.7, size=3 + 2 * (H % 2))
        inputs, outputs = question(kernel.header.op, problem)
        inputs["x"] = np.maximum(inputs["x"], 0) if relu else inputs["x"]
        launch(kernel, problem, inputs | outputs, {"relu": relu}, check=True)
        want = expected(kernel.header.op, problem, inputs, {"relu": relu})["dx"]
        assert np.all(np.abs(outputs["dx"] - want.value) <= want.bound()), f"{problem}"


@pytest.mark.parametrize("idea", ["sliding", "lanes"])
@pytest.mark.parametrize("size", [3, 5])
def test_backward_no_nan_crosses_a_group_or_a_segment(size, idea):
    """A NaN in x reaches the channels of its own group that see it, at its own pixel, and nothing else."""
    kernel = kernel_named(f"lrn_maxpool2d_dgrad_{idea}")
    problem = lrn_pool((1, 2 * 100, 3, 5), size=size, groups=2, alpha=0.5)
    assert kernel.header.tile.get("SEGMENT", kernel.header.tile.get("CHANNELS")) < 100
    for channel, column in ((0, 0), (33, 1), (34, 2), (49, 3), (50, 4), (99, 0), (100, 1), (199, 4)):
        inputs, outputs = question(kernel.header.op, problem)
        inputs["x"][0, channel, 1, column] = np.nan
        launch(kernel, problem, inputs | outputs, {"relu": False})
        want = expected(kernel.header.op, problem, inputs, {"relu": False})["dx"]
        lost = np.isnan(want.value)
        assert lost.any()
        np.testing.assert_array_equal(np.isnan(outputs["dx"]), lost)
        assert np.all(np.abs(outputs["dx"] - want.value)[~lost] <= want.bound()[~lost])


@pytest.mark.parametrize("idea", ["sliding", "lanes"])
def test_backward_an_argmax_that_is_no_position_gives_its_gradient_to_no_pixel(idea):
    kernel = kernel_named(f"lrn_maxpool2d_dgrad_{idea}")
    problem = lrn_pool((1, 6, 7, 9), alpha=0.5)
    inputs, outputs = question(kernel.header.op, problem)
    without = {**inputs, "dy": inputs["dy"].copy()}
    for i, winner in enumerate((9, 11, 14, 255)):
        inputs["argmax"][0, :, i % 3, i] = winner
        without["dy"][0, :, i % 3, i] = 0
    launch(kernel, problem, inputs | outputs, {"relu": False})
    want = expected(kernel.header.op, problem, without, {"relu": False})["dx"]
    assert np.all(np.abs(outputs["dx"] - want.value) <= want.bound())


@pytest.mark.parametrize("window", [16, 17, 257], ids=["uint8", "uint16", "uint32"])
def test_argmax_of_every_width_behind_an_lrn(window):
    pool = {"window": window, "padding": window // 2, "stride": 3}
    problem = lrn_pool((1, 2, 40, 19), pool, alpha=0.5)
    inputs, outputs = question("lrn_maxpool2d_fprop", problem)
    launch(kernel_named("lrn_maxpool2d_fprop_band"), problem, inputs | outputs, {})
    judge("lrn_maxpool2d_fprop", problem, inputs, outputs)


# ---------------------------------------------------------------------------------------------------
# Integers that the op functions refuse where they can look at them, which on a GPU they cannot
# ---------------------------------------------------------------------------------------------------
OUTSIDE = [-1, -100, 37, 2**31, 2**32 + 3, -(2**32) + 3, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stem", ["softmax_xent_fprop_row", "softmax_xent_dgrad_rows"])
def test_a_label_that_is_no_class_makes_its_own_row_nan(stem, dtype, check):
    """The loss, and the whole row of dlogits; the probabilities and the other rows are as ever."""
    kernel = kernel_named(stem)
    op, rows = kernel.header.op, 2 * len(OUTSIDE)
    problem = SoftmaxXent(rows, 37, dtype)
    inputs, outputs = question(op, problem)
    launched = {n: a.copy() for n, a in outputs.items()}
    launch(kernel, problem, inputs | launched, {})
    labels = inputs["labels"].copy()
    labels[1::2] = OUTSIDE
    run_call(kernel, problem, {**inputs, "labels": labels}, outputs, check=check)
    for name, a in outputs.items():
        want = launched[name].astype(np.float32)
        if name != "probs":
            want[1::2] = np.nan
        np.testing.assert_array_equal(a.astype(np.float32), want, err_msg=name)


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_that_is_no_class_ranks_last(dtype, check):
    kernel = kernel_named("label_rank_row")
    problem = SoftmaxXent(2 * len(OUTSIDE), 37, dtype)
    inputs, outputs = question("label_rank", problem)
    labels = inputs["labels"].copy()
    labels[1::2] = OUTSIDE
    run_call(kernel, problem, {**inputs, "labels": labels}, outputs, check=check)
    wanted = expected("label_rank", problem, inputs, {})["rank"].value
    wanted[1::2] = 37
    assert np.array_equal(outputs["rank"], wanted)


def run_call(
    kernel: KernelFile, problem: Problem, inputs: dict, outputs: dict, *, check: bool, **options: object
) -> None:
    """As the op's function would, behind its look at the labels."""
    with ck.emulate(check=check):
        call = Call(
            kernel.op,
            implementation(kernel.path),
            problem,
            tuple(inputs[name] for name in kernel.op.inputs),
            tuple(outputs[name] for name in kernel.op.outputs),
            options,
        )
        call.run()


@pytest.mark.parametrize("check", [False, True], ids=["fast", "check"])
@pytest.mark.parametrize(
    "problem",
    [
        Pool2d.of((1, 2, 9, 8), padding=1),
        Pool2d.of((1, 2, 9, 8), window=2, stride=1, padding=1, dilation=2),
        Pool2d.of((1, 1, 18, 19), window=17, stride=1, padding=3),
    ],
    ids=["path of 3 x 3", "dilation", "uint16"],
)
def test_an_argmax_that_is_no_position_gives_its_gradient_to_no_pixel(problem, check):
    """Nor does one that lies in the padding; both leave the pixels of the other windows alone."""
    inputs, outputs = question("maxpool2d_dgrad", problem)
    argmax, most = inputs["argmax"], np.iinfo(inputs["argmax"].dtype).max
    inputs["dy"] = dy = np.random.default_rng(0).integers(1, 9, argmax.shape).astype(np.float32)
    without = argmax.copy(), dy.copy()
    taps = problem.R * problem.S
    for i, value in enumerate((taps, taps + 1, most, min(2 * taps, most))):
        argmax.reshape(-1)[i::7] = value
        without[1].reshape(-1)[i::7] = 0
    argmax[0, 0, 0, 0], without[1][0, 0, 0, 0] = 0, 0  # the corner of the padding
    kernel = kernel_named("maxpool2d_dgrad_gather")
    run_call(kernel, problem, inputs, outputs, check=check)
    want = expected("maxpool2d_dgrad", problem, {"dy": without[1], "argmax": without[0]}, {})["dx"]
    np.testing.assert_array_equal(outputs["dx"], want.value)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.stem)
def test_the_layers_of_alexnet(kernel):
    """Real extents, where indices are large and segments many; batch 2."""
    layers: dict[type[Problem], tuple[Problem, ...]] = {
        Elementwise: (Elementwise((2, 96, 55, 55)),),
        LRN: (
            LRN.of((2, 96, 55, 55), groups=2, k=2.0),
            LRN.of((2, 256, 27, 27), groups=2, k=2.0),
            LRN.of((2, 256, 27, 27), region="within_channel", k=2.0),
        ),
        Pool2d: tuple(Pool2d.of((2, *s)) for s in ((96, 55, 55), (256, 27, 27), (256, 13, 13))),
        SoftmaxXent: (SoftmaxXent(128, 1000),),
        LossSummary: (LossSummary(128),),
        LossScale: (LossScale(),),
        ChannelSum: (ChannelSum(2, 96, 55, 55, 4),),
        LrnMaxPool2d: tuple(
            lrn_pool((2, *shape), {"ceil_mode": True}, groups=groups, k=2.0)
            for shape in ((96, 55, 55), (256, 27, 27))
            for groups in (1, 2)
        ),
        CropImages: tuple(problem for _, problem in OPS["crop_images"].cases.layers()),
        Reorder: (
            *(Reorder(2, 3, 227, 227), Reorder(2, 96, 55, 55), Reorder(2, 256, 6, 6)),
            *(Reorder(96, 3, 11, 11), Reorder(256, 48, 5, 5), Reorder(384, 256, 3, 3)),
        ),
    }
    op, ran = kernel.header.op, 0
    for layer in (ChannelSum(128, 4096, 1, 1, 2),) if op == "linear_bgrad" else layers[OPS[op].problem]:
        problem = replace(layer, dtype=kernel.header.dtypes[0])  # type: ignore[call-arg]
        if Runner(kernel).refusal(problem):
            continue
        inputs, outputs = question(op, problem)
        launch(kernel, problem, inputs | outputs, options_of(op))
        judge(op, problem, inputs, outputs)
        ran += 1
    assert ran
