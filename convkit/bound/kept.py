"""Bound calls themselves, where they are kept, and how a first call becomes one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import arrays, devices, layouts, registry
from ..call import Call, keep, take
from ..layouts import Tensor
from .keys import _UINT8, FILLABLE

#: Bound calls that are kept for each op; the oldest goes first.
KEPT = 1024
#: Results of no more bytes than these lie where NumPy puts them: `arrays.empty` takes five times as long.
SMALL = 1024
#: Of so few elements the smallest and the largest are found faster by Python than by NumPy.
FEW = 64
#: What a bound call returns where it is not for it.
MISS: Any = object()

_NO_SCRATCH = arrays.empty((0,), "uint8")

#: Whether the extents of two arrays of NumPy's overlap, as `arrays.overlap` has it.
_overlap = np.may_share_memory

_lock = threading.Lock()
caches: dict[str, dict[Any, Bound]] = {}


#: Layout and logical shape of a `Tensor`.
Wrapping = tuple[layouts.Layout, tuple[int, ...]]


# ---------------------------------------------------------------------------------------------------
# A bound call
# ---------------------------------------------------------------------------------------------------
class Bound:
    """A call that has been made once: the implementation, prepared, and what its results are.

    Parameters
    ----------
    call : Call
        One that has run.
    given : tuple of ndarray, or None
        The caller's inputs, in the op's order; None where the op took its default.
    ranges : list of (str, int)
        Inputs whose values must lie in [0, end).
    """

    __slots__ = (
        *(
            "_copies",
            "_device",
            "_executor",
            "_flags",
            "_generation",
            "_inplace",
            "_launch",
            "_locked",
            "_made",
            "_kernels",
            "_op",
            "_options",
        ),
        *("_outputs", "_ranges", "_several", "_wrapped", "_workspace"),
    )

    def __init__(
        self, call: Call, given: tuple[Any, ...], ranges: list[tuple[str, int]], device: str = "cpu"
    ) -> None:
        op, implementation = call.op, call.implementation
        self._device = device
        self._executor: Any = None
        self._op = op
        self._generation = registry.generation()
        self._kernels = devices.cpu_kernels
        self._launch = call.launch()
        #: Inputs that this kind of call is given by keyword, as the op's flags.
        self._flags = tuple(name for name in op.flags if call.options.get(name) is not None)
        self._options = {n: value for n, value in call.options.items() if n not in op.flags}
        self._workspace = call.workspace_bytes if implementation.workspace else None
        self._outputs = tuple((a.shape, a.dtype, a.nbytes <= SMALL) for a in call.outputs)
        self._several = len(self._outputs) > 1
        #: For each output, layout and logical shape where the call's result is a `Tensor`.
        self._wrapped: tuple[Wrapping | None, ...] = ()
        self._ranges = tuple((op.inputs.index(name), end) for name, end in ranges)
        #: Inputs that are not given as the implementation takes them, and the dtypes that it takes.
        self._copies = tuple(
            (i, call.problem.dtype_of(op.inputs[i]))
            for i, (a, ready) in enumerate(zip(given, call.inputs, strict=True))
            if a is not None and ready is not None and not (a.dtype == ready.dtype and arrays.in_order(a))
        )
        #: Inputs that the op made itself, the same for each call.
        self._made = tuple(
            (i, ready)
            for i, (a, ready) in enumerate(zip(given, call.inputs, strict=True))
            if a is None and ready is not None
        )
        self._locked = not implementation.compiled
        #: For each output, which inputs it may be.
        self._inplace = tuple(
            tuple(op.inplace or op.updates.get(name) == given for given in op.inputs) for name in op.outputs
        )

    def run(self, inputs: tuple[Any, ...], out: Any, values: dict[str, Any] | None = None) -> Any:
        """The op's result, or MISS where this call is not one of its kind."""
        if (
            self._kernels is not devices.cpu_kernels
            or self._generation != registry.generation()
            or devices._instead.get() is not None
        ):
            return MISS
        for i, end in self._ranges:
            if not _within(inputs[i], end):
                return MISS
        if self._copies or self._made:
            inputs = self._ready(inputs)
        outputs: tuple[Any, ...]
        if out is None:
            outputs = tuple(
                [
                    np.empty(shape, dtype) if small else arrays.empty(shape, dtype.name)
                    for shape, dtype, small in self._outputs
                ]
            )
        elif self._several:
            if (outputs := self._filled(out, inputs)) is MISS:
                return MISS
        elif self._fits(0, out, inputs):
            outputs = (out,)
        else:
            return MISS
        options = {**self._options, **values} if values else self._options
        for name in self._flags:
            flag = options[name]
            if out is not None and any(_overlap(flag, one) for one in outputs):
                return MISS
            options[name] = _read_only(flag)
        if self._locked:
            # As `call.Call.run` has it; what is compiled neither writes to them nor knows of warnings.
            inputs = tuple(map(_read_only, inputs))
            with np.errstate(all="ignore"):
                self._start(inputs, outputs, options)
        else:
            self._start(inputs, outputs, options)
        return outputs if self._several else outputs[0]

    def _start(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if (size := self._workspace) is None:
            self._launch(*inputs, *outputs, **options)
        elif size == 0:
            self._launch(*inputs, *outputs, **options, workspace=_NO_SCRATCH)
        else:
            memory = take(size)
            try:
                self._launch(*inputs, *outputs, **options, workspace=memory[:size])
            finally:
                keep(memory)

    def _ready(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs as the implementation takes them."""
        ready = list(inputs)
        for i, array in self._made:
            ready[i] = array
        if self._copies:
            with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity there
                for i, dtype in self._copies:
                    ready[i] = arrays.contiguous(ready[i], dtype)
        return tuple(ready)

    def _fits(self, number: int, out: Any, inputs: tuple[Any, ...]) -> bool:
        """Whether an implementation may write into `out` itself."""
        shape, dtype, _ = self._outputs[number]
        if (
            type(out) is not np.ndarray
            or out.shape != shape
            or out.dtype != dtype
            or out.flags.num & FILLABLE != FILLABLE
        ):
            return False
        for array, may in zip(inputs, self._inplace[number]):
            if out is array:
                if not may:
                    return False
            elif array is not None and _overlap(out, array):
                return False
        return True

    def _filled(self, out: Any, inputs: tuple[Any, ...]) -> Any:
        """The outputs of an op that has several, or MISS."""
        if type(out) not in (tuple, list) or len(out) != len(self._outputs):
            return MISS
        found: list[Any] = []
        apart: list[Any] = []  # outputs that are no input: those that are have been held against the others
        for number, one in enumerate(out):
            if one is None:
                shape, dtype, _ = self._outputs[number]
                found.append(arrays.empty(shape, dtype.name))
                continue
            if not self._fits(number, one, inputs):
                return MISS
            for array in inputs:
                if one is array:
                    break
            else:
                for other in apart:
                    if _overlap(one, other):
                        return MISS
                apart.append(one)
            for other in found:
                if one is other:
                    return MISS
            found.append(one)
        return tuple(found)


class OnGpu(Bound):
    """The same for CuPy's arrays, on their device, which is the current one."""

    __slots__ = ()

    def __init__(
        self, call: Call, given: tuple[Any, ...], ranges: list[tuple[str, int]], device: str = "cpu"
    ) -> None:
        with arrays.on(call.outputs[0]):
            super().__init__(call, given, ranges, device)
            self._executor = devices.current()

    def run(self, inputs: tuple[Any, ...], out: Any, values: dict[str, Any] | None = None) -> Any:
        if (
            self._kernels is not devices.cpu_kernels
            or self._generation != registry.generation()
            or self._executor is not devices.current()
        ):
            return MISS
        if self._copies:
            inputs = self._ready(inputs)
        wanted = (out,) if not self._several else (None,) * len(self._outputs) if out is None else out
        outputs: list[Any] = []
        for number, one in enumerate(wanted):
            if one is None:
                shape, dtype, _ = self._outputs[number]
                outputs.append(arrays.empty(shape, dtype.name, self._device))
            elif not self._fits(number, one, inputs) or any(arrays.overlap(one, a) for a in outputs):
                return MISS
            else:
                outputs.append(one)
        with np.errstate(all="ignore"):
            self._start(inputs, tuple(outputs), {**self._options, **values} if values else self._options)
        return tuple(outputs) if self._several else outputs[0]

    def _start(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if (size := self._workspace) is not None:
            options = {**options, "workspace": arrays.empty((size,), "uint8", self._device)}
        self._launch(*inputs, *outputs, **options)

    def _fits(self, number: int, out: Any, inputs: tuple[Any, ...]) -> bool:
        shape, dtype, _ = self._outputs[number]
        if out.shape != shape or out.dtype != dtype or not arrays.in_order(out):
            return False
        return all(
            array is None
            or not arrays.overlap(out, array)
            or (may and arrays.bounds(out) == arrays.bounds(array))
            for array, may in zip(inputs, self._inplace[number])
        )


def _read_only(array: Any) -> Any:
    if array is None:
        return None
    view = array.view()
    view.flags.writeable = False
    return view


def _within(values: Any, end: int) -> bool:
    """Whether integers all lie in [0, end)."""
    if values.size > FEW:
        low, high = values.min(), values.max()
    elif values.dtype is _UINT8:  # an argmax: its bytes are its values
        return max(values.tobytes()) < end
    else:
        listed = values.reshape(-1).tolist()
        low, high = min(listed), max(listed)
    return bool(low >= 0 and high < end)


# ---------------------------------------------------------------------------------------------------
# What a first call leaves behind
# ---------------------------------------------------------------------------------------------------
class Trace:
    """What `dispatch` tells of a call on its way."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.ranges: list[tuple[str, int]] = []
        self.unkeyed = False


class _Local(threading.local):
    trace: Trace | None = None


_local = _Local()


@contextmanager
def _traced(trace: Trace) -> Iterator[None]:
    """A block whose op, not those that its implementation calls, leaves a trace."""
    before, _local.trace = _local.trace, trace
    try:
        yield
    finally:
        _local.trace = before


def leave(call: Call) -> None:
    """`dispatch` has run this call."""
    if _local.trace is not None:
        _local.trace.call = call


def ranged(name: str, end: int) -> None:
    """`dispatch` has found the values of this array in [0, end)."""
    if _local.trace is not None:
        _local.trace.ranges.append((name, end))


def unkeyed() -> None:
    """Something decides how this call is carried out that is in no key, such as the dtype of `out`."""
    if _local.trace is not None:
        _local.trace.unkeyed = True


def clear() -> None:
    """Forget all bound calls."""
    with _lock:
        for cache in caches.values():
            cache.clear()


def _forget() -> None:
    """In a forked child: the thread that may have held the lock is not there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def usual(out: Any) -> bool:
    if type(out) in (tuple, list):
        return all(one is None or type(one) is np.ndarray for one in out)
    return out is None or type(out) is np.ndarray


def first(
    cache: dict[Any, Bound],
    key: Any,
    inputs: tuple[Any, ...],
    out: Any,
    run: Callable[[], Any],
    device: str = "cpu",
) -> Any:
    """Run a call the whole way, and keep it bound."""
    trace = Trace()
    before = registry.generation(), devices.cpu_kernels
    with _traced(trace):
        result = run()
    call = trace.call
    if call is None or call.problem.empty or devices.emulating() or (device == "cpu" and not usual(out)):
        return result
    if trace.unkeyed:
        return result
    if before != (registry.generation(), devices.cpu_kernels):
        return result  # worked out while something changed, and so for one or for the other
    if device == "cpu":
        bound = Bound(call, inputs, trace.ranges)
    elif any(a is None and ready is not None for a, ready in zip(inputs, call.inputs, strict=True)):
        return result  # the op made an input, on a stream that later calls need not be on
    else:
        bound = OnGpu(call, inputs, trace.ranges, device)
    several = result if bound._several else (result,)
    bound._wrapped = tuple((one.layout, one.shape) if type(one) is Tensor else None for one in several)
    with _lock:
        if len(cache) >= KEPT and key not in cache:
            del cache[next(iter(cache))]
        cache[key] = bound
    return result
