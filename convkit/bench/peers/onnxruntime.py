"""ONNX Runtime's CPU provider as an entry: forward passes, float32.

A session is built when it is bound, with every graph optimisation and the weights as constants, as a deployed
model has them. It allocates its outputs itself: that is its API on NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...op import OPS
from ...ops.conv2d import Conv2d
from ...ops.lrn import LRN
from ...ops.lrn_maxpool2d import LrnMaxPool2d
from ...ops.maxpool2d import Pool2d
from ..measure.entry import Entry
from ..work import Item
from . import Missing, need, threads

OPSET = 17
#: (nodes as (type, inputs, outputs, attributes))
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]


def about(device: str) -> dict[str, Any]:
    """Version and settings."""
    if device == "cuda":
        raise Missing("only its CPU provider takes part")
    ort, _ = need("onnxruntime"), need("onnx")
    settings = {"threads": threads(), "optimisation": "all", "execution": "sequential"}
    return {"version": ort.__version__, "settings": settings}


def entries(item: Item, device: str) -> list[Entry]:
    """One, where ONNX has the op."""
    if device == "cuda":
        raise Missing("only its CPU provider takes part")
    if item.op not in _NODES:
        raise Missing("trains nothing" if item.direction != "fwd" else f"has no op like {item.op}")
    if item.dtype != "float32":
        raise Missing(f"its CPU provider does not compute in {item.dtype}")
    nodes = _NODES[item.op](item)
    ort = need("onnxruntime")
    state: dict[str, Any] = {}

    def bind(inputs: dict[str, Any], outputs: dict[str, Any]) -> Callable[[], None]:
        session = _session(ort, item, nodes, inputs)
        fed, names = {"x": np.asarray(inputs["x"], order="C")}, _outputs(nodes)

        def run() -> None:
            state["outputs"] = session.run(names, fed)

        return run

    def read() -> dict[str, Any]:
        found = dict(zip(OPS[item.op].outputs, state["outputs"]))
        if "argmax" in found:
            found["argmax"] = _taps(item.problem, found["argmax"])
        return found

    facts: dict[str, Any] = {}
    if isinstance(item.problem, Conv2d):
        facts["algorithm_flops"] = item.fast_flops
    return [Entry("onnxruntime", "ONNX Runtime", bind, read, "NCHW", facts)]


def _outputs(nodes: Nodes) -> list[str]:
    return nodes[-1][2]


def _session(ort: Any, item: Item, nodes: Nodes, inputs: dict[str, Any]) -> Any:
    constants = {n: a for n, a in inputs.items() if a is not None and n != "x"}
    return session(ort, nodes, inputs["x"].shape, constants)


def session(ort: Any, nodes: Nodes, x_shape: Any, constants: dict[str, Any]) -> Any:
    """A session of a model with the input "x", whose outputs are the last node's."""
    onnx = need("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    wanted = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64 if name == "argmax" else kind, None)
        for name in _outputs(nodes)
    ]
    graph = helper.make_graph(
        [helper.make_node(op, given, made, **attributes) for op, given, made, attributes in nodes],
        "model",
        [helper.make_tensor_value_info("x", kind, list(x_shape))],
        wanted,
        [onnx.numpy_helper.from_array(np.asarray(a, order="C"), name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _taps(problem: Any, flat: Any) -> Any:
    """ONNX counts a maximum's place in the whole tensor: as one in its image, then as a tap."""
    from .torch import taps

    g: Pool2d = problem.pool if isinstance(problem, LrnMaxPool2d) else problem
    return taps(problem, flat % (g.H * g.W))


def _conv(item: Item) -> Nodes:
    g = item.problem
    assert isinstance(g, Conv2d)
    given = [n for n in ("x", "w", "b") if n not in item.absent]
    attributes = {
        "strides": [g.stride_h, g.stride_w], "dilations": [g.dilation_h, g.dilation_w], "group": g.groups,
        "pads": [g.pad_top, g.pad_left, g.pad_bottom, g.pad_right],
    }  # fmt: skip
    return _rectified(("Conv", given, ["y"], attributes), item)


def _linear(item: Item) -> Nodes:
    given = [n for n in ("x", "w", "b") if n not in item.absent]
    return _rectified(("Gemm", given, ["y"], {"transB": 1}), item)


def _rectified(node: tuple[str, list[str], list[str], dict[str, Any]], item: Item) -> Nodes:
    if not item.options.get("relu"):
        return [node]
    op, given, _, attributes = node
    return [(op, given, ["plain"], attributes), ("Relu", ["plain"], ["y"], {})]


def _lrn(item: Item) -> Nodes:
    return [_normed(item.problem, "y")]  # type: ignore[arg-type]


def _normed(g: LRN, y: str) -> tuple[str, list[str], list[str], dict[str, Any]]:
    if g.groups != 1 or g.region != "across_channels":
        raise Missing("its LRN knows neither groups nor a window within a channel")
    if g.size % 2 == 0:
        raise Missing("its LRN takes odd windows only")
    return "LRN", ["x"], [y], {"size": g.size, "alpha": g.alpha, "beta": g.beta, "bias": float(g.k)}


def _pool(item: Item) -> Nodes:
    return [_pooled(item.problem, "x")]  # type: ignore[arg-type]


def _pooled(g: Pool2d, x: str) -> tuple[str, list[str], list[str], dict[str, Any]]:
    attributes = {
        "kernel_shape": [g.R, g.S], "strides": [g.stride_h, g.stride_w], "ceil_mode": int(g.ceil_mode),
        "dilations": [g.dilation_h, g.dilation_w],
        "pads": [g.pad_top, g.pad_left, g.pad_bottom, g.pad_right],
    }  # fmt: skip
    return "MaxPool", [x], ["y", "argmax"], attributes


def _lrn_pool(item: Item) -> Nodes:
    g = item.problem
    assert isinstance(g, LrnMaxPool2d)
    return [_normed(g.lrn, "n"), _pooled(g.pool, "n")]


_NODES: dict[str, Callable[[Item], Nodes]] = {
    "conv2d_fprop": _conv,
    "linear_fprop": _linear,
    "relu_fprop": lambda item: [("Relu", ["x"], ["y"], {})],
    "lrn_fprop": _lrn,
    "maxpool2d_fprop": _pool,
    "lrn_maxpool2d_fprop": _lrn_pool,
}


# ---------------------------------------------------------------------------------------------------
# A whole network
# ---------------------------------------------------------------------------------------------------
class Network:
    """The forward pass of a network that `networks.describe` describes; a session for each batch size."""

    def __init__(self, spec: dict[str, Any], params: dict[str, Any]) -> None:
        self.ort = need("onnxruntime")
        self.spec, self.params = spec, params
        self._sessions: dict[int, Any] = {}

    def _session(self, batch: int) -> Any:
        if batch not in self._sessions:
            self._sessions.clear()
            nodes, constants = self._nodes()
            self._sessions[batch] = session(self.ort, nodes, (batch, *self.spec["input"]), constants)
        return self._sessions[batch]

    def _nodes(self) -> tuple[Nodes, dict[str, Any]]:
        """The layers, one node each, and their constants."""
        nodes: Nodes = []
        constants, value = dict(self.params), "x"
        for layer in self.spec["layers"]:
            op, name = layer["op"], layer["name"]
            if op == "dropout":
                if layer["inverted"]:
                    continue
                constants[f"{name}.scale"] = np.float32(1 - layer["p"]).reshape(1)
            kind, more, attributes = _LAYERS[op](layer)
            nodes.append((kind, [value, *(f"{name}.{tensor}" for tensor in more)], [name], attributes))
            value = name
        return nodes, constants

    def logits(self, x: Any) -> Any:
        return self._session(len(x)).run(None, {"x": x})[0]

    def load(self, x: Any, labels: Any) -> None:
        self.x = x
        self._session(len(x))

    def forward(self) -> Any:
        return self._session(len(self.x)).run(None, {"x": self.x})[0]


def _conv_layer(layer: dict[str, Any]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    top, bottom, left, right = layer["pad"]
    pads = {"strides": [layer["stride"]] * 2, "pads": [top, left, bottom, right]}
    return "Conv", ("w", "b"), {**pads, "group": layer["groups"]}


#: By layer: the node's type, the layer's tensors, the attributes.
_LAYERS: dict[str, Callable[[dict[str, Any]], tuple[str, tuple[str, ...], dict[str, Any]]]] = {
    "conv": _conv_layer,
    "relu": lambda layer: ("Relu", (), {}),
    "lrn": lambda layer: (
        "LRN", (), {**{k: layer[k] for k in ("size", "alpha", "beta")}, "bias": float(layer["k"])}
    ),
    "maxpool": lambda layer: (
        "MaxPool", (), {"kernel_shape": [layer["window"]] * 2, "strides": [layer["stride"]] * 2}
    ),
    "flatten": lambda layer: ("Flatten", (), {"axis": 1}),
    "linear": lambda layer: ("Gemm", ("w", "b"), {"transB": 1}),
    "dropout": lambda layer: ("Mul", ("scale",), {}),
}  # fmt: skip
