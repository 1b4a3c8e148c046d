"""ONNX models on convkit's ops: load one and run it, or let ONNX's own test runner drive it.

    model = convkit.onnx.load("alexnet.onnx")
    (probs,) = model.run({"data_0": x})

Covered are the operators that convkit has ops for, and the shape plumbing between them. Each is a short
function under `@operator`: its positional parameters are the inputs, its keyword-only parameters the
attributes with their defaults, and an output that costs something and may not be wanted is returned as a
function that makes it. A model that uses anything else is refused when it is loaded, by name.

In 16 bits an operator rounds to storage once, at its end: what is composed of several steps takes them in
float32, a loss in float64. NaN and infinity propagate, without a warning. Average pooling is covered where
it is the identity, as in the AlexNet of torchvision.

ONNX is an optional neighbour: `pip install 'convkit[onnx]'`. Nothing in convkit imports this module.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .. import arrays
from ..errors import (
    ConvkitError,
    DtypeError,
    MissingExtra,
    NoImplementation,
    OptionError,
    OutOfMemory,
    ShapeError,
)
from ..ops.conv2d import conv2d_fprop
from ..ops.linear import linear_fprop
from ..ops.lrn import lrn_fprop
from ..ops.maxpool2d import Pool2d, maxpool2d_fprop
from ..ops.relu import relu_fprop
from ..ops.sgd import sgd_momentum
from ..ops.softmax_xent import softmax_xent_fprop
from ..ops.window import output_extent, window_span

try:
    import onnx  # the package: `convkit.onnx` is another name
    import onnx.backend.base
    import onnx.checker
    import onnx.helper
    import onnx.numpy_helper
except ImportError as error:
    raise MissingExtra("convkit.onnx", "the package onnx", "onnx") from error

Array = np.ndarray
TRAINING = "ai.onnx.preview.training"


# ---------------------------------------------------------------------------------------------------
# The table of operators
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Operator:
    """How one operator is computed, from an opset version on.

    Attributes
    ----------
    name, domain : str
        As in ONNX; the domain of ONNX itself is "ai.onnx".
    since : int
        First opset version with this meaning.
    function : callable
        `function(*inputs, **attributes)` returns an array or a tuple of them.
    choices : dict
        Attributes that take a few values only, which are checked when a model is loaded.
    ranks : tuple of int
        Numbers of dimensions that the first two inputs may have; any, if empty.
    lacks : callable, optional
        `lacks(attributes)` says what a node with these attributes would need that is not covered; an empty
        text if it is covered. Called when a model is loaded.
    """

    name: str
    domain: str
    since: int
    function: Callable[..., Any]
    choices: dict[str, tuple] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    lacks: Callable[[dict[str, Any]], str] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes with their defaults; `inspect.Parameter.empty` where there is none."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


OPERATORS: dict[tuple[str, str], list[Operator]] = {}


def operator(
    name: str,
    *,
    since: int = 1,
    domain: str = "ai.onnx",
    choices: dict[str, tuple] | None = None,
    ranks: tuple[int, ...] = (),
    lacks: Callable[[dict[str, Any]], str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that registers a function as an operator; see `Operator` for the arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        versions = OPERATORS.setdefault((domain, name), [])
        versions.append(Operator(name, domain, since, function, choices or {}, ranks, lacks))
        versions.sort(key=lambda version: -version.since)
        return function

    return register


def known_operators() -> list[str]:
    """Names of the covered operators, those of another domain than ONNX's own with it."""
    return sorted(name if domain == "ai.onnx" else f"{domain}.{name}" for domain, name in OPERATORS)


# ---------------------------------------------------------------------------------------------------
# Convolution, pooling, LRN, ReLU
# ---------------------------------------------------------------------------------------------------
AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
IMAGE = (3, 4)  # 1-D and 2-D, with N and C


def _lift(x: Array) -> Array:
    """A 1-D image as a 2-D one of height 1."""
    return x[:, :, None] if x.ndim == 3 else x


