"""libcudnn through ctypes: found, loaded, its functions declared, its errors turned into exceptions.

A status is told by its name, not by its number: cuDNN 9 gave new numbers to those of cuDNN 8. A function that
a library lacks is an error only when it is called, so that an old library still serves what it has.

Written to the documentation and checked against the headers of cuDNN 9.28.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import weakref
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import ConvkitError, OutOfMemory

#: A file, or a folder that holds one.
VARIABLE = "CONVKIT_CUDNN"
#: What the system's loader is asked for.
SONAMES = ("libcudnn.so.9", "libcudnn.so.8", "libcudnn.so")
#: The first version with all of the functions below but cudnnGetLastErrorString, which is done without.
OLDEST = (8, 0, 0)
SUCCESS = 0


class Unavailable(ConvkitError, ImportError):
    """cuDNN, or its frontend, cannot be used at all; the message says why, and what to do."""


class NotInstalled(Unavailable):
    """There is none."""


class TooOld(Unavailable):
    """There is one, of a version that is not served."""


class CudnnError(ConvkitError, RuntimeError):
    """A call of cuDNN that failed.

    Attributes
    ----------
    function : str
    status : int
    name : str
        The status's name, such as "CUDNN_STATUS_BAD_PARAM".
    detail : str
        What the library said about it; may be empty.
    """

    def __init__(self, function: str, status: int, name: str, detail: str = "") -> None:
        self.function, self.status, self.name, self.detail = function, status, name, detail
        super().__init__(f"{function}: {name}{f' ({detail})' if detail else ''}")


class NotSupported(CudnnError):
    """cuDNN does not do this, or not so."""


class NoMemory(CudnnError, OutOfMemory):
    """cuDNN could not allocate."""


# ---------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------
class AlgorithmPerf(ctypes.Structure):
    """One entry of a heuristic's ranking: the same struct for the three directions."""

    _fields_ = [
        ("algo", c_int),
        ("status", c_int),
        ("time", c_float),
        ("memory", c_size_t),
        ("determinism", c_int),
        ("math_type", c_int),
        ("reserved", c_int * 3),
    ]


_OUT = POINTER(c_void_p)
_INTS = [c_int] * 4
_PERF = [c_int, POINTER(c_int), POINTER(AlgorithmPerf)]
#: A handle, or a descriptor, or a device pointer, or a scalar on the host: all are addresses.
_A = c_void_p

#: Arguments of each function that returns a status.
SIGNATURES: dict[str, list[Any]] = {
    "cudnnCreate": [_OUT],
    "cudnnDestroy": [_A],
    "cudnnSetStream": [_A, _A],
    "cudnnSetTensor4dDescriptor": [_A, c_int, c_int, *_INTS],
    "cudnnSetFilter4dDescriptor": [_A, c_int, c_int, *_INTS],
    "cudnnSetConvolution2dDescriptor": [_A, *([c_int] * 8)],
    "cudnnSetConvolutionGroupCount": [_A, c_int],
    "cudnnSetConvolutionMathType": [_A, c_int],
    "cudnnSetPooling2dDescriptor": [_A, *([c_int] * 8)],
    "cudnnSetLRNDescriptor": [_A, c_uint, c_double, c_double, c_double],
    "cudnnSetActivationDescriptor": [_A, c_int, c_int, c_double],
    "cudnnGetConvolutionForwardWorkspaceSize": [_A, _A, _A, _A, _A, c_int, POINTER(c_size_t)],
    "cudnnGetConvolutionBackwardDataWorkspaceSize": [_A, _A, _A, _A, _A, c_int, POINTER(c_size_t)],
    "cudnnGetConvolutionBackwardFilterWorkspaceSize": [_A, _A, _A, _A, _A, c_int, POINTER(c_size_t)],
    "cudnnGetConvolutionForwardAlgorithm_v7": [_A, _A, _A, _A, _A, *_PERF],
    "cudnnGetConvolutionBackwardDataAlgorithm_v7": [_A, _A, _A, _A, _A, *_PERF],
    "cudnnGetConvolutionBackwardFilterAlgorithm_v7": [_A, _A, _A, _A, _A, *_PERF],
    # handle, alpha, (descriptor, data) x 2, convolution, algorithm, workspace, its bytes, beta, descriptor,
    # data
    "cudnnConvolutionForward": [*([_A] * 7), c_int, _A, c_size_t, _A, _A, _A],
    "cudnnConvolutionBackwardData": [*([_A] * 7), c_int, _A, c_size_t, _A, _A, _A],
    "cudnnConvolutionBackwardFilter": [*([_A] * 7), c_int, _A, c_size_t, _A, _A, _A],
    # ..., alpha2, z, bias, activation, y
    "cudnnConvolutionBiasActivationForward": [*([_A] * 7), c_int, _A, c_size_t, *([_A] * 8)],
    "cudnnConvolutionBackwardBias": [_A] * 7,
    "cudnnAddTensor": [_A] * 7,
    "cudnnActivationForward": [_A] * 8,
    "cudnnActivationBackward": [_A] * 12,
    "cudnnPoolingForward": [_A] * 8,
    "cudnnPoolingBackward": [_A] * 12,
    "cudnnLRNCrossChannelForward": [_A, _A, c_int, *([_A] * 6)],
    "cudnnLRNCrossChannelBackward": [_A, _A, c_int, *([_A] * 10)],
    "cudnnSoftmaxForward": [_A, c_int, c_int, *([_A] * 6)],
    "cudnnSoftmaxBackward": [_A, c_int, c_int, *([_A] * 8)],
}
#: What can be created, and then must be destroyed.
KINDS = ("Tensor", "Filter", "Convolution", "Pooling", "LRN", "Activation")
for _kind in KINDS:
    SIGNATURES[f"cudnnCreate{_kind}Descriptor"] = [_OUT]
    SIGNATURES[f"cudnnDestroy{_kind}Descriptor"] = [_A]
