"""The contenders of `bench/cpu.py`: each does the same work, with the settings that its makers advise.

A network is described to all of them by `describe`: plain dicts, from one of convkit's presets. Each
contender is a class with the same methods:

    network(spec, params)      -> .logits(x)  .gradients(x, dlogits)  .load(x, labels)  .step()  .forward()
    conv(case, data)           -> {"fwd": (run, value), "dgrad": ..., "wgrad": ...}
    norm_pool(spec, data)      -> {"fwd": ..., "both": ...}
    dense(spec, data)          -> run, error

`run()` is what is timed; `value(run())` is a NumPy array, or a tuple of them, in convkit's layout, for the
check; `error()` checks by itself.

Settings     PyTorch: inference_mode forward; SGD(fused=True), gradients set to None; in channels_last both
             images and weights are in that layout beforehand. ONNX Runtime: every graph optimisation,
             images handed over as they are. JAX: jitted functions with donated buffers, NHWC, images in that
             layout beforehand. All of them: as many threads as the others.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import convkit as ck
from convkit import geometry, layers, presets

Array = np.ndarray
Work = tuple[Callable[[], Any], Callable[[Any], Any]]
#: Small, so that weights stay what they are however often a step is repeated.
LR = 1e-5


class Missing(Exception):
    """A contender that is not installed, or cannot be used here; the message says what to do."""


def need(module: str, package: str | None = None) -> Any:
    """Import a peer, or raise `Missing` with the way to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"not installed ({error}): pip install {package or module}") from None


# ---------------------------------------------------------------------------------------------------
# What there is to do
# ---------------------------------------------------------------------------------------------------
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
        entry: dict[str, Any] = {"name": layer.name, "op": type(layer).__name__.lower()}
        if isinstance(layer, layers.Conv):
            pad = list(geometry.padding4(layer.padding))
            entry |= {"stride": layer.stride, "pad": pad, "groups": layer.groups}
        elif isinstance(layer, layers.Lrn):
            if layer.groups != 1 or layer.region != "across_channels":
                raise Missing(f"preset {name!r} has an LRN that no peer has; take one of paper, owt, caffe")
            entry |= {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "k": layer.k}
        elif isinstance(layer, layers.MaxPool):
            y = layer.output_shape(shape, 1000)
            if (shape[2] - layer.window) % layer.stride or y[2] != (
                shape[2] - layer.window
            ) // layer.stride + 1:
                raise Missing(f"preset {name!r} has a pool that overhangs its image: peers differ there")
            entry |= {"window": layer.window, "stride": layer.stride}
        elif isinstance(layer, layers.Dropout):
            entry |= {"p": layer.p, "inverted": layer.inverted}
        parameters |= {f"{layer.name}.{n}": s for n, (s, _) in layer.parameters(shape, 1000).items()}
        shape = layer.output_shape(shape, 1000)
        entry["output"] = list(shape[1:])
        found.append(entry)
    update = preset.update
    return {
        "preset": name, "layers": found, "input": (3, size, size), "parameters": parameters,
        "update": {"momentum": update.momentum, "w": update.weight_decay, "b": update.bias_decay},
    }  # fmt: skip


@dataclass(frozen=True)
class ConvCase:
    """One convolution; a square image and window."""

    label: str
    N: int
    C: int
    H: int
    K: int
    R: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    groups: int = 1
    W: int = 0
    S: int = 0

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.N, self.C, self.H, self.W or self.H

    @property
    def w_shape(self) -> tuple[int, ...]:
        return self.K, self.C // self.groups, self.R, self.S or self.R

    @property
    def pads(self) -> tuple[int, int]:
        """Vertical and horizontal: a window of one row needs no rows of padding."""
        return (self.pad if self.R > 1 else 0), (self.pad if (self.S or self.R) > 1 else 0)

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.pads, "dilation": self.dilation, "groups": self.groups}

    @property
    def problem(self) -> geometry.Conv2d:
        return geometry.Conv2d.of(self.x_shape, self.w_shape, **self.options)


