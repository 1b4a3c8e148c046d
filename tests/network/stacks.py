"""Random networks, and an interpreter that runs their layers one by one by the public ops, without a plan.

`draw` makes a network from any `pick(low, high)`. `Interpreter` is what a plan is compared with: it knows
nothing of fusion, layouts or memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from strategies import Pick

import convkit as ck
from convkit.network import layers as L

Array = Any
Values = dict[str, Array]
#: Where a network runs: `convkit.emulate`, or nothing.
Where = Callable[[], AbstractContextManager[Any]]

INIT = L.He()
BIAS = L.Normal(0.3)


# ---------------------------------------------------------------------------------------------------
# Layers one by one
# ---------------------------------------------------------------------------------------------------
class Interpreter:
    """Forward and backward pass of a network's layers, each by the public ops.

    Parameters
    ----------
    net : Network
        Its layers, its seed, its parameters and its dropout counter are used; it is not run.
    dtype : str
        In which everything is computed.
    """

    def __init__(self, net: ck.Network, dtype: str | None = None) -> None:
        self.layers, self.seed, self.classes = net.layers, net.seed, net.num_classes
        self.offset = net.dropout_offset
        self.dtype = dtype or net.dtype
        self.params: Values = {name: w.astype(self.dtype) for name, w in net.params.items()}
        self._backward: list[Callable[[Array], Array]] = []
        self.grads: Values = {}

    def forward(self, x: Array, training: bool = False) -> Array:
        x, self._backward = x.astype(self.dtype), []
        for layer in self.layers:
            x = getattr(self, f"_{type(layer).__name__.lower()}")(layer, x, training)
        return x

    def backward(self, dy: Array) -> Array:
        self.grads, dy = {}, dy.astype(self.dtype)
        for step in reversed(self._backward):
            dy = step(dy)
        return dy

    def _parameters(self, layer: L.Layer) -> tuple[Array, Array]:
        return self.params[f"{layer.name}.w"], self.params[f"{layer.name}.b"]

    def _conv(self, layer: L.Conv, x: Array, _: bool) -> Array:
        w, b = self._parameters(layer)
        options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}

        def back(dy: Array) -> Array:
            self.grads[f"{layer.name}.w"] = ck.conv2d_wgrad(x, dy, w.shape, **options)
            self.grads[f"{layer.name}.b"] = ck.conv2d_bgrad(dy)
            return ck.conv2d_dgrad(dy, w, x.shape, **options)

        self._backward.append(back)
        return ck.conv2d_fprop(x, w, b, **options)

    def _linear(self, layer: L.Linear, x: Array, _: bool) -> Array:
        w, b = self._parameters(layer)

        def back(dy: Array) -> Array:
            self.grads[f"{layer.name}.w"] = ck.linear_wgrad(x, dy)
            self.grads[f"{layer.name}.b"] = ck.linear_bgrad(dy)
            return ck.linear_dgrad(dy, w)

        self._backward.append(back)
        return ck.linear_fprop(x, w, b)

    def _relu(self, _layer: L.Relu, x: Array, _: bool) -> Array:
        y = ck.relu_fprop(x)
        self._backward.append(lambda dy: ck.relu_dgrad(dy, y))
        return y

    def _lrn(self, layer: L.Lrn, x: Array, _: bool) -> Array:
        names = ("size", "alpha", "beta", "k", "groups", "region")
        options = {name: getattr(layer, name) for name in names}
        self._backward.append(lambda dy: ck.lrn_dgrad(dy, x, **options))
        return ck.lrn_fprop(x, **options)

    def _maxpool(self, layer: L.MaxPool, x: Array, _: bool) -> Array:
        options = {name: getattr(layer, name) for name in ("window", "stride", "ceil_mode")}
        y, argmax = ck.maxpool2d_fprop(x, **options)
        self._backward.append(lambda dy: ck.maxpool2d_dgrad(dy, argmax, x.shape, **options))
        return y

    def _dropout(self, layer: L.Dropout, x: Array, training: bool) -> Array:
        options = {**layer.options(training), "seed": self.seed, "offset": self.offset}
        self.offset += -(-x.size // 4)
        self._backward.append(lambda dy: ck.dropout_dgrad(dy, **options))
        return ck.dropout_fprop(x, **options)

    def _flatten(self, _layer: L.Flatten, x: Array, _: bool) -> Array:
        self._backward.append(lambda dy: dy.reshape(x.shape))
        return x.reshape(x.shape[0], -1)


# ---------------------------------------------------------------------------------------------------
# Random networks
# ---------------------------------------------------------------------------------------------------
def draw(pick: Pick, **options: Any) -> ck.Network:
    """A network of up to some ten layers in any order that is legal; `options` are `Network`'s."""
    C, H, W = pick(3, 33), pick(2, 13), pick(2, 13)
    if pick(0, 2) == 0:
        C = (16, 32, 48)[pick(0, 2)]
    shape, stack = (1, C, H, W), []
    for i in range(pick(0, 7)):
        layer = _map_layer(pick, f"m{i}", shape)
        stack.append(layer)
        shape = layer.output_shape(shape, 0)
    stack.append(L.Flatten("flatten"))
    stack.extend(_row_layer(pick, f"r{i}") for i in range(pick(0, 4)))
    if pick(0, 9) or not any(isinstance(layer, (L.Conv, L.Linear)) for layer in stack):
        classes = pick(1, 12)
        stack.append(L.Linear("last", None, INIT, BIAS))
        ends = pick(0, 2) if pick(0, 3) == 0 else 0  # ReLUs or dropouts
        stack.extend(L.Relu(f"e{i}") if pick(0, 2) else L.Dropout(f"e{i}", 0.3) for i in range(ends))
    else:
        shape = (1, C, H, W)
        for layer in stack:
            shape = layer.output_shape(shape, 0)
        classes = shape[1]
    return ck.Network(stack, (C, H, W), classes, **options)


