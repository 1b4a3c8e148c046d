"""Kernels in NHWC on NCHW arrays: which there are, what is copied, and that results are the kernels' own."""

from __future__ import annotations

import sys
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit import check, devices, registry, tuned
from convkit.arrays import np_dtype
from convkit.bench import status
from convkit.bench.results import sources
from convkit.call import Call
from convkit.check.attempt import FIRST, Question, attempt
from convkit.check.cases import Case
from convkit.check.verdicts import judge
from convkit.cuda import graph, packed
from convkit.cuda.emulate import Emulator
from convkit.layouts import KRSC, NCHW, NHWC, Tensor
from convkit.network import layers
from convkit.network.plan import arrange
from convkit.network.plan.program import Program
from convkit.network.presets import preset
from convkit.op import OPS
from convkit.ops.conv2d import Conv2d
from convkit.registry import implementations, select
from convkit.tune import candidates, compiling
from convkit.tune.jobs import of_items

PACKED = [i for i in implementations(device="cuda") if i.packs]
ALL_OPTIONS = {"stride": (2, 1), "dilation": (1, 2), "padding": ((0, 2), (1, 0)), "groups": 2}
PROBLEM = Conv2d.of((2, 6, 9, 8), (4, 3, 3, 3), **ALL_OPTIONS, dtype="bfloat16")
RNG = np.random.default_rng(11)


