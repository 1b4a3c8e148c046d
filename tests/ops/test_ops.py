"""The public ops: against the formulas as loops, on random geometries; bad inputs; kinds of arrays."""

from __future__ import annotations

import itertools
import math
import os
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from blocks import BLOCKED, blocked
from calls import call_of
from hypothesis import assume, given
from hypothesis import strategies as st

import convkit as ck
from convkit import check
from convkit.arrays import np_dtype
from convkit.check import tolerance
from convkit.cpu import extension
from convkit.errors import ConvkitError, DtypeError, NoImplementation, OptionError, OutOfMemory, ShapeError
from convkit.layouts import Tensor
from convkit.op import OPS
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.ops.lrn import LRN
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.softmax_xent import SoftmaxXent
from convkit.registry import ALL_DTYPES

CONTENDERS = {
    op: [i for i in ck.implementations(op, device="cpu", layout=None) if i.name != "reference"] for op in OPS
}
DTYPES = st.sampled_from(ALL_DTYPES)
SEEDS = st.integers(0, 2**32 - 1)


def gate(op, problem, dtype, data_seed, /, **options):
    """Every implementation but the reference, through the gate's own comparison."""
    question = check.Question.of(check.Case(op, problem, "drawn", options), dtype, data_seed)
    for implementation in CONTENDERS[op]:
        verdict = check.judge(implementation, question)
        assert verdict.ok, str(verdict)


def equal(got, expected, **tolerance):
    np.testing.assert_allclose(got, expected, **{"rtol": 1e-12, "atol": 1e-12, **tolerance})


def need_kernels():
    missing = extension.kernels_missing()
    if missing is not None:
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)