@dataclass
class ConvData:
    """Arrays of one convolution, and what must come out of it, in float64."""

    case: ConvCase
    x: Array
    w: Array
    b: Array
    dy: Array
    expected: dict[str, Array]

    @classmethod
    def of(cls, case: ConvCase, directions: tuple[str, ...] = ("fwd", "dgrad", "wgrad")) -> ConvData:
        rng = np.random.default_rng(len(case.label))
        problem = case.problem
        x, w, b, dy = (
            rng.standard_normal(problem.shape(t), np.float32) for t in ("x", "w", "b", "dy")
        )  # fmt: skip
        wide = [a.astype(np.float64) for a in (x, w, b, dy)]
        exact = _own_conv(case, *wide, impl="reference")
        return cls(case, x, w, b, dy, {d: exact[d]() for d in directions})


def _own_conv(case: ConvCase, x: Array, w: Array, b: Array, dy: Array, **more: Any) -> dict[str, Callable]:
    options = {**case.options, **more}
    return {
        "fwd": lambda: ck.conv2d_fprop(x, w, b, **options),
        "dgrad": lambda: ck.conv2d_dgrad(dy, w, x.shape, **options),
        "wgrad": lambda: ck.conv2d_wgrad(x, dy, w.shape, **options),
    }


@dataclass
class NormPoolData:
    """Input and output gradient of LRN and a pool, and what must come out."""

    lrn: dict[str, Any]
    pool: dict[str, Any]
    x: Array
    dy: Array
    expected: dict[str, Any]

    @classmethod
    def of(cls, lrn: dict[str, Any], pool: dict[str, Any], batch: int) -> NormPoolData:
        rng = np.random.default_rng(3)
        C, H, W = lrn["output"]
        x = rng.standard_normal((batch, C, H, W), np.float32) * 30
        dy = rng.standard_normal((batch, *pool["output"]), np.float32)
        y, dx = _own_norm_pool(lrn, pool, x.astype(np.float64), dy.astype(np.float64), True, impl="reference")
        return cls(lrn, pool, x, dy, {"fwd": y, "both": (y, dx)})


def _own_norm_pool(
    lrn: dict[str, Any], pool: dict[str, Any], x: Array, dy: Array, both: bool, **more: Any
) -> Any:
    constants = {k: lrn[k] for k in ("size", "alpha", "beta", "k")}
    window = {"window": pool["window"], "stride": pool["stride"]}
    normed = ck.lrn_fprop(x, **constants, **more)
    y, argmax = ck.maxpool2d_fprop(normed, **window, **more)
    if not both:
        return y
    dn = ck.maxpool2d_dgrad(dy, argmax, x.shape, **window, **more)
    return y, ck.lrn_dgrad(dn, x, **constants, **more)


@dataclass
class DenseData:
    """Some fully connected layers in a row, with their ReLUs: one step of training."""

    names: tuple[str, ...]
    weights: list[Array]
    biases: list[Array]
    relus: list[bool]
    decay: dict[str, float]
    x: Array
    dy: Array
    expected: tuple[Array, ...]
    lr: float = 1e-3

    @classmethod
    def of(cls, spec: dict[str, Any], names: tuple[str, ...], batch: int) -> DenseData:
        rng = np.random.default_rng(4)
        shapes = [spec["parameters"][f"{name}.w"] for name in names]
        weights = [rng.standard_normal(s, np.float32) * np.float32(s[1] ** -0.5) for s in shapes]
        biases = [rng.standard_normal(s[0], np.float32) for s in shapes]
        order = [entry["op"] for entry in spec["layers"]]
        where = [entry["name"] for entry in spec["layers"]]
        relus = [order[(i := where.index(n)) + 1 : i + 2] == ["relu"] for n in names]
        x = rng.standard_normal((batch, shapes[0][1]), np.float32)
        dy = rng.standard_normal((batch, shapes[-1][0]), np.float32) / batch
        decay = {k: spec["update"][k] for k in ("w", "b")}
        data = cls(names, weights, biases, relus, decay, x, dy, ())
        data.expected = data._exact()
        return data

    def _exact(self) -> tuple[Array, ...]:
        """y, dx, and the change of the first and the last weights, in float64."""
        values = [self.x.astype(np.float64)]
        for w, b, relu in zip(self.weights, self.biases, self.relus):
            y = values[-1] @ w.astype(np.float64).T + b
            values.append(np.maximum(y, 0) if relu else y)
        d, changes = self.dy.astype(np.float64), []
        for i in reversed(range(len(self.weights))):
            d = d * (values[i + 1] > 0) if self.relus[i] else d
            w = self.weights[i].astype(np.float64)
            changes.append(-self.lr * (d.T @ values[i] + self.decay["w"] * w))
            d = d @ w
        return values[-1], d, changes[-1], changes[0]

    def error(self, got: tuple[Array, ...], first: Array, last: Array) -> float:
        """Relative RMS of (y, dx) and of the change of the first and last weights after one step."""
        moved = (first - self.weights[0], last - self.weights[-1])
        change = max(rms(a, b) for a, b in zip(moved, self.expected[2:]))
        # A change is a small difference of float32 weights, and is rounded as those are.
        return max(rms(got[0], self.expected[0]), rms(got[1], self.expected[1]), change / 10)


