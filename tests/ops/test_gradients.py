"""Every gradient against central differences of the forward op, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import convkit as ck

STEP = 1e-5


def numeric(f, x, weights):
    """Gradient of sum(f() * weights) with respect to x, which f reads, by central differences."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        value = x[i]
        x[i] = value + STEP
        above = np.sum(f() * weights)
        x[i] = value - STEP
        below = np.sum(f() * weights)
        x[i] = value
        gradient[i] = (above - below) / (2 * STEP)
    return gradient


def close(analytic, numeric_):
    scale = max(1.0, float(np.abs(numeric_).max(initial=0)))
    np.testing.assert_allclose(analytic, numeric_, rtol=1e-6, atol=2e-9 / STEP * 1e-3 * scale)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


CONVOLUTIONS = {
    "plain": ((2, 3, 5, 4), (2, 3, 3, 2), {}),
    "stride": ((1, 2, 8, 7), (3, 2, 3, 3), {"stride": (3, 2)}),
    "padding": ((1, 2, 4, 4), (2, 2, 3, 3), {"padding": ((2, 0), (1, 3))}),
    "dilation": ((1, 2, 7, 8), (2, 2, 3, 3), {"dilation": (2, 3), "padding": 1}),
    "groups": ((2, 4, 4, 4), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((1, 3, 5, 5), (3, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    "all": (
        (2, 4, 7, 9),
        (4, 2, 2, 3),
        {"stride": (2, 3), "padding": ((1, 2), (0, 3)), "dilation": 2, "groups": 2},
    ),
    "one pixel": ((3, 2, 1, 1), (4, 2, 1, 1), {}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(name):
    x_shape, w_shape, options = CONVOLUTIONS[name]
    x, w, b = random(*x_shape), random(*w_shape), random(w_shape[0])

    def forward():
        return ck.conv2d_fprop(x, w, b, **options)

    dy = random(*forward().shape, seed=1)
    close(ck.conv2d_dgrad(dy, w, x_shape, **options), numeric(forward, x, dy))
    close(ck.conv2d_wgrad(x, dy, w_shape, **options), numeric(forward, w, dy))
    close(ck.conv2d_bgrad(dy), numeric(forward, b, dy))
    for got, name in zip(ck.conv2d_wgrad_bgrad(x, dy, w_shape, **options), (w, b), strict=True):
        close(got, numeric(forward, name, dy))


def test_conv2d_with_relu():
    """The fused ReLU's gradient is relu_dgrad before the convolution's own."""
    x, w, b = random(2, 2, 5, 5), random(3, 2, 3, 3), random(3)

    def forward():
        return ck.conv2d_fprop(x, w, b, padding=1, relu=True)

    y = forward()
    dy = random(*y.shape, seed=1)
    inner = ck.relu_dgrad(dy, y)
    close(ck.conv2d_dgrad(inner, w, x.shape, padding=1), numeric(forward, x, dy))
    close(ck.conv2d_bgrad(inner), numeric(forward, b, dy))


def test_relu():
    x = random(3, 7)
    dy = random(3, 7, seed=1)
    gradient = numeric(lambda: ck.relu_fprop(x), x, dy)
    close(ck.relu_dgrad(dy, ck.relu_fprop(x)), gradient)
    close(ck.relu_dgrad(dy, x), gradient)


@pytest.mark.parametrize("region", ["across_channels", "within_channel"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.3])
def test_lrn(region, size, beta):
    x = random(2, 4, 3, 4)
    options = {"size": size, "alpha": 0.8, "beta": beta, "k": 1.5, "region": region}
    dy = random(*x.shape, seed=1)
    close(ck.lrn_dgrad(dy, x, **options), numeric(lambda: ck.lrn_fprop(x, **options), x, dy))


def test_lrn_in_groups():
    x = random(1, 6, 2, 3)
    options = {"size": 3, "alpha": 2.0, "groups": 2}
    dy = random(*x.shape, seed=1)
    close(ck.lrn_dgrad(dy, x, **options), numeric(lambda: ck.lrn_fprop(x, **options), x, dy))


POOLS = {
    "alexnet": {},
    "window 2": {"window": 2},
    "overlap and padding": {"window": 3, "stride": 1, "padding": ((1, 2), (0, 1))},
    "ceil": {"window": (2, 3), "stride": (3, 2), "ceil_mode": True},
    "dilation": {"window": 2, "stride": 1, "dilation": (2, 3)},
}


@pytest.mark.parametrize("name", POOLS)
def test_maxpool2d(name):
    options = POOLS[name]
    # Apart by more than the step, so that no difference changes the winner.
    x = np.random.default_rng(0).permutation(2 * 2 * 7 * 6).reshape(2, 2, 7, 6).astype(float)
    y, argmax = ck.maxpool2d_fprop(x, **options)
    dy = random(*y.shape, seed=1)
    dx = ck.maxpool2d_dgrad(dy, argmax, x.shape, **options)
    close(dx, numeric(lambda: ck.maxpool2d_fprop(x, **options)[0], x, dy))


def test_linear():
    x, w, b = random(3, 7), random(5, 7), random(5)

    def forward():
        return ck.linear_fprop(x, w, b)

    dy = random(3, 5, seed=1)
    close(ck.linear_dgrad(dy, w), numeric(forward, x, dy))
    close(ck.linear_wgrad(x, dy), numeric(forward, w, dy))
    close(ck.linear_bgrad(dy), numeric(forward, b, dy))


@pytest.mark.parametrize(
    "options", [{"p": 0.5}, {"p": 0.0}, {"p": 1.0}, {"p": 0.3, "scale": 1.0, "offset": 9}]
)
def test_dropout(options):
    x = random(5, 9)
    dy = random(5, 9, seed=1)
    close(
        ck.dropout_dgrad(dy, seed=3, **options),
        numeric(lambda: ck.dropout_fprop(x, seed=3, **options), x, dy),
    )


def test_softmax_xent():
    logits = random(4, 6)
    labels = np.array([0, 5, 2, 2])

    def forward():
        return ck.softmax_xent_fprop(logits, labels)[0]

    dloss = random(4, seed=1)
    probs = ck.softmax_xent_fprop(logits, labels)[1]
    close(ck.softmax_xent_dgrad(probs, labels, dloss), numeric(forward, logits, dloss))
    close(ck.softmax_xent_dgrad(probs, labels), numeric(forward, logits, np.full(4, 0.25)))


def test_conv2d_behind_a_relu():
    """conv2d_dgrad_relu goes through the ReLU below the convolution."""
    before, w = random(2, 4, 6, 5), random(6, 2, 3, 3)
    options = {"stride": (2, 1), "padding": 1, "groups": 2}

    def forward():
        return ck.conv2d_fprop(ck.relu_fprop(before), w, **options)

    dy = random(*forward().shape, seed=1)
    gradient = ck.conv2d_dgrad_relu(dy, w, ck.relu_fprop(before), **options)
    close(gradient, numeric(forward, before, dy))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_lrn_maxpool2d(name, relu):
    # Apart by more than the step, as in test_maxpool2d; LRN with so small an alpha leaves them so.
    before = np.random.default_rng(0).permutation(2 * 5 * 7 * 6).reshape(2, 5, 7, 6) / 50 - 3.0
    before += 1e-3
    options = {"lrn": {"size": 3, "alpha": 0.01, "k": 1.5}, "pool": POOLS[name]}

    def x():
        return ck.relu_fprop(before) if relu else before

    y, argmax = ck.lrn_maxpool2d_fprop(x(), **options)
    dy = random(*y.shape, seed=1)
    dx = ck.lrn_maxpool2d_dgrad(dy, argmax, x(), **options, relu=relu)
    close(dx, numeric(lambda: ck.lrn_maxpool2d_fprop(x(), **options)[0], before, dy))


def test_linear_with_its_update():
    """A step of size 1 without momentum or decay takes the gradient off the weights."""
    before, w, v = random(3, 7), random(5, 7), np.zeros((5, 7))

    def forward():
        return ck.linear_fprop(ck.relu_fprop(before), w)

    dy = random(3, 5, seed=1)
    x = ck.relu_fprop(before)
    dx, w_new, v_new = ck.linear_dgrad_wgrad_sgd(dy, w, x, v, lr=1.0, relu=True)
    close(dx, numeric(forward, before, dy))
    close(w - w_new, numeric(forward, w, dy))
    close(v_new, numeric(forward, w, dy))
    for got, wanted in zip(ck.linear_wgrad_sgd(x, dy, w, v, lr=1.0), (w_new, v_new)):
        np.testing.assert_array_equal(got, wanted)


def test_a_small_network_end_to_end():
    """The ops' gradients chained, as a network does."""
    x, w1, w2 = random(2, 2, 9, 9), random(4, 2, 3, 3), random(3, 4 * 3 * 3)
    labels = np.array([1, 2])

    def forward():
        a = ck.conv2d_fprop(x, w1, padding=1, relu=True)
        n = ck.lrn_fprop(a, size=3, alpha=0.5)
        p, argmax = ck.maxpool2d_fprop(n, window=3, stride=3)
        logits = ck.linear_fprop(p.reshape(2, -1), w2)
        loss, probs = ck.softmax_xent_fprop(logits, labels)
        return a, n, p, argmax, loss, probs

    a, n, p, argmax, _, probs = forward()
    dlogits = ck.softmax_xent_dgrad(probs, labels)
    dp = ck.linear_dgrad(dlogits, w2).reshape(p.shape)
    dn = ck.maxpool2d_dgrad(dp, argmax, n.shape, window=3, stride=3)
    da = ck.relu_dgrad(ck.lrn_dgrad(dn, a, size=3, alpha=0.5), a)
    mean = np.full(2, 0.5)
    close(ck.conv2d_wgrad(x, da, w1.shape, padding=1), numeric(lambda: forward()[4], w1, mean))
    close(ck.conv2d_dgrad(da, w1, x.shape, padding=1), numeric(lambda: forward()[4], x, mean))