def _map_layer(pick: Pick, name: str, shape: tuple[int, ...]) -> L.Layer:
    _, C, H, W = shape
    kind = ("conv", "conv", "conv", "relu", "relu", "relu", "pool", "lrn", "lrn", "dropout")[pick(0, 9)]
    if kind == "conv":
        groups = [g for g in (1, 1, 2, 3, 4) if C % g == 0]
        G = groups[pick(0, len(groups) - 1)]
        filters = G * pick(1, max(1, 33 // G)) if pick(0, 1) else (16 if 16 % G == 0 else 48)
        window = [r for r in (1, 2, 3, 3, 3, 5) if r <= min(H, W) + 2]
        R = window[pick(0, len(window) - 1)]
        padding = pick(0, R // 2) if min(H, W) >= R else R // 2 + 1
        return L.Conv(name, filters, R, INIT, BIAS, (1, 1, 1, 2)[pick(0, 3)], padding, G)
    if kind == "pool":
        windows = [r for r in (2, 3, 3, 3) if r <= min(H, W)] or [1]
        return L.MaxPool(name, windows[pick(0, len(windows) - 1)], pick(1, 2), bool(pick(0, 1)))
    if kind == "lrn":
        region = "within_channel" if pick(0, 5) == 0 else "across_channels"
        G = 2 if C % 2 == 0 and region == "across_channels" and pick(0, 3) == 0 else 1
        return L.Lrn(name, (1, 3, 5, 5, 4)[pick(0, 4)], 0.5, 0.75, float(pick(1, 2)), G, region)
    if kind == "relu":
        return L.Relu(name)
    return L.Dropout(name, 0.4, bool(pick(0, 1)))


def _row_layer(pick: Pick, name: str) -> L.Layer:
    kind = pick(0, 4)
    if kind <= 1:
        return L.Linear(name, pick(1, 40), INIT, BIAS)
    return L.Relu(name) if kind <= 3 else L.Dropout(name, 0.5, bool(pick(0, 1)))


def describe(net: ck.Network) -> str:
    """What to look at where a random network fails."""
    return "\n".join(map(str, (net.input_shape, *net.layers)))


# ---------------------------------------------------------------------------------------------------
# A plan against the interpreter
# ---------------------------------------------------------------------------------------------------
def close(name: str, got: Array, want: Array, rtol: float, least: float = 0.0) -> None:
    """Equal to `rtol` of the largest element; of `least` where all are smaller, as where sums cancel."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, name
    scale = max(np.abs(want).max(initial=0), least) or 1.0
    error = np.abs(got - want).max(initial=0) / scale
    assert error <= rtol, f"{name}: {error:.2g} of {scale:.2g}"


def _least(gradients: Values) -> float:
    """What is small among these."""
    return 0.01 * max((np.abs(gradient).max(initial=0) for gradient in gradients.values()), default=0.0)


def batch(net: ck.Network, rng: np.random.Generator, N: int) -> tuple[Array, Array]:
    x = rng.standard_normal((N, *net.input_shape)).astype(net.dtype)
    return x, rng.integers(0, net.num_classes, N)


def check_passes(
    net: ck.Network, x: Array, dlogits: Array, training: bool, rtol: float, where: Where = nullcontext
) -> None:
    """Logits, all gradients and dx of the planned network, run there, are those of the layers one by one."""
    plain = Interpreter(net, "float64")
    with where():
        logits, dx = net.forward(x, training=training), net.backward(dlogits)
    close("logits", logits, plain.forward(x, training), rtol)
    close("dx", dx, plain.backward(dlogits), rtol)
    for name, gradient in plain.grads.items():
        close(f"d({name})", net.grads[name], gradient, rtol, _least(plain.grads))
    if training:
        assert net.dropout_offset == plain.offset


def check_step(net: ck.Network, x: Array, labels: Array, rtol: float, where: Where = nullcontext) -> None:
    """A step is forward, loss, backward and the update rule, one by one; the second has a velocity.

    What is frozen keeps its bits.
    """
    for lr in (0.004, 0.002):
        plain = Interpreter(net, "float64")
        velocities = {name: v.astype(np.float64) for name, v in net.velocities.items()}
        logits = plain.forward(x, True)
        losses, probs = ck.softmax_xent_fprop(logits, labels)
        plain.backward(ck.softmax_xent_dgrad(probs, labels))
        with where():
            loss = net.step(x, labels, lr=lr)
        assert abs(loss - losses.mean()) <= rtol * max(1.0, losses.mean()), "loss"
        assert loss.images == len(x) and loss.finite
        first = next(iter(net.params), "").rpartition(".")[0]
        for name, gradient in plain.grads.items():
            options, w, v = net.update.options(name, lr, first), plain.params[name], velocities[name]
            if options["lr"] is None:
                assert np.array_equal(net.params[name], w) and np.array_equal(net.velocities[name], v), name
                continue
            w, v = ck.sgd_momentum(w, gradient, v, **options)
            close(name, net.params[name], w, rtol)
            # Where softmax is sure, its gradient is a difference of numbers near 1.
            least = max(_least(plain.grads), 1e-3)
            close(f"v({name})", net.velocities[name], v, rtol, lr * least)
