"""Arrays in and out: NumPy, CuPy, or anything with DLPack, without importing what the user has not.

`view` turns what the caller passed into an array that implementations understand (NumPy for the CPU, CuPy
for a GPU), without a copy; `Kind.wrap` turns a result back into the caller's kind. Everything that differs
between NumPy and CuPy is here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from .errors import DtypeError, MissingExtra, OutOfMemory

#: Storage dtypes by name. The 16-bit ones accumulate in float32.
DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}


@dataclass(frozen=True)
class Kind:
    """Where an array came from, and so where a result goes back to.

    Attributes
    ----------
    module : str
        Top-level module of the array's type ("numpy", "cupy", "torch", "jax", ...).
    device : str
        "cpu" or "cuda".
    """

    module: str
    device: str = "cpu"

    def wrap(self, array: np.ndarray) -> Any:
        """A result as the caller's kind, sharing its memory."""
        if self.module in ("numpy", "cupy"):
            return array
        library = sys.modules[self.module]
        from_dlpack = getattr(library, "from_dlpack", None) or library.dlpack.from_dlpack
        if array.dtype == DTYPES["bfloat16"]:  # NumPy's DLPack export knows no bfloat16
            return from_dlpack(array.view(np.int16)).view(library.bfloat16)
        return from_dlpack(array)


NUMPY = Kind("numpy")


def kind_of(name: str, value: Any) -> Kind:
    """The kind of an array argument; `name` is for the error."""
    masked = sys.modules.get("numpy.ma")  # who has a masked array has imported it; it takes 20 ms
    if masked is not None and isinstance(value, masked.MaskedArray):
        raise DtypeError(f"{name} is a masked array, whose mask would be lost; fill it first")
    if isinstance(value, np.ndarray):
        return NUMPY
    module = type(value).__module__.partition(".")[0]
    module = {"jaxlib": "jax"}.get(module, module)
    device = getattr(value, "__dlpack_device__", None)
    if device is None:
        raise DtypeError(
            f"{name} must be an array (NumPy, CuPy, or an object with DLPack), not {type(value).__name__}"
        )
    try:
        code = int(device()[0])
    except Exception as error:  # whatever a library raises for what it cannot export
        raise DtypeError(f"{name}, a {type(value).__module__} array, cannot be read: {error}") from error
    if code not in _DLPACK_DEVICES:
        raise DtypeError(f"{name} lives on a device (DLPack code {code}) that convkit does not know")
    return Kind(module, _DLPACK_DEVICES[code])


def view(name: str, value: Any, *, write: bool = False) -> np.ndarray:
    """The caller's array as a NumPy array, or a CuPy array, over the same memory, read-only or not."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if kind_of(name, value).device == "cuda":
        return _cuda_view(name, value)
    if not write and getattr(value, "is_neg", bool)():
        value = value.resolve_neg()  # a sign that torch has put off, and that DLPack does not carry
    bfloat16 = str(getattr(value, "dtype", "")).endswith("bfloat16")
    try:
        if write and hasattr(value, "numpy") and not bfloat16:
            return value.numpy()  # DLPack before 1.0 arrives read-only in NumPy; torch's own view does not
        if bfloat16:
            library = sys.modules[type(value).__module__.partition(".")[0]]
            whole = value.view(library.int16)
            array = whole.numpy() if write else np.from_dlpack(whole)
            return array.view(DTYPES["bfloat16"])
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, AttributeError) as error:
        raise DtypeError(f"{name}, a {type(value).__module__} array, cannot be read: {error}") from error


def dtype_name(name: str, array: np.ndarray) -> str:
    """The storage dtype's name, or an error that lists the known ones."""
    found = _names().get(array.dtype)
    if found is None or not array.dtype.isnative:
        raise DtypeError(
            f"{name} has dtype {array.dtype}"
            f"{'' if array.dtype.isnative else ', in the byte order of another machine'}; "
            f"known: {', '.join(DTYPES)}"
        )
    return found


@lru_cache(maxsize=1)
def _names() -> dict[np.dtype, str]:
    return {dtype: name for name, dtype in DTYPES.items()}


def np_dtype(name: str) -> np.dtype:
    """NumPy's dtype for a problem's dtype name ("bfloat16", "uint8", ...)."""
    return DTYPES.get(name) or np.dtype(name)


def zeros(shape: tuple[int, ...], dtype: str, device: str = "cpu") -> np.ndarray:
    """A new array of zeros; on a CPU, memory that is never touched is never taken."""
    if device == "cuda":
        array = empty(shape, dtype, device)
        array.fill(0)
        return array
    return empty(shape, dtype, make=np.zeros)


def empty(
    shape: tuple[int, ...], dtype: str, device: str = "cpu", make: Callable[..., np.ndarray] = np.empty
) -> np.ndarray:
    """A new array, 64-byte aligned for vector loads; a clear error where memory is short.

    Source
    ------
    The alignment is a cache line, and the widest vector register, of current x86-64 and aarch64.
    """
    kind = np_dtype(dtype)
    count = 1
    for extent in shape:
        count *= extent
    try:
        if device == "cuda":
            return _cupy().empty(shape, kind)  # type: ignore[no-any-return]
        raw = make(count * kind.itemsize + 64, np.uint8)
    except (MemoryError, ValueError) as error:
        gib = count * kind.itemsize / 2**30
        raise OutOfMemory(f"no memory for an array of shape {shape}, {dtype}: {gib:.1f} GiB") from error
    start = -raw.ctypes.data % 64
    return raw[start : start + count * kind.itemsize].view(kind).reshape(shape)


def assign(target: np.ndarray, values: Any) -> None:
    """target[...] = values, across devices where they differ."""
    if isinstance(target, np.ndarray):
        target[...] = values if isinstance(values, np.ndarray) else values.get()
    elif isinstance(values, np.ndarray):
        target.set(np.ascontiguousarray(values, target.dtype))
    else:
        target[...] = values


def contiguous(array: Any, dtype: str) -> Any:
    """The array itself where it is contiguous, aligned and of that dtype; else a copy that is."""
    if isinstance(array, np.ndarray):
        return np.require(array, np_dtype(dtype), ["C", "A"]).reshape(array.shape)
    return _cupy().ascontiguousarray(array, np_dtype(dtype))


def bounds(array: Any) -> tuple[int, int]:
    """Address of the first byte of an array, and that behind its last."""
    start = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    if array.size == 0:
        return start, start
    reach = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + array.itemsize


def overlap(a: Any, b: Any) -> bool:
    """Whether the extents of two arrays in memory overlap."""
    (a0, a1), (b0, b1) = bounds(a), bounds(b)
    return a0 < b1 and b0 < a1


def in_order(array: Any) -> bool:
    """Whether an implementation may write into the array as it is: contiguous and aligned."""
    return bool(array.flags.c_contiguous and getattr(array.flags, "aligned", True))


def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        raise MissingExtra("arrays on a GPU", "CuPy", "cuda13") from None
    return cupy


def _cuda_view(name: str, value: Any) -> Any:
    cupy = _cupy()
    if isinstance(value, cupy.ndarray):
        return value
    try:
        if str(getattr(value, "dtype", "")).endswith("bfloat16"):
            library = sys.modules[type(value).__module__.partition(".")[0]]
            return cupy.from_dlpack(value.view(library.int16)).view(DTYPES["bfloat16"])
        return cupy.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, AttributeError) as error:
        raise DtypeError(f"{name}, a {type(value).__module__} array, cannot be read: {error}") from error