@pytest.fixture
def cupy(monkeypatch, compiler):
    module = fake_cupy.module(watch_races=True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    yield module
    devices.gpu_found.cache_clear()  # which may have seen the stand-in's


def of(op: str, name: str) -> registry.Implementation:
    return next(i for i in PACKED if (i.op, i.name) == (op, name))


def drawn(op: str, problem: Conv2d) -> list[np.ndarray]:
    return [
        RNG.standard_normal(problem.shape(n)).astype(np_dtype(problem.dtype_of(n))) for n in OPS[op].inputs
    ]


# ---------------------------------------------------------------------------------------------------
# Which there are
# ---------------------------------------------------------------------------------------------------
def test_whatever_has_a_kernel_has_one_for_users_arrays():
    """In each dtype and arithmetic; and where NCHW has its own kernel, nothing is packed."""
    everything = [i for i in implementations(device="cuda", layout=None) if i.op != "reorder"]
    for i in everything:
        for dtype in i.dtypes:
            beside = [
                one
                for one in everything
                if (one.op, one.math, one.layout) == (i.op, i.math, "NCHW") and dtype in one.dtypes
            ]
            assert beside, (i.op, i.label, dtype)
            assert len({bool(one.packs) for one in beside}) == 1, (i.op, dtype)
    assert {i.op.partition("_")[0] for i in PACKED} == {"conv2d"} and "conv2d_bgrad" not in {
        i.op for i in PACKED
    }


@pytest.mark.parametrize("one", PACKED, ids=lambda i: f"{i.op}-{i.name}")
def test_one_declares_what_its_kernel_does(one):
    kernel = next(
        i
        for i in implementations(one.op, device="cuda", layout=None)
        if (i.name, i.layout) == (one.name, one.packs)
    )
    for what in ("dtypes", "math", "error", "truncates", "flags", "source", "checked"):
        assert getattr(one, what) == getattr(kernel, what), what
    assert one.label == f"{one.name} packed" and one.layout_text == f"NCHW (packs {kernel.layout})"
    assert {kernel.source} < set(one.sources.files)  # another reorder is another implementation
    assert tuned.digest(one) != tuned.digest(kernel)
    assert replace(one, tile=()) in implementations(one.op, device="cuda", layout=None)
    assert one not in implementations(one.op, device="cuda", layout=one.packs)


def test_what_is_chosen():
    conv2 = replace(PROBLEM, groups=1)
    few = replace(conv2, C=3, dilation_w=1)
    wide, few_wide = (replace(one, dtype="float32") for one in (conv2, few))

    def name(problem, **options):
        return select("conv2d_fprop", problem, device="cuda", **options).label

    assert name(conv2) == "implicit_gemm_mma packed" and name(few) == "tap_rows_mma packed"
    assert name(few, impl="implicit_gemm_mma") == "implicit_gemm_mma packed"
    assert name(conv2, layout="NHWC, KRSC") == "implicit_gemm_mma NHWC, KRSC"
    for problem, kernel in ((wide, "implicit_gemm"), (few_wide, "tap_rows")):
        assert name(problem) == "implicit_gemm"  # tensor cores only for whom accepts tf32
        assert name(problem, math="tf32") == f"{kernel}_tf32 packed"
        assert name(problem, math="tf32", impl="implicit_gemm") == "implicit_gemm"
    pair = replace(conv2, dtype="bfloat16/float32")
    assert select("conv2d_wgrad_bgrad", pair, device="cuda").label == "implicit_gemm_mma packed"
    with pytest.raises(ck.NoImplementation, match="tap_rows_mma: needs groups == 1"):
        name(conv2, impl="tap_rows_mma")


def test_ranks_keep_their_order():
    """Above the finer kernel of NCHW by as much as is needed, and among themselves as in NHWC."""
    ranks = {
        i.name: i.rank for i in implementations("conv2d_fprop", device="cuda") if i.packs or i.math == "fp32"
    }
    fine = ranks["implicit_gemm"]
    assert (ranks["implicit_gemm_tf32"], ranks["tap_rows_tf32"]) == (fine + 1, fine + 2)
    assert ranks["implicit_gemm_mma"] == 20 and ranks["tap_rows_mma"] == 21


def test_what_nothing_takes_is_refused():
    x, w = np.ones((1, 2, 4, 4)), np.ones((3, 2, 3, 3))
    with ck.emulate(), pytest.raises(ck.NoImplementation, match="implicit_gemm_mma: takes bfloat16, float16"):
        ck.conv2d_fprop(x, w)


def test_a_tensor_that_a_reorder_declines_is_refused():
    far = Conv2d(1, 1, 65536, 65536, 8, 1, 1, dtype="bfloat16")  # 2^32 pixels in y
    reason = of("conv2d_fprop", "implicit_gemm_mma").when(far)
    assert reason.startswith("deinterleave, which copies y, needs H*W < 2147483648")


def test_the_reorders_count_as_its_files(monkeypatch):
    """For a result file, and for what a GPU has run."""
    one = of("conv2d_fprop", "implicit_gemm_mma")
    kernel = next(i for i in implementations(one.op, device="cuda", layout=one.packs) if i.name == one.name)
    plain, both = sources.describe([kernel]), sources.describe([kernel, one])
    key = "conv2d_fprop/implicit_gemm_mma"
    more = {"kernels/reorder_interleave.cu", "kernels/reorder_deinterleave.cu", "kernels/transpose.cuh"}
    assert not more & set(plain[key]["includes"]) and more <= set(both[key]["includes"])
    assert sources.describe([one, kernel]) == both and sources.describe([kernel]) == plain
    monkeypatch.setattr(status, "kernels_run", lambda: {"conv2d_fprop_implicit_gemm_mma.cu": "NVIDIA H200"})
    assert status.has_run(kernel) and not status.has_run(one)


# ---------------------------------------------------------------------------------------------------
# What is copied
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("op", "problem", "copied"),
    [
        ("conv2d_fprop", Conv2d.of((2, 6, 9, 8), (4, 6, 3, 3)), "x w y"),
        ("conv2d_fprop", Conv2d.of((2, 1, 9, 8), (4, 1, 3, 3)), "y"),
        ("conv2d_fprop", Conv2d.of((2, 6, 9, 8), (4, 6, 1, 1)), "x y"),
        ("conv2d_fprop", Conv2d.of((2, 6, 3, 3), (4, 6, 3, 3)), "x w"),
        ("conv2d_fprop", Conv2d.of((2, 6, 1, 1), (4, 6, 1, 1)), ""),
        ("conv2d_dgrad", Conv2d.of((2, 6, 9, 8), (6, 1, 3, 3), groups=6), "dy dx"),
        ("conv2d_dgrad_relu", Conv2d.of((2, 6, 9, 8), (4, 6, 3, 3)), "dy w x dx"),
        ("conv2d_wgrad", Conv2d.of((2, 6, 9, 8), (4, 6, 3, 3)), "x dy"),
        ("conv2d_wgrad_bgrad", Conv2d.of((2, 6, 9, 8), (4, 6, 3, 3)), "x dy"),
    ],
)
def test_only_what_lies_otherwise_is_copied(op, problem, copied):
    """Each once, at a place of its own, in front of the kernel's own scratch memory."""
    one, problem = of(op, "implicit_gemm_mma"), replace(problem, dtype="bfloat16")
    copies = one.run.copies(problem)
    assert [copy.tensor for copy in copies] == copied.split()
    end = 0
    for copy in copies:
        assert copy.place.start % packed.ALIGNMENT == 0 and copy.place.start >= end
        end = copy.place.stop
        assert end - copy.place.start == problem.bytes(copy.tensor)
    kernel = next(
        i
        for i in implementations(op, device="cuda", layout=None)
        if (i.name, i.layout) == (one.name, one.packs)
    )
    assert one.workspace(problem) >= end + kernel.workspace(problem) - 1
    assert len(one.run.parts(problem)) == 1 + len(copies)