def _window(
    extents: Sequence[int], window: Sequence[int], auto_pad: str, strides: Any, pads: Any, dilations: Any
) -> dict[str, Any]:
    """ONNX's attributes of a sliding window as convkit's options; a 1-D window gets a height of 1."""
    n = len(window)
    if n not in (1, 2) or len(extents) != n:
        raise ShapeError(
            f"only 1-D and 2-D images are covered, not extents {tuple(extents)}, window {tuple(window)}"
        )
    strides, dilations = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    pads = tuple(pads or (0,) * 2 * n) if auto_pad == "NOTSET" else (0,) * 2 * n
    if len(strides) != n or len(dilations) != n or len(pads) != 2 * n:
        raise ShapeError(
            f"strides {strides}, dilations {dilations} and pads {pads} must be those of {n} axes"
        )
    if min(strides) < 1:
        raise OptionError(f"strides must each be at least 1, not {strides}")
    padding = list(zip(pads[:n], pads[n:]))
    if auto_pad.startswith("SAME"):
        for axis, (size, stride) in enumerate(zip(extents, strides)):
            # As many positions as a window of one pixel has: ceil(size / stride).
            last = (output_extent(size, 1, stride, 0, 0) - 1) * stride
            total = max(0, last + window_span(window[axis], dilations[axis]) - size)
            less, more = total // 2, total - total // 2
            padding[axis] = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    if n == 1:
        strides, dilations, padding = (1, *strides), (1, *dilations), [(0, 0), *padding]
    return {"stride": strides, "padding": tuple(padding), "dilation": dilations}


@operator("Conv", ranks=IMAGE, choices={"auto_pad": AUTO_PAD})
def conv(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
):
    if kernel_shape and tuple(kernel_shape) != w.shape[2:]:
        raise ShapeError(f"kernel_shape {tuple(kernel_shape)} is not that of the weights, {w.shape}")
    options = _window(x.shape[2:], w.shape[2:], auto_pad, strides, pads, dilations)
    y = conv2d_fprop(_lift(x), _lift(w), b, groups=group, **options)
    return y if x.ndim == 4 else y[:, :, 0]


@operator(
    "MaxPool", ranks=IMAGE, choices={"auto_pad": AUTO_PAD, "ceil_mode": (0, 1), "storage_order": (0, 1)}
)
def max_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    dilations=None,
    pads=None,
    storage_order=0,
    strides=None,
):
    options = _window(x.shape[2:], kernel_shape, auto_pad, strides, pads, dilations)
    options["window"] = (1, *kernel_shape)[-2:]
    # With auto_pad the text of ONNX gives the same size in both modes (its shape inference does not).
    options["ceil_mode"] = bool(ceil_mode) and auto_pad == "NOTSET"
    image = _lift(x)
    if x.dtype in (np.int8, np.uint8):  # exact in float32
        image = image.astype(np.float32)
    y, argmax = maxpool2d_fprop(image, **options)

    def indices() -> Array:
        """Position of each maximum in the whole of x, flattened; column by column in storage order 1."""
        g = Pool2d.of(image.shape, **options)
        r, s = np.divmod(argmax.astype(np.int64), g.S)
        h = np.arange(g.P)[:, None] * g.stride_h - g.pad_top + r * g.dilation_h
        w = np.arange(g.Q) * g.stride_w - g.pad_left + s * g.dilation_w
        first = np.arange(g.N * g.C).reshape(g.N, g.C, 1, 1) * (g.H * g.W)
        found = first + (w * g.H + h if storage_order else h * g.W + w)
        return found if x.ndim == 4 else found[:, :, 0]

    if image.dtype != x.dtype:
        y = np.maximum(y, np.iinfo(x.dtype).min)  # -inf: a window that sees padding alone
    y = y.astype(x.dtype, copy=False)
    return (y if x.ndim == 4 else y[:, :, 0]), indices


def _no_identity(attributes: dict[str, Any]) -> str:
    """How an average pool with these attributes changes its input; empty if it does not."""
    window, strides, pads = (attributes[name] for name in ("kernel_shape", "strides", "pads"))
    n, dilations = len(window), attributes["dilations"]
    if len(strides or window) != n or len(dilations or window) != n or len(pads or 2 * window) != 2 * n:
        return f"strides {strides}, dilations {dilations} and pads {pads}, which are not those of {n} axes"
    # Windows of one pixel need no padding under any auto_pad, and neither their dilation, nor the mode of
    # rounding, nor what a pad counts for makes a difference.
    if {*window, *(strides or (1,))} == {1} and not any(pads or ()):
        return ""
    return (
        "average pooling other than the identity (windows of one pixel, strides of 1, no padding): here "
        f"kernel_shape is {window}, strides {strides}, pads {pads}"
    )