def rms(got: Any, expected: Array) -> float:
    """Relative RMS error; infinite where the shapes differ, NaN where there is a NaN."""
    got = np.asarray(got)
    if got.shape != expected.shape:
        return float("inf")
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    return float(np.sqrt(np.mean(np.square(got.astype(np.float64) - expected)))) / scale


def worst_rms(got: Any, expected: Any) -> float:
    """The largest of `rms` over a tuple; NaN wins."""
    pairs = zip(got, expected) if isinstance(expected, tuple) else [(got, expected)]
    return float(np.max([rms(a, b) for a, b in pairs]))


# ---------------------------------------------------------------------------------------------------
# convkit
# ---------------------------------------------------------------------------------------------------
class Convkit:
    """convkit: networks by their plans, single ops on NumPy arrays."""

    name = "convkit"

    def __init__(self, threads: int) -> None:
        self.version = ck.__version__

    def network(self, spec: dict[str, Any], params: dict[str, Array] | None = None) -> ConvkitNet:
        return ConvkitNet(spec)

    def conv(self, data: ConvData) -> dict[str, Work]:
        calls = _own_conv(data.case, data.x, data.w, data.b, data.dy)
        return {d: (run, lambda y: y) for d, run in calls.items()}

    def norm_pool(self, data: NormPoolData) -> dict[str, Work]:
        arguments = (data.lrn, data.pool, data.x, data.dy)
        return {
            "fwd": (lambda: _own_norm_pool(*arguments, False), lambda y: y),
            "both": (lambda: _own_norm_pool(*arguments, True), lambda y: y),
        }

    def dense(self, data: DenseData) -> tuple[Callable[[], Any], Callable[[], float]]:
        ws, bs = [w.copy() for w in data.weights], [b.copy() for b in data.biases]
        vs, us = [np.zeros_like(w) for w in ws], [np.zeros_like(b) for b in bs]
        dws, dbs = [np.empty_like(w) for w in ws], [np.empty_like(b) for b in bs]
        rate = {"lr": data.lr, "momentum": 0.9}

        def step() -> tuple[Array, Array]:
            values = [data.x]
            for w, b, relu in zip(ws, bs, data.relus):
                values.append(ck.linear_fprop(values[-1], w, b, relu=relu))
            d = data.dy
            for i in reversed(range(len(ws))):
                if data.relus[i]:
                    d = ck.relu_dgrad(d, values[i + 1])
                ck.linear_bgrad(d, out=dbs[i])
                ck.linear_wgrad(values[i], d, out=dws[i])
                d = ck.linear_dgrad(d, ws[i])
                ck.sgd_momentum(
                    ws[i], dws[i], vs[i], **rate, weight_decay=data.decay["w"], out=(ws[i], vs[i])
                )
                ck.sgd_momentum(
                    bs[i], dbs[i], us[i], **rate, weight_decay=data.decay["b"], out=(bs[i], us[i])
                )
            return values[-1], d

        return step, lambda: data.error(step(), ws[0], ws[-1])