#: Functions that return something else: (result, arguments).
OTHERS: dict[str, tuple[Any, list[Any]]] = {
    "cudnnGetVersion": (c_size_t, []),
    "cudnnGetErrorString": (c_char_p, [c_int]),
    "cudnnGetLastErrorString": (None, [c_char_p, c_size_t]),
}
#: Without these it is no cuDNN.
ESSENTIAL = ("cudnnGetVersion", "cudnnGetErrorString", "cudnnCreate", "cudnnDestroy", "cudnnSetStream")


class Library:
    """A libcudnn that was loaded.

    Attributes
    ----------
    path : str
        What was given to the loader.
    where : str
        What named it: "the argument", "$CONVKIT_CUDNN", "the wheel", "the system".
    version : tuple of int
    """

    def __init__(self, path: str, where: str) -> None:
        self.path, self.where = path, where
        try:
            # A private object: no other user sees its declared arguments.
            self._loaded = ctypes.CDLL(path)
        except OSError as error:
            raise Unavailable(f"cannot load cuDNN from {path} ({where}): {error}") from None
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in OTHERS.items():
            self._declare(name, result, arguments)
        for name, arguments in SIGNATURES.items():
            self._declare(name, c_int, arguments)
        if missing := [name for name in ESSENTIAL if name not in self._functions]:
            raise Unavailable(f"{path} ({where}) is no cuDNN: it has no {missing[0]}")
        self.version = version_of(self._functions["cudnnGetVersion"]())
        if self.version < OLDEST:
            raise TooOld(f"{self} is too old: {dotted(OLDEST)} or newer is needed")

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> None:
        try:
            function = getattr(self._loaded, name)
        except AttributeError:
            return
        function.restype, function.argtypes = result, arguments
        self._functions[name] = function

    def __str__(self) -> str:
        return f"cuDNN {dotted(self.version)} ({self.path}, {self.where})"

    def has(self, function: str) -> bool:
        """Whether the library has a function."""
        return function in self._functions

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function that returns a status.

        Raises
        ------
        NotSupported, NoMemory, CudnnError
            By the status; NotSupported also where the library has no such function.
        """
        if function not in self._functions:
            raise NotSupported(function, -1, f"not in cuDNN {dotted(self.version)}")
        status = self._functions[function](*arguments)
        if status != SUCCESS:
            raise self.error(function, status)

    def error(self, function: str, status: int) -> CudnnError:
        """The exception for a status."""
        name = self._functions["cudnnGetErrorString"](status)
        text = (name or b"an unknown status").decode(errors="replace")
        kind = CudnnError
        if "NOT_SUPPORTED" in text or "ARCH_MISMATCH" in text:
            kind = NotSupported
        elif "ALLOC" in text:
            kind = NoMemory
        return kind(function, status, text, self._last_error())

    def _last_error(self) -> str:
        """What the library remembers about its last error: it forgets it when it is asked."""
        if "cudnnGetLastErrorString" not in self._functions:
            return ""
        buffer = ctypes.create_string_buffer(2048)
        self._functions["cudnnGetLastErrorString"](buffer, len(buffer))
        return " ".join(buffer.value.decode(errors="replace").split())


def version_of(number: int) -> tuple[int, int, int]:
    """(major, minor, patch) of what cudnnGetVersion returns: 92801, or 8902 before cuDNN 9."""
    scale = 10000 if number >= 90000 else 1000
    return number // scale, number % scale // 100, number % 100


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


# ---------------------------------------------------------------------------------------------------
# Finding it
# ---------------------------------------------------------------------------------------------------
def load(path: str | os.PathLike[str] | None = None) -> Library:
    """Load libcudnn.

    Parameters
    ----------
    path : path, optional
        A libcudnn.so, or a folder with one. Without it: $CONVKIT_CUDNN; then the wheel nvidia-cudnn-cu13 (or
        -cu12) of this Python; then what the system's loader finds.

    Raises
    ------
    Unavailable
        If there is none, or it cannot be loaded, or is none. What a user named is never replaced by another
        one.
    """
    named = [(path, "the argument"), (os.environ.get(VARIABLE), f"${VARIABLE}")]
    for place, where in named:
        if place:
            return Library(_file(Path(place), where), where)
    reasons: list[Unavailable] = []
    for place, where in (*((str(p), "the wheel") for p in wheels()), *((s, "the system") for s in SONAMES)):
        try:
            return Library(place, where)
        except Unavailable as reason:
            reasons.append(reason)
    absent = ("No such file", "cannot open shared object")
    told = [reason for reason in reasons if not any(words in str(reason) for words in absent)]
    if told:
        raise told[0]
    raise NotInstalled(
        f"no libcudnn: ${VARIABLE} is not set, this Python has no nvidia-cudnn wheel, and the system "
        "finds none; pip install 'convkit[cudnn]' (for CUDA 12: pip install nvidia-cudnn-cu12)"
    )


def _file(place: Path, where: str) -> str:
    if place.is_dir():
        found = _in(place)
        if not found:
            raise Unavailable(f"no libcudnn.so in {place} ({where})")
        return str(found[0])
    if not place.exists():
        raise Unavailable(f"no cuDNN at {place} ({where})")
    return str(place)


def _in(folder: Path) -> list[Path]:
    """Libraries in a folder, the newest major version first."""

    def major(path: Path) -> int:
        last = path.name.rpartition(".")[2]
        return int(last) if last.isdigit() else 0

    return sorted(folder.glob("libcudnn.so*"), key=major, reverse=True)


def wheels() -> Iterator[Path]:
    """Libraries of the wheels, which share a namespace package `nvidia`; nothing of them is imported."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        spec = None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        yield from _in(Path(root) / "cudnn" / "lib")