@operator("AveragePool", choices={"auto_pad": AUTO_PAD, "ceil_mode": (0, 1)}, lacks=_no_identity)
def average_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    count_include_pad=0,
    dilations=None,
    pads=None,
    strides=None,
):
    """The identity: what both exporters of PyTorch make of AdaptiveAvgPool2d where the sizes agree."""
    if x.ndim != 2 + len(kernel_shape):
        raise ShapeError(f"kernel_shape {kernel_shape} does not fit x of shape {x.shape}")
    return x


@operator("LRN")
def lrn(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    image = x if x.ndim == 4 else x.reshape(*x.shape[:2], 1, prod(x.shape[2:]))
    return lrn_fprop(image, size=size, alpha=alpha, beta=beta, k=bias).reshape(x.shape)


@operator("Relu")
def relu(x):
    return relu_fprop(x)


# ---------------------------------------------------------------------------------------------------
# Fully connected
# ---------------------------------------------------------------------------------------------------
SIXTEEN_BITS = ("float16", "bfloat16")
#: Weights that are widened at a time, in elements: 16 MiB of float32.
WIDENED = 1 << 22


def _matrices(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2:
        raise ShapeError(
            f"only the product of two matrices is covered, not of shapes {a.shape} and {b.shape}"
        )


def _linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """x w^T + b, of extents of 0 too, which the op does not take."""
    if x.shape[1] != w.shape[1]:
        raise ShapeError(f"matrices of shapes {x.shape} and {w.shape[::-1]} have no product")
    if 0 not in (*x.shape, *w.shape):
        return linear_fprop(x, w, b)
    y = np.zeros((len(x), len(w)), arrays.DTYPES[arrays.dtype_name("x", x)])
    return y if b is None else y + b


@operator("Gemm", ranks=(2,))
def gemm_before_7(a, b, c, *, alpha=1.0, beta=1.0, broadcast=0, transA=0, transB=0):
    _matrices(a, b)
    shape = (a.shape[1 if transA else 0], b.shape[0 if transB else 1])
    if not broadcast and c.shape != shape:
        raise ShapeError(f"C must have shape {shape}, not {c.shape}, without the attribute broadcast")
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@operator("Gemm", since=7, ranks=(2,))
def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    """In one op where that can be; else in three steps, of which 16 bits see the last result alone."""
    _matrices(a, b)
    x, w = a.T if transA else a, b if transB else b.T
    dtypes = [str(m.dtype) for m in (a, b, c) if m is not None]
    if len(set(dtypes)) > 1:
        raise DtypeError(f"A, B and C must share a dtype, not {', '.join(dtypes)}")
    if c is not None:
        np.broadcast_to(c, (len(x), len(w)))  # refuses what does not broadcast in one direction
    if beta == 0:
        c = None
    if alpha == 1 and (c is None or (beta == 1 and (c.ndim < 2 or len(c) == 1))):
        return _linear(x, w, None if c is None else np.broadcast_to(c.reshape(-1), w.shape[:1]))
    wide = np.dtype(np.float32) if arrays.dtype_name("A", a) in SIXTEEN_BITS else a.dtype
    if a.dtype == wide:
        y = _linear(x, w)
    else:
        y, x = np.empty((len(x), len(w)), wide), x.astype(wide, order="C")
        step = max(1, WIDENED // max(1, w.shape[1]))
        for k in range(0, len(w), step):
            y[:, k : k + step] = _linear(x, w[k : k + step].astype(wide, order="C"))
    y *= wide.type(alpha)
    if c is not None:
        y += c.astype(wide, copy=False) * wide.type(beta)
    return y.astype(a.dtype, copy=False)


@operator("MatMul", ranks=(2,))
def matmul(a, b):
    _matrices(a, b)
    return _linear(a, b.T)


# ---------------------------------------------------------------------------------------------------
# Softmax and its losses
# ---------------------------------------------------------------------------------------------------
def _softmax(rows: Array) -> Array:
    return softmax_xent_fprop(rows, np.zeros(len(rows), np.int64))[1] if rows.size else rows


def _log_softmax(rows: Array) -> Array:
    """By the loss of each row's largest logit, which is log(sum(exp(x - max))): no logarithm of a zero."""
    if not rows.size:
        return rows
    largest = rows.argmax(axis=1)
    loss, _ = softmax_xent_fprop(rows, largest)
    wide = rows.astype(loss.dtype)
    return (wide - wide.max(axis=1, keepdims=True) - loss[:, None]).astype(rows.dtype)


def _class_rows(x: Array, axis: int = 1) -> Array:
    """x with `axis` last and the others as one."""
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"x of shape {x.shape} has no axis {axis}")
    moved = np.moveaxis(x, axis, -1)
    return moved.reshape(prod(moved.shape[:-1]), moved.shape[-1])


def _from_class_rows(rows: Array, shape: tuple[int, ...], axis: int = 1) -> Array:
    """The inverse of `_class_rows`."""
    axis %= len(shape)
    return np.moveaxis(rows.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis]), -1, axis)