def test_layouts_that_move_nothing():
    for shape, moves in (
        ((2, 1, 5, 7), False),
        ((2, 3, 1, 1), False),
        ((2, 3, 5, 1), True),
        ((0, 3, 5, 7), False),
    ):
        assert NHWC.moves(shape) == KRSC.moves(shape) == moves
        array = np.arange(np.prod(shape)).reshape(shape)
        assert moves or np.array_equal(NHWC.packed(array).ravel(), array.ravel())


# ---------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------
def test_the_kernels_own_bits(compiler):
    """Packed by hand, and NHWC in and out: the same bits."""
    x, w, b = drawn("conv2d_fprop", PROBLEM)
    with ck.emulate(check=True):
        y = ck.conv2d_fprop(x, w, b, relu=True, **ALL_OPTIONS)
        inside = ck.conv2d_fprop(Tensor.of(x, "NHWC"), Tensor.of(w, "KRSC"), b, relu=True, **ALL_OPTIONS)
        out = np.full_like(y, np.nan)
        assert ck.conv2d_fprop(x, w, b, relu=True, impl="implicit_gemm_mma", out=out, **ALL_OPTIONS) is out
    assert inside.layout == NHWC
    assert inside.logical().tobytes() == y.tobytes() == out.tobytes() and y.any()


def test_on_a_gpu(cupy):
    """On a stand-in for CuPy: the first call, and a bound one, which takes scratch memory of its own."""
    x, w, b = drawn("conv2d_fprop", PROBLEM)
    given = [cupy.asarray(a) for a in (x, w, b)]
    found = [ck.conv2d_fprop(*given, **ALL_OPTIONS).get() for _ in range(3)]
    inside = ck.conv2d_fprop(
        Tensor.of(given[0], "NHWC"), Tensor.of(given[1], "KRSC"), given[2], **ALL_OPTIONS
    )
    assert {y.tobytes() for y in found} == {inside.logical().get().tobytes()}


def test_an_empty_batch(compiler):
    x, w = np.ones((0, 8, 5, 5), np.float16), np.ones((4, 8, 3, 3), np.float16)
    with ck.emulate():
        y = ck.conv2d_fprop(x, w)
        assert y.shape == (0, 4, 3, 3) and ck.conv2d_dgrad(y, w, x.shape).shape == x.shape
        assert not ck.conv2d_wgrad(x, y, w.shape).any()


