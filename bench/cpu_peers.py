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

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import convkit as ck
from convkit.bench.peers import Missing, need
from convkit.bench.peers.networks import ConvkitNet, JaxNet, JaxTools, TorchNet, TorchTools, kcrs, nchw
from convkit.ops.conv2d import Conv2d

Array = np.ndarray
Work = tuple[Callable[[], Any], Callable[[Any], Any]]


# ---------------------------------------------------------------------------------------------------
# What there is to do
# ---------------------------------------------------------------------------------------------------
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
    def problem(self) -> Conv2d:
        return Conv2d.of(self.x_shape, self.w_shape, **self.options)


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


# ---------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------
class Torch(TorchTools):
    """PyTorch: networks, and single pieces of work."""

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
class Jax(JaxTools):
    """JAX: jitted functions, NHWC."""

    name = "jax"

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
            "fwd": (self.wait(forward, x, w, b), nchw),
            "dgrad": (self.wait(dgrad, dy, x, w), nchw),
            "wgrad": (self.wait(wgrad, dy, x, w), kcrs),
        }

    def norm_pool(self, data: NormPoolData) -> dict[str, Work]:
        x, dy = self.put(data.x), self.put(data.dy)

        def function(x: Any) -> Any:
            return self.pool(self.lrn(x, data.lrn), data.pool)

        def both(x: Any, dy: Any) -> Any:
            y, back = self.jax.vjp(function, x)
            return y, back(dy)[0]

        return {
            "fwd": (self.wait(self.jax.jit(function), x), nchw),
            "both": (self.wait(self.jax.jit(both), x, dy), lambda t: tuple(nchw(a) for a in t)),
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
