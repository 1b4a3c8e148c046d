"""What ONNX's protobuf messages say, in NumPy's and Python's own types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx  # the package: `convkit.onnx` is another name
import onnx.checker
import onnx.helper
import onnx.numpy_helper

from .. import arrays
from ..errors import DtypeError, OptionError

Array = np.ndarray


def value_of(label: str, proto: onnx.AttributeProto) -> Any:
    """An attribute's value in Python's own types, or as an array."""
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return array_of(f"{label}: attribute {proto.name!r}", value)
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def array_of(label: str, proto: onnx.TensorProto) -> Array:
    """A tensor as an array that cannot be written."""
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


def extents_of(info: onnx.ValueInfoProto) -> list[int | str | None] | None:
    """A declared shape: an int, a symbol, or None for each extent; None if nothing is declared."""
    if not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims]


def dtype_of(label: str, code: int) -> np.dtype:
    """NumPy's dtype for a type of ONNX."""
    if code == onnx.TensorProto.BFLOAT16:
        return arrays.DTYPES["bfloat16"]  # onnx 1.17 says float32
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, TypeError) as error:
        raise DtypeError(f"{label} is of ONNX's type {code}, which is not known") from error


def type_of(label: str, dtype: np.dtype) -> int:
    """ONNX's type for a dtype of NumPy."""
    if dtype == arrays.DTYPES["bfloat16"]:
        return int(onnx.TensorProto.BFLOAT16)  # onnx 1.17 does not know the dtype
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
    except (KeyError, TypeError, ValueError) as error:
        raise DtypeError(f"{label} has dtype {dtype}, for which ONNX has no type") from error


def require_valid(label: str, check: Callable[..., None], *args: Any) -> None:
    """Refuse a model or a node that ONNX's checker refuses."""
    try:
        check(*args)
    except onnx.checker.ValidationError as error:
        raise OptionError(f"{label} is not a valid ONNX model: {error}") from error