# ---------------------------------------------------------------------------------------------------
# What must be destroyed
# ---------------------------------------------------------------------------------------------------
@dataclass
class _Owned:
    """Something of cuDNN's, and how to destroy it; apart from its owner, which may be gone first."""

    library: Library
    function: str
    address: c_void_p

    def destroy(self) -> None:
        # Nothing can be done about a failure here, and an exception would hide the first one.
        with_status = self.library._functions.get(self.function)
        if with_status is not None:
            with_status(self.address)


class _Resource:
    """Created when it is made, destroyed when it is closed, or left, or collected: exactly once."""

    def __init__(self, library: Library, create: str, destroy: str) -> None:
        address = c_void_p()
        library.call(create, ctypes.byref(address))
        self.library = library
        self._address: c_void_p | None = address
        self._finalizer = weakref.finalize(self, _Owned(library, destroy, address).destroy)

    @property
    def address(self) -> c_void_p:
        """What cuDNN's functions take."""
        if self._address is None:
            raise CudnnError(type(self).__name__, -1, "it was closed")
        return self._address

    def close(self) -> None:
        """Destroy it, if it is not yet."""
        self._address = None
        self._finalizer()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Handle(_Resource):
    """cuDNN's context on the current GPU.

    Raises
    ------
    Unavailable
        Where there is no GPU, or the library cannot work on it.
    """

    def __init__(self, library: Library) -> None:
        try:
            super().__init__(library, "cudnnCreate", "cudnnDestroy")
        except NoMemory:
            raise
        except CudnnError as error:
            said = f"{error.name}{f' ({error.detail})' if error.detail else ''}"
            if "NOT_INITIALIZED" in error.name:
                raise Unavailable(f"{library} needs a GPU with a driver: cudnnCreate said {said}") from error
            raise Unavailable(f"{library} cannot be used here: cudnnCreate said {said}") from error
        self._stream: int | None = None

    def use(self, stream: int) -> None:
        """Let what follows run on a stream (its address; 0: the default one)."""
        if stream != self._stream:
            self.library.call("cudnnSetStream", self.address, c_void_p(stream))
            self._stream = stream


class Descriptor(_Resource):
    """A descriptor of one of `KINDS`, with a first setting: nothing is left behind where that fails.

    Parameters
    ----------
    library : Library
    kind : str
    setter : str
        The function that sets it, without "cudnnSet" and "Descriptor": "Tensor4d".
    values
        The arguments of that, after the descriptor.
    """

    def __init__(self, library: Library, kind: str, setter: str, *values: Any) -> None:
        super().__init__(library, f"cudnnCreate{kind}Descriptor", f"cudnnDestroy{kind}Descriptor")
        try:
            self.set(f"cudnnSet{setter}Descriptor", *values)
        except BaseException:
            self.close()
            raise

    def set(self, function: str, *values: Any) -> None:
        """Call a function that takes this descriptor first."""
        self.library.call(function, self.address, *values)