@operator("Softmax")
def softmax_before_13(x, *, axis=1):
    return _softmax(flatten(x, axis=axis)).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax_before_13(x, *, axis=1):
    return _log_softmax(flatten(x, axis=axis)).reshape(x.shape)


@operator("Softmax", since=13)
def softmax(x, *, axis=-1):
    return _from_class_rows(_softmax(_class_rows(x, axis)), x.shape, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x, *, axis=-1):
    return _from_class_rows(_log_softmax(_class_rows(x, axis)), x.shape, axis)


def _reduced(loss_of: Callable[[Array], Array], scores, labels, weights, ignore_index, reduction) -> Array:
    """Weigh and reduce, in float64, the losses that `loss_of(labels)` gives; an ignored label counts for
    nothing.
    """
    classes, places = scores.shape[1], (*scores.shape[:1], *scores.shape[2:])
    if labels.shape != places:
        raise ShapeError(f"labels must have shape {places} for scores {scores.shape}, not {labels.shape}")
    arrays.dtype_name("scores", scores)
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"labels must be of an integer dtype, not {labels.dtype}")
    if weights is not None and weights.shape != (classes,):
        raise ShapeError(f"weights must have shape {(classes,)}, one for each class, not {weights.shape}")
    counted = np.ones(places, bool) if ignore_index is None else labels != ignore_index
    safe = np.where(counted, labels, 0)
    wrong = counted & ((safe < 0) | (safe >= classes))
    if wrong.any():
        also = "" if ignore_index is None else f", or ignore_index, {ignore_index}"
        raise OptionError(
            f"labels must each be a class, 0 <= label < {classes}{also}; found {labels[wrong].flat[0]}"
        )
    loss, scale = np.zeros(places), counted.astype(np.float64)
    if counted.any():
        loss = np.where(counted, loss_of(safe.reshape(-1)).astype(np.float64).reshape(places), 0)
        if weights is not None:
            scale = np.where(counted, weights.astype(np.float64)[safe], 0)
    loss = loss * scale
    if reduction == "none":
        return loss.astype(scores.dtype)
    total = loss.sum()
    return np.asarray(total / scale.sum() if reduction == "mean" else total).astype(scores.dtype)


REDUCTION = {"reduction": ("none", "sum", "mean")}


@operator("SoftmaxCrossEntropyLoss", choices=REDUCTION)
def softmax_cross_entropy_loss(scores, labels, weights=None, *, ignore_index=None, reduction="mean"):
    rows = _class_rows(scores)
    loss = _reduced(
        lambda safe: softmax_xent_fprop(rows, safe)[0], scores, labels, weights, ignore_index, reduction
    )
    return loss, lambda: _from_class_rows(_log_softmax(rows), scores.shape)


@operator("NegativeLogLikelihoodLoss", choices=REDUCTION)
def negative_log_likelihood_loss(log_probs, labels, weights=None, *, ignore_index=None, reduction="mean"):
    rows = _class_rows(log_probs)
    return _reduced(
        lambda safe: -rows[np.arange(len(rows)), safe], log_probs, labels, weights, ignore_index, reduction
    )


# ---------------------------------------------------------------------------------------------------
# Dropout, the update rule
# ---------------------------------------------------------------------------------------------------
@operator("Dropout", choices={"is_test": (1,)})
def dropout_before_7(x, *, is_test=0, ratio=0.5):
    return x, lambda: np.ones_like(x)


@operator("Dropout", since=7)
def dropout_before_10(x, *, ratio=0.5):
    return x, lambda: np.ones_like(x)


@operator("Dropout", since=10)
def dropout_before_12(x, *, ratio=0.5):
    return x, lambda: np.ones(x.shape, bool)


@operator("Dropout", since=12)
def dropout(x, ratio=None, training_mode=None, *, seed=None):
    if training_mode is not None and training_mode.item() and (ratio is None or ratio.item() != 0):
        raise OptionError(
            "dropout in training mode is random, and ONNX does not say by which generator: not covered"
        )
    return x, lambda: np.ones(x.shape, bool)


