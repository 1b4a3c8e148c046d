"""A network planned once for a batch and run many times: every choice made, every buffer allocated.

The layers' own `forward` and `backward` are called once, with the ops being recorded instead of run. What
comes out are four lists of calls (forward, loss, backward, update), bound to memory that the plan owns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arrays, layouts, native, ops
from .devices import emulating
from .dispatch import Call, record
from .errors import NoImplementation, OptionError
from .geometry import Linear as LinearProblem
from .geometry import Problem, Shape
from .layers import Conv, Dropout, Flatten, Layer, Linear, Lrn, LrnMaxPool, MaxPool, Relu
from .registry import current_choice, select

if TYPE_CHECKING:
    from .presets import Update

Array = np.ndarray
Tensor = Any  # an array, or a `layouts.Tensor`


#: Ops whose choice by name shows only where LRN and pooling are apart.
_LRN_POOL = {"lrn_fprop", "lrn_dgrad", "maxpool2d_fprop", "maxpool2d_dgrad"}


def _memory(tensor: Tensor) -> Array:
    return tensor.data if isinstance(tensor, layouts.Tensor) else tensor


def _with_lrn_pools(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, with each LRN across channels and the pool right behind it as one."""
    found: list[Layer] = []
    for layer in layers:
        before = found[-1] if found else None
        if isinstance(layer, MaxPool) and isinstance(before, Lrn) and before.region == "across_channels":
            found[-1] = LrnMaxPool.of(before, layer)
        else:
            found.append(layer)
    return found


