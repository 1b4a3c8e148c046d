"""The path that every op takes: arrays in -> checks -> an implementation -> arrays out.

`Arguments.run` ends in a `Call`, which it runs. A network's plan makes its calls itself, and runs them many
times.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from . import arrays, bound, checked, devices, layouts
from .arrays import Array
from .call import Call
from .errors import ConvkitError, DtypeError, OptionError, OutOfMemory, ShapeError, unknown
from .layouts import Tensor
from .op import OPS, Problem, pair_dtype
from .registry import select

F = TypeVar("F", bound=Callable[..., Any])


def operation(function: F) -> F:
    """Decorator of the public ops, and of methods that are such.

    An error that leaves one begins with the op's name. On a GPU the work is queued where `arrays.queue` says;
    the arrays that a method works on besides its arguments are what its object's `gpu_arrays` returns.
    A call of an op like one before it is short: see `bound`.
    """
    method = next(iter(inspect.signature(function).parameters), "") == "self"

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = [*args[method:], *kwargs.values()]
        if isinstance(several := kwargs.get("out"), (tuple, list)):
            given += several
        if method:
            given += args[0].gpu_arrays()
        try:
            with arrays.queue(given):
                return function(*args, **kwargs)
        except ConvkitError as error:
            error.op = error.op or function.__name__
            raise

    if not method and bound.bindable(function):
        return bound.quick(function, wrapper)
    return wrapper  # type: ignore[return-value]


def in_range(name: str, values: Any, end: int, meaning: str) -> None:
    """Refuse integers outside [0, end).

    Not on a GPU, where reading them would have to wait for it: there, kernels take care not to read out of
    bounds (see `softmax_xent_fprop` for labels).
    """
    if isinstance(values, Tensor) and isinstance(values.data, np.ndarray):
        values = values.logical()  # in padding channels stands anything
    if values.size == 0 or not isinstance(values, np.ndarray):
        return
    if values.dtype.itemsize == 1 and values.dtype.kind == "u" and end > 255:
        return
    bound.ranged(name, end)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= end:
        raise OptionError(
            f"{name} must each be {meaning}, 0 <= value < {end}; found {low if low < 0 else high}"
        )


class Arguments:
    """The array arguments of one op call, as views that implementations understand.

    All floating-point arrays must share a dtype and a device; the first one decides the kind of the
    results. Each array is an attribute by its name.
    """

    def __init__(self, op: str, **given: Any) -> None:
        self.op = OPS[op]
        self.given = given
        self.views: dict[str, Array | Tensor | None] = {}
        kinds = {
            name: arrays.kind_of(name, value.data if isinstance(value, Tensor) else value)
            for name, value in given.items()
            if value is not None
        }
        self.kind = next(iter(kinds.values()), arrays.NUMPY)
        self.device = "cuda" if devices.emulating() else self.kind.backend
        if len({kind.device for kind in kinds.values()}) > 1:
            places = ", ".join(f"{name}: {kind.device}" for name, kind in kinds.items())
            raise DtypeError(f"the arrays must share a device, not {places}")
        if self.kind.device != "cpu" and devices.emulating():
            raise DtypeError("the emulator takes arrays on the CPU")
        dtypes: dict[str, str] = {}
        for name, value in given.items():
            if value is None:
                if name not in (*self.op.optional, *self.op.flags):
                    raise DtypeError(f"{name} must be an array, not None")
                self.views[name] = None
                continue
            array = value if isinstance(value, Tensor) else arrays.view(name, value, kind=kinds[name])
            kind = "int32" if name in self.op.flags else self.op.dtypes.get(name)
            if kind is None:
                dtypes[name] = arrays.dtype_name(name, array)
            elif kind == "integer":
                if array.dtype.kind not in "iu":
                    raise DtypeError(f"{name} must be of an integer dtype, not {array.dtype}")
            elif kind == "real":
                if not np.can_cast(array.dtype, np.float64, "same_kind"):
                    raise DtypeError(f"{name} must be of real numbers, not of dtype {array.dtype}")
            elif array.dtype != np.dtype(kind):
                raise DtypeError(f"{name} must be of dtype {kind}, not {array.dtype}")
            self.views[name] = array
        self.dtype = self._shared(dtypes)

    def _shared(self, dtypes: dict[str, str]) -> str:
        """The dtype of the problem: that of all arrays, or a pair where those of parameters have another one.

        It is "" where the op names the dtype of each input.
        """
        own = {dtype for name, dtype in dtypes.items() if name in self.op.parameters}
        others = {dtype for name, dtype in dtypes.items() if name not in self.op.parameters}
        if len(own) == len(others) == 1 and (pair := "/".join((*others, *own))) in self.op.pairs:
            return pair
        if len(own | others) > 1:
            raise DtypeError(
                "the arrays must share a dtype, not "
                + ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
            )
        return next(iter(own | others), "")

    def with_parameters(self, dtype: Any) -> str:
        """A problem's dtype where the gradients of parameters are to be of `dtype`; None: as the arrays."""
        if dtype is None:
            return self.dtype
        if not isinstance(dtype, str) or dtype not in arrays.DTYPES:
            raise unknown("dtype", dtype, arrays.DTYPES)
        return pair_dtype(self.dtype, dtype)

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["views"][name]
        except KeyError:
            raise AttributeError(name) from None

    def run(
        self,
        problem: Problem,
        *,
        out: Any = None,
        impl: str | None = None,
        math: str | None = None,
        **options: Any,
    ) -> Any:
        """Check shapes, choose an implementation, run it; returns the output or a tuple."""
        for name, array in self.views.items():
            if array is not None and array.shape != problem.shape(name):
                raise ShapeError(f"{name} must have shape {problem.shape(name)}, not {array.shape}")
        given_flags = [name for name in self.op.flags if self.views.get(name) is not None]
        layout, rows = self._layouts(problem, out)
        implementation = select(
            self.op.name,
            problem,
            device=self.device,
            impl=impl,
            math=math,
            layout=layout,
            flags=given_flags,
        )
        checked.warn(implementation)
        given = self._outputs(problem, out)
        inputs = tuple(self._input(problem, name) for name in self.op.inputs)
        flags = {name: self._input(problem, name) for name in given_flags}
        options.update(flags)
        outputs = tuple(
            array
            if array is not None and self._direct(name, array, inputs, *flags.values())
            else arrays.empty(
                rows[name].physical(problem.shape(name)),
                problem.dtype_of(name),
                self.kind.device,
            )
            for name, array in zip(self.op.outputs, given, strict=True)
        )
        call = Call(self.op, implementation, problem.in_memory(outputs[0].shape), inputs, outputs, options)
        arrays.written(self._out_objects(out))
        call.run()
        bound.leave(call)
        results = []
        for name, array, filled, wanted in zip(
            self.op.outputs, given, outputs, self._out_objects(out), strict=True
        ):
            if array is not None and array is not filled:
                arrays.assign(array, filled)
            if wanted is not None:
                results.append(wanted)
            elif rows[name].axes:
                results.append(Tensor(filled, rows[name], problem.shape(name)))
            else:
                results.append(self.kind.wrap(filled))
        return results[0] if len(results) == 1 else tuple(results)

    def _layouts(self, problem: Problem, out: Any) -> tuple[str, dict[str, layouts.Layout]]:
        """What an implementation has to declare, and the layout of each output.

        Outputs that are not given follow the inputs.
        """
        given = {**self.given, **dict(zip(self.op.outputs, self._out_objects(out), strict=True))}
        found = {
            name: a.layout if isinstance(a, Tensor) else layouts.NCHW
            for name, a in given.items()
            if a is not None and name not in self.op.flags
        }
        if not any(row.axes for row in found.values()):
            return layouts.NCHW.name, dict.fromkeys(self.op.outputs, layouts.NCHW)
        if not self.op.inplace:
            declared = layouts.declared(layouts.named(found))
            return str(declared), {name: declared.of(name) for name in self.op.outputs}
        # To an elementwise op any order of the elements is as good as another; it leaves zeros as they are.
        row = next(row for row in found.values() if row.axes)
        if "offset" in self.op.options:
            raise OptionError(f"it counts the elements in their order, so none may be in {row.name}")
        if any(other != row for other in found.values()):
            words = ", ".join(f"{name}: {other.name}" for name, other in found.items())
            raise OptionError(f"the arrays must share a layout, not {words}")
        return layouts.NCHW.name, dict.fromkeys(self.op.outputs, row)

    def _input(self, problem: Problem, name: str) -> Array | None:
        array = self.views[name]
        if array is None:
            return None
        if isinstance(array, Tensor):
            array = array.data
        try:
            ready = arrays.contiguous(array, problem.dtype_of(name))
        except MemoryError as error:
            raise OutOfMemory(f"no memory for a contiguous copy of {name}, {array.shape}: {error}") from error
        if isinstance(ready, np.ndarray):
            ready = ready.view()
            ready.flags.writeable = False  # an implementation that writes to an input fails
        return ready

    def _out_objects(self, out: Any) -> tuple[Any, ...]:
        if len(self.op.outputs) == 1:
            return (out,)
        if out is None:
            return (None,) * len(self.op.outputs)
        if not isinstance(out, (tuple, list)) or len(out) != len(self.op.outputs):
            raise OptionError(f"out must be a tuple of {len(self.op.outputs)}: {self.op.outputs}")
        return tuple(out)

    def _outputs(self, problem: Problem, out: Any) -> list[Array | None]:
        """The arrays behind `out=`, each checked before anything is written."""
        found: list[Array | None] = []
        for name, value in zip(self.op.outputs, self._out_objects(out), strict=True):
            if value is None:
                found.append(None)
                continue
            label = f"out ({name})"
            tensor = isinstance(value, Tensor)
            kind = arrays.kind_of(label, value.data if tensor else value)
            if (device := kind.device) != self.kind.device:
                raise DtypeError(
                    f"{label} must live on {self.kind.device}, as the inputs do, not on {device}"
                )
            array = value if tensor else arrays.view(label, value, write=True, kind=kind)
            if array.shape != problem.shape(name):
                raise ShapeError(f"{label} must have shape {problem.shape(name)}, not {array.shape}")
            array = array.data if isinstance(array, Tensor) else array
            if array.dtype != arrays.np_dtype(problem.dtype_of(name)):
                raise DtypeError(f"{label} must have dtype {problem.dtype_of(name)}, not {array.dtype}")
            low, high = arrays.bounds(array)
            if high - low < array.nbytes:
                raise OptionError(f"{label} overlaps itself: several of its elements share memory")
            if not getattr(array.flags, "writeable", True):
                raise OptionError(f"{label} is read-only")
            found.append(array)
        written = [a for a in found if a is not None]
        if any(arrays.overlap(a, b) for i, a in enumerate(written) for b in written[:i]):
            raise OptionError("the outputs share memory with each other")
        return found

    def _direct(self, name: str, out: Array, inputs: tuple[Array | None, ...], *flags: Array | None) -> bool:
        """Whether an implementation may write into `out` itself, or needs a buffer in between."""
        if not arrays.in_order(out):
            return False
        for array in flags:
            if array is not None and arrays.overlap(array, out):
                return False
        for given, array in zip(self.op.inputs, inputs, strict=True):
            if array is None or not arrays.overlap(array, out):
                continue
            may = self.op.inplace or self.op.updates.get(name) == given
            if not (may and arrays.bounds(array) == arrays.bounds(out)):
                return False
        return True