@operator("Momentum", domain=TRAINING, choices={"mode": ("standard", "nesterov")})
def momentum(rate, step, *tensors, alpha, beta, mode, norm_coefficient):
    n = len(tensors) // 3
    if n == 0 or len(tensors) != 3 * n:
        raise OptionError(f"{len(tensors)} tensors are not as many weights as gradients as velocities")
    updated = [
        sgd_momentum(
            *(w, dw, v),
            lr=rate.item(),
            momentum=alpha,
            weight_decay=norm_coefficient,
            dampening=1 - beta if step.item() > 0 else 0.0,
            nesterov=mode == "nesterov",
        )
        for w, dw, v in zip(tensors[:n], tensors[n : 2 * n], tensors[2 * n :])
    ]
    return (*(w for w, _ in updated), *(v for _, v in updated))


# ---------------------------------------------------------------------------------------------------
# Shape plumbing
# ---------------------------------------------------------------------------------------------------
@operator("Identity")
def identity(x):
    return x


@operator("Constant")
def constant(*, value=None, value_float=None, value_floats=None, value_int=None, value_ints=None):
    for given, dtype in ((value_float, "f4"), (value_floats, "f4"), (value_int, "i8"), (value_ints, "i8")):
        if given is not None:
            return np.array(given, dtype)
    return value


def _given_shape(shape: Array) -> list[int]:
    if shape.ndim != 1 or shape.dtype.kind not in "iu":
        raise ShapeError(f"shape must be a row of integers, not {shape.dtype} {shape.shape}")
    return [int(extent) for extent in shape]


@operator("ConstantOfShape")
def constant_of_shape(shape, *, value=None):
    fill, dtype = (0, np.float32) if value is None else (value.item(), value.dtype)
    return np.full(_given_shape(shape), fill, dtype)


@operator("Flatten")
def flatten(x, *, axis=1):
    if not -x.ndim <= axis <= x.ndim:
        raise OptionError(f"axis must lie in [{-x.ndim}, {x.ndim}], not {axis}")
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Reshape")
def reshape_by_attribute(x, *, shape):
    return reshape(x, np.array(shape, np.int64))


@operator("Reshape", since=5)
def reshape(x, shape, *, allowzero=0):
    target = _given_shape(shape)
    if min(target, default=0) < -1:
        raise ShapeError(f"shape {target} has an extent below -1")
    if not allowzero:
        if any(extent == 0 for extent in target[x.ndim :]):
            raise ShapeError(f"shape {target} copies an extent that x of shape {x.shape} does not have")
        target = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(target)]
    return x.reshape(target)


@operator("Transpose")
def transpose(x, *, perm=None):
    return x.transpose(perm)


