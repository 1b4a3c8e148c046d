"""For implementations that want another library's arrays, or that return their results.

    @ck.implements("relu_fprop", name="mine", arrays="torch")
    def relu(problem, x, y):                     # PyTorch tensors over the caller's memory
        torch.clamp(x, min=0, out=y)

    @ck.implements("relu_fprop", name="mine", arrays="jax", returns=True)
    def relu(problem, x):                        # what is returned is copied into the outputs
        return jnp.maximum(x, 0)

The arrays are NumPy's on the CPU and CuPy's on a GPU. The library is imported when the implementation runs.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import np_dtype
from .errors import OptionError, unknown
from .op import OPS

#: Bytes to which PyTorch's own arrays are aligned.
_ALIGNED = 64
#: Libraries, with the package that has them.
LIBRARIES = {"torch": "torch", "jax": "jax"}


def adapt(op: str, run: Callable[..., Any], arrays: str | None, returns: bool) -> Callable[..., None]:
    """The function as an implementation is called: `run(problem, *inputs, *outputs, **options)`.

    Parameters
    ----------
    op : str
    run : callable
        Takes arrays of the library, and the outputs among them unless it returns them.
    arrays : {"torch", "jax"}, optional
        The library; None for the arrays as they come.
    returns : bool
        It returns the outputs, in their order, and is not given them. JAX's arrays cannot be written to, so
        that a function on them must.
    """
    if arrays is None and not returns:
        return run
    if arrays is not None and arrays not in LIBRARIES:
        raise unknown("library of arrays", arrays, LIBRARIES)
    if arrays == "jax" and not returns:
        raise OptionError("JAX's arrays cannot be written to: arrays='jax' needs returns=True")
    row = OPS[op]
    count, names = len(row.inputs), row.outputs

    @functools.wraps(run)
    def adapted(problem: Any, *tensors: Any, **options: Any) -> None:
        inputs, outputs = tensors[:count], tensors[count:]
        scratch = options.pop("workspace", None)  # nobody's arrays but ours
        more = {} if scratch is None else {"workspace": scratch}
        given = {
            k: _to(arrays, v) if hasattr(v, "dtype") and k in row.flags else v for k, v in options.items()
        }
        with _in_order(arrays, outputs):
            here = [_to(arrays, a) for a in inputs]
            if not returns:
                here += [_to(arrays, a, output=True) for a in outputs]
            made = run(problem, *here, **given, **more)
            if returns:
                _store(row.name, names, outputs, made)

    return adapted


def missing(arrays: str | None) -> str | None:
    """What this machine lacks for arrays of the library, or None."""
    if arrays is None or importlib.util.find_spec(LIBRARIES[arrays]) is not None:
        return None
    return f"{LIBRARIES[arrays]} is not installed: pip install {LIBRARIES[arrays]}"


def _store(op: str, names: tuple[str, ...], outputs: tuple[Any, ...], made: Any) -> None:
    """Copy what a function returned into the outputs."""
    results = made if isinstance(made, (tuple, list)) else (made,)
    if made is None or len(results) != len(names):
        what = f"{len(results)} results" if made is not None else "nothing"
        raise TypeError(f"an implementation of {op} with returns=True returns {', '.join(names)}, not {what}")
    for name, output, result in zip(names, outputs, results):
        if tuple(result.shape) != tuple(output.shape):
            raise ValueError(
                f"{name} has the shape {tuple(output.shape)}, and {tuple(result.shape)} was returned"
            )
        output[...] = _back(result, output)


def _to(library: str | None, array: Any, output: bool = False) -> Any:
    """An array of the library: over the same memory, but for inputs that are not aligned (JAX may copy)."""
    if array is None or library is None:
        return array
    if library == "jax":
        import jax

        if isinstance(array, np.ndarray):
            return jax.numpy.asarray(array)
        return jax.dlpack.from_dlpack(array)
    torch = _torch()
    if not isinstance(array, np.ndarray):
        return torch.from_dlpack(array)
    if not output and array.ctypes.data % _ALIGNED:  # its BLAS gives other bits for other alignments
        array = _aligned(array)
    if array.dtype == np_dtype("bfloat16"):  # which NumPy has from another package
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # of these PyTorch computes next to nothing
        return torch.from_numpy(array.view(f"i{array.dtype.itemsize}"))
    return torch.from_numpy(array)


def _aligned(array: Any) -> Any:
    """A copy at an address as PyTorch's own arrays have."""
    memory = np.empty(array.nbytes + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _back(result: Any, output: Any) -> Any:
    """What was returned as an array of the output's own library."""
    if hasattr(result, "detach"):  # PyTorch's
        result = result.detach()
        if isinstance(output, np.ndarray):
            result = result.cpu()
            if str(result.dtype) == "torch.bfloat16":
                return result.view(_torch().int16).numpy().view(np_dtype("bfloat16"))
            return result.numpy()
    if isinstance(output, np.ndarray):
        return np.asarray(result)
    import cupy

    return (
        cupy.from_dlpack(result)
        if not isinstance(result, (cupy.ndarray, np.ndarray))
        else cupy.asarray(result)
    )


@functools.lru_cache(maxsize=1)
def _torch() -> Any:
    import torch

    # PyTorch warns of arrays that are read-only, once in a process. The gate reports what writes to an input.
    read_only = np.zeros(1, np.float32)
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(read_only)
    return torch


def _in_order(library: str | None, outputs: tuple[Any, ...]) -> Any:
    """On a GPU, a block in which the library's work is in order with CuPy's current stream."""
    import contextlib

    if library != "torch" or all(isinstance(a, np.ndarray) for a in outputs):
        return contextlib.nullcontext()
    import cupy

    torch = _torch()
    return torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr))