class ConvkitNet:
    """A planned network."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.net = ck.AlexNet(spec["preset"], seed=0)
        self.params = self.net.params

    def logits(self, x: Array) -> Array:
        return self.net.forward(x)

    def gradients(self, x: Array, dlogits: Array) -> dict[str, Array]:
        self.net.forward(x)
        self.net.backward(dlogits)
        return self.net.grads

    def load(self, x: Array, labels: Array) -> None:
        self.x, self.labels = x, labels

    def forward(self) -> Any:
        return self.net.forward(self.x)

    def step(self) -> float:
        return self.net.step(self.x, self.labels, lr=LR)


# ---------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------
class Torch:
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
        """A copy in this contender's layout."""
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

    def network(self, spec: dict[str, Any], params: dict[str, Array]) -> TorchNet:
        return TorchNet(self, spec, params)

    def conv(self, data: ConvData) -> dict[str, Work]:
        torch, case = self.torch, data.case
        x, w, dy = self.tensor(data.x), self.tensor(data.w), self.tensor(data.dy)
        b = self.tensor(data.b)
        pair = (case.stride,) * 2, case.pads, (case.dilation,) * 2

        def backward(which: int) -> Any:
            mask = [which == 0, which == 1, False]
            return torch.ops.aten.convolution_backward(
                dy, x, w, None, *pair, False, (0, 0), case.groups, mask
            )[which]

        def forward() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.conv2d(x, w, b, *pair, case.groups)

        def back(t: Any) -> Array:
            return t.contiguous().numpy()

        return {
            "fwd": (forward, back),
            "dgrad": (lambda: backward(0), back),
            "wgrad": (lambda: backward(1), back),
        }

    def norm_pool(self, data: NormPoolData) -> dict[str, Work]:
        torch, F = self.torch, self.torch.nn.functional
        x, dy = self.tensor(data.x), self.tensor(data.dy)
        leaf = self.tensor(data.x, grad=True)
        constants = {k: data.lrn[k] for k in ("size", "alpha", "beta", "k")}
        window = (data.pool["window"], data.pool["stride"])

        def forward() -> Any:
            with torch.inference_mode():
                return F.max_pool2d(F.local_response_norm(x, **constants), *window)

        def both() -> Any:
            leaf.grad = None
            y = F.max_pool2d(F.local_response_norm(leaf, **constants), *window)
            y.backward(dy)
            return y, leaf.grad

        def back(t: Any) -> Any:
            found = t if isinstance(t, tuple) else (t,)
            arrays = tuple(a.detach().contiguous().numpy() for a in found)
            return arrays if isinstance(t, tuple) else arrays[0]

        return {"fwd": (forward, back), "both": (both, back)}

    def dense(self, data: DenseData) -> tuple[Callable[[], Any], Callable[[], float]]:
        F = self.torch.nn.functional
        ws = [self.tensor(w, grad=True) for w in data.weights]
        bs = [self.tensor(b, grad=True) for b in data.biases]
        x, dy = self.tensor(data.x, grad=True), self.tensor(data.dy)
        optimizer = self.optimizer(
            [
                {"params": ws, "weight_decay": data.decay["w"]},
                {"params": bs, "weight_decay": data.decay["b"]},
            ],
            data.lr,
        )

        def step() -> Any:
            x.grad = None
            optimizer.zero_grad(set_to_none=True)
            y = x
            for w, b, relu in zip(ws, bs, data.relus):
                y = F.linear(y, w, b)
                y = F.relu(y, inplace=True) if relu else y
            y.backward(dy)
            optimizer.step()
            return y, x.grad

        def error() -> float:
            y, dx = step()
            return data.error(
                (y.detach().numpy(), dx.numpy()), ws[0].detach().numpy(), ws[-1].detach().numpy()
            )

        return step, error


PYTORCH_NAMES = {"nchw": "torch", "channels_last": "torch-channels-last"}


