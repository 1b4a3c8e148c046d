"""Arrays in and out: NumPy, CuPy, or anything with DLPack; libraries are used only where the user has them.

`view` turns what the caller passed into an array that implementations understand (NumPy for the CPU, CuPy
for a GPU), without a copy; `Kind.wrap` turns a result back into the caller's kind. `queue` is the block in
which to work on arrays: on their GPU, in order with the stream of the library that they come from. Everything
that differs between NumPy and CuPy is here.

A device is "cpu", or a GPU with its number, "cuda:1"; "cuda" alone is CuPy's current one.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar, overload

import ml_dtypes
import numpy as np

from .errors import ConvkitError, DtypeError, MissingExtra, OptionError, OutOfMemory

#: Storage dtypes by name. The 16-bit ones accumulate in float32.
DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
#: The type of a user's array, and so of the result: NumPy's, CuPy's, PyTorch's, a `layouts.Tensor`, ...
A = TypeVar("A")


class GpuArray(Protocol):
    """CuPy's array: what convkit asks of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def flags(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def data(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def view(self, dtype: Any = ...) -> GpuArray: ...
    def reshape(self, *shape: Any) -> GpuArray: ...
    def transpose(self, *axes: Any) -> GpuArray: ...
    def copy(self) -> GpuArray: ...
    def astype(self, dtype: Any) -> GpuArray: ...
    def fill(self, value: Any) -> None: ...
    def min(self) -> Any: ...
    def max(self) -> Any: ...
    def mean(self) -> Any: ...
    def get(self) -> np.ndarray: ...
    def set(self, values: np.ndarray) -> None: ...


#: What implementations compute on: NumPy's array, or CuPy's.
Array = np.ndarray | GpuArray


class _HasDtype(Protocol):
    @property
    def dtype(self) -> np.dtype: ...


_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}
_NOTHING = contextlib.nullcontext()
#: Libraries whose arrays are known here, also where a user's class derives from theirs.
_KNOWN = ("numpy", "cupy", "torch", "jax")


@dataclass(frozen=True)
class Kind:
    """Where an array came from, and so where a result goes back to.

    Attributes
    ----------
    module : str
        The library that makes results of this kind ("torch", "jax", ...): that of the array's type or of one
        of its bases. Where none of them has `from_dlpack`, "numpy", or "cupy" on a GPU.
    device : str
        "cpu", "cuda:0", "cuda:1", ...
    """

    module: str
    device: str = "cpu"

    @property
    def backend(self) -> str:
        """ "cpu" or "cuda": what implementations are for."""
        return self.device.partition(":")[0]

    def wrap(self, array: Array) -> Any:
        """A result as the caller's kind, sharing its memory; as it is where the library cannot take it."""
        if self.module in ("numpy", "cupy"):
            return array
        make = _MAKERS.get(self.module) or _from_dlpack(self.module)
        try:
            return make(array)
        except Exception:  # whatever a library raises; the work is done, and must not be lost
            return array


NUMPY, TORCH = Kind("numpy"), Kind("torch")


def _from_dlpack(module: str) -> Any:
    """A library's `from_dlpack`, or None; not one that a module has imported from another."""
    library = sys.modules.get(module)
    found = getattr(library, "from_dlpack", None) or getattr(
        getattr(library, "dlpack", None), "from_dlpack", None
    )
    home = getattr(found, "__module__", None) or module
    return found if home.partition(".")[0] in (module, f"{module}lib") else None


def _to_torch(array: Any) -> Any:
    torch = sys.modules["torch"]
    take = torch.from_numpy if isinstance(array, np.ndarray) else torch.from_dlpack
    if array.dtype == DTYPES["bfloat16"]:
        return take(array.view(np.int16)).view(torch.bfloat16)
    return take(array)


def _to_jax(array: Any) -> Any:
    jax = sys.modules["jax"]
    if array.dtype == DTYPES["bfloat16"]:  # NumPy's DLPack export knows no bfloat16
        return jax.dlpack.from_dlpack(array.view(np.int16)).view(jax.numpy.bfloat16)
    if array.dtype.itemsize < 8:
        return jax.dlpack.from_dlpack(array)
    new = hasattr(jax, "enable_x64")  # which has no truth value
    with (jax if new else jax.experimental).enable_x64(True):
        return jax.dlpack.from_dlpack(array)