#: What CI asks; the others pass by the same way.
IN_CI = (("conv2d_fprop", "implicit_gemm_mma"), ("conv2d_wgrad_bgrad", "implicit_gemm_mma"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "one",
    [
        pytest.param(i, id=f"{i.op}-{i.name}", marks=[pytest.mark.thorough] * ((i.op, i.name) not in IN_CI))
        for i in PACKED
    ],
)
def test_the_gate(one, compiler):
    """In the first dtype; and in the others a few cases."""
    verdicts = check.check_these([replace(one, dtypes=one.dtypes[:1])], quick=True, seed=check.fresh_seed())
    assert all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok][:3]
    few = [c for c in check.cases(one.op) if not c.heavy]
    with ck.emulate():
        rest = [judge(one, Question.of(case, dtype)) for dtype in one.dtypes[1:] for case in few[::3]]
    assert all(v.ok for v in rest), [str(v) for v in rest if not v.ok][:3]


@pytest.mark.slow
@pytest.mark.parametrize("one", PACKED, ids=lambda i: f"{i.op}-{i.name}")
def test_as_ptx_and_in_any_order(one):
    """What NVRTC makes of the files, and blocks and warps in another order: the same bits."""
    need("cuda.core")
    problem = Conv2d.of((2, 3, 9, 8), (8, 3, 3, 3), padding=((0, 2), (1, 0)), dtype=one.dtypes[0])
    options = dict.fromkeys(OPS[one.op].options, True)
    asked = Question.of(Case(one.op, problem, "asked", options=options), one.dtypes[0])
    found = []
    for seed in (None, 1, 2):
        with ck.emulate(engine="ptx", seed=seed):
            assert judge(one, asked).ok
            run = attempt(one, asked, FIRST)
        assert not run.fault
        found.append({name: array.tobytes() for name, array in run.outputs.items()})
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_step_by_hand_is_as_on_the_cpu(dtype, compiler):
    """Two convolutions and a loss: each gradient within the bound that the gate would set for its inputs."""
    x, one, two = (
        RNG.standard_normal(shape).astype(np_dtype(dtype))
        for shape in ((4, 3, 12, 12), (8, 3, 3, 3), (5, 8, 6, 6))
    )
    labels = np.arange(4) % 5

    def step(**how):
        hidden = ck.conv2d_fprop(x, one, stride=2, padding=1, relu=True)
        logits = ck.conv2d_fprop(hidden, two).reshape(4, 5)
        loss, probabilities = ck.softmax_xent_fprop(logits, labels)
        dlogits = ck.softmax_xent_dgrad(probabilities, labels, np.full(4, 0.25, loss.dtype)).reshape(
            4, 5, 1, 1
        )
        dtwo, _ = ck.conv2d_wgrad_bgrad(hidden, dlogits, two.shape, dtype="float32")
        dhidden = ck.conv2d_dgrad_relu(dlogits, two, hidden)
        done = ck.conv2d_wgrad(x, dhidden, one.shape, stride=2, padding=1, dtype="float32")
        return [np.asarray(a, np.float64) for a in (hidden, logits, dtwo, dhidden, done)]

    here = step()
    with ck.emulate():
        there = step()
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    for a, b in zip(here, there, strict=True):
        # Each tensor between two ops is rounded, so that two right ways differ by a few units of the largest.
        assert np.abs(a - b).max() <= 8 * unit * np.abs(a).max() and a.any()


