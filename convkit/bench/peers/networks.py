"""Whole AlexNets in the other libraries: each makes the same training step from the same description.

A network is described to all of them by `describe`, as plain dicts, from one of convkit's presets. Each has

    .logits(x)  .gradients(x, dlogits)  .load(x, labels)  .step() -> loss  .forward()  .params

Settings     PyTorch: inference_mode forward; SGD(fused=True), gradients set to None; in channels_last both
             images and weights are in that layout beforehand. JAX: jitted functions with donated buffers,
             NHWC, images in that layout beforehand. All of them: as many threads as the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...network import alexnet, layers, presets
from ...op import Problem
from ...ops.window import padding4
from ...registry import Implementation
from . import Missing, need

Array = np.ndarray
#: Small, so that weights stay what they are however often a step is repeated.
LR = 1e-5
PYTORCH_NAMES = {"nchw": "torch", "channels_last": "torch-channels-last"}


def describe(name: str) -> dict[str, Any]:
    """A preset as plain data, so that a peer needs none of convkit's classes.

    Returns
    -------
    dict
        "layers": a list of dicts with "op", "name" and its constants; "input": (C, H, W); "parameters": shape
        by name; "update": the update rule.
    """
    preset = presets.preset(name)
    size = preset.image_size
    shape: tuple[int, ...] = (1, 3, size, size)
    found: list[dict[str, Any]] = []
    parameters: dict[str, tuple[int, ...]] = {}
    for layer in preset.layers:
        record: dict[str, Any] = {"name": layer.name, "op": type(layer).__name__.lower()}
        if isinstance(layer, layers.Conv):
            pad = list(padding4(layer.padding))
            record |= {"stride": layer.stride, "pad": pad, "groups": layer.groups}
        elif isinstance(layer, layers.Lrn):
            if layer.groups != 1 or layer.region != "across_channels":
                raise Missing(f"preset {name!r} has an LRN that no peer has; take one of paper, owt, caffe")
            record |= {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "k": layer.k}
        elif isinstance(layer, layers.MaxPool):
            y = layer.output_shape(shape, preset.num_classes)
            if (shape[2] - layer.window) % layer.stride or y[2] != (
                shape[2] - layer.window
            ) // layer.stride + 1:
                raise Missing(f"preset {name!r} has a pool that overhangs its image: peers differ there")
            record |= {"window": layer.window, "stride": layer.stride}
        elif isinstance(layer, layers.Dropout):
            record |= {"p": layer.p, "inverted": layer.inverted}
        parameters |= {
            f"{layer.name}.{n}": s for n, (s, _) in layer.parameters(shape, preset.num_classes).items()
        }
        shape = layer.output_shape(shape, preset.num_classes)
        record["output"] = list(shape[1:])
        found.append(record)
    update = preset.update
    return {
        "preset": name, "layers": found, "input": (3, size, size), "parameters": parameters,
        "update": {"momentum": update.momentum, "w": update.weight_decay, "b": update.bias_decay},
    }  # fmt: skip


class ConvkitNet:
    """A planned network; options are `AlexNet`'s."""

    def __init__(self, spec: dict[str, Any], device: str = "cpu", **options: Any) -> None:
        self.net = alexnet.AlexNet(spec["preset"], seed=0, device=device, **options)
        self.params = self.net.params

    def kernels(self, batch: int) -> list[tuple[Implementation, Problem]]:
        """What a step runs, call by call: of the plan that it has made, or will make."""
        phases = self.net.plan(batch).phases().values()
        return [(call.implementation, call.problem) for calls in phases for call in calls]

    def logits(self, x: Array) -> Array:
        return self.net.forward(x)

    def gradients(self, x: Array, dlogits: Array) -> dict[str, Array]:
        self.net.forward(x)
        self.net.backward(dlogits)
        return dict(self.net.grads)

    def load(self, x: Array, labels: Array) -> None:
        self.x, self.labels = x, labels

    def forward(self) -> Any:
        return self.net.forward(self.x)

    def step(self) -> float:
        return self.net.step(self.x, self.labels, lr=LR)

    def queue(self) -> Callable[[], float]:
        """A step of which nothing is waited for, and how to read its loss, which waits."""
        pending = self.net.step(self.x, self.labels, lr=LR, sync=False)
        return pending.__float__