_MAKERS: dict[str, Callable[[Any], Any]] = {"torch": _to_torch, "jax": _to_jax}


def _library(value: Any) -> str:
    """The library of an array's type; of a subclass in a user's module, that of its base. "" if unknown."""
    return _library_of(type(value))  # type: ignore[arg-type]  # mypy holds types to be unhashable


@lru_cache(maxsize=256)
def _library_of(kind: Any) -> str:
    homes = [str(base.__module__ or "").partition(".")[0] for base in kind.__mro__]
    homes = [{"jaxlib": "jax"}.get(home, home) for home in homes]
    if "torch" in homes and not issubclass(kind, sys.modules["torch"].Tensor):
        homes = [home for home in homes if home != "torch"]  # another class of that module, or of such a name
    for home in homes:
        if home in _KNOWN:
            return home
    return next((home for home in homes if _from_dlpack(home)), "")


def kind_of(name: str, value: Any) -> Kind:
    """The kind of an array argument, before any work is done; `name` is for the error."""
    masked = sys.modules.get("numpy.ma")  # a user of masked arrays has imported it; it takes 20 ms
    if masked is not None and isinstance(value, masked.MaskedArray):
        raise DtypeError(f"{name} is a masked array, whose mask would be lost; fill it first")
    if isinstance(value, np.ndarray):
        return NUMPY
    if _is_cupy(value):
        return Kind("cupy", place(value))
    if not hasattr(value, "__dlpack_device__") or isinstance(value, type):
        raise DtypeError(
            f"{name} must be an array (NumPy, CuPy, or an object with DLPack), not {type(value).__name__}"
        )
    module = _library(value)
    if module == "torch":
        if _plain_torch(value):
            return TORCH
        _refuse_torch(name, value)
    try:
        code, index = _dlpack_device(value, module)
    except Exception as error:  # whatever a library raises for what it cannot export
        raise _unreadable(name, value, error) from error
    if code not in _DLPACK_DEVICES:
        raise DtypeError(f"{name} lives on a device (DLPack code {code}) that convkit does not know")
    if _DLPACK_DEVICES[code] == "cpu":
        return Kind(module or "numpy")
    return Kind(module or "cupy", f"cuda:{index}")


def _dlpack_device(value: Any, module: str) -> tuple[int, int]:
    """DLPack's code of the kind of device, and its number."""
    with _plainly(sys.modules["torch"], value) if module == "torch" else _NOTHING:
        code, index = value.__dlpack_device__()
    return int(code), int(index)


def _unreadable(name: str, value: Any, error: Exception) -> DtypeError:
    reason = (
        " ".join(str(error).split()) or type(error).__name__
    )  # of one line, whatever the library has said
    return DtypeError(f"{name}, a {type(value).__module__} array, cannot be read: {reason}")


def _plain_torch(value: Any) -> bool:
    """Whether it is a tensor on the CPU that `_refuse_torch` has nothing against: in half a microsecond."""
    torch = sys.modules["torch"]
    return type(value) is torch.Tensor and not (
        value.is_cuda
        or not value.is_cpu
        or value.requires_grad
        or value.is_nested
        or value.layout is not torch.strided
        or value.is_quantized
        or torch._is_functional_tensor(value)
        or _dual(torch)
    )


def _refuse_torch(name: str, value: Any) -> None:
    """Refuse a tensor whose values are not all in its memory, or whose gradient would be lost."""
    torch = sys.modules["torch"]
    # What FakeTensor, DTensor, ... change, and what functionalisation and lazy modules leave as it is.
    dispatch, lazy = torch.Tensor.__torch_dispatch__, torch.nn.parameter.UninitializedTensorMixin
    with _plainly(torch, value):
        if type(value).__torch_dispatch__ is not dispatch or torch._is_functional_tensor(value):
            reason = f"is a {type(value).__name__}, whose values are not in its own memory"
        elif isinstance(value, lazy):
            reason = "has no values yet: its module has not been called"
        elif value.is_nested:
            reason = "is a nested tensor; convkit takes dense ones"
        elif value.layout is not torch.strided:
            reason = f"has the layout {value.layout}; convkit takes dense tensors: pass .to_dense()"
        elif value.is_quantized:
            reason = "is quantized; pass .dequantize()"
        elif value.requires_grad:
            reason = "requires grad, of which convkit's ops know nothing; pass .detach()"
        elif _dual(torch) and torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
            reason = "has a tangent (forward-mode gradient), of which convkit's ops know nothing"
        else:
            return
    raise DtypeError(f"{name} {reason}")