# ---------------------------------------------------------------------------------------------------
# A tile, a graph, a network
# ---------------------------------------------------------------------------------------------------
def test_a_fixed_tile_reaches_the_kernel():
    one = of("conv2d_fprop", "implicit_gemm_mma")
    small = tuned.with_tile(one, {"TILE_M": 64, "TILE_N": 64, "STAGES": 3})
    assert (
        small.label == "implicit_gemm_mma[STAGES=3, TILE_M=64, TILE_N=64] packed" and small.packs == one.packs
    )
    assert small.run.kernel.header.tile["TILE_M"] == 64 and small.run.reorders is one.run.reorders
    assert small.run.fitted(PROBLEM).header.tile["TILE_N"] == 64 and small.when(PROBLEM) is None
    assert tuned.with_tile(one, {"TILE_M": 64, "TILE_N": 64, "STAGES": 3}) is small
    assert tuned.with_tile(one, {"LENGTH": 8}) is None
    assert [c.place for c in small.run.copies(PROBLEM)] == [c.place for c in one.run.copies(PROBLEM)]
    unit = compiling.translation_unit(small.run.fitted(PROBLEM), PROBLEM)
    assert "constexpr int TILE_M = 64" in unit


def test_the_tuner_tries_its_tiles():
    """On NCHW arrays; each candidate packs, and its name is that of the tile."""
    from convkit.bench.work import Item

    problem = replace(PROBLEM, C=64, K=128, groups=1)
    item = Item("c", "conv2d_fprop", problem, "bfloat16", layer="c", options={"relu": True}, absent=("b",))
    (job,) = of_items([item], "cuda")
    found = candidates.of_job(job)
    assert next(c for c in found if c.default).name == "implicit_gemm_mma"
    assert all(c.implementation.packs for c in found) and sum(bool(c.implementation.tile) for c in found) > 4


def test_a_call_can_be_part_of_a_graph():
    one = of("conv2d_fprop", "implicit_gemm_mma")
    x, w, b = drawn("conv2d_fprop", PROBLEM)
    y = np.empty(PROBLEM.shape("y"), x.dtype)
    scratch = np.empty(one.workspace(PROBLEM), np.uint8)
    call = Call(OPS["conv2d_fprop"], one, PROBLEM, (x, w, b), (y,), {"relu": True, "workspace": scratch})
    assert graph.obstacle(call) == ""


def test_a_network_that_has_to_packs_in_one_graph(cupy, monkeypatch):
    """Where there is no way without: here, since all layouts but NCHW are hidden."""
    monkeypatch.setattr(arrange, "_computed_in", lambda chooser: [NCHW])
    init = layers.Normal(0.2)

    def net(**options):
        return ck.Network(
            (
                layers.Conv("conv1", 4, 3, init, init, padding=1),
                layers.Relu("relu1"),
                layers.Flatten("flatten"),
                layers.Linear("fc2", None, init, init),
            ),
            (2, 6, 6), 5, seed=1, device="cuda", math="tf32", **options,
        )  # fmt: skip

    graphed, eager = net(), net(graph=False)
    x, labels = RNG.standard_normal((4, 2, 6, 6), np.float32), np.arange(4) % 5
    for _ in range(4):
        found, wanted = (one.step(cupy.asarray(x), labels, lr=0.1) for one in (graphed, eager))
        assert float(found) == float(wanted)
    assert devices.current().captured == 1
    assert any(call.implementation.packs for call in graphed.plan(4).calls())
    for name, w in graphed.params.items():
        assert np.array_equal(w.get(), eager.params[name].get()), name


@pytest.mark.parametrize("name", ["2012", "one convolution"])
def test_a_plan_packs_at_its_edges_alone(name):
    """It counts a kernel that packs for none, as long as there is a way without."""
    images, classes, row = (128, 3, 224, 224), 1000, preset("2012").layers
    if name == "one convolution":  # to which NCHW would look cheap: fewer elements change their layout
        init = layers.Normal(0.2)
        images, classes = (4, 2, 6, 6), 5
        row = (layers.Conv("c", 4, 3, init, init), layers.Flatten("f"), layers.Linear("l", None, init, init))
    program = Program(row, images, classes, "bfloat16", "cuda", None)
    step = program.step(program.graph.parameters)
    nodes = [*program.runs((*program.forward, *program.loss, *step.backward, *step.update))]
    assert not any(program.pick(node).packs for node in nodes)
    assert len(nodes) == 82 or name != "2012"