# ---------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------
class TorchTools:
    """PyTorch in one of its two layouts, eager; `compiled` for torch.compile of the forward pass."""

    def __init__(self, threads: int, layout: str = "nchw", compiled: bool = False) -> None:
        self.torch = torch = need("torch")
        torch.set_num_threads(threads)
        self.layout, self.compiled = layout, compiled
        self.channels_last = layout == "channels_last"
        self.format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.name = "torch-compile" if compiled else PYTORCH_NAMES[layout]
        self.version = torch.__version__

    def tensor(self, array: Array, grad: bool = False) -> Any:
        """A copy in this entry's layout."""
        t = self.torch.from_numpy(np.array(array))
        t = t.contiguous(memory_format=self.format) if t.ndim == 4 else t
        return t.requires_grad_(grad)

    def optimizer(self, groups: list[dict[str, Any]], lr: float) -> Any:
        """The fastest SGD that this version has on a CPU."""
        for options in ({"fused": True}, {"foreach": True}, {}):
            try:
                return self.torch.optim.SGD(groups, lr=lr, momentum=0.9, **options)
            except (RuntimeError, TypeError, ValueError):
                continue
        raise Missing("torch.optim.SGD cannot be made")


class TorchNet:
    """A network, its optimizer, and a loaded batch."""

    def __init__(self, peer: TorchTools, spec: dict[str, Any], params: dict[str, Array]) -> None:
        self.peer, self.spec, torch = peer, spec, peer.torch
        self.p = {name: peer.tensor(w, grad=True) for name, w in params.items()}
        weights = [w for name, w in self.p.items() if name.endswith(".w")]
        biases = [b for name, b in self.p.items() if name.endswith(".b")]
        self.optimizer = peer.optimizer(
            [
                {"params": weights, "weight_decay": spec["update"]["w"]},
                {"params": biases, "weight_decay": spec["update"]["b"]},
            ],
            LR,
        )
        self._run = self._apply
        if peer.compiled:
            self._run = torch.compile(self._apply, dynamic=False)
        self.params = self.p

    def _apply(self, x: Any, training: bool) -> Any:
        F = self.peer.torch.nn.functional
        for layer in self.spec["layers"]:
            op, name = layer["op"], layer["name"]
            if op == "conv":
                top, bottom, left, right = layer["pad"]
                if (top, left) != (bottom, right):
                    x = F.pad(x, (left, right, top, bottom))
                    top = left = 0
                x = F.conv2d(
                    x,
                    self.p[f"{name}.w"],
                    self.p[f"{name}.b"],
                    layer["stride"],
                    (top, left),
                    1,
                    layer["groups"],
                )
            elif op == "relu":
                x = F.relu(x, inplace=True)
            elif op == "lrn":
                x = F.local_response_norm(x, layer["size"], layer["alpha"], layer["beta"], layer["k"])
            elif op == "maxpool":
                x = F.max_pool2d(x, layer["window"], layer["stride"])
            elif op == "flatten":
                x = x.flatten(1)
            elif op == "linear":
                x = F.linear(x, self.p[f"{name}.w"], self.p[f"{name}.b"])
            elif op == "dropout":
                if training:  # scaled in training or at test: the same work
                    x = F.dropout(x, layer["p"], True)
                elif not layer["inverted"]:
                    x = x * (1 - layer["p"])
        return x

    def logits(self, x: Array) -> Array:
        with self.peer.torch.inference_mode():
            return self._run(self.peer.tensor(x), False).numpy()

    def gradients(self, x: Array, dlogits: Array) -> dict[str, Array]:
        self.optimizer.zero_grad(set_to_none=True)
        self._run(self.peer.tensor(x), False).backward(self.peer.tensor(dlogits))
        return {name: w.grad.contiguous().numpy() for name, w in self.p.items()}

    def load(self, x: Array, labels: Array) -> None:
        self.x, self.labels = self.peer.tensor(x), self.peer.torch.from_numpy(labels)

    def forward(self) -> Any:
        with self.peer.torch.inference_mode():
            return self._run(self.x, False)

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.peer.torch.nn.functional.cross_entropy(self._run(self.x, True), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()


# ---------------------------------------------------------------------------------------------------
# JAX
# ---------------------------------------------------------------------------------------------------
class JaxTools:
    """JAX, its layouts, and the functions that its networks and single ops share."""

    def __init__(self, threads: int) -> None:
        self.jax = need("jax")
        self.np, self.lax = self.jax.numpy, self.jax.lax
        self.version = self.jax.__version__

    def put(self, array: Array) -> Any:
        """A device array; images and weights of a convolution in JAX's favourite layout."""
        axes = {4: (0, 2, 3, 1)}.get(array.ndim)
        return self.jax.device_put(np.ascontiguousarray(array.transpose(axes) if axes else array))

    def weight(self, array: Array) -> Any:
        """KCRS to RSCK; a matrix as it is."""
        return self.jax.device_put(
            np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
        )

    def convolve(self, x: Any, w: Any, stride: int, pads: Any, dilation: int, groups: int) -> Any:
        return self.lax.conv_general_dilated(
            x, w, (stride,) * 2, pads, rhs_dilation=(dilation,) * 2, feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def lrn(self, x: Any, layer: dict[str, Any]) -> Any:
        size = layer["size"]
        pads = ((0, 0),) * 3 + ((size // 2, (size - 1) // 2),)
        sums = self.lax.reduce_window(x * x, 0.0, self.lax.add, (1, 1, 1, size), (1, 1, 1, 1), pads)
        return x * (layer["k"] + layer["alpha"] / size * sums) ** -layer["beta"]

    def pool(self, x: Any, layer: dict[str, Any]) -> Any:
        window, stride = layer["window"], layer["stride"]
        return self.lax.reduce_window(
            x, -self.np.inf, self.lax.max, (1, window, window, 1), (1, stride, stride, 1), "VALID"
        )

    def wait(self, function: Any, *arguments: Any) -> Callable[[], Any]:
        """A call that returns when the result is there."""
        return lambda: self.jax.block_until_ready(function(*arguments))


def nchw(a: Any) -> Array:
    return np.asarray(a).transpose(0, 3, 1, 2)


def kcrs(a: Any) -> Array:
    return np.asarray(a).transpose(3, 2, 0, 1)


class JaxNet:
    """Jitted forward pass, gradients and step of one network."""

    def __init__(self, peer: JaxTools, spec: dict[str, Any], params: dict[str, Array]) -> None:
        self.peer, self.spec, jax = peer, spec, peer.jax
        self.params = {name: peer.weight(w) for name, w in params.items()}
        self.velocities = jax.tree.map(jax.numpy.zeros_like, self.params)
        self.key = jax.random.key(0, impl="rbg")  # the generator that JAX calls the faster one
        decay = {name: spec["update"][name[-1]] for name in params}

        def mean_loss(p: Any, x: Any, labels: Any, key: Any) -> Any:
            logits = jax.nn.log_softmax(self._apply(p, x, key))
            return -jax.numpy.mean(jax.numpy.take_along_axis(logits, labels[:, None], 1))

        def step(p: Any, v: Any, key: Any, x: Any, labels: Any) -> Any:
            key, used = jax.random.split(key)
            loss, grads = jax.value_and_grad(mean_loss)(p, x, labels, used)
            v = {n: 0.9 * v[n] + grads[n] + decay[n] * p[n] for n in p}
            return {n: p[n] - LR * v[n] for n in p}, v, key, loss

        def gradients(p: Any, x: Any, dlogits: Any) -> Any:
            return jax.vjp(lambda p: self._apply(p, x, None), p)[1](dlogits)[0]

        self._step = jax.jit(step, donate_argnums=(0, 1, 2))
        self._forward = jax.jit(lambda p, x: self._apply(p, x, None))
        self._gradients = jax.jit(gradients)

    def _apply(self, p: Any, x: Any, key: Any) -> Any:
        jax, peer = self.peer.jax, self.peer
        for number, layer in enumerate(self.spec["layers"]):
            op, name = layer["op"], layer["name"]
            if op == "conv":
                top, bottom, left, right = layer["pad"]
                pads = [(top, bottom), (left, right)]
                x = (
                    peer.convolve(x, p[f"{name}.w"], layer["stride"], pads, 1, layer["groups"])
                    + p[f"{name}.b"]
                )
            elif op == "relu":
                x = jax.numpy.maximum(x, 0)
            elif op == "lrn":
                x = peer.lrn(x, layer)
            elif op == "maxpool":
                x = peer.pool(x, layer)
            elif op == "flatten":
                x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
            elif op == "linear":
                x = x @ p[f"{name}.w"].T + p[f"{name}.b"]
            elif op == "dropout":
                if key is not None:
                    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - layer["p"], x.shape)
                    x = jax.numpy.where(kept, x / (1 - layer["p"]), 0)
                elif not layer["inverted"]:
                    x = x * (1 - layer["p"])
        return x

    def logits(self, x: Array) -> Array:
        return np.asarray(self._forward(self.params, self.peer.put(x)))

    def gradients(self, x: Array, dlogits: Array) -> dict[str, Array]:
        grads = self._gradients(self.params, self.peer.put(x), dlogits)
        return {n: kcrs(g) if g.ndim == 4 else np.asarray(g) for n, g in grads.items()}

    def load(self, x: Array, labels: Array) -> None:
        self.x, self.labels = self.peer.put(x), self.peer.jax.device_put(labels.astype(np.int32))

    def forward(self) -> Any:
        return self.peer.jax.block_until_ready(self._forward(self.params, self.x))

    def step(self) -> float:
        self.params, self.velocities, self.key, loss = self._step(
            self.params, self.velocities, self.key, self.x, self.labels
        )
        self.peer.jax.block_until_ready(self.params)
        return float(loss)
