"""`Network.inputs`: a network's own arrays, from which nothing is copied."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import convkit as ck
from convkit.network import layers

RNG = np.random.default_rng(2)
X = RNG.standard_normal((4, 3, 12, 12)).astype(np.float32)
Y = np.array([2, 0, 3, 1])


def net(first: layers.Layer | None = None) -> ck.Network:
    init = layers.Normal(0.1)
    conv = layers.Conv("conv1", 4, 3, init, init), layers.Relu("relu1"), layers.Flatten("flat")
    own = (*([first] if first else []), *conv, layers.Linear("fc", None, init, init))
    return ck.Network(own, (3, 12, 12), 4)


def filled(network: ck.Network) -> tuple[np.ndarray, np.ndarray]:
    x, labels = network.inputs(len(X))
    x[...], labels[...] = X, Y
    return x, labels


@pytest.mark.parametrize("first", [None, layers.Relu("relu0")])
def test_passes_are_right(first):
    """Also where the first layer works in place, on x itself."""
    plain, own = net(first), net(first)
    assert own.forward(filled(own)[0]).tobytes() == plain.forward(X).tobytes()
    gradient = np.ones((4, 4), np.float32)
    assert own.backward(gradient).tobytes() == plain.backward(gradient).tobytes()
    for _ in range(3):
        assert own.evaluate(*filled(own)) == plain.evaluate(X, Y)
        assert own.step(*filled(own), lr=0.1) == plain.step(X, Y, lr=0.1)
    for name, w in plain.params.items():
        assert w.tobytes() == own.params[name].tobytes()


def test_nothing_is_copied(monkeypatch):
    network = net()
    x, labels = filled(network)
    assert (x.dtype, x.shape, labels.dtype, labels.shape) == (np.float32, X.shape, np.int64, (4,))
    network.step(x, labels)
    plan = network.plan(4)
    assert plan.x is x and plan.labels is labels

    class Guarded(np.ndarray):
        """An array whose elements are not set from outside."""

        def __setitem__(self, key, value):
            raise AssertionError("copied")

    monkeypatch.setattr(plan, "x", x.view(Guarded))
    monkeypatch.setattr(plan, "labels", labels.view(Guarded))
    for given in ((x, labels), (x[:], labels.view())):
        network.step(*given)
        network.evaluate(*given)
        network.forward(given[0])
    for given in ((X, labels), (x, Y)):
        with pytest.raises(AssertionError, match="copied"):
            network.step(*given)


def test_the_arrays_of_a_plan_that_is_gone_are_copied():
    network, plain = net(), net()
    network.plan_memory = 0  # the last plan alone is kept
    x, labels = filled(network)
    other = network.inputs(2)
    assert other[0].shape == (2, 3, 12, 12)
    assert network.step(x, labels, lr=0.1) == plain.step(X, Y, lr=0.1)
    assert network.inputs(4)[0] is not x


def test_a_part_of_the_arrays_turned_around_is_another_batch():
    network, plain = net(), net()
    x, labels = filled(network)
    assert network.evaluate(x[::-1], labels[::-1]) == plain.evaluate(X[::-1], Y[::-1])


def test_a_copy_has_arrays_of_its_own():
    network = net()
    x, _ = filled(network)
    assert copy.deepcopy(network).inputs(4)[0] is not x


def test_not_within_a_hook():
    network = net()
    network.on_gradient = lambda name, gradient: network.inputs(4)
    with pytest.raises(ck.OptionError, match="a hook cannot run the network"):
        network.step(X, Y)
