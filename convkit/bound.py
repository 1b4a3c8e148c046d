"""Bound calls: what an op's call works out from shapes, dtypes and options is worked out once.

The first call of a kind takes the whole way: `dispatch.Arguments` checks it, chooses an implementation and
runs it. It leaves behind a `Bound`, under a key: shape, dtype and contiguity of each array, every option
with its type, and the choice of `use`. The next call of that key checks what a key cannot hold, and runs:

- `out`: its shape, dtype, order and writeability, and that it shares no memory with another array;
- the flag `finite`, whose value is read when the call runs: that it shares no memory with `out`;
- values: labels and argmax in range, and the options of `VALUES`, which change from call to call;
- that implementations, instruction set and emulator are what they were.

Whatever is unusual (a subclass, an array of a library that is not known, an option of an unknown type) is no
bound call, and nothing is refused here: the whole way says what is wrong, in its own words.

A `layouts.Tensor` of NumPy's counts by its data; layout and logical shape are in the key (`_laid_out`).

NumPy's arrays come first: their call is a few microseconds. CuPy's and PyTorch's go through `_elsewhere`,
which looks at each array as the whole way does, with device and stream; under a key of the same kind.

`quick` writes the function that a user calls, with the op's signature, as `dataclasses` writes `__init__`:
to build the key in a loop over the arguments takes twice as long as all the rest.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arrays, devices, layouts, registry
from .errors import ConvkitError
from .layouts import Tensor
from .op import OPS, Op

if TYPE_CHECKING:
    from .dispatch import Call

#: Bound calls that are kept for each op; the oldest goes first.
KEPT = 1024
#: Options that are not in a key, but checked in each call by these expressions: what is not valid goes the
#: whole way.
VALUES: dict[str, str] = {
    "lr": "type(lr) is float and isfinite(lr)",
    "seed": "type(seed) is int and 0 <= seed < 2**64",
    "offset": "type(offset) is int and 0 <= offset < 2**63",
}
#: Results of no more bytes than these lie where NumPy puts them: `arrays.empty` takes five times as long.
SMALL = 1024
#: Of so few elements the smallest and the largest are found faster by Python than by NumPy.
FEW = 64
#: The flags C_CONTIGUOUS and ALIGNED of NumPy's `flags.num`, and WRITEABLE beside them.
IN_ORDER, FILLABLE = 0x101, 0x501
#: What a bound call returns where it is not for it.
MISS: Any = object()

#: Whether the extents of two arrays of NumPy's overlap, as `arrays.overlap` has it.
_overlap = np.may_share_memory

_lock = threading.Lock()
_caches: dict[str, dict[Any, Bound]] = {}


#: Layout and logical shape of a `Tensor`.
Wrapping = tuple[layouts.Layout, tuple[int, ...]]


class Unusual(Exception):
    """An option has no key."""


def typed(value: Any) -> Any:
    """A key of an option's value, which tells True from 1 and from 1.0, and a list from a tuple."""
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value
    if kind is tuple:
        for one in value:
            if type(one) is not int:
                return tuple(map(typed, value))
        return value
    if kind is bool:
        return bool, value
    if kind is float:
        return float, value or str(value)  # -0.0 equals 0.0
    if kind is list:
        return list, *map(typed, value)
    if kind is dict:
        # What is usual is spelt out: a call of `typed` for each takes half as long again as the kernel.
        return (
            dict,
            *value,
            *[
                v if type(v) is int else (float, v) if type(v) is float and v else typed(v)
                for v in value.values()
            ],
        )
    raise Unusual


_INT32, _UINT8 = np.dtype(np.int32), np.dtype(np.uint8)


def flagged(value: Any) -> bool:
    """A key of a flag, an input that need not be given: that there is one. Each call reads its own."""
    if (
        type(value) is np.ndarray
        and value.dtype == _INT32
        and value.shape == (1,)
        and value.flags.num & IN_ORDER == IN_ORDER
    ):
        return True
    raise Unusual


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
            # As `dispatch.Call.run` has it; what is compiled neither writes to them nor knows of warnings.
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
# Scratch memory
# ---------------------------------------------------------------------------------------------------
#: Bytes of scratch memory that a thread keeps from one call to the next at the most. New memory costs a page
#: fault for each 4 KB: for a convolution of few channels more than the arithmetic.
KEPT_WORKSPACE = 64 << 20
_NO_SCRATCH = arrays.empty((0,), "uint8")