def _dual(torch: Any) -> bool:
    """Whether forward-mode differentiation is on, which alone gives tensors tangents."""
    return int(getattr(torch.autograd.forward_ad, "_current_level", 0)) >= 0


def _plainly(torch: Any, value: Any) -> contextlib.AbstractContextManager[Any]:
    """A block in which a subclass does not change what a tensor's methods mean."""
    if type(value) is torch.Tensor:
        return _NOTHING
    return torch._C.DisableTorchFunctionSubclass()


def view(name: str, value: Any, *, write: bool = False, kind: Kind | None = None) -> Array:
    """The caller's array as a NumPy array, or a CuPy array, over the same memory, read-only or not.

    `kind` is that of `kind_of`, where it is known.
    """
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    kind = kind or kind_of(name, value)
    if write and kind.module == "jax":
        raise OptionError(f"{name} is read-only, as JAX's arrays are")
    try:
        if kind.module == "torch":
            return _torch_view(name, value, kind, write)
        return np.from_dlpack(value) if kind.device == "cpu" else _cuda_view(value)
    except ConvkitError:
        raise
    except Exception as error:  # whatever a library raises for what it cannot export
        if kind.device == "cpu" and not write and hasattr(value, "__array__"):
            with contextlib.suppress(Exception):
                array = np.asarray(value)  # NumPy's DLPack knows no bfloat16
                if array.dtype == DTYPES["bfloat16"]:
                    return array
        raise _unreadable(name, value, error) from error


def _torch_view(name: str, value: Any, kind: Kind, write: bool) -> Array:
    torch = sys.modules["torch"]
    with _plainly(torch, value):
        if value.is_neg():  # a sign that torch has put off, and that DLPack does not carry
            if write:
                raise DtypeError(f"{name} has a sign that is put off (is_neg()); pass .resolve_neg()")
            value = value.resolve_neg()
        if kind.device != "cpu":
            return _cuda_view(value)
        # Through DLPack it would be read-only, before DLPack 1.0.
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(DTYPES["bfloat16"])
        return value.numpy()


def plain(value: Any) -> np.ndarray | None:
    """The memory of a NumPy array, or of a tensor of PyTorch's on the CPU; None where there is more to it."""
    if type(value) is np.ndarray:
        return value
    torch = sys.modules.get("torch")
    try:
        if torch is None or not _plain_torch(value) or value.is_neg():
            return None
        found = _torch_view("", value, TORCH, False)
    except Exception:  # whatever a library raises: `view` says what
        return None
    return found if isinstance(found, np.ndarray) else None