# ---------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Node:
    """A node of the graph, bound to its operator and its attributes."""

    label: str
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(
        cls,
        proto: onnx.NodeProto,
        index: int,
        opsets: dict[str, int],
        ranks: dict[str, int],
        context: onnx.checker.C.CheckerContext,
    ) -> _Node:
        """Bind a node; `ranks` are those that are known before the model runs."""
        domain = proto.domain or "ai.onnx"
        name = repr(proto.name) if proto.name else f"{index}, which makes {list(proto.output)},"
        opset = opsets.get(domain, "not imported")
        label = f"node {name} (operator {proto.op_type}, domain {domain}, opset {opset})"
        versions = [o for o in OPERATORS.get((domain, proto.op_type), ()) if o.since <= opsets.get(domain, 0)]
        if not versions:
            raise NoImplementation(f"{label} is not covered. Covered: {', '.join(known_operators())}")
        attributes = dict(versions[0].attributes)
        for attribute in proto.attribute:
            if attribute.name not in attributes:
                raise NoImplementation(
                    f"{label}: its attribute {attribute.name!r} is not covered. Covered are its attributes "
                    f"{', '.join(attributes) or '(none)'}, and the operators {', '.join(known_operators())}"
                )
            attributes[attribute.name] = attribute
        for name, value in attributes.items():
            if value is inspect.Parameter.empty:
                raise OptionError(f"{label} lacks the attribute {name!r}")
        _valid(label, onnx.checker.check_node, proto, context)  # so that each value has its type
        attributes.update((entry.name, _attribute(label, entry)) for entry in proto.attribute)
        for name, value in attributes.items():
            if name in versions[0].choices and value not in versions[0].choices[name]:
                raise OptionError(
                    f"{label}: {name} must be one of {versions[0].choices[name]}, not {value!r}"
                )
        lacks = versions[0].lacks(attributes) if versions[0].lacks else ""
        if lacks:
            raise NoImplementation(f"{label}: not covered is {lacks}")
        found = [ranks[name] for name in proto.input[:2] if name in ranks]
        found += [2 + len(attributes["kernel_shape"])] if attributes.get("kernel_shape") else []
        for rank in found:
            if rank not in (versions[0].ranks or found):
                covered = " or ".join(map(str, versions[0].ranks))
                raise NoImplementation(
                    f"{label}: only inputs of {covered} dimensions are covered, not of {rank}"
                )
        return cls(label, versions[0], tuple(proto.input), tuple(proto.output), attributes)

    def run(self, inputs: list[Array | None]) -> list[Array | None]:
        """One result per output; None where the model has no name for it."""
        try:
            with np.errstate(all="ignore"):  # NaN and infinity propagate; they are no reason to warn
                results = self.operator.function(*inputs, **self.attributes)
                results = results if isinstance(results, tuple) else (results,)
                if len(results) < len(self.outputs):
                    raise NoImplementation(f"only the first {len(results)} outputs are covered")
                return [
                    None if not name else np.asarray(made() if callable(made) else made)
                    for name, made in zip(self.outputs, results)
                ]
        except ConvkitError as error:
            raise type(error)(f"{self.label}: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            shapes = [None if x is None else f"{x.dtype} {x.shape}" for x in inputs]
            kind = OutOfMemory if isinstance(error, MemoryError) else OptionError
            raise kind(f"{self.label}: {error}; its inputs are {shapes}") from error


def _attribute(label: str, proto: onnx.AttributeProto) -> Any:
    """An attribute's value in Python's own types, or as an array."""
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return _tensor(f"{label}: attribute {proto.name!r}", value)
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _tensor(label: str, proto: onnx.TensorProto) -> Array:
    dtype = None
    if proto.data_type == onnx.TensorProto.BFLOAT16:  # read as whole numbers: onnx 1.17 makes nonsense of it
        given, proto, dtype = proto, onnx.TensorProto(), arrays.DTYPES["bfloat16"]
        proto.CopyFrom(given)
        proto.data_type = onnx.TensorProto.UINT16
    try:
        array = onnx.numpy_helper.to_array(proto)
    except Exception as error:  # whatever protobuf, NumPy and the file system have to say about it
        raise OptionError(f"{label} cannot be read: {type(error).__name__}: {error}") from error
    array = array if dtype is None else array.view(dtype)
    array.setflags(write=False)
    return array


class Model(onnx.backend.base.BackendRep):
    """An ONNX model, ready to run any number of times.

    Made by `load`.

    Attributes
    ----------
    inputs, outputs : list of str
        Names of the tensors that `run` takes and returns, in order. Inputs that the model itself has a
        value for are not among them.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
        if graph.sparse_initializer:
            raise NoImplementation("sparse initialisers are not covered")
        self._constants = {t.name: _tensor(f"initialiser {t.name!r}", t) for t in graph.initializer}
        self._declared = {i.name: i for i in graph.input}
        self.inputs = [name for name in self._declared if name not in self._constants]
        self.outputs = [o.name for o in graph.output]
        for name, info in self._declared.items():
            if info.type.WhichOneof("value") not in (None, "tensor_type"):
                raise NoImplementation(
                    f"input {name!r} is a {info.type.WhichOneof('value')}; only tensors are covered"
                )
        extents = ((name, _extents(info)) for name, info in self._declared.items())
        ranks = {name: len(found) for name, found in extents if found is not None}
        ranks.update((name, array.ndim) for name, array in self._constants.items())
        context = onnx.checker.C.CheckerContext()
        context.ir_version = proto.ir_version
        context.opset_imports = {**opsets, "": opsets.get("ai.onnx", 1)}  # two names of one domain
        self._nodes = [_Node.of(node, i, opsets, ranks, context) for i, node in enumerate(graph.node)]
        self._unread = self._order()

    def _order(self) -> list[set[str]]:
        """Which tensors nobody reads after each node; every tensor must have a value before it is read."""
        made = {name: i for i, node in enumerate(self._nodes) for name in node.outputs}
        known = {"", *self._declared, *self._constants}
        for node in self._nodes:
            for name in node.inputs:
                if name not in known and name not in made:
                    raise OptionError(f"{node.label} reads {name!r}, which nothing makes")
                if name not in known:
                    raise OptionError(
                        f"{node.label} reads {name!r} before {self._nodes[made[name]].label} makes it: "
                        "the graph has a cycle, or is not sorted"
                    )
            known.update(node.outputs)
        for name in self.outputs:
            if not name or name not in known:
                raise OptionError(f"the model returns {name!r}, which nothing makes")
        unread, kept = [], {"", *self.outputs}
        for node in reversed(self._nodes):
            unread.append({*node.inputs, *node.outputs} - kept)
            kept |= unread[-1]
        return unread[::-1]

    def run(  # type: ignore[override]  # a list, which the interface's users take as well
        self, inputs: Mapping[str, Any] | Sequence[Any], **kwargs: Any
    ) -> list[Array]:
        """Run the model.

        Parameters
        ----------
        inputs : dict or sequence
            Arrays by name, or in the order of `inputs`. A dict may also replace a value that the model
            has, where the model declares that tensor as an input.
        **kwargs
            Accepted for `onnx.backend`, without meaning here.

        Returns
        -------
        list of ndarray
            In the order of `outputs`; they share no memory with the inputs or the model.

        Raises
        ------
        ShapeError, DtypeError, OptionError, NoImplementation
            All are `ConvkitError`. Where a node fails, the message begins with it.
        """
        given = self._given(inputs)
        tensors: dict[str, Any] = {**self._constants, **given, "": None}
        for node, unread in zip(self._nodes, self._unread):
            tensors.update(zip(node.outputs, node.run([tensors[name] for name in node.inputs])))
            for name in unread:
                del tensors[name]
        foreign = [*self._constants.values(), *given.values()]
        results = (tensors[name] for name in self.outputs)
        # A result is read-only where it is a constant of a node.
        return [
            r.copy() if not r.flags.writeable or any(np.may_share_memory(r, f) for f in foreign) else r
            for r in results
        ]

    def _given(self, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Array]:
        """The inputs by name, each checked against what the model declares."""
        if not isinstance(inputs, Mapping):
            if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Sequence):
                raise DtypeError(
                    f"inputs must be a dict or a sequence of arrays, not {type(inputs).__name__}"
                )
            if len(inputs) != len(self.inputs):
                raise OptionError(
                    f"the model takes {len(self.inputs)} inputs {self.inputs}, not {len(inputs)}"
                )
            inputs = dict(zip(self.inputs, inputs))
        for name in self.inputs:
            if name not in inputs:
                raise OptionError(f"missing input {name!r}; the model takes {self.inputs}")
        symbols: dict[str, int] = {}
        given = {}
        for name, value in inputs.items():
            if name not in self._declared:
                raise OptionError(f"unknown input {name!r}; the model takes {self.inputs}")
            given[name] = _checked(self._declared[name], value, symbols)
        return given


def _extents(info: onnx.ValueInfoProto) -> list[int | str | None] | None:
    """A declared shape: an int, a symbol, or None for each extent; None if nothing is declared."""
    if not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims]


def _dtype(label: str, code: int) -> np.dtype:
    """NumPy's dtype for a type of ONNX."""
    if code == onnx.TensorProto.BFLOAT16:
        return arrays.DTYPES["bfloat16"]  # onnx 1.17 says float32
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, TypeError) as error:
        raise DtypeError(f"{label} is of ONNX's type {code}, which is not known") from error


