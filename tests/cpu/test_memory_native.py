"""The C++ kernels that memory bounds: on every instruction set, with any number of threads."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from blocks import block, physical, unblock

import convkit as ck
from convkit import check, registry
from convkit.cpu import extension
from convkit.ops import philox
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.elementwise import Elementwise
from convkit.ops.loss_summary import LossSummary
from convkit.ops.lrn import LRN
from convkit.ops.lrn_maxpool2d import LrnMaxPool2d
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.reorder import Reorder
from convkit.ops.softmax_xent import SoftmaxXent

F = np.float32
NAMES = ("rows", "two_passes", "vectors", "registers", "transpose")
RNG = np.random.default_rng(5)

pytestmark = pytest.mark.skipif(
    extension.kernels_missing() is not None, reason=str(extension.kernels_missing())
)


def implementations():
    return [
        i
        for i in registry.implementations(layout=None, device="cpu")
        if i.missing is extension.kernels_missing
    ]


MINE = [i for i in implementations() if i.name in NAMES]


def run(op, name, layout="NCHW"):
    (found,) = [
        i
        for i in registry.implementations(op, device="cpu", layout=None)
        if i.name == name and i.layout == layout
    ]
    return found.run


@pytest.mark.parametrize("isa", extension.isas())
@pytest.mark.parametrize("implementation", MINE, ids=lambda i: f"{i.op}-{i.label}")
def test_gate_on_every_instruction_set(isa, implementation):
    with extension.using(isa):
        failed = [v for v in check.check_these([implementation], quick=True) if not v.ok]
    assert not failed, "\n".join(map(str, failed[:3]))


# Sizes that wake every thread.
BIG = {
    LRN: LRN(2, 48, 40, 31, alpha=0.5, groups=3),
    Pool2d: Pool2d.of((2, 40, 41, 37), padding=1, ceil_mode=True),
    LrnMaxPool2d: LrnMaxPool2d(LRN.of((1, 96, 55, 55), alpha=0.5), Pool2d.of((1, 96, 55, 55))),
    ChannelSum: ChannelSum.of((3, 37, 40, 31), 4),
    Elementwise: Elementwise((131, 1001)),
    Reorder: Reorder(2, 37, 40, 31),
}


@pytest.mark.parametrize("implementation", MINE, ids=lambda i: f"{i.op}-{i.label}")
def test_bits_do_not_depend_on_the_number_of_threads(implementation, monkeypatch):
    problem = BIG.get(registry.OPS[implementation.op].problem)
    if problem is None or implementation.op == "linear_bgrad":
        problem = next(c.problem for c in check.cases(implementation.op) if c.heavy)
    case = next(check.cases(implementation.op))
    question = check.Question.of(
        check.Case(implementation.op, problem, "threads", case.options), "float32", seed=1
    )
    results = []
    for count in ("1", "2", "3", "5"):
        monkeypatch.setenv("CONVKIT_NUM_THREADS", count)
        outcome = check.attempt(implementation, question, check.FIRST)
        assert not outcome.fault
        results.append(outcome.outputs)
    for other in results[1:]:
        for name, array in results[0].items():
            assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize(
    "shape, pool",
    [
        ((3, 37, 20, 17), {}),
        ((2, 16, 13, 14), {"window": 2, "padding": 1}),
        ((1, 32, 12, 12), {"dilation": 2}),
    ],
)
def test_fused_is_what_it_is_made_of(shape, pool):
    lrn, pool2d = LRN.of(shape, alpha=0.7), Pool2d.of(shape, **pool)
    fused = LrnMaxPool2d(lrn, pool2d)
    x = block(RNG.standard_normal(shape).astype(F))
    normalised = np.empty_like(x)
    y, argmax = (np.zeros(physical(pool2d.shape("y")), t) for t in (F, np.uint8))
    y_fused, argmax_fused = np.empty_like(y), np.empty_like(argmax)
    run("lrn_fprop", "rows", "nChw16c")(lrn, x, normalised)
    run("maxpool2d_fprop", "rows", "nChw16c")(pool2d, normalised, y, argmax)
    run("lrn_maxpool2d_fprop", "rows", "nChw16c")(fused, x, y_fused, argmax_fused)
    assert np.array_equal(y, y_fused)
    assert np.array_equal(unblock(argmax, shape[1]), unblock(argmax_fused, shape[1]))

    dy = block(RNG.standard_normal(pool2d.shape("y")).astype(F))
    inner, dx, dx_fused = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    run("maxpool2d_dgrad", "rows", "nChw16c")(pool2d, dy, argmax, inner)
    run("lrn_dgrad", "rows", "nChw16c")(lrn, inner, x, dx)
    run("lrn_maxpool2d_dgrad", "rows", "nChw16c")(fused, dy, argmax, x, dx_fused, relu=False)
    assert np.array_equal(dx, dx_fused)
    run("lrn_maxpool2d_dgrad", "rows", "nChw16c")(fused, dy, argmax, x, dx_fused, relu=True)
    assert np.array_equal(np.where(x <= 0, 0, dx), dx_fused)


def test_an_image_is_the_same_alone_and_in_a_batch():
    """A batch of 16 is cut into images, one image into bands of rows."""
    shape = (16, 20, 35, 33)
    x = block(RNG.standard_normal(shape).astype(F))
    results = []
    for n in (16, 1):
        lrn, pool = LRN.of((n, *shape[1:]), alpha=0.7), Pool2d.of((n, *shape[1:]))
        y, argmax = (np.zeros(physical(pool.shape("y")), t) for t in (F, np.uint8))
        problem = LrnMaxPool2d(lrn, pool)
        run("lrn_maxpool2d_fprop", "rows", "nChw16c")(problem, x[-n:], y, argmax)
        dx = np.empty_like(x[-n:])
        run("lrn_maxpool2d_dgrad", "rows", "nChw16c")(problem, y, argmax, x[-n:], dx)
        results.append((y[-1], argmax[-1], dx[-1]))
    for whole, alone in zip(*results, strict=True):
        assert whole.tobytes() == alone.tobytes()


@pytest.mark.parametrize("layout", ["NCHW", "nChw16c"])
def test_the_first_nan_of_a_window_wins(layout):
    """In the loop for window 3 and stride 2 too, where only a sum tells of a NaN."""
    x = RNG.standard_normal((1, 16, 41, 43)).astype(F)
    x[0, :, 7, 9] = x[0, :, 8, 8] = np.nan
    x[0, 3, 20, 20], x[0, 3, 21, 21] = np.inf, -np.inf  # whose sum is a NaN that is none of x
    g = Pool2d.of(x.shape)
    wanted = np.empty(g.shape("y"), F), np.empty(g.shape("y"), np.uint8)
    run("maxpool2d_fprop", "reference")(g, x, *wanted)
    if layout == "NCHW":
        got = tuple(map(np.empty_like, wanted))
        run("maxpool2d_fprop", "rows")(g, x, *got)
    else:
        blocked = tuple(np.empty(physical(a.shape), a.dtype) for a in wanted)
        run("maxpool2d_fprop", "rows", layout)(g, block(x), *blocked)
        got = tuple(unblock(a, 16) for a in blocked)
    assert np.isnan(wanted[0]).any()
    for a, b in zip(wanted, got, strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype == F)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 40_000])
@pytest.mark.parametrize("offset", [0, 2**32 - 3])
def test_dropout_has_the_words_of_philox(size, offset):
    g, y = Elementwise((size,)), np.empty(size, F)
    seed = 0x0123456789ABCDEF
    run("dropout_fprop", "vectors")(g, np.ones(size, F), y, p=0.3, seed=seed, offset=offset, scale=2.0)
    assert np.array_equal(y == 0, philox.dropped(size, 0.3, seed, offset))


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 16, 5, 7), (3, 37, 33, 40), (1, 100, 1, 2049)])
def test_reorder_there_and_back(shape):
    g, x = Reorder(*shape), RNG.standard_normal(shape).astype(F)
    there, back = np.full(physical(shape), np.nan, F), np.full(shape, np.nan, F)
    run("reorder", "transpose", "NCHW>nChw16c")(g, x, there)
    run("reorder", "transpose", "nChw16c>NCHW")(g, there, back)
    assert np.array_equal(there, block(x)) and np.array_equal(back, x)


@pytest.mark.parametrize("k", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("isa", extension.isas())
def test_the_fourth_root_over_its_range(k, isa):
    """d from 1e-30 to 1e38, and beyond, where x^2 is infinite and y is zero."""
    x = np.zeros((1, 16, 1, 64), F)
    x[0, 8, 0] = np.logspace(-15, 18.9, 64)
    x[0, 7, 0, 0] = 1e20
    g = LRN.of(x.shape, alpha=5.0, k=k)
    wanted, got = np.empty_like(x), np.empty_like(x)
    with np.errstate(over="ignore"), extension.using(isa):
        run("lrn_fprop", "reference")(g, x, wanted)
        run("lrn_fprop", "rows")(g, x, got)
    assert np.allclose(got[..., 1:], wanted[..., 1:], rtol=1e-6, atol=1e-37)
    assert got[0, 8, 0, 0] == 0


@pytest.mark.parametrize("isa", extension.isas())
@pytest.mark.parametrize("K", [1, 3, 16, 17, 33, 100])
def test_a_label_in_any_lane_has_its_rank(K, isa):
    """Ties on both sides of the label; a NaN in any place."""
    logits = np.random.default_rng(K).integers(-3, 4, (2 * K, K)).astype(F)
    logits[K + np.arange(K), np.arange(K)] = np.nan
    labels = np.arange(2 * K) % K
    got = np.empty(2 * K, np.int32)
    with extension.using(isa):
        run("label_rank", "vectors")(SoftmaxXent(2 * K, K), logits, labels, got)
    order = np.argsort(-logits[:K], axis=1, kind="stable")
    assert np.array_equal(got[:K], [list(row).index(label) for row, label in zip(order, labels)])
    assert (got[K:] == K).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("N", [0, 1, 7, 8, 9, 64, 1031])
def test_a_summary_has_the_same_bits_everywhere(N, dtype):
    """Loss n is part of sum n % 8; what is not finite is found in any place."""
    rng = np.random.default_rng(N)
    loss, rank = rng.lognormal(0, 9, N).astype(dtype), rng.integers(0, 9, N, np.int32)
    sums = np.zeros(8)
    for n, value in enumerate(loss):
        sums[n % 8] += float(value)
    sums = sums[:4] + sums[4:]
    sums = sums[:2] + sums[2:]
    total, errors, finite = np.full(1, np.nan), np.full(2, -1), np.full(1, -1, np.int32)
    for isa in extension.isas():
        with extension.using(isa):
            summary = functools.partial(run("loss_summary", "vectors"), LossSummary(N, dtype))
            summary(loss, rank, total, errors, finite)
            assert total[0] == sums[0] + sums[1]
            assert [*errors, *finite] == [(rank >= 1).sum(), (rank >= 5).sum(), 1]
            for place in range(0, N, 13):
                for bad in (np.nan, np.inf, -np.inf):
                    other = loss.copy()
                    other[place] = bad
                    summary(other, rank, total, errors, finite)
                    assert np.array_equal(total, [bad], equal_nan=True)
                    assert finite[0] == 0


@pytest.mark.parametrize("isa", extension.isas())
def test_softmax_keeps_what_is_small(isa):
    """A loss near zero, which float32 would lose beside the 1; and a probability near 2^-126."""
    logits, labels = np.zeros((3, 40), F), np.zeros(3, np.int64)
    logits[0, 1:], logits[1, 1:], logits[2, 1:] = -16, -26, -100
    logits[2, 1] = -87.2
    loss, probs = np.empty(3, F), np.empty((3, 40), F)
    with extension.using(isa):
        run("softmax_xent_fprop", "vectors")(SoftmaxXent(3, 40), logits, labels, loss, probs)
    wanted = np.log1p(np.exp(logits[:, 1:].astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(loss[:2], wanted[:2], rtol=2e-6, atol=2e-15)  # 1 + 2e-10 in float64
    np.testing.assert_allclose(probs[2, 1], np.exp(np.float64(F(-87.2))), rtol=2e-6)


@pytest.mark.parametrize("rectified", [False, True])
def test_two_passes_are_the_two_ops(rectified):
    """So that a network's bits do not depend on which of them its plan takes."""
    lrn, pool = {"size": 3, "alpha": 0.5}, {"window": 3, "padding": 1}
    x = RNG.standard_normal((2, 5, 9, 8)).astype(F)
    y, argmax = ck.lrn_maxpool2d_fprop(x, lrn=lrn, pool=pool, impl="two_passes")
    between = ck.lrn_fprop(x, **lrn, impl="rows")
    for got, want in zip((y, argmax), ck.maxpool2d_fprop(between, **pool, impl="rows"), strict=True):
        assert np.array_equal(got, want)
    dy = RNG.standard_normal(y.shape).astype(F)
    dx = ck.lrn_maxpool2d_dgrad(dy, argmax, x, lrn=lrn, pool=pool, relu=rectified, impl="two_passes")
    gradient = ck.maxpool2d_dgrad(dy, argmax, x.shape, **pool, impl="rows")
    want = ck.lrn_dgrad(gradient, x, **lrn, impl="rows")
    assert np.array_equal(dx, ck.relu_dgrad(want, x, impl="vectors") if rectified else want)