def foreign(value: Any) -> bool:
    """Whether it is an array of a library other than NumPy and CuPy."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray) and not _is_cupy(value)


def written(values: Iterable[Any]) -> None:
    """Tell PyTorch which of its tensors are written: autograd must not use what it has saved of them."""
    tensors = [v for v in values if foreign(v) and _library(v) == "torch"]
    if tensors:
        sys.modules["torch"].autograd.graph.increment_version(tensors)


def dtype_name(name: str, array: _HasDtype) -> str:
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


@overload
def zeros(shape: tuple[int, ...], dtype: str, device: Literal["cpu"] = "cpu") -> np.ndarray: ...


@overload
def zeros(shape: tuple[int, ...], dtype: str, device: str) -> Array: ...


def zeros(shape: tuple[int, ...], dtype: str, device: str = "cpu") -> Array:
    """A new array of zeros; on a CPU, memory that is never touched is never taken."""
    if device != "cpu":
        array = empty(shape, dtype, device)
        with on(array):
            array.fill(0)
        return array
    return empty(shape, dtype, make=np.zeros)


@overload
def empty(
    shape: tuple[int, ...],
    dtype: str,
    device: Literal["cpu"] = "cpu",
    make: Callable[..., np.ndarray] = ...,
) -> np.ndarray: ...


@overload
def empty(
    shape: tuple[int, ...], dtype: str, device: str, make: Callable[..., np.ndarray] = ...
) -> Array: ...


def empty(
    shape: tuple[int, ...], dtype: str, device: str = "cpu", make: Callable[..., np.ndarray] = np.empty
) -> Array:
    """A new array, 64-byte aligned for vector loads; a clear error where memory is short.

    Source
    ------
    The alignment is a cache line, and the widest vector register, of current x86-64 and aarch64. CuPy's
    memory pool aligns to 512 bytes.
    """
    kind = np_dtype(dtype)
    count = 1
    for extent in shape:
        count *= extent
    try:
        if device != "cpu":
            cupy = _cupy()
            with _current(device):
                return cupy.empty(shape, kind)
        raw = make(count * kind.itemsize + 64, np.uint8)
    except (MemoryError, ValueError) as error:
        gib = count * kind.itemsize / 2**30
        raise OutOfMemory(f"no memory for an array of shape {shape}, {dtype}: {gib:.1f} GiB") from error
    start = -ctypes.addressof(ctypes.c_char.from_buffer(raw.data)) % 64  # `raw.ctypes.data` takes 2 us
    return np.ndarray(shape, kind, raw, start)


def assign(target: Array, values: Array) -> None:
    """target[...] = values, between host and device where they differ; not from one GPU to another.

    Nothing is done where both are the same memory.
    """
    if _one(target, values):
        return
    if isinstance(target, np.ndarray):
        if isinstance(values, np.ndarray):
            target[...] = values
            return
        with on(values):
            target[...] = values.get()
        return
    with on(target):
        if isinstance(values, np.ndarray):
            target.set(np.ascontiguousarray(values, target.dtype).reshape(target.shape))
            return
        if (here := place(target)) != (there := place(values)):
            raise DtypeError(f"an array on {there} is not copied to {here}; move it there first")
        if _aligned(target):
            target[...] = values if _aligned(values) else contiguous(values, values.dtype.name)
        else:
            _bytes(target)[...] = _bytes(contiguous(values, target.dtype.name))


def _one(a: Array, b: Array) -> bool:
    """Whether two arrays are the same elements of the same memory."""
    if a is b:
        return True
    if (
        isinstance(a, np.ndarray) != isinstance(b, np.ndarray)
        or a.shape != b.shape
        or a.strides != b.strides
        or a.dtype != b.dtype
    ):
        return False
    return bounds(a) == bounds(b)


@overload
def contiguous(array: np.ndarray, dtype: str) -> np.ndarray: ...


@overload
def contiguous(array: GpuArray, dtype: str) -> GpuArray: ...


def contiguous(array: Array, dtype: str) -> Array:
    """The array itself where it is contiguous, aligned and of that dtype; else a copy that is."""
    kind = np_dtype(dtype)
    if isinstance(array, np.ndarray):
        return np.require(array, kind, ["C", "A"]).reshape(array.shape)
    with on(array):
        cupy = _cupy()
        if not _aligned(array):  # no kernel can read it except as bytes, CuPy's own included
            array = _bytes(array).copy().view(array.dtype).reshape(array.shape)
        ready = cupy.ascontiguousarray(array, kind)
        return ready if ready.ndim == array.ndim else ready.reshape(array.shape)  # CuPy makes (1,) of ()


def bounds(array: Array) -> tuple[int, int]:
    """Address of the first byte of an array, and of the byte after its last."""
    start = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    if array.size == 0:
        return start, start
    reach = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + array.itemsize


def overlap(a: Array, b: Array) -> bool:
    """Whether the extents of two arrays in memory overlap."""
    (a0, a1), (b0, b1) = bounds(a), bounds(b)
    return a0 < b1 and b0 < a1


def in_order(array: Array) -> bool:
    """Whether an implementation may write into the array as it is: contiguous and aligned."""
    return bool(array.flags.c_contiguous) and _aligned(array)


def _aligned(array: Array) -> bool:
    """Whether elements begin at multiples of their size; CuPy keeps no flag of it."""
    if isinstance(array, np.ndarray):
        return bool(array.flags.aligned)
    size = array.itemsize
    return array.data.ptr % size == 0 and all(stride % size == 0 for stride in array.strides)


# ---------------------------------------------------------------------------------------------------
# On a GPU
# ---------------------------------------------------------------------------------------------------
def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        raise MissingExtra("using a GPU", "CuPy", "cuda13") from None
    if _too_old(str(cupy.__version__)):
        raise MissingExtra("using a GPU", f"CuPy 14 or newer (here is {cupy.__version__})", "cuda13")
    return cupy


def _is_cupy(value: Any) -> bool:
    """Whether it is a CuPy array; then CuPy has been imported."""
    return isinstance(value, getattr(sys.modules.get("cupy"), "ndarray", ()))


@lru_cache
def _too_old(version: str) -> bool:
    """Whether it is a CuPy without bfloat16, and without streams of others."""
    first = version.partition(".")[0]
    return first.isdecimal() and int(first) < 14


def _cuda_view(value: Any) -> GpuArray:
    """As a CuPy array; CuPy's current stream waits for what the array's library has queued for it."""
    cupy = _cupy()
    return value if _is_cupy(value) else cupy.from_dlpack(value)


def _bytes(array: GpuArray) -> Any:
    """A CuPy array as bytes, with one dimension more."""
    strides = (*array.strides, 1)
    return _cupy().ndarray((*array.shape, array.itemsize), np.uint8, memptr=array.data, strides=strides)


def place(array: Array) -> str:
    """The device of a NumPy or CuPy array."""
    return "cpu" if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


def on(array: Array) -> contextlib.AbstractContextManager[Any]:
    """A block in which an array's GPU is the current one; for arrays on the CPU, nothing."""
    if isinstance(array, np.ndarray):
        return _NOTHING
    return _cupy().cuda.Device(array.device.id)


