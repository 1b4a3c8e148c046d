"""Read a model from a file or from a message, and let ONNX's checker look at it."""

from __future__ import annotations

import os

import onnx
import onnx.checker

from ..errors import DtypeError, OptionError
from .messages import extents_of, require_valid
from .model import Model


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
        require_valid(label, onnx.checker.check_model, _with_shapes(model))
    return bound


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or a copy for the checker, which asks inputs and outputs for shapes, against ONNX's text,
    and outputs for types, which are not used here.
    """

    def bare(info: onnx.ValueInfoProto) -> bool:
        return info.type.WhichOneof("value") in (None, "tensor_type") and extents_of(info) is None

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