def random(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# ---------------------------------------------------------------------------------------------------
# The formulas, as loops
# ---------------------------------------------------------------------------------------------------
def conv_terms(g):
    """(n, k, p, q), (n, c, h, w), (k, c in its group, r, s) of every product of a convolution."""
    in_group, out_group = g.C // g.groups, g.K // g.groups
    for n, k, p, q in itertools.product(range(g.N), range(g.K), range(g.P), range(g.Q)):
        for c, r, s in itertools.product(range(in_group), range(g.R), range(g.S)):
            h = p * g.stride_h + r * g.dilation_h - g.pad_top
            w = q * g.stride_w + s * g.dilation_w - g.pad_left
            if 0 <= h < g.H and 0 <= w < g.W:
                yield (n, k, p, q), (n, k // out_group * in_group + c, h, w), (k, c, r, s)


def pool_window(g, p, q):
    """(r, s, h, w) of every tap that sees the image, row by row."""
    for r, s in itertools.product(range(g.R), range(g.S)):
        h = p * g.stride_h + r * g.dilation_h - g.pad_top
        w = q * g.stride_w + s * g.dilation_w - g.pad_left
        if 0 <= h < g.H and 0 <= w < g.W:
            yield r, s, h, w


def lrn_window(g, c, h, w):
    if g.region == "within_channel":
        for i in range(h - (g.size - 1) // 2, h + g.size // 2 + 1):
            for j in range(w - (g.size - 1) // 2, w + g.size // 2 + 1):
                if 0 <= i < g.H and 0 <= j < g.W:
                    yield c, i, j
        return
    each = g.C // g.groups
    first = c // each * each
    for i in range(c - (g.size - 1) // 2, c + g.size // 2 + 1):
        if first <= i < first + each:
            yield i, h, w


# ---------------------------------------------------------------------------------------------------
# Random geometries
# ---------------------------------------------------------------------------------------------------
@st.composite
def convolutions(draw):
    small = st.integers(1, 3)
    groups, c, k, R, S = (draw(small) for _ in range(5))
    stride, dilation = (draw(small), draw(small)), (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    H, W = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    assume(H + pads[0] + pads[1] > (R - 1) * dilation[0] and W + pads[2] + pads[3] > (S - 1) * dilation[1])
    return Conv2d(
        draw(st.integers(1, 2)), c * groups, H, W, k * groups, R, S, *stride, *pads, *dilation, groups
    )


def conv_options(g):
    return {
        "stride": (g.stride_h, g.stride_w),
        "padding": ((g.pad_top, g.pad_bottom), (g.pad_left, g.pad_right)),
        "dilation": (g.dilation_h, g.dilation_w),
        "groups": g.groups,
    }


@given(convolutions(), SEEDS, DTYPES, st.booleans())
def test_conv2d_fprop(g, seed, dtype, relu):
    x, w, b = random(seed, *g.shape("x")), random(seed, *g.shape("w")), random(seed, g.K)
    y = np.zeros(g.shape("y")) + b[:, None, None]
    for i, j, k in conv_terms(g):
        y[i] += x[j] * w[k]
    equal(
        ck.conv2d_fprop(x, w, b, **conv_options(g), relu=relu, impl="reference"),
        np.maximum(y, 0) if relu else y,
    )
    gate("conv2d_fprop", g, dtype, seed, relu=relu)


@given(convolutions(), SEEDS, DTYPES)
def test_conv2d_dgrad(g, seed, dtype):
    dy, w = random(seed, *g.shape("y")), random(seed, *g.shape("w"))
    dx = np.zeros(g.shape("x"))
    for i, j, k in conv_terms(g):
        dx[j] += dy[i] * w[k]
    equal(ck.conv2d_dgrad(dy, w, g.shape("x"), **conv_options(g), impl="reference"), dx)
    gate("conv2d_dgrad", g, dtype, seed)


@given(convolutions(), SEEDS, DTYPES)
def test_conv2d_wgrad(g, seed, dtype):
    dy, x = random(seed, *g.shape("y")), random(seed, *g.shape("x"))
    dw = np.zeros(g.shape("w"))
    for i, j, k in conv_terms(g):
        dw[k] += dy[i] * x[j]
    equal(ck.conv2d_wgrad(x, dy, g.shape("w"), **conv_options(g), impl="reference"), dw)
    gate("conv2d_wgrad", g, dtype, seed)


@given(st.lists(st.integers(1, 9), min_size=4, max_size=4), SEEDS, DTYPES)
def test_conv2d_bgrad(shape, seed, dtype):
    dy = random(seed, *shape)
    expected = [math.fsum(dy[:, k].ravel()) for k in range(shape[1])]
    equal(ck.conv2d_bgrad(dy, impl="reference"), expected)
    gate("conv2d_bgrad", ChannelSum(*shape, 4), dtype, seed)


@given(st.lists(st.integers(1, 12), max_size=4), SEEDS, DTYPES)
def test_relu_fprop(shape, seed, dtype):
    x = random(seed, *shape)
    expected = np.array([v if v > 0 else 0.0 for v in x.ravel()]).reshape(shape)
    assert np.array_equal(ck.relu_fprop(x, impl="reference"), expected)
    gate("relu_fprop", Elementwise(tuple(shape)), dtype, seed)


@given(st.lists(st.integers(1, 12), max_size=4), SEEDS, DTYPES)
def test_relu_dgrad(shape, seed, dtype):
    dy, y = random(seed, *shape), np.asarray(np.maximum(random(seed + 1, *shape), 0))
    expected = np.array([d if v > 0 else 0.0 for d, v in zip(dy.ravel(), y.ravel())]).reshape(shape)
    assert np.array_equal(ck.relu_dgrad(dy, y, impl="reference"), expected)
    gate("relu_dgrad", Elementwise(tuple(shape)), dtype, seed)


@st.composite
def normalisations(draw):
    groups, c = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    region = draw(st.sampled_from(["across_channels", "across_channels", "within_channel"]))
    return LRN(
        *(draw(st.integers(1, 2)), groups * c, draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        size=draw(st.integers(1, 7)),
        alpha=draw(st.sampled_from([1e-4, 0.1, 1.0, 3.0])),
        beta=draw(st.sampled_from([0.75, 0.5, 1.0, 0.3])),
        k=draw(st.sampled_from([1.0, 2.0, 0.5])),
        groups=groups,
        region=region,
    )


def lrn_options(g):
    return {k: getattr(g, k) for k in ("size", "alpha", "beta", "k", "groups", "region")}


def lrn_d(g, x):
    n = g.size if g.region == "across_channels" else g.size * g.size
    d = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        d[i] = g.k + g.alpha / n * sum(x[(i[0], *j)] ** 2 for j in lrn_window(g, *i[1:]))
    return d, n


@given(normalisations(), SEEDS, DTYPES)
def test_lrn_fprop(g, seed, dtype):
    x = random(seed, *g.shape("x"))
    d, _ = lrn_d(g, x)
    equal(ck.lrn_fprop(x, **lrn_options(g), impl="reference"), x / d**g.beta)
    gate("lrn_fprop", g, dtype, seed)


@given(normalisations(), SEEDS, DTYPES)
def test_lrn_dgrad(g, seed, dtype):
    """Each output's derivative with respect to each input in its window, added up."""
    x, dy = random(seed, *g.shape("x")), random(seed + 1, *g.shape("x"))
    d, n = lrn_d(g, x)
    dx = dy / d**g.beta
    for i in np.ndindex(x.shape):
        for j in lrn_window(g, *i[1:]):
            j = (i[0], *j)
            dx[j] -= dy[i] * x[i] * g.beta * d[i] ** (-g.beta - 1) * g.alpha / n * 2 * x[j]
    equal(ck.lrn_dgrad(dy, x, **lrn_options(g), impl="reference"), dx)
    gate("lrn_dgrad", g, dtype, seed)


@st.composite
def pools(draw):
    R, S = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    i, j = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    span = ((R - 1) * i + 1, (S - 1) * j + 1)
    pads = [draw(st.integers(0, min(2, span[axis // 2] - 1))) for axis in range(4)]
    H, W = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    assume(H + pads[0] + pads[1] >= span[0] and W + pads[2] + pads[3] >= span[1])
    stride = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Pool2d(
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        H,
        W,
        R,
        S,
        *stride,
        *pads,
        i,
        j,
        draw(st.booleans()),
    )


def pool_options(g):
    return {
        "window": (g.R, g.S),
        "ceil_mode": g.ceil_mode,
        "stride": (g.stride_h, g.stride_w),
        "padding": ((g.pad_top, g.pad_bottom), (g.pad_left, g.pad_right)),
        "dilation": (g.dilation_h, g.dilation_w),
    }


@given(pools(), SEEDS, DTYPES, st.booleans())
def test_maxpool2d_fprop(g, seed, dtype, ties):
    x = random(seed, *g.shape("x"))
    x = np.round(x) if ties else x
    y, argmax = np.empty(g.shape("y")), np.empty(g.shape("y"), int)
    for n, c, p, q in np.ndindex(y.shape):
        seen = [(x[n, c, h, w], r * g.S + s) for r, s, h, w in pool_window(g, p, q)]
        if not seen:
            return  # holes of a dilated window over the whole image: left to the next test
        y[n, c, p, q], place = max(seen, key=lambda v: (v[0], -v[1]))
        argmax[n, c, p, q] = place
    got = ck.maxpool2d_fprop(x, **pool_options(g), impl="reference")
    assert np.array_equal(got[0], y) and np.array_equal(got[1], argmax)
    gate("maxpool2d_fprop", g, dtype, seed)


@given(pools(), SEEDS, DTYPES)
def test_maxpool2d_dgrad(g, seed, dtype):
    x = random(seed, *g.shape("x"))
    y, argmax = ck.maxpool2d_fprop(x, **pool_options(g), impl="reference")
    dy, dx = random(seed + 1, *y.shape), np.zeros(x.shape)
    for n, c, p, q in np.ndindex(y.shape):
        for r, s, h, w in pool_window(g, p, q):
            if r * g.S + s == argmax[n, c, p, q]:
                dx[n, c, h, w] += dy[n, c, p, q]
    equal(ck.maxpool2d_dgrad(dy, argmax, x.shape, **pool_options(g), impl="reference"), dx)
    gate("maxpool2d_dgrad", g, dtype, seed)


LINEAR = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 12))


@given(LINEAR, SEEDS, DTYPES, st.booleans())
def test_linear_fprop(sizes, seed, dtype, relu):
    N, C, K = sizes
    x, w, b = random(seed, N, C), random(seed, K, C), random(seed, K)
    y = np.array(
        [[b[k] + math.fsum(x[n, c] * w[k, c] for c in range(C)) for k in range(K)] for n in range(N)]
    )
    equal(ck.linear_fprop(x, w, b, relu=relu, impl="reference"), np.maximum(y, 0) if relu else y)
    gate("linear_fprop", Linear(*sizes), dtype, seed, relu=relu)


@given(LINEAR, SEEDS, DTYPES)
def test_linear_dgrad(sizes, seed, dtype):
    N, C, K = sizes
    dy, w = random(seed, N, K), random(seed, K, C)
    dx = [[math.fsum(dy[n, k] * w[k, c] for k in range(K)) for c in range(C)] for n in range(N)]
    equal(ck.linear_dgrad(dy, w, impl="reference"), dx)
    gate("linear_dgrad", Linear(*sizes), dtype, seed)


@given(LINEAR, SEEDS, DTYPES)
def test_linear_wgrad(sizes, seed, dtype):
    N, C, K = sizes
    dy, x = random(seed, N, K), random(seed, N, C)
    dw = [[math.fsum(dy[n, k] * x[n, c] for n in range(N)) for c in range(C)] for k in range(K)]
    equal(ck.linear_wgrad(x, dy, impl="reference"), dw)
    gate("linear_wgrad", Linear(*sizes), dtype, seed)


@given(st.integers(1, 40), st.integers(1, 40), SEEDS, DTYPES)
def test_linear_bgrad(N, K, seed, dtype):
    dy = random(seed, N, K)
    equal(ck.linear_bgrad(dy, impl="reference"), [math.fsum(dy[:, k]) for k in range(K)])
    gate("linear_bgrad", ChannelSum(N, K, 1, 1, 2), dtype, seed)


def philox4x32_10(counter, key):
    """As its paper has it, in Python's own integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(
    "counter, key, words",
    [  # the known answers that Random123 ships
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_philox_known_answers(counter, key, words):
    from convkit.ops.philox import philox

    assert tuple(philox4x32_10(counter, key)) == words
    assert tuple(int(w[0]) for w in philox(tuple(np.array([c]) for c in counter), key)) == words


@given(
    st.lists(st.integers(1, 9), max_size=3), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.sampled_from([1.0, 2.0, 0.3]), DTYPES,
)  # fmt: skip
@pytest.mark.parametrize("op", ["dropout_fprop", "dropout_dgrad"])
def test_dropout(op, shape, p, seed, offset, scale, dtype):
    x = random(1, *shape)
    expected = []
    for i, value in enumerate(x.ravel()):
        counter = offset + i // 4
        word = philox4x32_10((counter & 0xFFFFFFFF, counter >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))[
            i % 4
        ]
        expected.append(0.0 if word < p * 2**32 else value * scale)
    options = {"p": p, "seed": seed, "offset": offset, "scale": scale}
    equal(getattr(ck, op)(x, **options, impl="reference"), np.array(expected).reshape(shape))
    gate(op, Elementwise(tuple(shape)), dtype, 0, **options)


def test_dropout_defaults_to_inverted():
    x = np.ones(100_000, np.float32)
    y = ck.dropout_fprop(x, p=0.25, seed=1)
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert not ck.dropout_fprop(x, p=1, seed=1).any()
    assert np.array_equal(ck.dropout_fprop(x, p=0, seed=1), x)
    assert np.array_equal(ck.dropout_dgrad(x, p=0.25, seed=1), y)
    assert not np.array_equal(ck.dropout_fprop(x, p=0.25, seed=2), y)
    assert np.array_equal(ck.dropout_fprop(x[4:], p=0.25, seed=1, offset=1), y[4:]), (
        "offsets continue the stream"
    )


@given(st.integers(1, 8), st.integers(1, 12), SEEDS, DTYPES)
def test_softmax_xent_fprop(N, K, seed, dtype):
    z, labels = random(seed, N, K) * 3, np.random.default_rng(seed).integers(0, K, N)
    probs = np.array([[math.exp(v) / math.fsum(map(math.exp, row)) for v in row] for row in z])
    loss = [-math.log(probs[n, labels[n]]) for n in range(N)]
    got = ck.softmax_xent_fprop(z, labels, impl="reference")
    equal(got[0], loss)
    equal(got[1], probs)
    gate("softmax_xent_fprop", SoftmaxXent(N, K), dtype, seed)


@given(st.integers(1, 8), st.integers(1, 12), SEEDS, DTYPES)
def test_softmax_xent_dgrad(N, K, seed, dtype):
    probs, labels = random(seed, N, K), np.random.default_rng(seed).integers(0, K, N)
    expected = [[(probs[n, k] - (k == labels[n])) / N for k in range(K)] for n in range(N)]
    equal(ck.softmax_xent_dgrad(probs, labels, impl="reference"), expected)
    gate("softmax_xent_dgrad", SoftmaxXent(N, K), dtype, seed)


@given(
    st.lists(st.integers(1, 9), max_size=3), SEEDS, DTYPES, st.sampled_from(["torch", "nesterov", "2012"]),
    *(st.floats(0, 1) for _ in range(4)),
)  # fmt: skip
def test_sgd_momentum(shape, seed, dtype, kind, lr, momentum, weight_decay, dampening):
    w, dw, v = (random(seed + i, *shape) for i in range(3))
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    options["lr_in_velocity"] = kind == "2012"
    options["nesterov"] = kind == "nesterov"
    options["dampening"] = 0.0 if kind == "2012" else dampening
    w_new, v_new = np.empty(shape), np.empty(shape)
    for i in np.ndindex(*shape):
        g = dw[i] + weight_decay * w[i]
        if kind == "2012":  # "learning rate in the velocity", Krizhevsky et al. 2012
            v_new[i] = momentum * v[i] - lr * g
            w_new[i] = w[i] + v_new[i]
        else:  # torch.optim.SGD
            v_new[i] = momentum * v[i] + (1 - options["dampening"]) * g
            w_new[i] = w[i] - lr * (g + momentum * v_new[i] if kind == "nesterov" else v_new[i])
    got = ck.sgd_momentum(w, dw, v, **options, impl="reference")
    equal(got[0], w_new)
    equal(got[1], v_new)
    gate("sgd_momentum", Elementwise(tuple(shape)), dtype, seed, **options)


# ---------------------------------------------------------------------------------------------------
# Bad inputs
# ---------------------------------------------------------------------------------------------------
F = np.float32
X, W, B = np.ones((2, 4, 8, 8), F), np.ones((6, 4, 3, 3), F), np.ones(6, F)
Y = np.ones((2, 6, 6, 6), F)
ROWS, LABELS = np.ones((3, 5), F), np.array([0, 1, 4])
ARGMAX = np.zeros((2, 4, 3, 3), np.uint8)
PY = np.ones((2, 4, 3, 3), F)
FLAT = np.ones(4, F)
FLAG = np.ones((2, 1), np.int32)[:, 0]


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def vast(*shape):
    """An array that says it is vast, and holds one number."""
    return np.broadcast_to(F(0), shape)


#: name: (call with out, error, words of the message)
BAD = {
    "rank of x": (lambda **o: ck.conv2d_fprop(X[0], W, **o), ShapeError, r"x must have 4 dim.*\(4, 8, 8\)"),
    "rank of w": (lambda **o: ck.conv2d_fprop(X, W[0], **o), ShapeError, r"w must have 4 dim"),
    "rank of x, linear": (lambda **o: ck.linear_fprop(X, ROWS, **o), ShapeError, r"x must have 2 dim"),
    "rank, linear_dgrad": (lambda **o: ck.linear_dgrad(X, ROWS, **o), ShapeError, r"dy must be \(N, K\)"),
    "rank, linear_wgrad": (lambda **o: ck.linear_wgrad(X, ROWS, **o), ShapeError, r"x must be \(N, C\)"),
    "rank, bgrad": (lambda **o: ck.conv2d_bgrad(ROWS, **o), ShapeError, r"dy must have 4 dim"),
    "rank, pool": (lambda **o: ck.maxpool2d_fprop(ROWS, **o), ShapeError, r"x must have 4 dim"),
    "rank, lrn": (lambda **o: ck.lrn_fprop(ROWS, **o), ShapeError, r"x must have 4 dim"),
    "channels": (
        lambda **o: ck.conv2d_fprop(X, W[:, :3], **o),
        ShapeError,
        r"3 channels per filter.*C/groups = 4",
    ),
    "channels in groups": (lambda **o: ck.conv2d_fprop(X, W, groups=2, **o), ShapeError, r"C/groups = 2"),
    "C by groups": (
        lambda **o: ck.conv2d_fprop(X, W, groups=3, **o),
        ShapeError,
        r"C = 4 channels, not divisible by groups = 3",
    ),
    "K by groups": (
        lambda **o: ck.conv2d_fprop(X, np.ones((5, 2, 3, 3), F), groups=2, **o),
        ShapeError,
        r"K = 5 filters",
    ),
    "bias": (
        lambda **o: ck.conv2d_fprop(X, W, B[:5], **o),
        ShapeError,
        r"b must have shape \(6,\), not \(5,\)",
    ),
    "dy": (
        lambda **o: ck.conv2d_dgrad(Y[:, :, :5], W, X.shape, **o),
        ShapeError,
        r"dy must have shape \(2, 6, 6, 6\)",
    ),
    "x_shape": (lambda **o: ck.conv2d_dgrad(Y, W, 7, **o), ShapeError, r"x must be a shape \(N, C, H, W\)"),
    "w_shape": (lambda **o: ck.conv2d_wgrad(X, Y, (6, 4, 3), **o), ShapeError, r"w must have 4 dim"),
    "window": (
        lambda **o: ck.conv2d_fprop(X, np.ones((6, 4, 9, 3), F), **o),
        ShapeError,
        r"window spans 9 pixels, more than .*8",
    ),
    "pool window": (lambda **o: ck.maxpool2d_fprop(X, window=9, **o), ShapeError, r"window spans 9"),
    "stride 0": (
        lambda **o: ck.conv2d_fprop(X, W, stride=0, **o),
        OptionError,
        r"stride must be at least 1, not 0",
    ),
    "stride -1": (
        lambda **o: ck.maxpool2d_fprop(X, stride=(1, -1), **o),
        OptionError,
        r"stride must be at least 1, not -1",
    ),
    "stride True": (
        lambda **o: ck.conv2d_fprop(X, W, stride=True, **o),
        OptionError,
        r"stride must be an integer, not True",
    ),
    "stride 1.0": (
        lambda **o: ck.conv2d_fprop(X, W, stride=1.0, **o),
        OptionError,
        r"stride must be an integer, not 1.0",
    ),
    "relu of words": (
        lambda **o: ck.conv2d_fprop(X, W, relu="no", **o),
        OptionError,
        r"relu must be True or False, not 'no'",
    ),
    "relu of an array": (
        lambda **o: ck.conv2d_fprop(X, W, relu=np.array([1, 0]), **o),
        OptionError,
        r"relu must be True or False, not array",
    ),
    "lrn's options": (
        lambda **o: ck.lrn_maxpool2d_fprop(X, lrn={"foo": 1}, pool={}, **o),
        OptionError,
        r"lrn must be a dict of lrn options, not \{'foo': 1\}",
    ),
    "pool's options": (
        lambda **o: ck.lrn_maxpool2d_fprop(X, lrn={}, pool=None, **o),
        OptionError,
        r"pool must be a dict of pool options, not None",
    ),
    "alpha": (
        lambda **o: ck.lrn_fprop(X, alpha=10**400, **o),
        OptionError,
        r"alpha must be a number, not 1000",
    ),
    "ceil_mode": (
        lambda **o: ck.maxpool2d_fprop(X, ceil_mode="floor", **o),
        OptionError,
        r"ceil_mode must be True or False, not 'floor'",
    ),
    "stride of three": (
        lambda **o: ck.conv2d_fprop(X, W, stride=(1, 1, 1), **o),
        OptionError,
        r"stride must be an int or a pair",
    ),
    "padding -1": (
        lambda **o: ck.conv2d_fprop(X, W, padding=-1, **o),
        OptionError,
        r"padding must be at least 0",
    ),
    "padding of three": (
        lambda **o: ck.conv2d_fprop(X, W, padding=(1, 2, 3), **o),
        OptionError,
        r"padding must be",
    ),
    "padding 'same'": (
        lambda **o: ck.conv2d_fprop(X, W, padding="same", **o),
        OptionError,
        r"padding must be",
    ),
    "padding half nested": (
        lambda **o: ck.conv2d_fprop(X, W, padding=((1, 1), 2), **o),
        OptionError,
        r"padding must be",
    ),
    "pool padding": (
        lambda **o: ck.maxpool2d_fprop(X, padding=3, **o),
        OptionError,
        r"smaller than the window's span",
    ),
    "dilation 0": (
        lambda **o: ck.conv2d_fprop(X, W, dilation=0, **o),
        OptionError,
        r"dilation must be at least 1",
    ),
    "groups 0": (lambda **o: ck.conv2d_fprop(X, W, groups=0, **o), OptionError, r"groups must be at least 1"),
    "dtypes": (
        lambda **o: ck.conv2d_fprop(X, W.astype(float), **o),
        DtypeError,
        r"share a dtype, not x: float32, w: float64",
    ),
    "int32": (
        lambda **o: ck.relu_fprop(X.astype(np.int32), **o),
        DtypeError,
        r"x has dtype int32; known: float16, bfloat16",
    ),
    "complex": (lambda **o: ck.relu_fprop(X.astype(np.complex64), **o), DtypeError, r"x has dtype complex64"),
    "bool": (lambda **o: ck.relu_fprop(X > 0, **o), DtypeError, r"x has dtype bool"),
    "object": (lambda **o: ck.relu_fprop(X.astype(object), **o), DtypeError, r"x has dtype object"),
    "big-endian": (lambda **o: ck.relu_fprop(X.astype(">f4"), **o), DtypeError, r"x has dtype >f4"),
    "list": (lambda **o: ck.relu_fprop([1.0, 2.0], **o), DtypeError, r"x must be an array .*not list"),
    "scalar": (lambda **o: ck.relu_fprop(1.0, **o), DtypeError, r"x must be an array .*not float"),
    "None": (lambda **o: ck.conv2d_fprop(X, None, **o), DtypeError, r"w must be an array, not None"),
    "label too large": (
        lambda **o: ck.softmax_xent_fprop(ROWS, LABELS + 1, **o),
        OptionError,
        r"labels must each be a class, 0 <= value < 5; found 5",
    ),
    "label negative": (lambda **o: ck.softmax_xent_fprop(ROWS, LABELS - 1, **o), OptionError, r"found -1"),
    "ignore_index of PyTorch": (
        lambda **o: ck.softmax_xent_dgrad(ROWS, np.where(LABELS == 0, -100, LABELS), **o),
        OptionError,
        r"labels must each be a class, .*found -100",
    ),
    "label of dgrad": (lambda **o: ck.softmax_xent_dgrad(ROWS, LABELS + 1, **o), OptionError, r"found 5"),
    "uint64 label": (
        lambda **o: ck.softmax_xent_fprop(ROWS, np.array([0, 1, 2**64 - 1], np.uint64), **o),
        OptionError,
        r"labels must each be",
    ),
    "float labels": (
        lambda **o: ck.softmax_xent_fprop(ROWS, LABELS.astype(F), **o),
        DtypeError,
        r"labels must be of an integer dtype, not float32",
    ),
    "labels' shape": (
        lambda **o: ck.softmax_xent_fprop(ROWS, LABELS[:2], **o),
        ShapeError,
        r"labels must have shape \(3,\)",
    ),
    **{
        f"dloss of {dtype}": (
            lambda dtype=dtype, **o: ck.softmax_xent_dgrad(ROWS, LABELS, np.zeros(3, dtype), **o),
            DtypeError,
            rf"dloss must be of real numbers, not of dtype {re.escape(str(np.dtype(dtype)))}",
        )
        for dtype in ("complex64", "complex128", "U1", "S1", "O", "M8[s]", "m8[s]", "V4")
    },
    "dloss of None": (
        lambda **o: ck.softmax_xent_dgrad(ROWS, LABELS, np.full(3, None), **o),
        DtypeError,
        r"dloss must be of real numbers, not of dtype object",
    ),
    "dloss, a list": (
        lambda **o: ck.softmax_xent_dgrad(ROWS, LABELS, list(ROWS[:, 0]), **o),
        DtypeError,
        r"dloss must be an array",
    ),
    "argmax": (
        lambda **o: ck.maxpool2d_dgrad(ARGMAX.astype(F), ARGMAX + 9, X.shape, **o),
        OptionError,
        r"argmax must each be a position in the window, 0 <= value < 9; found 9",
    ),
    "negative argmax": (
        lambda **o: ck.maxpool2d_dgrad(ARGMAX.astype(F), ARGMAX.astype(int) - 1, X.shape, **o),
        OptionError,
        r"found -1",
    ),
    "float argmax": (
        lambda **o: ck.maxpool2d_dgrad(ARGMAX.astype(F), ARGMAX.astype(F), X.shape, **o),
        DtypeError,
        r"argmax must be of an integer",
    ),
    "relu's shapes": (
        lambda **o: ck.relu_dgrad(FLAT, FLAT[:3], **o),
        ShapeError,
        r"y must have shape \(4,\), not \(3,\)",
    ),
    "linear's shapes": (
        lambda **o: ck.linear_fprop(ROWS, ROWS[:, :4], **o),
        ShapeError,
        r"w must be \(K, C\) with C = 5",
    ),
    "sgd's shapes": (
        lambda **o: ck.sgd_momentum(FLAT, FLAT[:3], FLAT, lr=1, **o),
        ShapeError,
        r"dw must have shape",
    ),
    "sgd's convention": (
        lambda **o: ck.sgd_momentum(FLAT, FLAT, FLAT, lr=1, nesterov=True, lr_in_velocity=True, **o),
        OptionError,
        r"nesterov",
    ),
    "lr": (
        lambda **o: ck.sgd_momentum(FLAT, FLAT, FLAT, lr=float("nan"), **o),
        OptionError,
        r"lr must be a finite number",
    ),
    "label of a rank": (
        lambda **o: ck.label_rank(ROWS, LABELS + 1, **o),
        OptionError,
        r"labels must each be a class, 0 <= value < 5; found 5",
    ),
    "labels of a rank": (
        lambda **o: ck.label_rank(ROWS, ROWS[:, 0], **o),
        DtypeError,
        r"labels must be of an integer dtype",
    ),
    "rank's dtype": (
        lambda **o: ck.loss_summary(FLAT, np.zeros(4, int), **o),
        DtypeError,
        r"rank must be of dtype int32, not int64",
    ),
    "rank's shape": (
        lambda **o: ck.loss_summary(FLAT, np.zeros(3, np.int32), **o),
        ShapeError,
        r"rank must have shape \(4,\), not \(3,\)",
    ),
    "losses of two dimensions": (
        lambda **o: ck.loss_summary(ROWS, np.zeros(3, np.int32), **o),
        ShapeError,
        r"loss must have 1 dimensions \(N,\)",
    ),
    "flag's dtype": (
        lambda **o: ck.sgd_momentum(FLAT, FLAT, FLAT, lr=1, finite=np.ones(1, bool), **o),
        DtypeError,
        r"finite must be of dtype int32, not bool",
    ),
    "flag's shape": (
        lambda **o: ck.linear_wgrad_sgd(ROWS, ROWS, ROWS.T @ ROWS, ROWS.T @ ROWS, lr=1, finite=FLAG, **o),
        ShapeError,
        r"finite must have shape \(1,\), not \(2,\)",
    ),
    "a flag that is no array": (
        lambda **o: ck.sgd_momentum(FLAT, FLAT, FLAT, lr=1, finite=True, **o),
        DtypeError,
        r"finite must be an array .*not bool",
    ),
    "p": (lambda **o: ck.dropout_fprop(FLAT, p=1.5, seed=0, **o), OptionError, r"p must be a probability"),
    "p < 0": (lambda **o: ck.dropout_fprop(FLAT, p=-0.5, seed=0, **o), OptionError, r"p must be"),
    "seed": (
        lambda **o: ck.dropout_fprop(FLAT, p=0.5, seed=2**64, **o),
        OptionError,
        r"seed must be below 2\^64",
    ),
    "float seed": (
        lambda **o: ck.dropout_fprop(FLAT, p=0.5, seed=1.5, **o),
        OptionError,
        r"seed must be an integer",
    ),
    "lrn size": (lambda **o: ck.lrn_fprop(X, size=0, **o), OptionError, r"size must be at least 1"),
    "lrn k": (lambda **o: ck.lrn_fprop(X, k=0, **o), OptionError, r"k must be positive"),
    "lrn groups": (lambda **o: ck.lrn_fprop(X, groups=3, **o), ShapeError, r"not divisible by groups = 3"),
    "lrn region": (lambda **o: ck.lrn_fprop(X, region="across", **o), OptionError, r"region must be"),
    "impl": (
        lambda **o: ck.conv2d_fprop(X, W, impl="referense", **o),
        OptionError,
        r"did you mean 'reference'",
    ),
    "math": (lambda **o: ck.conv2d_fprop(X, W, math="fp16", **o), OptionError, r"unknown math 'fp16'"),
    "too many bytes": (
        lambda **o: ck.conv2d_dgrad(Y, W, (2, 4, 2**40, 2**40), **o),
        ShapeError,
        r"more bytes than an address can reach",
    ),
    "argmax of the fused op": (
        lambda **o: ck.lrn_maxpool2d_dgrad(PY, ARGMAX + 9, X, lrn={}, pool={}, **o),
        OptionError,
        r"argmax must each be a position in the window, 0 <= value < 9; found 9",
    ),
    "x of the fused op": (
        lambda **o: ck.conv2d_dgrad_relu(Y, W, X[:1], **o),
        ShapeError,
        r"dy must have shape \(1, 6, 6, 6\), not \(2, 6, 6, 6\)",
    ),
    "dy of the fused op": (
        lambda **o: ck.conv2d_wgrad_bgrad(X, Y[:1], W.shape, **o),
        ShapeError,
        r"dy must have shape \(2, 6, 6, 6\), not \(1, 6, 6, 6\)",
    ),
    "one output of the fused op": (
        lambda **o: ck.conv2d_wgrad_bgrad(X, Y, W.shape, **{"out": np.empty_like(W), **o}),
        OptionError,
        r"out must be a tuple of 2: \('dw', 'db'\)",
    ),
    "w of the fused op": (
        lambda **o: ck.linear_wgrad_sgd(ROWS, ROWS, ROWS[0], ROWS, lr=0.1, **o),
        ShapeError,
        r"w must have 2 dimensions",
    ),
    "lr of the fused op": (
        lambda **o: ck.linear_dgrad_wgrad_sgd(ROWS, ROWS, ROWS, ROWS, lr=np.inf, **o),
        OptionError,
        r"lr must be a finite number, not inf",
    ),
    "one layout of two": (
        lambda **o: ck.relu_dgrad(blocked(X), X, **o),
        OptionError,
        r"the arrays must share a layout, not dy: nChw16c, y: NCHW",
    ),
    "layouts of one side": (
        lambda **o: ck.conv2d_dgrad_relu(Y, W, blocked(X), **{"out": np.empty_like(X), **o}),
        OptionError,
        r"dx must be in nChw16c, as the others are, not in NCHW",
    ),
    "blocked weights": (
        lambda **o: ck.conv2d_fprop(X, blocked(W), **o),
        OptionError,
        r"w cannot be in nChw16c: known are KCRS, KRSC",
    ),
    "blocked dropout": (
        lambda **o: ck.dropout_fprop(blocked(X), p=0.5, seed=1, **o),
        OptionError,
        r"it counts the elements in their order, so none may be in nChw16c",
    ),
    "reorder to nothing else": (
        lambda **o: ck.reorder(blocked(X)),
        NoImplementation,
        r"no implementation for cpu, in nChw16c, takes Reorder",
    ),
    "bytes of y": (
        lambda **o: ck.conv2d_fprop(vast(2**20, 1, 2**21, 2**15), vast(2**10, 1, 1, 1), **o),
        ShapeError,
        r"more bytes|must have shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    kept = [a.copy() for a in (X, W, B, Y, ROWS, LABELS, ARGMAX, FLAT)]
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, ConvkitError) and isinstance(caught.value, (ValueError, TypeError))
    assert caught.value.op in OPS and str(caught.value).startswith(caught.value.op + ": ")
    for shape in ((2, 6, 6, 6), X.shape, (4,)):
        out = np.full(shape, 7, F)
        with pytest.raises(ConvkitError):
            call(out=out)
        assert (out == 7).all()
    for array, before in zip((X, W, B, Y, ROWS, LABELS, ARGMAX, FLAT), kept):
        assert np.array_equal(array, before)


BAD_OUT = {
    "read-only": (lambda: frozen(Y), OptionError, r"out \(y\) is read-only"),
    "shape": (
        lambda: Y[:, :5].copy(),
        ShapeError,
        r"out \(y\) must have shape \(2, 6, 6, 6\), not \(2, 5, 6, 6\)",
    ),
    "dtype": (lambda: Y.astype(float), DtypeError, r"out \(y\) must have dtype float32, not float64"),
    "big-endian": (lambda: Y.astype(">f4"), DtypeError, r"out \(y\) must have dtype"),
    "list": (lambda: [1], DtypeError, r"out \(y\) must be an array"),
}


@pytest.mark.parametrize("name", BAD_OUT)
def test_bad_out(name):
    make, error, words = BAD_OUT[name]
    out = make()
    before = np.array(out)
    with pytest.raises(error, match=words):
        ck.conv2d_fprop(X, W, out=out)
    assert np.array_equal(before, np.array(out))


def test_bad_tuples_of_out():
    y, argmax = np.zeros((2, 4, 3, 3), F), np.zeros((2, 4, 3, 3), np.uint8)
    for out in (y, (y,), (y, argmax, y), [y]):
        with pytest.raises(ConvkitError, match="out must be a tuple of 2"):
            ck.maxpool2d_fprop(X, out=out)
    with pytest.raises(DtypeError, match=r"out \(argmax\) must have dtype uint8"):
        ck.maxpool2d_fprop(X, out=(y, argmax.astype(int)))
    same = np.zeros(4, F)
    with pytest.raises(OptionError, match="share memory with each other"):
        ck.sgd_momentum(FLAT, FLAT, FLAT, lr=1, out=(same, same))
    assert not y.any() and not argmax.any() and not same.any()
    assert ck.maxpool2d_fprop(X, out=(y, None))[0] is y, "either may be left out"


def test_memory_that_nobody_has():
    with pytest.raises(OutOfMemory, match="relu_fprop: no memory for a contiguous copy of x") as caught:
        ck.relu_fprop(vast(2**50))
    assert isinstance(caught.value, ConvkitError) and isinstance(caught.value, MemoryError)
    with pytest.raises(OutOfMemory, match=r"no memory for an array of shape .* GiB"):
        ck.conv2d_fprop(X[:1, :, :1, :1], W[:, :, :1, :1], padding=2**24)


def test_max_error_bounds_what_is_picked():
    """test_registry has the refusals in full."""
    x, w = random(1, *X.shape).astype(F), random(2, *W.shape).astype(F)
    with ck.use(max_error=0.0):
        assert np.array_equal(ck.conv2d_fprop(x, w), ck.conv2d_fprop(x, w, impl="reference"))


# ---------------------------------------------------------------------------------------------------
# Accepted inputs
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_result_has_the_dtype_and_is_contiguous(dtype):
    x, w, b = (a.astype(dtype) for a in (X, W, B))
    problem = Conv2d.of(X.shape, W.shape, dtype=ck.arrays.dtype_name("x", x))
    takers = [i for i in ck.implementations("conv2d_fprop", device="cpu") if i.refusal(problem) is None]
    for impl, error in [(None, 1e-5), *((i.name, i.error) for i in takers)]:
        y = ck.conv2d_fprop(x, w, b, impl=impl)
        assert type(y) is np.ndarray and y.dtype == dtype and y.flags.c_contiguous and y.flags.writeable
        if impl is not None and error <= tolerance.PLAIN:  # sums of whole numbers, exact in any order
            assert (y.astype(float) == 37).all(), impl
        else:  # Winograd's transforms have fractions in them
            assert np.abs(y.astype(float) - 37).max() <= 10 * error * 37, impl


def test_strided_read_only_and_subclassed_inputs():
    x, w = random(1, 2, 4, 8, 8).astype(F), random(2, 6, 4, 3, 3).astype(F)
    expected = ck.conv2d_fprop(x, w)
    for form in (strided, frozen, np.asfortranarray, lambda a: a.view(type("Mine", (np.ndarray,), {}))):
        got = ck.conv2d_fprop(form(x), form(w))
        assert np.array_equal(got, expected) and type(got) is np.ndarray
    assert np.array_equal(ck.relu_fprop(np.broadcast_to(F(-1), (3, 4))), np.zeros((3, 4)))
    assert np.array_equal(ck.relu_fprop(x[:, ::-1, ::2, ::-1]), np.maximum(x[:, ::-1, ::2, ::-1], 0))


def test_labels_and_argmax_of_any_integer_dtype():
    expected = ck.softmax_xent_fprop(ROWS, LABELS)
    for dtype in (np.int8, np.int32, np.uint8, np.uint64):
        assert np.array_equal(ck.softmax_xent_fprop(ROWS, LABELS.astype(dtype))[0], expected[0])
    y, argmax = ck.maxpool2d_fprop(X)
    for dtype in (np.int8, np.int64, np.uint32):
        assert np.array_equal(
            ck.maxpool2d_dgrad(y, argmax.astype(dtype), X.shape), ck.maxpool2d_dgrad(y, argmax, X.shape)
        )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_dloss_of_any_real_dtype(dtype):
    """It is kept in the dtype of the loss, where 1e300 may be an infinity, without a warning."""
    probs = ck.softmax_xent_fprop(ROWS.astype(np_dtype(dtype)), LABELS)[1]
    dloss = np.array([2, 0, 1])
    expected = ck.softmax_xent_dgrad(probs, LABELS, dloss.astype(np.float64))
    for form in (np.uint8, np.int64, np.float16, ml_dtypes.bfloat16, np.float32, ">f4", np.longdouble):
        assert np.array_equal(ck.softmax_xent_dgrad(probs, LABELS, dloss.astype(form)), expected)
    got = ck.softmax_xent_dgrad(probs, LABELS, np.array([1e300, 0, 1])).astype(np.float64)
    assert np.isinf(got[0]).all() == (dtype != "float64") and np.isfinite(got[1:]).all()


@pytest.mark.parametrize("op", OPS)
def test_nan_in_nan_out(op):
    """Every op, by whichever implementations take the problem, in every layout, lets a NaN through."""
    case = next(c for c in check.cases(op) if c.fill == "nan")
    question = check.Question.of(case, "float32", 3)
    verdicts = [check.judge(i, question) for i in ck.implementations(op, device="cpu", layout=None)]
    assert all(v.ok for v in verdicts), "\n".join(map(str, verdicts))
    assert any(not v.declined for v in verdicts)
    # A rank is an integer: its case is held to K. A loss scale is never a NaN.
    if op not in ("dropout_dgrad", "label_rank", "adjust_loss_scale"):
        assert any(np.isnan(w.value).any() for w in question.wanted.values() if w.value.dtype.kind == "f")


def test_empty_batch():
    x = np.zeros((0, 4, 8, 8), F)
    assert ck.conv2d_fprop(x, W).shape == (0, 6, 6, 6)
    dw = ck.conv2d_wgrad(x, np.zeros((0, 6, 6, 6), F), W.shape, out=np.full(W.shape, np.nan, F))
    assert dw.shape == W.shape and not dw.any()
    assert not ck.linear_bgrad(np.zeros((0, 5), F)).any()
    loss, probs = ck.softmax_xent_fprop(np.zeros((0, 5), F), np.zeros(0, int))
    assert loss.shape == (0,) and probs.shape == (0, 5)
    assert ck.relu_fprop(np.zeros((3, 0), F)).shape == (3, 0)


# ---------------------------------------------------------------------------------------------------
# out=
# ---------------------------------------------------------------------------------------------------
def test_out_is_filled_and_returned():
    x, w = random(1, 2, 4, 8, 8).astype(F), random(2, 6, 4, 3, 3).astype(F)
    expected = ck.conv2d_fprop(x, w)
    out = np.full(expected.shape, np.nan, F)
    assert ck.conv2d_fprop(x, w, out=out) is out and np.array_equal(out, expected)
    wide = np.full((*expected.shape[:3], 12), np.nan, F)
    part = wide[..., ::2]
    assert ck.conv2d_fprop(x, w, out=part) is part and np.array_equal(part, expected)
    assert np.isnan(wide[..., 1::2]).all()


def test_relu_in_place():
    x = random(1, 3, 5).astype(F)
    expected = np.maximum(x, 0)
    assert ck.relu_fprop(x, out=x) is x and np.array_equal(x, expected)


def test_out_that_overlaps_an_input():
    w = np.ones((4, 4, 3, 3), F)
    problem = Conv2d.of(X.shape, w.shape, padding=1)
    candidates = ck.implementations("conv2d_fprop", device="cpu")
    for impl in [i.name for i in candidates if i.refusal(problem) is None]:
        memory = random(1, 2 * 4 * 8 * 8 + 40).astype(F)
        x = memory[: X.size].reshape(X.shape)
        expected = ck.conv2d_fprop(x.copy(), w, padding=1, impl=impl)
        out = memory[40:].reshape(X.shape)
        ck.conv2d_fprop(x, w, padding=1, out=out, impl=impl)
        assert np.array_equal(out, expected), impl
        x = random(1, *X.shape).astype(F)
        expected = ck.conv2d_fprop(x.copy(), w, padding=1, impl=impl)
        assert np.array_equal(ck.conv2d_fprop(x, w, padding=1, out=x, impl=impl), expected)
    memory = random(1, 50).astype(F)
    expected = np.maximum(memory[:40], 0)
    assert np.array_equal(ck.relu_fprop(memory[:40], out=memory[10:]), expected)


def test_sgd_in_place():
    w, dw, v = (random(i, 6, 7).astype(F) for i in range(3))
    expected = ck.sgd_momentum(w.copy(), dw, v.copy(), lr=0.1)
    got = ck.sgd_momentum(w, dw, v, lr=0.1, out=(w, v))
    assert got[0] is w and got[1] is v
    assert np.array_equal(w, expected[0]) and np.array_equal(v, expected[1])


# ---------------------------------------------------------------------------------------------------
# Errors and losses of a batch
# ---------------------------------------------------------------------------------------------------
@given(st.integers(1, 8), st.integers(1, 12), SEEDS, DTYPES)
def test_label_rank(N, K, seed, dtype):
    rng = np.random.default_rng(seed)
    z, labels = rng.integers(-2, 3, (N, K)).astype(np_dtype(dtype)), rng.integers(0, K, N)
    expected = [sorted(range(K), key=lambda k: (-float(z[n, k]), k)).index(labels[n]) for n in range(N)]
    for impl in [i.name for i in ck.implementations("label_rank", device="cpu") if dtype in i.dtypes]:
        assert ck.label_rank(z, labels, impl=impl).tolist() == expected
    assert np.array_equal(np.array(expected) == 0, z.argmax(axis=1) == labels)
    gate("label_rank", SoftmaxXent(N, K), dtype, seed)


def test_label_rank_beside_nan_and_infinity():
    z = np.zeros((4, 3), F)
    z[0, 2], z[1, 0], z[2, 1], z[3] = np.nan, np.nan, np.inf, -np.inf
    for impl in [i.name for i in ck.implementations("label_rank", device="cpu")]:
        got = ck.label_rank(z, np.array([0, 0, 2, 1]), impl=impl)
        assert got.tolist() == [3, 3, 2, 1] and got.dtype == np.int32
    assert ck.label_rank(z[:0], np.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_summary(dtype):
    loss, rank = random(1, 1000).astype(dtype) * 1e4, np.arange(1000, dtype=np.int32) % 7
    total, errors, finite = ck.loss_summary(loss, rank)
    equal(total, [math.fsum(loss)], rtol=0, atol=1e-8)
    assert errors.tolist() == [(rank >= 1).sum(), (rank >= 5).sum()] and finite.tolist() == [1]
    assert [a.dtype for a in (total, errors, finite)] == [np.float64, np.int64, np.int32]
    for bad in (np.nan, np.inf, -np.inf):
        loss[567] = bad
        total, _, finite = ck.loss_summary(loss, rank)
        assert finite.tolist() == [0] and np.array_equal(total, [bad], equal_nan=True)
    total, errors, finite = ck.loss_summary(loss[:0], rank[:0])
    assert total.tolist() == [0] and errors.tolist() == [0, 0] and finite.tolist() == [1]


def test_a_summary_is_the_flag_of_an_update():
    logits, w = np.array([[1, 2, 3], [3, 2, 1]], F), np.ones(4, F)
    labels, loss, probs = np.array([2, 2]), np.empty(2, F), np.empty((2, 3), F)
    rank, total, errors = np.empty(2, np.int32), np.empty(1), np.empty(2, np.int64)
    finite, v = np.empty(1, np.int32), np.zeros(4, F)
    calls = [
        call_of(lambda: ck.softmax_xent_fprop(logits, labels, out=(loss, probs))),
        call_of(lambda: ck.label_rank(logits, labels, out=rank)),
        call_of(lambda: ck.loss_summary(loss, rank, out=(total, errors, finite))),
        call_of(lambda: ck.sgd_momentum(w, w, v, lr=0.5, finite=finite, out=(w, v))),
    ]
    w.fill(1)
    v.fill(0)
    for bad, moved, counted in ((np.nan, 1, [2, 0]), (3, 0.5, [1, 0])):
        logits[0, 2] = bad
        for call in calls:
            call.run()
        assert (w == moved).all() and errors.tolist() == counted and finite[0] == (bad == 3)


UPDATES = ("sgd_momentum", "linear_wgrad_sgd", "linear_dgrad_wgrad_sgd")


def update(op, seed=0, N=5, dtype="float32"):
    """(inputs by name, in the op's order) of an update of weights (3, 7)."""
    shapes = {"x": (N, 7), "dy": (N, 3)}
    names = OPS[op].inputs
    return {n: random(seed + i, *shapes.get(n, (3, 7))).astype(np_dtype(dtype)) for i, n in enumerate(names)}


def bits(array):
    return array.view(np.uint8)


FLAGGED = [(op, i.name) for op in UPDATES for i in ck.implementations(op, device="cpu")]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("N", [5, 150])
@pytest.mark.parametrize(("op", "impl"), FLAGGED)
def test_a_flag_of_zero_keeps_weights_and_velocity(op, impl, N, dtype):
    need_kernels()
    run, rule = getattr(ck, op), {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1, "impl": impl}
    given = update(op, N=N, dtype=dtype)
    for name, odd in (("w", 0x7FD5), ("v", 0xFFC1)):  # NaNs that a conversion would make plain ones
        if dtype == "bfloat16":
            given[name].view(np.uint16)[1, 2] = odd
    given["w"][0, 0] = -0.0
    dx = run(**given, **rule)[:-2]
    for name in set(given) - {"w", "v"}:
        given[name][0, 0] = np.nan
    dx_nan = run(**given, **rule)[:-2]
    zero = np.zeros(1, np.int32)
    kept = run(**given, **rule, finite=zero)
    assert np.array_equal(bits(kept[-2]), bits(given["w"])) and np.array_equal(
        bits(kept[-1]), bits(given["v"])
    )
    assert kept[-2] is not given["w"] and not np.shares_memory(kept[-2], given["w"])
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(kept, dx_nan))  # dx, if any
    assert all(not np.array_equal(a, b) for a, b in zip(dx, dx_nan))
    before = given["w"].copy(), given["v"].copy()
    out = *(np.empty_like(a) for a in dx), given["w"], given["v"]
    run(**given, **rule, finite=zero, out=out)
    assert all(np.array_equal(bits(a), bits(b)) for a, b in zip(before, out[-2:]))


@pytest.mark.parametrize(("op", "impl"), FLAGGED)
def test_any_other_flag_is_as_good_as_none(op, impl):
    run, given = getattr(ck, op), update(op)
    expected = run(**given, lr=0.5, impl=impl)
    for value in (1, -1, 2**30, -(2**31)):
        got = run(**given, lr=0.5, impl=impl, finite=np.array([value], np.int32))
        assert all(np.array_equal(a, b) for a, b in zip(got, expected))


def test_an_empty_batch_does_not_decay_weights_that_a_flag_keeps():
    given = update("linear_wgrad_sgd", N=0)
    rule = {"lr": 0.5, "weight_decay": 0.1}
    assert not np.array_equal(ck.linear_wgrad_sgd(**given, **rule)[0], given["w"])
    kept = ck.linear_wgrad_sgd(**given, **rule, finite=np.zeros(1, np.int32))
    assert np.array_equal(kept[0], given["w"])


def test_blocked_weights_take_a_flag():
    w, dw, v = (blocked(random(i, 2, 20, 3, 3).astype(F)) for i in range(3))
    kept = ck.sgd_momentum(w, dw, v, lr=0.1, finite=np.zeros(1, np.int32))
    assert np.array_equal(kept[0].data, w.data) and np.array_equal(kept[1].data, v.data)
    moved = ck.sgd_momentum(w, dw, v, lr=0.1, finite=np.ones(1, np.int32))
    assert np.array_equal(moved[0].data, ck.sgd_momentum(w, dw, v, lr=0.1)[0].data)


def test_an_out_that_overlaps_the_flag():
    """As with any input, the result is right."""
    w, dw, v = (random(i, 4).astype(F) for i in range(3))
    memory = np.zeros(6, np.int32)
    flag, out = memory[1:2], (memory[:4].view(F), np.empty(4, F))
    ck.sgd_momentum(w, dw, v, lr=0.1, finite=flag, out=out)
    assert np.array_equal(out[0], w) and np.array_equal(out[1], v)


def test_an_update_reads_its_flag_each_time_it_runs():
    w, dw, v = (random(i, 6).astype(F) for i in range(3))
    first, expected = w.copy(), ck.sgd_momentum(w, dw, v, lr=0.1)[0]
    flag = np.zeros(1, np.int32)
    call = call_of(lambda: ck.sgd_momentum(w, dw, v, lr=0.1, finite=flag, out=(w, v)))
    call.run()
    assert np.array_equal(w, first)
    flag[...] = 1
    call.run()
    assert np.array_equal(w, expected)


# ---------------------------------------------------------------------------------------------------
# Fused ops: by the reference, they are the ops that they stand for, one after the other
# ---------------------------------------------------------------------------------------------------
def test_conv2d_dgrad_relu():
    x, w = np.maximum(random(1, 2, 4, 8, 7), 0), random(2, 6, 2, 3, 3)
    options = {"stride": 2, "padding": 1, "groups": 2}
    dy = random(3, *ck.conv2d_fprop(x, w, **options).shape)
    got = ck.conv2d_dgrad_relu(dy, w, x, **options, impl="reference")
    equal(got, ck.relu_dgrad(ck.conv2d_dgrad(dy, w, x.shape, **options, impl="reference"), x))
    assert (got == 0).mean() > 0.3


def test_conv2d_wgrad_bgrad():
    x, w_shape = random(1, 3, 4, 8, 7), (6, 2, 3, 3)
    options = {"stride": 2, "padding": 1, "groups": 2}
    dy = random(2, 3, 6, 4, 4)
    dw, db = ck.conv2d_wgrad_bgrad(x, dy, w_shape, **options)
    equal(dw, ck.conv2d_wgrad(x, dy, w_shape, **options, impl="reference"))
    equal(db, ck.conv2d_bgrad(dy, impl="reference"))
    for gradient in ck.conv2d_wgrad_bgrad(x[:0], dy[:0], w_shape, **options):
        assert gradient.size and not gradient.any()


@pytest.mark.parametrize("relu", [False, True])
def test_lrn_maxpool2d(relu):
    x = random(1, 2, 20, 9, 8)
    lrn, pool = {"size": 4, "alpha": 0.7, "k": 2.0}, {"window": (3, 2), "padding": 1, "ceil_mode": True}
    normalised = ck.lrn_fprop(x, **lrn, impl="reference")
    y, argmax = ck.lrn_maxpool2d_fprop(x, lrn=lrn, pool=pool, impl="reference")
    for got, expected in zip((y, argmax), ck.maxpool2d_fprop(normalised, **pool, impl="reference")):
        equal(got, expected)
    dy = random(2, *y.shape)
    inner = ck.maxpool2d_dgrad(dy, argmax, x.shape, **pool, impl="reference")
    expected = ck.lrn_dgrad(inner, x, **lrn, impl="reference")
    got = ck.lrn_maxpool2d_dgrad(dy, argmax, x, lrn=lrn, pool=pool, relu=relu, impl="reference")
    equal(got, ck.relu_dgrad(expected, x) if relu else expected)


@pytest.mark.parametrize("rule", [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}])
@pytest.mark.parametrize("lr_in_velocity", [False, True])
def test_linear_updates(rule, lr_in_velocity):
    x, dy, w, v = random(1, 5, 7), random(2, 5, 3), random(3, 3, 7), random(4, 3, 7)
    rule = {**rule, "lr_in_velocity": lr_in_velocity}
    dw = ck.linear_wgrad(x, dy, impl="reference")
    expected = ck.sgd_momentum(w, dw, v, **{"momentum": 0.0, "weight_decay": 0.0, **rule}, impl="reference")
    for got, wanted in zip(ck.linear_wgrad_sgd(x, dy, w, v, **rule, impl="reference"), expected):
        equal(got, wanted)
    dx = ck.relu_dgrad(ck.linear_dgrad(dy, w, impl="reference"), x)
    got = ck.linear_dgrad_wgrad_sgd(dy, w, x, v, relu=True, **rule, impl="reference")
    for one, wanted in zip(got, (dx, *expected), strict=True):
        equal(one, wanted)


def test_an_update_in_place_leaves_dx_the_weights_before_it():
    shapes = (5, 40), (5, 30), (30, 40), (30, 40)
    x, dy, w, v = (random(i, *shape).astype(F) for i, shape in enumerate(shapes))
    rule = {"lr": 0.5, "momentum": 0.9}
    for impl in [i.name for i in ck.implementations("linear_dgrad_wgrad_sgd", device="cpu")]:
        apart = ck.linear_dgrad_wgrad_sgd(dy, w, x, v, **rule, impl=impl)
        out = np.full_like(x, np.nan), w.copy(), v.copy()
        got = ck.linear_dgrad_wgrad_sgd(dy, out[1], x, out[2], **rule, impl=impl, out=out)
        assert all(a is b for a, b in zip(got, out))
        assert all(np.array_equal(a, b) for a, b in zip(out, apart)), impl


# ---------------------------------------------------------------------------------------------------
# Blocked tensors
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("C", [1, 16, 20])
def test_pointwise_ops_on_blocked_tensors(C):
    """Any order of the elements will do, and any number of channels: spare ones stay zeros."""
    x, dy = random(1, 2, C, 5, 6).astype(F), random(2, 2, C, 5, 6).astype(F)
    for op, arguments in ((ck.relu_fprop, (x,)), (ck.relu_dgrad, (dy, x))):
        expected, tensors = op(*arguments), [blocked(a) for a in arguments]
        out = Tensor.empty(x.shape, "float32", BLOCKED)
        out.data.fill(np.nan)
        assert op(*tensors, out=out) is out
        for got in (out, op(*tensors), op(*tensors, out=tensors[0])):
            assert isinstance(got, Tensor) and got.shape == x.shape
            assert np.array_equal(got.logical(), expected)
            assert not got.data[:, -1, ..., (C - 1) % 16 + 1 :].any()
    w = blocked(x)
    for got, expected in zip(ck.sgd_momentum(w, w, w, lr=0.5), ck.sgd_momentum(x, x, x, lr=0.5)):
        assert np.array_equal(got.logical(), expected)


def test_reorder_there_and_back():
    need_kernels()
    x = random(1, 2, 20, 5, 6).astype(F)
    tensors = ck.reorder(x, out=Tensor.empty(x.shape, "float32", BLOCKED))
    assert np.array_equal(tensors.data, blocked(x).data)
    assert np.array_equal(ck.reorder(tensors, out=np.empty_like(x)), x)
    assert np.array_equal(ck.reorder(x), x)


def test_what_is_no_tensor_of_a_layout_is_refused():
    with pytest.raises(ShapeError, match=r"a tensor in NHWC must have 4 dimensions, not 2: \(3, 5\)"):
        Tensor.of(np.ones((3, 5), F), "NHWC")
    with pytest.raises(ShapeError, match="a tensor in nChw16c must have 4 dimensions, not 5"):
        Tensor.empty((1, 2, 3, 4, 5), "float32", "nChw16c")
    with pytest.raises(DtypeError, match="array must be an array .*, not list"):
        Tensor.of([1, 2], "NHWC")


def test_positions_in_a_tensor_are_checked_and_layouts_are_those_of_the_table():
    need_kernels()
    x = blocked(random(1, 2, 20, 5, 6).astype(F))
    y, argmax = ck.maxpool2d_fprop(x)
    dx = ck.maxpool2d_dgrad(y, argmax, x.shape)
    argmax.data[:, -1, ..., 4:] = 200  # padding channels
    assert np.array_equal(ck.maxpool2d_dgrad(y, argmax, x.shape).logical(), dx.logical())
    argmax.data[0, 0, 0, 0, 3] = 9
    for _ in range(2):
        with pytest.raises(OptionError, match="argmax must each be a position in the window"):
            ck.maxpool2d_dgrad(y, argmax, x.shape)
    with pytest.raises(OptionError, match="is not the layout of that name"):
        Tensor(x.data, replace(x.layout, axes=(0, 1, 3, 2)), (2, 20, 6, 5))


def test_nhwc_is_a_layout():
    x = random(1, 2, 20, 5, 6).astype(F)
    nhwc = ck.reorder(x, out=Tensor.empty(x.shape, "float32", "NHWC"))
    assert nhwc.data.shape == (2, 5, 6, 20) and np.array_equal(nhwc.data, x.transpose(0, 2, 3, 1))
    assert np.array_equal(ck.reorder(nhwc, out=np.empty_like(x)), x)
    assert np.array_equal(ck.relu_fprop(nhwc).logical(), ck.relu_fprop(x))
    with pytest.raises(ck.NoImplementation, match="in NHWC, takes"):
        ck.maxpool2d_fprop(nhwc)
    with pytest.raises(OptionError, match="has memory"):
        Tensor(x, nhwc.layout, x.shape)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "nChw16c"])
@pytest.mark.parametrize("C", [1, 16, 20])
def test_every_layout_packs_and_unpacks(layout, C):
    x = random(1, 2, C, 5, 6).astype(F)
    tensor = Tensor.of(x, layout)
    assert tensor.shape == x.shape and np.array_equal(tensor.logical(), x)
    spare = tensor.layout.padding(tensor.data, x.shape)
    assert (spare is None) == (layout != "nChw16c" or C == 16) and (spare is None or not spare.any())


def test_blocked_in_blocked_out():
    """Unless out= says otherwise; sums and weights have one layout."""
    need_kernels()
    x, w = random(1, 2, 20, 9, 8).astype(F), random(2, 36, 20, 3, 3).astype(F)
    expected = ck.conv2d_fprop(x, w, impl="direct")
    y = ck.conv2d_fprop(blocked(x), w, impl="direct")
    plain = ck.conv2d_fprop(blocked(x), w, impl="direct", out=np.empty_like(expected))
    assert isinstance(y, Tensor) and type(plain) is np.ndarray
    assert np.array_equal(y.logical(), expected) and np.array_equal(plain, expected)
    db, dw = ck.conv2d_bgrad(y), ck.conv2d_wgrad(blocked(x), y, w.shape, impl="direct")
    np.testing.assert_allclose(db, ck.conv2d_bgrad(expected), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dw, ck.conv2d_wgrad(x, expected, w.shape, impl="direct"), rtol=1e-5, atol=1e-3)
    pooled, argmax = ck.maxpool2d_fprop(y)
    dx = ck.maxpool2d_dgrad(pooled, argmax, y.shape)
    assert isinstance(argmax, Tensor) and isinstance(dx, Tensor)
    plain_dx = ck.maxpool2d_dgrad(*ck.maxpool2d_fprop(expected), expected.shape)
    np.testing.assert_allclose(dx.logical(), plain_dx, rtol=1e-6)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_a_row_is_ignored_by_its_dloss(dtype):
    """There is no `ignore_index`: with dloss = 0 a row's label, which must be a class, has no influence."""
    probs = ck.softmax_xent_fprop(ROWS.astype(np_dtype(dtype)), LABELS)[1]
    dloss = np.arange(len(ROWS), dtype=np.float32)  # the first is 0
    expected = ck.softmax_xent_dgrad(probs, LABELS, dloss)
    other = np.array([(LABELS[0] + 1) % ROWS.shape[1], *LABELS[1:]])
    assert np.array_equal(ck.softmax_xent_dgrad(probs, other, dloss), expected)
    assert (expected[0] == 0).all() and (expected[1:] != 0).all()


# ---------------------------------------------------------------------------------------------------
# Other kinds of arrays
# ---------------------------------------------------------------------------------------------------
class Capsule:
    """The least that DLPack asks for."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0


def test_anything_with_dlpack(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules[__name__], "from_dlpack", np.from_dlpack, raising=False)
    x = random(1, 3, 5).astype(F)
    assert np.array_equal(ck.relu_fprop(Capsule(x)), np.maximum(x, 0))
    assert np.array_equal(ck.relu_dgrad(x, Capsule(x)), np.where(x > 0, x, 0))
    with pytest.raises(ConvkitError, match="cuda"):
        ck.relu_fprop(Capsule(x, 2))
    with pytest.raises(DtypeError, match="DLPack code 7"):
        ck.relu_fprop(Capsule(x, 7))


@pytest.fixture
def torch(need):
    return need("torch")


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_torch_in_torch_out(torch, dtype):
    x = torch.randn(2, 4, 8, 8).to(getattr(torch, dtype))
    w = torch.randn(6, 4, 3, 3).to(x.dtype)
    y = ck.conv2d_fprop(x, w, padding=1)
    assert isinstance(y, torch.Tensor) and y.dtype == x.dtype and y.shape == (2, 6, 8, 8)
    tolerance = {"float64": 1e-12, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.3}[dtype]
    expected = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    out = torch.full_like(y, float("nan"))
    assert ck.conv2d_fprop(x, w, padding=1, out=out) is out
    assert torch.equal(out, y)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_torch_in_place_and_strided(torch, dtype):
    x = torch.randn(4, 6).to(getattr(torch, dtype))
    expected = torch.relu(x)
    assert torch.equal(ck.relu_fprop(x.T), expected.T)
    assert ck.relu_fprop(x, out=x) is x and torch.equal(x, expected)


def test_torch_with_a_graph_is_refused_clearly(torch):
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(DtypeError, match="(?i)grad"):
        ck.relu_fprop(x)
    with pytest.raises(DtypeError, match="(?i)grad"):
        ck.relu_fprop(torch.randn(3), out=x)
    assert torch.equal(ck.relu_fprop(x.detach()), torch.relu(x.detach()))


def test_torch_pool_and_labels(torch):
    x = torch.randn(2, 3, 9, 9)
    y, argmax = ck.maxpool2d_fprop(x)
    assert argmax.dtype == torch.uint8 and torch.equal(y, torch.nn.functional.max_pool2d(x, 3, 2))
    dx = ck.maxpool2d_dgrad(y, argmax, x.shape)
    assert isinstance(dx, torch.Tensor) and dx.shape == x.shape
    logits, labels = torch.randn(4, 7), torch.tensor([0, 6, 2, 2])
    loss, probs = ck.softmax_xent_fprop(logits, labels)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(
        ck.softmax_xent_dgrad(probs, labels).sum(), torch.tensor(0.0), atol=1e-6, rtol=0
    )


# ---------------------------------------------------------------------------------------------------
# What an adversary tried
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: ck.relu_fprop(np.ma.masked_array([1.0, 2.0], [0, 1])), "masked array"),
        (lambda: ck.lrn_fprop(X, size=10**30), "size must be at most"),
        (lambda: ck.conv2d_fprop(X, W, stride=10**30), "stride must be at most"),
        (lambda: ck.lrn_fprop(X, k=-1), "k must be positive, not -1"),
        (lambda: ck.conv2d_dgrad(X, W, X), r"x must be a shape .* pass its \.shape"),
        (lambda: ck.relu_fprop(X.astype(">f4")), "byte order of another machine"),
        (lambda: ck.relu_fprop(X, impl=""), "unknown implementation"),
        (
            lambda: ck.relu_fprop(
                X[:1, :1], out=np.lib.stride_tricks.as_strided(X.copy(), (1, 1, *X.shape[2:]), (0, 0, 0, 4))
            ),
            "overlaps itself",
        ),
    ],
)
def test_refusals(act, words):
    with pytest.raises(ck.ConvkitError, match=words):
        act()


def test_torch_signs_and_devices(need):
    torch = need("torch")
    lazy = torch.tensor([1 + 2j, 3 - 4j]).conj().imag  # a negation that torch has put off
    assert ck.relu_fprop(lazy).tolist() == [0.0, 4.0]
    with pytest.raises(ck.DtypeError, match="cannot be read"):
        ck.relu_fprop(torch.ones(3, device="meta"))


def test_implementations_cannot_write_to_inputs(monkeypatch):
    from convkit import registry

    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))

    @ck.implements("relu_fprop", name="greedy", rank=-1)
    def relu(problem, x, y):
        x[...] = 0

    x = random(1, 3, 4).astype(F)
    before = x.copy()
    with pytest.raises(ValueError, match="read-only"):
        ck.relu_fprop(x, impl="greedy")
    assert np.array_equal(x, before)