def gpus() -> int:
    """How many GPUs CuPy sees; none where there is no driver."""
    cupy = _cupy()
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # CUDA's own error, whose class is CuPy's
        return 0


def _current(device: str) -> contextlib.AbstractContextManager[Any]:
    index = device.partition(":")[2]
    return _cupy().cuda.Device(int(index)) if index else _NOTHING


@dataclass(frozen=True)
class _Foreign:
    """A stream of another library, as CuPy takes it."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def queue(values: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
    """A block for the work on these arguments of a call: on their GPU, in order with the caller's streams.

    What the block queues begins after what PyTorch and CuPy have queued on their current streams, and what
    they queue afterwards begins after it. The host waits for nothing, except where an array's library has no
    stream that is known: then the block ends when the work does. For arguments on the CPU it is nothing.
    """
    found = [(value, index) for value in values if (index := _gpu(value)) is not None]
    return _queued(found) if found else _NOTHING


def _gpu(value: Any) -> int | None:
    """Number of the GPU that an argument is on, or None; nothing is refused here."""
    if value is None or isinstance(value, (np.ndarray, int, float, str, tuple)):
        return None
    if _is_cupy(value):
        return int(value.device.id)
    if not hasattr(value, "__dlpack_device__"):
        return None
    try:
        library = _library(value)
        if library == "torch" and type(value) is sys.modules["torch"].Tensor and not value.is_cuda:
            return None  # at the price of an attribute
        code, index = _dlpack_device(value, library)
    except Exception:
        return None
    return index if _DLPACK_DEVICES.get(code) == "cuda" else None


@contextlib.contextmanager
def _queued(found: list[tuple[Any, int]]) -> Iterator[None]:
    """The block of `queue`, for arrays on a GPU.

    DLPack orders one half: `cupy.from_dlpack` makes the current stream wait for what the producer has queued,
    and a library's own `from_dlpack` makes its stream wait for the current one. It knows nothing of the end
    of the call, after which an input may be overwritten or freed, and an `out=` read.

    Where the first array is PyTorch's, its stream is CuPy's current one meanwhile: launches and memory of the
    results are then ordered as PyTorch's own are, and no event is needed.
    """
    libraries = [_library(value) for value, _ in found]
    cuda = _cupy().cuda
    index = found[0][1]
    with cuda.Device(index):
        own = main = cuda.get_current_stream()
        others = []
        if "torch" in libraries:
            theirs = sys.modules["torch"].cuda.current_stream(index).cuda_stream
            if theirs != own.ptr:
                others.append(cuda.Stream.from_external(_Foreign(theirs)))
        if others and libraries[0] == "torch":
            main, others = others[0], [own] if "cupy" in libraries else []
        for other in others:
            _follow(cuda, main, other)
        with main if main is not own else _NOTHING:
            try:
                yield
            finally:
                for other in others:
                    _follow(cuda, other, main)
                if not {"torch", "cupy"}.issuperset(libraries):
                    main.synchronize()


def _follow(cuda: Any, later: Any, earlier: Any) -> None:
    """What is queued on one stream from now on begins after what has been queued on another."""
    later.wait_event(earlier.record(cuda.Event(disable_timing=True)))