class TorchNet:
    """A network, its optimizer, and a loaded batch."""

    def __init__(self, peer: Torch, spec: dict[str, Any], params: dict[str, Array]) -> None:
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
# ONNX Runtime
# ---------------------------------------------------------------------------------------------------
class OnnxRuntime:
    """ONNX Runtime's CPU provider: forward passes only."""

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self.ort, self.onnx = need("onnxruntime"), need("onnx")
        self.threads, self.version = threads, self.ort.__version__

    def session(self, nodes: list[Any], weights: dict[str, Array], x_shape: Any, y_shape: Any, y: str) -> Any:
        """A session of a model with input "x" and one output."""
        helper, tensor = self.onnx.helper, self.onnx.numpy_helper
        kind = self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            nodes, "model",
            [helper.make_tensor_value_info("x", kind, list(x_shape))],
            [helper.make_tensor_value_info(y, kind, list(y_shape))],
            [tensor.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.execution_mode = self.ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        return self.ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def network(self, spec: dict[str, Any], params: dict[str, Array]) -> OnnxNet:
        return OnnxNet(self, spec, params)

    def conv(self, data: ConvData) -> dict[str, Work]:
        case = data.case
        node = self.onnx.helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], strides=[case.stride] * 2, pads=[*case.pads, *case.pads],
            dilations=[case.dilation] * 2, group=case.groups,
        )  # fmt: skip
        session = self.session([node], {"w": data.w, "b": data.b}, data.x.shape, case.problem.shape("y"), "y")
        return {"fwd": (lambda: session.run(None, {"x": data.x})[0], lambda y: y)}

    def norm_pool(self, data: NormPoolData) -> dict[str, Work]:
        make = self.onnx.helper.make_node
        nodes = [_onnx_lrn(make, data.lrn, "x", "n"), _onnx_pool(make, data.pool, "n", "y")]
        session = self.session(nodes, {}, data.x.shape, data.dy.shape, "y")
        return {"fwd": (lambda: session.run(None, {"x": data.x})[0], lambda y: y)}


def _onnx_lrn(make: Any, layer: dict[str, Any], x: str, y: str) -> Any:
    return make(
        "LRN", [x], [y], size=layer["size"], alpha=layer["alpha"], beta=layer["beta"], bias=float(layer["k"])
    )


def _onnx_pool(make: Any, layer: dict[str, Any], x: str, y: str) -> Any:
    return make("MaxPool", [x], [y], kernel_shape=[layer["window"]] * 2, strides=[layer["stride"]] * 2)


class OnnxNet:
    """Sessions of one network, one for each batch size."""

    def __init__(self, peer: OnnxRuntime, spec: dict[str, Any], params: dict[str, Array]) -> None:
        self.peer, self.spec, self.params = peer, spec, params
        self._sessions: dict[int, Any] = {}

    def _session(self, batch: int) -> Any:
        if batch not in self._sessions:
            self._sessions.clear()
            self._sessions[batch] = self._make(batch)
        return self._sessions[batch]

    def _make(self, batch: int) -> Any:
        make, nodes, value = self.peer.onnx.helper.make_node, [], "x"
        weights = dict(self.params)
        for layer in self.spec["layers"]:
            op, name = layer["op"], layer["name"]
            if op == "conv":
                top, bottom, left, right = layer["pad"]
                nodes.append(make(
                    "Conv", [value, f"{name}.w", f"{name}.b"], [name], strides=[layer["stride"]] * 2,
                    pads=[top, left, bottom, right], group=layer["groups"],
                ))  # fmt: skip
            elif op == "relu":
                nodes.append(make("Relu", [value], [name]))
            elif op == "lrn":
                nodes.append(_onnx_lrn(make, layer, value, name))
            elif op == "maxpool":
                nodes.append(_onnx_pool(make, layer, value, name))
            elif op == "flatten":
                nodes.append(make("Flatten", [value], [name], axis=1))
            elif op == "linear":
                nodes.append(make("Gemm", [value, f"{name}.w", f"{name}.b"], [name], transB=1))
            elif op == "dropout":
                if layer["inverted"]:
                    continue
                weights[f"{name}.scale"] = np.float32(1 - layer["p"]).reshape(1)
                nodes.append(make("Mul", [value, f"{name}.scale"], [name]))
            value = name
        return self.peer.session(
            nodes, weights, (batch, *self.spec["input"]), (batch, *self.spec["layers"][-1]["output"]), value
        )

    def logits(self, x: Array) -> Array:
        return self._session(len(x)).run(None, {"x": x})[0]

    def load(self, x: Array, labels: Array) -> None:
        self.x = x
        self._session(len(x))

    def forward(self) -> Any:
        return self._session(len(self.x)).run(None, {"x": self.x})[0]


