"""A network planned once for a batch and run many times: every choice made, every buffer allocated.

The layers' own `forward` and `backward` are called once, with the ops being recorded instead of run. What
comes out are four lists of calls (forward, loss, backward, update), bound to memory that the plan owns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from . import arrays, ops
from .dispatch import Call, record
from .geometry import Shape
from .layers import Conv, Dropout, Layer, Linear, Relu
from .registry import current_choice

if TYPE_CHECKING:
    from .presets import Update

Array = np.ndarray


class Plan:
    """One network, one batch size, one choice of implementations.

    Parameters
    ----------
    layers : sequence of Layer
    parameters, gradients, velocities : mapping of str to ndarray
        By the names "conv1.w", "conv1.b", ...; the plan reads and writes these very arrays.
    input_shape : (N, C, H, W)
    dtype : str
    update : Update
    math : str, optional
    device : {"cpu", "cuda"}

    Attributes
    ----------
    forward, loss, backward, update : list of Call
        In the order in which they run. `backward` ends before the gradient of the input, which training
        does not need; that is `input_gradient`.
    x, labels, logits, losses, dlogits, dx : ndarray
        The plan's ends: fill x and labels, run, read the others.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        velocities: Mapping[str, Array],
        input_shape: Shape,
        dtype: str,
        update: Update,
        math: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.math, self.dtype, self.device = math, dtype, device
        self._parameters, self._gradients = parameters, gradients
        self._kept: dict[tuple[str, str], Array] = {}
        self._owned: list[Array] = []
        self._arenas: tuple[Array, Array] | None = None
        # A ReLU right behind a layer with weights runs in that layer's epilogue, unless somebody wants to see
        # an implementation of ReLU at work.
        chosen = dict(current_choice().names)
        pairs = () if {"relu_fprop", "relu_dgrad"} & chosen.keys() else pairwise(layers)
        self._fused = {
            a.name: b.name for a, b in pairs if isinstance(a, (Conv, Linear)) and isinstance(b, Relu)
        }
        steps = [layer for layer in layers if layer.name not in self._fused.values()]

        self.x = self._new(input_shape, dtype)
        self.labels = self._new(input_shape[:1], "int64")
        self.labels.fill(0)
        self.forward: list[Call] = []
        self.backward: list[Call] = []
        value = self.x
        for layer in steps:
            with record() as calls:
                value = layer.forward(self, value)
            self.forward += self._tag(layer, calls)
        self.logits = value
        self._record_loss()
        self._record_backward(steps)
        self._record_update(parameters, gradients, velocities, update)
        self._share_workspace()

    # -- recording ------------------------------------------------------------------------------------
    def _record_loss(self) -> None:
        N, K = self.logits.shape
        self.losses = self._new((N,), "float64" if self.dtype == "float64" else "float32")
        self.dlogits = self._new((N, K), self.dtype)
        probs = self._new((N, K), self.dtype)
        mean = self._new((N,), self.losses.dtype.name)
        mean.fill(1 / max(1, N))
        with record() as self.loss:
            ops.softmax_xent_fprop(self.logits, self.labels, out=(self.losses, probs))
            ops.softmax_xent_dgrad(probs, self.labels, mean, out=self.dlogits)
        for call in self.loss:
            call.layer = "loss"

    def _record_backward(self, steps: Sequence[Layer]) -> None:
        # Gradients of activations live only until the next layer has used them: two arenas, in turn.
        largest = max(a.size for a in (*self._kept.values(), self.x, self.logits))
        self._arenas = (self._new((largest,), self.dtype), self._new((largest,), self.dtype))
        gradient = self.dlogits
        for layer in reversed(steps):
            with record() as calls:
                gradient = layer.backward(self, gradient)
            self.backward += self._tag(layer, calls)
        self.dx = gradient
        self.input_gradient = self.backward.pop()

    def _record_update(
        self,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        velocities: Mapping[str, Array],
        update: Update,
    ) -> None:
        self.update: list[Call] = []
        for name, w in parameters.items():
            v = velocities[name]
            decay = update.weight_decay if name.endswith(".w") else update.bias_decay
            with record() as calls:
                ops.sgd_momentum(
                    w, gradients[name], v, lr=update.lr, momentum=update.momentum, weight_decay=decay,
                    lr_in_velocity=update.lr_in_velocity, out=(w, v),
                )  # fmt: skip
            calls[0].layer = name
            self.update += calls

    def _share_workspace(self) -> None:
        largest = max(call.workspace_bytes for call in self.calls())
        scratch = self._new((largest,), "uint8")
        for call in self.calls():
            if call.implementation.workspace:
                call.options["workspace"] = scratch[: call.workspace_bytes]

    def _tag(self, layer: Layer, calls: list[Call]) -> list[Call]:
        relu = self._fused.get(layer.name)
        for call in calls:
            call.layer = f"{layer.name}+{relu}" if relu else layer.name
        return calls

    # -- what layers ask for ---------------------------------------------------------------------------
    def fuses_relu(self, layer: Layer) -> bool:
        """Whether the layer applies the ReLU behind it itself."""
        return layer.name in self._fused

    def parameter(self, layer: Layer, name: str) -> Array:
        """A parameter of the layer, "w" or "b"."""
        return self._parameters[f"{layer.name}.{name}"]

    def gradient(self, layer: Layer, name: str) -> Array:
        """Where the gradient of that parameter goes."""
        return self._gradients[f"{layer.name}.{name}"]

    def keep(self, layer: Layer, name: str, shape: Shape, dtype: str | None = None) -> Array:
        """New memory that lives from the forward to the backward pass."""
        return self.keep_view(layer, name, self._new(shape, dtype or self.dtype))

    def keep_view(self, layer: Layer, name: str, array: Array) -> Array:
        """Remember memory that another layer owns; returns it."""
        self._kept[layer.name, name] = array
        return array

    def kept(self, layer: Layer, name: str) -> Array:
        """What the forward pass kept under that name."""
        return self._kept[layer.name, name]

    def scratch(self, shape: Shape, besides: Array) -> Array:
        """Memory for an activation's gradient, valid until the layer after next; not where `besides` is."""
        assert self._arenas is not None
        arena = next(a for a in self._arenas if not arrays.overlap(a, besides))
        return arena[: prod(shape)].reshape(shape)

    def _new(self, shape: Shape, dtype: str) -> Array:
        array = arrays.empty(shape, dtype, self.device)
        self._owned.append(array)
        return array

    # -- running ---------------------------------------------------------------------------------------
    def calls(self) -> list[Call]:
        """All calls of a training step, in order, and the input's gradient."""
        return [*self.forward, *self.loss, *self.backward, self.input_gradient, *self.update]

    def run(self, calls: Iterable[Call]) -> None:
        """Run some of the plan's calls; allocates nothing of its own."""
        for call in calls:
            call.run()

    def set_dropout(self, layers: Sequence[Layer], training: bool, seed: int, offset: int) -> int:
        """Point every dropout at its counters and mode; returns the first counter behind them."""
        dropouts = {layer.name: layer for layer in layers if isinstance(layer, Dropout)}
        for call in self.forward:
            layer = dropouts.get(call.layer)
            if layer is None:
                continue
            options = {**layer.options(training), "seed": seed, "offset": offset}
            for twin in (call, *(c for c in self.backward if c.layer == call.layer)):
                twin.options.update(options)
            offset += -(-call.problem.shape("x")[0] * prod(call.problem.shape("x")[1:]) // 4)
        return offset

    @property
    def bytes(self) -> int:
        """Memory that the plan owns: activations, gradients, workspace; parameters not counted."""
        return sum(a.nbytes for a in self._owned)

    def rows(self) -> list[tuple[str, str, str, str, str, float, float]]:
        """One row per call: layer, op, implementation, layout, output shape, MB moved, MFLOP."""
        found = []
        for call in self.calls():
            op, problem = call.op, call.problem
            present = [n for n, a in zip(op.inputs, call.inputs, strict=True) if a is not None]
            moved = problem.bytes(*present, *op.outputs) / 1e6
            shape = "x".join(map(str, call.outputs[0].shape))
            impl = call.implementation
            found.append(
                (call.layer, op.name, impl.name, impl.layout, shape, moved, problem.flops(op.name) / 1e6)
            )
        return found

    def __str__(self) -> str:
        from tabulate import tabulate

        headers = ("layer", "op", "implementation", "layout", "output", "MB", "MFLOP")
        table = tabulate(self.rows(), headers, tablefmt="simple", floatfmt=("", "", "", "", "", ".2f", ".1f"))
        flops = sum(row[-1] for row in self.rows()) / 1e3
        return (
            f"{table}\n\nbatch {self.x.shape[0]}, {self.dtype}: {flops:.2f} GFLOP a step, "
            f"{self.bytes / 2**20:.0f} MiB besides the parameters"
        )