def _elem_type(label: str, dtype: np.dtype) -> int:
    """ONNX's type for a dtype of NumPy."""
    if dtype == arrays.DTYPES["bfloat16"]:
        return int(onnx.TensorProto.BFLOAT16)  # onnx 1.17 does not know the dtype
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
    except (KeyError, TypeError, ValueError) as error:
        raise DtypeError(f"{label} has dtype {dtype}, for which ONNX has no type") from error


def _checked(info: onnx.ValueInfoProto, value: Any, symbols: dict[str, int]) -> Array:
    """An input as an array of the declared dtype and shape; `symbols` fill up with the named extents."""
    label = f"input {info.name!r}"
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if arrays.kind_of(label, value).device != "cpu":
        raise DtypeError(f"{label} must live on the CPU")
    array = arrays.view(label, value)
    code = info.type.tensor_type.elem_type
    if code not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        dtype = _dtype(label, code)
        if array.dtype != dtype:
            raise DtypeError(f"{label} must have dtype {dtype}, not {array.dtype}")
    extents = _extents(info)
    if extents is not None:
        wanted = [
            symbols.setdefault(e, n) if isinstance(e, str) else n if e is None else e
            for e, n in zip(extents, array.shape)
        ]
        if len(extents) != array.ndim or wanted != list(array.shape):
            known = f", where {symbols}" if symbols else ""
            raise ShapeError(f"{label} must have shape {tuple(extents)}{known}, not {array.shape}")
    return array