# ---------------------------------------------------------------------------------------------------
# JAX
# ---------------------------------------------------------------------------------------------------
class Jax:
    """JAX: jitted functions, NHWC."""

    name = "jax"

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

    def network(self, spec: dict[str, Any], params: dict[str, Array]) -> JaxNet:
        return JaxNet(self, spec, params)

    def conv(self, data: ConvData) -> dict[str, Work]:
        case, jit = data.case, self.jax.jit
        pads = [(p, p) for p in case.pads]
        x, w, b, dy = self.put(data.x), self.weight(data.w), self.jax.device_put(data.b), self.put(data.dy)

        def product(x: Any, w: Any) -> Any:
            return self.convolve(x, w, case.stride, pads, case.dilation, case.groups)

        dgrad = jit(lambda dy, x, w: self.jax.vjp(lambda x: product(x, w), x)[1](dy)[0])
        wgrad = jit(lambda dy, x, w: self.jax.vjp(lambda w: product(x, w), w)[1](dy)[0])
        forward = jit(lambda x, w, b: product(x, w) + b)
        return {
            "fwd": (self.wait(forward, x, w, b), _nchw),
            "dgrad": (self.wait(dgrad, dy, x, w), _nchw),
            "wgrad": (self.wait(wgrad, dy, x, w), _kcrs),
        }

    def norm_pool(self, data: NormPoolData) -> dict[str, Work]:
        x, dy = self.put(data.x), self.put(data.dy)

        def function(x: Any) -> Any:
            return self.pool(self.lrn(x, data.lrn), data.pool)

        def both(x: Any, dy: Any) -> Any:
            y, back = self.jax.vjp(function, x)
            return y, back(dy)[0]

        return {
            "fwd": (self.wait(self.jax.jit(function), x), _nchw),
            "both": (self.wait(self.jax.jit(both), x, dy), lambda t: tuple(_nchw(a) for a in t)),
        }

    def dense(self, data: DenseData) -> tuple[Callable[[], Any], Callable[[], float]]:
        np_, jax = self.np, self.jax

        def forward(p: Any, x: Any) -> Any:
            for (w, b), relu in zip(p, data.relus):
                x = x @ w.T + b
                x = np_.maximum(x, 0) if relu else x
            return x

        def step(p: Any, v: Any, x: Any, dy: Any) -> Any:
            y, back = jax.vjp(forward, p, x)
            grads, dx = back(dy)
            decays = [(data.decay["w"], data.decay["b"])] * len(p)
            v = jax.tree.map(lambda v, g, w, d: 0.9 * v + g + d * w, v, grads, p, decays)
            return jax.tree.map(lambda w, v: w - data.lr * v, p, v), v, y, dx

        jitted = jax.jit(step, donate_argnums=(0, 1))
        p = [(jax.device_put(w), jax.device_put(b)) for w, b in zip(data.weights, data.biases)]
        state = [p, jax.tree.map(np_.zeros_like, p)]
        x, dy = jax.device_put(data.x), jax.device_put(data.dy)

        def run() -> Any:
            state[0], state[1], y, dx = jax.block_until_ready(jitted(state[0], state[1], x, dy))
            return y, dx

        def error() -> float:
            y, dx = run()
            return data.error(
                (np.asarray(y), np.asarray(dx)), np.asarray(state[0][0][0]), np.asarray(state[0][-1][0])
            )

        return run, error


def _nchw(a: Any) -> Array:
    return np.asarray(a).transpose(0, 3, 1, 2)


def _kcrs(a: Any) -> Array:
    return np.asarray(a).transpose(3, 2, 0, 1)


class JaxNet:
    """Jitted forward pass, gradients and step of one network."""

    def __init__(self, peer: Jax, spec: dict[str, Any], params: dict[str, Array]) -> None:
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
        return {n: _kcrs(g) if g.ndim == 4 else np.asarray(g) for n, g in grads.items()}

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


# ---------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------
CONTENDERS: dict[str, Callable[[int], Any]] = {
    "convkit": Convkit,
    "torch": Torch,
    "torch-channels-last": lambda threads: Torch(threads, "channels_last"),
    "torch-compile": lambda threads: Torch(threads, "nchw", compiled=True),
    "onnxruntime": OnnxRuntime,
    "jax": Jax,
}


def make(names: list[str], threads: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The contenders that are installed, and for each other one what is missing."""
    found, missing = {}, {}
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = CONTENDERS[name](threads)
        except Missing as reason:
            missing[name] = str(reason)
    return found, missing
