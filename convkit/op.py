"""What an op is, and what it is asked to do: `Op` rows and `Problem` descriptions, with no array in sight.

A problem is validated once, when it is made, and from then on says everything that is derived from it: the
shape and dtype of each tensor by its name, FLOPs, compulsory bytes, and the C struct that kernels receive.

An `Op` is a row of `OPS`. The modules of `convkit.ops` declare theirs with `defines`, a file for each family.
Whatever else has to know something about an op (the gate, the benchmarks, a network's plan) asks its row.

Letters are the field's: N images, C input channels, H x W input, K filters, R x S window, P x Q output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any, ClassVar

import numpy as np

from .arrays import np_dtype
from .errors import ConvkitError, DtypeError, ShapeError

Shape = tuple[int, ...]
#: The largest byte count that an index of an array can reach.
MAX_BYTES = 2**63 - 1
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Pair dtypes of mixed precision, "storage/parameters", for ops that meet both: activations of the first, and
#: parameters or their gradients of the second.
PAIRS = ("bfloat16/float32", "float16/float32")
#: Types of the fields of a C struct.
_FIELDS: dict[str, Any] = {"int": np.int32, "long long": np.int64, "float": np.float32}


# ---------------------------------------------------------------------------------------------------
# Dtypes
# ---------------------------------------------------------------------------------------------------
def np_itemsize(dtype: str) -> int:
    return ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize


def storage_dtype(dtype: str) -> str:
    """What activations are stored in: the first of a pair; a plain dtype is its own."""
    return dtype.partition("/")[0]


def param_dtype(dtype: str) -> str:
    """What parameters and their gradients are stored in: the second of a pair; a plain dtype is its own."""
    return dtype.rpartition("/")[2]


def pair_dtype(storage: str, parameters: str) -> str:
    """The dtype of a problem of activations and parameters: a pair, or plain where both are the same.

    Raises
    ------
    DtypeError
        If there is no such pair.
    """
    if storage == parameters:
        return storage
    if (pair := f"{storage}/{parameters}") not in PAIRS:
        fitting = [storage, *(param_dtype(known) for known in PAIRS if storage_dtype(known) == storage)]
        raise DtypeError(
            f"beside {storage} arrays, those of parameters must be {' or '.join(fitting)}, not {parameters}"
        )
    return pair


# ---------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Problem:
    """Base of the problem descriptions.

    A subclass has `shapes`: the shape of every tensor that any of its ops reads or writes, by name; and
    `of_parameters`: which of them are of the second dtype, where its dtype is a pair.
    """

    of_parameters: ClassVar[frozenset[str]] = frozenset()

    def __str__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dtype"}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in shown.items())})"

    @property
    def shapes(self) -> dict[str, Shape]:
        raise NotImplementedError

    def dtype_of(self, tensor: str) -> str:
        """Storage dtype of a tensor: the problem's own, or of its pair the one that the tensor is of."""
        dtype: str = self.dtype  # type: ignore[attr-defined]
        return param_dtype(dtype) if tensor in self.of_parameters else storage_dtype(dtype)

    def shape(self, tensor: str) -> Shape:
        """Shape of the tensor of that name."""
        return self.shapes[tensor]

    def bytes(self, *tensors: str) -> int:
        """Bytes of the named tensors: what a perfect kernel would have to move."""
        return sum(prod(self.shape(t)) * np_itemsize(self.dtype_of(t)) for t in tensors)

    def flops(self, op: str) -> int:
        """Floating-point operations of an op on this problem; a multiply-add counts two."""
        raise NotImplementedError

    def reduction(self, op: str) -> int:
        """Terms in the longest sum that makes one output element; error bounds grow with it."""
        return 1

    @property
    def empty(self) -> bool:
        """Whether the batch is empty, so that there is nothing to compute."""
        return getattr(self, "N", 1) == 0

    def __post_init__(self) -> None:
        for tensor, shape in self.shapes.items():
            if prod(shape) * np_itemsize(self.dtype_of(tensor)) > MAX_BYTES:
                raise ShapeError(f"{tensor} of shape {shape} takes more bytes than an address can reach")

    def in_memory(self, shape: Shape) -> Problem:
        """The problem on memory of that shape, with the padding channels of a layout: itself, as a rule."""
        return self

    def scalars(self) -> dict[str, int | float]:
        """The numbers that kernels and launch expressions see, by name: fields, then derived extents."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        numbers = {k: int(v) if isinstance(v, bool) else v for k, v in own.items() if not isinstance(v, str)}
        for name in ("P", "Q"):
            if name not in numbers and hasattr(self, name):
                numbers[name] = getattr(self, name)
        return {k: v for k, v in numbers.items() if isinstance(v, (int, float))}

    def c_type(self, scalar: str) -> str:
        """Type of a field of the C struct: "int" or "float", or "long long" for a count of elements."""
        return "int" if isinstance(self.scalars()[scalar], int) else "float"

    def struct(self) -> np.ndarray:
        """The C struct that kernels receive by value: a field of type `c_type` per entry of `scalars()`."""
        scalars = self.scalars()
        layout = [(k, _FIELDS[self.c_type(k)]) for k in scalars]
        if any(v > 2**31 - 1 for k, v in scalars.items() if self.c_type(k) == "int"):
            raise ShapeError(f"an extent does not fit the kernels' 32-bit fields: {scalars}")
        return np.array([tuple(scalars.values())], dtype=layout)

    def c_struct(self) -> str:
        """The declaration of that struct in C, so that its layout has one home."""
        members = (f"{self.c_type(k)} {k};" for k in self.scalars())
        return f"struct {type(self).__name__} {{ {' '.join(members)} }};"


# ---------------------------------------------------------------------------------------------------
# What the gate asks about an op
# ---------------------------------------------------------------------------------------------------
#: Gives the problem with one extent changed, and with whatever else has to follow.
Stretch = Callable[[Any, int], Problem]
#: Inputs or outputs by name; an optional input may be None.
Tensors = dict[str, "np.ndarray | None"]
#: For each output, (bound of the rounding in units of the unit roundoff; scale of a declared error). The
#: bound is None where there is nothing to round.
Weights = dict[str, "tuple[np.ndarray | None, np.ndarray]"]
#: How data are filled, by name (`check.inputs.FILLS`), for every op.
FILLS = ("nan", "inf", "nan beside zeros", "zeros", "ties", "constant", "offset", "rectified")


def extent(name: str) -> Stretch:
    """The stretch of one field of a problem."""

    def stretch(g: Any, value: int) -> Problem:
        return replace(g, **{name: value})

    return stretch


def draw(rng: np.random.Generator, low: int, high: int, count: int) -> Any:
    """So many whole numbers, both ends included."""
    return [int(v) for v in rng.integers(low, high + 1, count)]


class Cases:
    """The problems that the gate and the benchmarks ask of an op. A family of ops says what is its own.

    Attributes
    ----------
    extents : dict of str to callable
        What can be stretched, one extent at a time.
    small : set of str
        Those of them that are no extents of tensors: windows, strides, paddings.
    fills : tuple of str
        How the data of `data` are filled.
    options : tuple of dict
        Sets of options of the op that are tried in turn; `relu` is apart, and goes without saying.
    """

    extents: Mapping[str, Stretch] = {}
    small: frozenset[str] = frozenset()
    fills: tuple[str, ...] = FILLS
    options: tuple[dict[str, Any], ...] = ()

    def layers(self) -> Iterable[tuple[str, Problem]]:
        """(name, problem) of real layers."""
        raise NotImplementedError

    def edges(self) -> Iterable[tuple[str, Problem]]:
        """(name, problem) at the edges of what the op takes."""
        raise NotImplementedError

    def data(self) -> Iterable[Problem]:
        """Problems for awkward data; where something is padded, also one without padding."""
        raise NotImplementedError

    def bases(self) -> list[Problem]:
        """Small problems whose extents are stretched: one where nothing is even, equal or one, plainer ones.

        The last has so few elements that it may be stretched far.
        """
        raise NotImplementedError

    def random(self, rng: np.random.Generator) -> Problem:
        """A random problem; an error of the constructor counts as none."""
        raise NotImplementedError

    def large(self) -> Iterable[tuple[str, Problem]]:
        """Beyond what a grid's y and z may count (65,535), or with very long sums."""
        raise NotImplementedError

    def on_device(self) -> Iterable[tuple[str, str, Problem]]:
        """(name, fill, problem) for kernels on a GPU alone: of values that would be refused on a CPU."""
        return ()

    def huge(self) -> list[Problem]:
        """Problems that a large GPU has the memory for, but no check the time: 10^5 maps, 10^10 elements."""
        raise NotImplementedError

    def tried(self) -> Problem:
        """The problem on which every option is tried beside every other one; of an op that has options."""
        raise NotImplementedError

    def flagged(self) -> Iterable[tuple[str, Problem]]:
        """Problems on which every value of a flag is tried; by default the edges."""
        return self.edges()

    def ladder(self) -> Iterable[tuple[str, Problem]] | None:
        """Sizes that take the place of one extent after another, or None."""
        return None

    def more(self) -> Iterable[tuple[str, Problem]]:
        """Further sizes."""
        return ()

    def random_options(self, rng: np.random.Generator) -> dict[str, Any]:
        """Options of a random case, which come over one of `options`."""
        return {}

    def plantable(self, op: Op, problem: Any) -> set[str]:
        """Inputs whose NaN and infinities must come out at one set of places in every right algorithm."""
        return set(op.inputs)

    def values(
        self, tensor: str, problem: Any, rng: np.random.Generator, kind: str, fill: Callable[[Any], None]
    ) -> np.ndarray | None:
        """Values of an input that are no random numbers, or None.

        Parameters
        ----------
        tensor : str
        problem : Problem
        rng : Generator
        kind : str
            How the case's data are filled.
        fill : callable
            Fills an array of random numbers in that way.
        """
        return None


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Op:
    """One op: what it reads and writes, what it means, and how an answer is judged.

    Tensors go by their names; the problem knows shapes and dtypes.

    Attributes
    ----------
    name : str
    problem : type of Problem
    inputs, outputs : tuple of str
    define : callable
        The definition, `define(problem, *inputs, *outputs, **options)`: in float64, nothing clever.
    cases : Cases
    rounding : callable
        `rounding(op, problem, inputs, options, values)` returns the `Weights` of the outputs.
    optional : tuple of str
        Inputs that may be None.
    options : tuple of str
        Further arguments of an implementation, by keyword.
    flags : tuple of str
        Inputs that need not be given, and that an implementation need not know: they are passed by keyword,
        like an option, and only where they are given. Of dtype int32; their values are read when the op runs.
    inplace : bool
        It is elementwise: it reads each element before it writes it, and nothing else, so an output may be
        one of the inputs. In any op, "w_new" may be written in w's place: see `updates`.
    dtypes : mapping
        Inputs that are not of the storage dtype: "integer" for any integer dtype, "real" for any dtype that
        casts to float64, else the name of the dtype itself.
    accepts : callable, optional
        `accepts(problem, inputs, u)`: for an output whose values are choices that rounding may decide, what
        tells whether each of these choices is as good as the definition's.
    rectified : tuple of str
        Inputs that are a ReLU's output.
    parts : tuple of str
        The ops that it stands for, where it is several in one.
    slices : str
        What can be computed alone: "rows" (of the batch; all tensors but `whole` are cut), "filters" (of the
        outputs), "" for nothing.
    whole : tuple of str
        Inputs that every slice of rows reads whole.
    direction : str
        "fwd", "dgrad", "wgrad", "bgrad" or "update"; by default as the name ends.
    """

    name: str
    problem: type[Problem]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    define: Callable[..., None]
    cases: Cases
    rounding: Callable[[Op, Any, Tensors, dict[str, Any], dict[str, np.ndarray]], Weights]
    optional: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    inplace: bool = False
    dtypes: Mapping[str, str] = field(default_factory=dict)
    accepts: Callable[[Any, Tensors, float], dict[str, Callable[[np.ndarray], np.ndarray]]] | None = None
    rectified: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    slices: str = ""
    whole: tuple[str, ...] = ()
    direction: str = ""

    def __post_init__(self) -> None:
        if not self.direction:
            last = self.name.removesuffix("_relu").rpartition("_")[2]
            object.__setattr__(self, "direction", "fwd" if last == "fprop" else last)

    @property
    def pairs(self) -> tuple[str, ...]:
        """The pair dtypes that its problems may have: all where one of its tensors is of parameters."""
        return PAIRS if self.problem.of_parameters.intersection((*self.inputs, *self.outputs)) else ()

    @property
    def parameters(self) -> frozenset[str]:
        """Its tensors that are of the second dtype of a pair: those of parameters, and what it updates."""
        changed = self.updates.values()
        return frozenset(
            name
            for name in (*self.inputs, *self.outputs)
            if name in self.problem.of_parameters or (self.pairs and name in changed)
        )

    @property
    def updates(self) -> dict[str, str]:
        """Outputs that are an input's new value, with that input: each may be written in its place."""
        return {out: out.removesuffix("_new") for out in self.outputs if out.endswith("_new")}

    def evaluate(self, problem: Problem, inputs: Tensors, options: dict[str, Any]) -> dict[str, np.ndarray]:
        """The outputs by definition, by name: in float64 whatever the problem's dtype, integers as they are.

        Parameters
        ----------
        problem : Problem
        inputs : dict
            By name, in the op's order; flags that are given come behind them.
        options : dict
        """
        outputs: dict[str, np.ndarray] = {}
        for name in self.outputs:
            own = np_dtype(problem.dtype_of(name))
            outputs[name] = np.zeros(problem.shape(name), own if own.kind in "iu" else np.float64)
        if not problem.empty or self.updates:
            flags = {name: inputs[name] for name in self.flags if name in inputs}
            tensors = (array for name, array in inputs.items() if name not in flags)
            self.define(problem, *tensors, *outputs.values(), **options, **flags)
        return outputs


#: Every op, by name.
OPS: dict[str, Op] = {}


def defines(
    name: str, problem: type[Problem], inputs: tuple[str, ...], outputs: tuple[str, ...], **row: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of an op's float64 definition: adds the op to `OPS`.

    Parameters
    ----------
    name, problem, inputs, outputs, **row
        As in `Op`.
    """

    def decorate(define: Callable[..., None]) -> Callable[..., None]:
        if name in OPS:
            raise ConvkitError(f"there are two ops {name!r}")
        OPS[name] = Op(name, problem, inputs, outputs, define, **row)
        return define

    return decorate