def _rectifiers(steps: Sequence[Layer], fused: Mapping[str, str]) -> dict[str, str]:
    """For each layer that ends in a ReLU, the layer above that takes the ReLU's gradient, where one can.

    A max pool hands it on: what it lets through is positive where its output is. So does dropout, in place.
    """
    found = {}
    for i, layer in enumerate(steps):
        if layer.name not in fused and not isinstance(layer, Relu):
            continue
        for above in steps[i + 1 :]:
            if isinstance(above, (Conv, Linear, LrnMaxPool)):
                found[layer.name] = above.name
            if not isinstance(above, (MaxPool, Dropout, Flatten)):
                break
    return found


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
    device : {"cpu", "cuda", "cuda:1", ...}

    Attributes
    ----------
    forward, loss, backward, update : list of Call
        In the order in which they run. `backward` ends before the gradient of the input, which training
        does not need; that is `input_gradient`. A training step runs `phases`, where some of them are fused.
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
        self._parameters, self._gradients, self._velocities = parameters, gradients, velocities
        self._update = update
        self._kept: dict[tuple[str, str], Tensor] = {}
        self._owned: list[Array] = []
        self._arenas: tuple[Array, Array] | None = None
        # A ReLU right behind a layer with weights runs in that layer's epilogue, unless somebody wants to see
        # an implementation of ReLU at work; its gradient is then taken by the layer above it, where that can.
        chosen = dict(current_choice().names)
        pairs = () if {"relu_fprop", "relu_dgrad"} & chosen.keys() else pairwise(layers)
        self._fused = {
            a.name: b.name for a, b in pairs if isinstance(a, (Conv, Linear)) and isinstance(b, Relu)
        }
        steps = [layer for layer in layers if layer.name not in self._fused.values()]
        self._rectifiers: dict[str, str] = {}
        self._layouts: dict[str, layouts.Layout] = {}
        if self._fast():
            merged = _with_lrn_pools(steps)
            if not _LRN_POOL & chosen.keys() and self._choose(merged, input_shape):
                steps = merged
            else:
                self._choose(steps, input_shape)

        self.x = self._new(input_shape, dtype)
        self.labels = self._new(input_shape[:1], "int64")
        self.labels.fill(0)
        self.forward: list[Call] = []
        self.backward: list[Call] = []
        self._descent: list[Call] = []
        value: Tensor = self.x
        for layer in steps:
            with record() as calls:
                value = layer.forward(self, value)
            self.forward += self._tag(layer, calls)
        assert isinstance(value, np.ndarray) or device != "cpu"
        self.logits = value
        self._record_loss()
        self._record_backward(steps)
        self._record_update(parameters, gradients, velocities, update)
        self._share_workspace()

    # -- choices --------------------------------------------------------------------------------------
    def _fast(self) -> bool:
        """Whether the CPU's kernels, with their layout and their fused ops, are to be looked for."""
        plain = self.device == "cpu" and self.dtype == "float32" and not emulating()
        return plain and native.kernels_missing() is None

    def has(self, op: str, problem: Problem, layout: str) -> bool:
        """Whether an implementation takes this problem in this layout; the reference only if it was named."""
        try:
            found = select(op, problem, device=self.device.partition(":")[0], math=self.math, layout=layout)
        except (NoImplementation, OptionError):
            return False
        return found.name != "reference" or op in dict(current_choice().names)

    def _choose(self, steps: Sequence[Layer], shape: Shape) -> bool:
        """Choose who takes the ReLUs' gradients, and the layouts; False where none fit these steps."""
        self._rectifiers = _rectifiers(steps, self._fused)
        self._layouts = self._choose_layouts(steps, shape)
        return len(self._layouts) == len(steps)

    def _choose_layouts(self, steps: Sequence[Layer], shape: Shape) -> dict[str, layouts.Layout]:
        """The layout of each layer's output: as many elements blocked as the implementations allow.

        Dynamic programming along the row of layers: for each layout of the current activation, the least
        number of elements that are not blocked so far.
        """
        best: dict[layouts.Layout, tuple[int, int, tuple[layouts.Layout, ...]]] = {layouts.NCHW: (0, 0, ())}
        for layer in steps:
            y_shape = layer.output_shape(shape, 1)
            whole = len(y_shape) == 4 and y_shape[1] % layouts.NCHW16C.block == 0
            found: dict[layouts.Layout, tuple[int, int, tuple[layouts.Layout, ...]]] = {}
            for y_layout in (layouts.NCHW16C, layouts.NCHW) if whole else (layouts.NCHW,):
                cost = 0 if y_layout == layouts.NCHW16C else prod(y_shape)
                ways = [
                    (before + cost, i, (*path, y_layout))
                    for i, (x_layout, (before, _, path)) in enumerate(best.items())
                    if layer.fits(self, shape, x_layout, y_layout)
                ]
                if ways:
                    found[y_layout] = min(ways)
            best, shape = found, y_shape
        _, _, path = min(best.values(), default=(0, 0, ()))
        return {layer.name: layout for layer, layout in zip(steps, path)}

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
        largest = max(_memory(a).size for a in (*self._kept.values(), self.x, self.logits))
        self._arenas = (self._new((largest,), self.dtype), self._new((largest,), self.dtype))
        gradient: Tensor = self.dlogits
        for layer in reversed(steps):
            below = gradient
            with record() as calls:
                gradient = layer.backward(self, below)
            self.backward += self._tag(layer, calls)
            if isinstance(layer, Linear) and self._descends(layer):
                with record() as calls:
                    layer.descend(self, below)
                self._tag(layer, calls)
            self._descent += calls
        self.dx = gradient
        self.input_gradient = self.backward.pop()
        self._descent.pop()

    def _descends(self, layer: Linear) -> bool:
        """Whether the layer's weights are updated where their gradient is made, without storing it."""
        named = {"linear_dgrad", "linear_wgrad", "sgd_momentum"} & dict(current_choice().names).keys()
        K, C = self.parameter(layer, "w").shape
        problem = LinearProblem(self.x.shape[0], C, K, self.dtype)
        return not named and self._fast() and self.has("linear_dgrad_wgrad_sgd", problem, "NCHW")

    def _record_update(
        self,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        velocities: Mapping[str, Array],
        update: Update,
    ) -> None:
        self.update: list[Call] = []
        #: Calls that want a learning rate, with the parameter that they update.
        self.rated: list[tuple[str, Call]] = []
        fused = {f"{c.layer.partition('+')[0]}.w": c for c in self._descent if "w_new" in c.op.outputs}
        for name, w in parameters.items():
            v = velocities[name]
            with record() as calls:
                ops.sgd_momentum(w, gradients[name], v, **self.update_of(name[-1]), out=(w, v))
            calls[0].layer = name
            self.update += calls
            self.rated += [(name, call) for call in (*calls, fused.get(name)) if call is not None]
        self._remaining = [call for call in self.update if call.layer not in fused]

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

    def update_of(self, kind: str) -> dict[str, Any]:
        """Options of the update of weights ("w") or biases ("b")."""
        u = self._update
        return {
            "lr": u.lr,
            "momentum": u.momentum,
            "weight_decay": u.weight_decay if kind == "w" else u.bias_decay,
            "lr_in_velocity": u.lr_in_velocity,
        }

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

    def rectified_above(self, layer: Layer) -> bool:
        """Whether the gradient of the layer's ReLU has been taken by the layer above."""
        return layer.name in self._rectifiers

    def rectifies(self, layer: Layer) -> bool:
        """Whether the layer takes the gradient of the ReLU whose output it reads."""
        return layer.name in self._rectifiers.values()

    def velocity(self, layer: Layer, name: str) -> Array:
        """The momentum of that parameter."""
        return self._velocities[f"{layer.name}.{name}"]

    def keep(self, layer: Layer, name: str, shape: Shape, dtype: str | None = None) -> Tensor:
        """New memory that lives from the forward to the backward pass; outputs in the layer's layout."""
        layout = self._layouts.get(layer.name, layouts.NCHW) if name in ("y", "argmax") else layouts.NCHW
        memory = self._new(layout.physical(shape), dtype or self.dtype)
        return self.keep_view(layer, name, layouts.Tensor(memory, layout, shape) if layout.axes else memory)

    def keep_view(self, layer: Layer, name: str, array: Tensor) -> Tensor:
        """Remember memory that another layer owns; returns it."""
        self._kept[layer.name, name] = array
        return array

    def kept(self, layer: Layer, name: str) -> Any:
        """What the forward pass kept under that name."""
        return self._kept[layer.name, name]

    def scratch(self, like: Tensor, besides: Tensor) -> Tensor:
        """Memory for an activation's gradient, valid until the layer after next; not where `besides` is."""
        assert self._arenas is not None
        arena = next(a for a in self._arenas if not arrays.overlap(a, _memory(besides)))
        shape = _memory(like).shape
        memory = arena[: prod(shape)].reshape(shape)
        tensor = isinstance(like, layouts.Tensor)
        return layouts.Tensor(memory, like.layout, like.shape) if tensor else memory

    def _new(self, shape: Shape, dtype: str) -> Array:
        array = arrays.empty(shape, dtype, self.device)
        self._owned.append(array)
        return array

    # -- running ---------------------------------------------------------------------------------------
    def phases(self) -> dict[str, list[Call]]:
        """The calls of a training step: "forward", "loss", "backward", "update".

        Where the update of a layer's weights is fused with their gradient, it stands in "backward";
        `self.backward` and `self.update` are the same without fusion, for those who want the gradients.
        """
        return {
            "forward": self.forward,
            "loss": self.loss,
            "backward": self._descent,
            "update": self._remaining,
        }

    def calls(self) -> list[Call]:
        """Every call that the plan has, each once; in an order in which they may run."""
        fused = [call for call in self._descent if not any(call is other for other in self.backward)]
        return [*self.forward, *self.loss, *self.backward, self.input_gradient, *self.update, *fused]

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
        for call in (*chain(*self.phases().values()), self.input_gradient):
            op, problem = call.op, call.problem
            present = [n for n, a in zip(op.inputs, call.inputs, strict=True) if a is not None]
            moved = problem.bytes(*present, *op.outputs) / 1e6
            shape = "x".join(map(str, problem.shape(op.outputs[0])))
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