class _Local(threading.local):
    memory: Any = None
    trace: Trace | None = None


_local = _Local()


def take(size: int) -> np.ndarray:
    """Scratch memory on the CPU, in whatever state; the thread's own, unless a call further out has it."""
    memory, _local.memory = _local.memory, None
    if memory is None or memory.size < size:
        del memory  # before more is taken
        memory = arrays.empty((size,), "uint8")
    return memory  # type: ignore[no-any-return]


def keep(memory: np.ndarray) -> None:
    """Give back what `take` returned."""
    if memory.size <= KEPT_WORKSPACE:
        _local.memory = memory


# ---------------------------------------------------------------------------------------------------
# What a first call leaves behind
# ---------------------------------------------------------------------------------------------------
class Trace:
    """What `dispatch` tells of a call on its way."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.ranges: list[tuple[str, int]] = []


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


def clear() -> None:
    """Forget all bound calls."""
    with _lock:
        for cache in _caches.values():
            cache.clear()


def _forget() -> None:
    """In a forked child: the thread that may have held the lock is not there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _usual(out: Any) -> bool:
    if type(out) in (tuple, list):
        return all(one is None or type(one) is np.ndarray for one in out)
    return out is None or type(out) is np.ndarray


def _first(
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
    if call is None or call.problem.empty or devices.emulating() or (device == "cpu" and not _usual(out)):
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


# ---------------------------------------------------------------------------------------------------
# Arrays of CuPy and PyTorch
# ---------------------------------------------------------------------------------------------------
_VALID: dict[str, Callable[[Any], bool]] = {
    name: eval(f"lambda {name}: {text}", {"isfinite": math.isfinite}) for name, text in VALUES.items()
}
Seen = tuple[Any, tuple[Any, ...], tuple[Any, ...] | None, arrays.Kind]


def _elsewhere(
    op: Op,
    cache: dict[Any, Bound],
    key_of: Callable[..., Any],
    needed: tuple[int, ...],
    whole: Callable[..., Any],
    inputs: tuple[Any, ...],
    out: Any,
    options: dict[str, Any],
    values: dict[str, Any],
) -> Any:
    """A call whose arrays are not all NumPy's, or that is unusual."""

    def run() -> Any:
        return whole(**dict(zip(op.inputs, inputs)), **options, **values, out=out)

    if any(inputs[i] is None for i in needed) or any(options[name] is not None for name in op.flags):
        return run()
    several = len(op.outputs) > 1
    wanted = (out,) if not several else (None,) * len(op.outputs) if out is None else out
    if type(wanted) not in (tuple, list) or len(wanted) != len(op.outputs) or devices.emulating():
        return run()
    if Tensor in map(type, (*inputs, *wanted)):
        return _laid_out(op, cache, key_of, run, inputs, out, wanted, options, values)
    given = [a for a in (*inputs, *wanted) if a is not None]
    known = (
        getattr(sys.modules.get("torch"), "Tensor", None),
        getattr(sys.modules.get("cupy"), "ndarray", None),
    )
    if not all(type(a) is np.ndarray or type(a) in known for a in given):
        return run()
    if not all(_VALID[name](value) for name, value in values.items()):
        return run()
    memory = [arrays.plain(a) for a in given]
    if all(a is not None for a in memory):  # on the CPU
        found = iter(memory)
        views = tuple([None if a is None else next(found) for a in inputs])
        targets = None if out is None else tuple([None if a is None else next(found) for a in wanted])
        try:
            key = key_of(*views, **options)
        except (Unusual, RecursionError):
            return run()
        first = next(a for a in inputs if a is not None)
        kind = arrays.NUMPY if type(first) is np.ndarray else arrays.TORCH
        result = _again(op, cache.get(key), views, targets, values, wanted, kind)
        return _first(cache, key, views, targets, run) if result is MISS else result
    with arrays.queue(given):
        seen = _look(op, inputs, wanted, options)
        if seen is not None:
            key, views, targets, kind = seen
            result = _again(op, cache.get(key), views, targets, values, wanted, kind)
            if result is not MISS:
                return result
    if seen is None:
        return run()
    return _first(cache, key, views, targets, run, kind.device)


#: Names of the layouts of the table. One that is made elsewhere goes the whole way: its hash takes long.
_ROWS = {id(row): row.name for row in (*layouts.ACTIVATIONS.values(), *layouts.WEIGHTS.values())}


def _laid_out(
    op: Op,
    cache: dict[Any, Bound],
    key_of: Callable[..., Any],
    run: Callable[[], Any],
    inputs: tuple[Any, ...],
    out: Any,
    wanted: Any,
    options: dict[str, Any],
    values: dict[str, Any],
) -> Any:
    """A call some of whose arrays are each a `Tensor`: those count by their data.

    What the memory's shape does not tell is in the key: layout and logical shape.
    """
    memory: list[Any] = []
    key: Any = [Tensor]
    try:
        for one in (*inputs, *wanted):
            if type(one) is Tensor:
                key += (_ROWS.get(id(one.layout)), typed(one.shape))
                if key[-2] is None:
                    return run()
                one = one.data
            else:
                key.append(one is None)  # an output that is not given follows the inputs' layout
            if one is not None and type(one) is not np.ndarray:
                return run()
            memory.append(one)
        views, targets = tuple(memory[: len(inputs)]), None if out is None else tuple(memory[len(inputs) :])
        key = (*key, key_of(*views, **options))
    except (Unusual, RecursionError):
        return run()
    for name, value in values.items():
        if not _VALID[name](value):
            return run()
    several = len(op.outputs) > 1
    if not several and targets is not None:
        targets = targets[0]
    bound = cache.get(key)
    if bound is not None:
        try:
            result = bound.run(views, targets, values)
        except ConvkitError as error:
            error.op = error.op or op.name
            raise
        if result is not MISS:
            if not several:
                return out if out is not None else _wrap(result, bound._wrapped[0])
            return tuple(
                [
                    _wrap(array, how) if one is None else one
                    for array, one, how in zip(result, wanted, bound._wrapped, strict=True)
                ]
            )
    return _first(cache, key, views, targets, run)


def _wrap(array: Any, how: Wrapping | None) -> Any:
    return array if how is None else Tensor(array, *how)


def _again(
    op: Op,
    bound: Bound | None,
    views: tuple[Any, ...],
    targets: tuple[Any, ...] | None,
    values: dict[str, Any],
    wanted: Any,
    kind: arrays.Kind,
) -> Any:
    """The result of a bound call as the caller's kind, or MISS."""
    if bound is None:
        return MISS
    several = len(op.outputs) > 1
    try:
        result = bound.run(views, targets if several or targets is None else targets[0], values)
    except ConvkitError as error:
        error.op = error.op or op.name
        raise
    if result is MISS:
        return MISS
    if targets is None:
        return tuple([kind.wrap(a) for a in result]) if several else kind.wrap(result)
    arrays.written(a for a in wanted if a is not None)
    if not several:
        return wanted[0]
    return tuple([kind.wrap(a) if one is None else one for a, one in zip(result, wanted, strict=True)])


def _look(op: Op, inputs: tuple[Any, ...], wanted: Any, options: dict[str, Any]) -> Seen | None:
    """The key of a call, its arrays and outputs as NumPy's or CuPy's, and the kind of its results."""
    try:
        kinds = [None if a is None else arrays.kind_of(n, a) for n, a in zip(op.inputs, inputs)]
        kind = next(found for found in kinds if found is not None)
        views = tuple(
            None if a is None else arrays.view(n, a, kind=k) for n, a, k in zip(op.inputs, inputs, kinds)
        )
        targets = None
        if any(a is not None for a in wanted):
            places = [None if a is None else arrays.kind_of("out", a) for a in wanted]
            kinds += places
            targets = tuple(
                None if a is None else arrays.view("out", a, write=True, kind=k)
                for a, k in zip(wanted, places)
            )
        if any(found is not None and found.device != kind.device for found in kinds):
            return None
        chosen = registry.current_choice()
        signature = [None if a is None else (a.shape, a.dtype, arrays.in_order(a)) for a in views]
        key = (kind.device, chosen, *signature, *((name, typed(value)) for name, value in options.items()))
    except (ConvkitError, Unusual, RecursionError):
        return None
    return key, views, targets, kind


# ---------------------------------------------------------------------------------------------------
# The function that a user calls
# ---------------------------------------------------------------------------------------------------
_TEMPLATE = """\
def key_of({inputs}, {parameters}):
    chosen = choice()
    return None if chosen is DEFAULT else chosen, {key}

def {name}({signature}):
    key = None
    inputs = ({inputs},)
    try:
        if {usual} and (out is None or type(out) is not Tensor):
            chosen = choice()
            key = (None if chosen is DEFAULT else chosen, {key})
    except (Unusual, RecursionError):
        return whole({arguments})
    if key is None:
        return elsewhere(op, cache, key_of, needed, whole, inputs, out, {options}, {values})
    bound = cache.get(key)
    if bound is not None:
        try:
            result = bound.run(inputs, out{changing})
        except ConvkitError as error:
            error.op = error.op or {name!r}
            raise
        if result is not MISS:
            return result
    return first(cache, key, inputs, out, lambda: whole({arguments}))
"""


def quick(function: Callable[..., Any], whole: Callable[..., Any]) -> Any:
    """A function with the signature of an op's, `function`, that runs a bound call where there is one.

    Parameters
    ----------
    function : callable
        The op. Its parameters are inputs by their names, options, and `out`.
    whole : callable
        Takes the same arguments, and goes the whole way.
    """
    name = function.__name__
    op = OPS[name]
    parameters = list(inspect.signature(function).parameters.values())
    cache = _caches[name] = {}
    names: dict[str, Any] = {
        "ndarray": np.ndarray, "isfinite": math.isfinite, "choice": registry._choice.get,
        "DEFAULT": registry.DEFAULT, "ConvkitError": ConvkitError, "Unusual": Unusual, "MISS": MISS,
        "typed": typed, "cache": cache, "whole": whole, "first": _first,
        "op": op, "elsewhere": _elsewhere, "Tensor": Tensor, "flagged": flagged,
    }  # fmt: skip
    needed = (p.name for p in parameters if p.name in op.inputs and p.default is p.empty)
    names["needed"] = tuple(op.inputs.index(name) for name in needed)
    signature, arguments, usual, key, options, values, flags = [], [], [], [], [], [], []
    for p in parameters:
        keyword = p.kind is p.KEYWORD_ONLY
        if keyword and "*" not in signature:
            signature.append("*")
        default = f"default_{p.name}"
        if p.default is not p.empty:
            names[default] = p.default
        signature.append(p.name if p.default is p.empty else f"{p.name}={default}")
        arguments.append(f"{p.name}={p.name}" if keyword else p.name)
        if p.name == "out":
            continue
        if p.name in op.inputs:
            array = f"type({p.name}) is ndarray"
            parts = f"{p.name}.shape, {p.name}.dtype, {p.name}.flags.num & {IN_ORDER}"
            if p.default is None:
                array = f"({p.name} is None or {array})"
                parts = f"None if {p.name} is None else ({parts})"
            usual.append(array)
            key.append(parts)
        elif p.name in VALUES:
            usual.append(VALUES[p.name])
            values.append(f"{p.name!r}: {p.name}")
            continue
        elif p.name in op.flags:
            key.append(f"None if {p.name} is None else flagged({p.name})")
            flags.append(p.name)
        elif p.default is p.empty:
            key.append(f"typed({p.name})")
        else:
            key.append(f"{p.name} if {p.name} is {default} else typed({p.name})")
        if p.name not in op.inputs:
            options.append(f"{p.name!r}: {p.name}")
    changing = f"{{{', '.join(values)}}}" if values else ""
    for flag in flags:
        changing = f"{changing} if {flag} is None else {{{', '.join(values)}, {flag!r}: {flag}}}"
    source = _TEMPLATE.format(
        name=name,
        signature=", ".join(signature),
        usual=" and ".join(usual),
        key=", ".join(key),
        arguments=", ".join(arguments),
        inputs=", ".join(op.inputs),
        parameters=", ".join(p.name for p in parameters if p.name not in {*op.inputs, *VALUES, "out"}),
        options=f"{{{', '.join(options)}}}",
        values=f"{{{', '.join(values)}}}",
        changing=", " + changing if changing else "",
    )
    exec(compile(source, f"<bound call of {name}>", "exec"), names)
    made = names[name]
    made.__qualname__ = function.__qualname__
    return functools.update_wrapper(made, function)


def bindable(function: Callable[..., Any]) -> Op | None:
    """The op that a function is, by its name and its parameters, or None."""
    op = OPS.get(function.__name__)
    parameters = inspect.signature(function).parameters
    return op if op and "out" in parameters and parameters.keys() >= set(op.inputs) else None