def load(model: str | os.PathLike | onnx.ModelProto) -> Model:
    """Read an ONNX model and bind it to convkit's ops.

    Parameters
    ----------
    model : path or onnx.ModelProto
        Weights in files beside the model are read too.

    Returns
    -------
    Model

    Raises
    ------
    OptionError
        If there is no such file, or it is no valid ONNX model.
    NoImplementation
        If a node's operator or attribute is not covered; the message names it and lists what is.

    Examples
    --------
    >>> model = convkit.onnx.load("alexnet.onnx")
    >>> (probs,) = model.run({"data_0": x})
    """
    label = "the model"
    if not isinstance(model, onnx.ModelProto):
        if not isinstance(model, (str, os.PathLike)):
            raise DtypeError(f"a model is a path or an onnx.ModelProto, not {type(model).__name__}")
        label = os.fspath(model)
        if not os.path.isfile(label):
            raise OptionError(f"no such file: {label}")
        try:
            model = onnx.load(label)
        except Exception as error:  # protobuf's, the text parser's, JSON's, the file system's
            raise OptionError(
                f"{label} cannot be read as an ONNX model: {type(error).__name__}: {error}"
            ) from error
    if not model.ir_version or not model.HasField("graph"):
        raise OptionError(f"{label} is not an ONNX model: it has no graph, or no IR version")
    bound = Model(model)
    if model.ByteSize() < 2**31:  # the checker takes a message, and protobuf none that is larger
        _valid(label, onnx.checker.check_model, _with_shapes(model))
    return bound


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or a copy for the checker, which asks inputs and outputs for shapes, against ONNX's text,
    and outputs for types, which nobody here reads.
    """

    def bare(info: onnx.ValueInfoProto) -> bool:
        return info.type.WhichOneof("value") in (None, "tensor_type") and _extents(info) is None

    if not any(map(bare, [*model.graph.input, *model.graph.output])):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for info in filter(bare, [*copy.graph.input, *copy.graph.output]):
        info.type.tensor_type.shape.SetInParent()
    for info in copy.graph.output:
        if info.type.WhichOneof("value") == "tensor_type" and not info.type.tensor_type.elem_type:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return copy


def _valid(label: str, check: Callable[..., None], *args: Any) -> None:
    """Let ONNX's checker look at a model or a node."""
    try:
        check(*args)
    except onnx.checker.ValidationError as error:
        raise OptionError(f"{label} is not a valid ONNX model: {error}") from error


class Backend(onnx.backend.base.Backend):
    """convkit as ONNX's standard backend interface, which `onnx.backend.test` can drive.

    Examples
    --------
    >>> onnx.backend.test.BackendTest(convkit.onnx.Backend, __name__)
    """

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is the CPU."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def _on(cls, device: str) -> None:
        if not cls.supports_device(device):
            raise NoImplementation(f"convkit.onnx runs on the CPU, not on {device!r}")

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every node of the model is covered."""
        try:
            cls.prepare(model, device, **kwargs)
        except ConvkitError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Model:
        """`load`, for a device."""
        cls._on(device)
        return load(model)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Array, ...]:
        """Load a model and run it once."""
        return tuple(cls.prepare(model, device, **kwargs).run(inputs))

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Array, ...]:
        """Run a single node.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of arrays
            One for each input that the node names.
        device : str
        outputs_info
            Accepted for the interface; the results say it themselves.
        **kwargs
            `opset_version`: that of ONNX's own domain; by default the newest that the onnx package knows.
        """
        cls._on(device)
        names = [name for name in node.input if name]
        values = [np.asarray(value) for value in inputs]
        if len(names) != len(values):
            raise OptionError(f"the node takes {len(names)} inputs {names}, not {len(values)}")
        described = [
            onnx.helper.make_tensor_value_info(name, _elem_type(f"input {name!r}", value.dtype), value.shape)
            for name, value in zip(names, values)
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        opsets = {TRAINING: 1, "": kwargs.get("opset_version") or onnx.defs.onnx_opset_version()}
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "node", described, outputs),
            opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        )
        return tuple(Model(model).run(values))
