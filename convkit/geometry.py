"""Frozen problem descriptions: what an op is asked to do, with no array in sight.

A problem is validated once, when it is made, and from then on says everything that is derived from it:
output sizes (`output_extent` is the only such formula in the project), the shape and dtype of each tensor
by its name, FLOPs, compulsory bytes, and the C struct that kernels receive.

Letters are the field's: N images, C input channels, H x W input, K filters, R x S window, P x Q output.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from .errors import OptionError, ShapeError

Shape = tuple[int, ...]
#: The largest byte count that an index of an array can reach.
MAX_BYTES = 2**63 - 1
#: The largest stride, padding, dilation, or extent of a window.
MAX_OPTION = 2**31 - 1
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Types of the fields of a C struct.
_FIELDS: dict[str, Any] = {"int": np.int32, "long long": np.int64, "float": np.float32}


# ---------------------------------------------------------------------------------------------------
# Options as users write them -> integers
# ---------------------------------------------------------------------------------------------------
def integer(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int; bools, floats and values outside [least, most] are refused by name."""
    if type(value) is int and (least is None or value >= least) and (most is None or value <= most):
        return value
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} must be an integer, not {value!r}") from None
    if least is not None and number < least:
        raise OptionError(f"{name} must be at least {least}, not {number}")
    if most is not None and number > most:
        raise OptionError(f"{name} must be at most {most}, not {number}")
    return number


def pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """An int, or a (vertical, horizontal) pair of ints."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise OptionError(f"{name} must be an int or a pair (vertical, horizontal), not {value!r}")
        return integer(name, value[0], least, MAX_OPTION), integer(name, value[1], least, MAX_OPTION)
    number = integer(name, value, least, MAX_OPTION)
    return number, number


def padding4(value: Any) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right) from an int, a pair, or ((top, bottom), (left, right))."""
    nested = isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value)
    if not nested:
        vertical, horizontal = pair("padding", value, 0)
        return vertical, vertical, horizontal, horizontal
    try:
        (top, bottom), (left, right) = value
    except (TypeError, ValueError):
        raise OptionError(
            f"padding must be an int, a pair, or ((top, bottom), (left, right)), not {value!r}"
        ) from None
    top, bottom, left, right = (integer("padding", v, 0, MAX_OPTION) for v in (top, bottom, left, right))
    return top, bottom, left, right


def shape_of(name: str, value: Any, rank: int, letters: str) -> Shape:
    """`value` as a shape of `rank` extents, each at least 1 (the batch, which comes first, at least 0)."""
    if hasattr(value, "shape"):
        raise ShapeError(f"{name} must be a shape {letters}, not an array: pass its .shape")
    try:
        shape = tuple(value)
    except TypeError:
        raise ShapeError(f"{name} must be a shape {letters}, not {value!r}") from None
    if len(shape) != rank:
        raise ShapeError(f"{name} must have {rank} dimensions {letters}, not {len(shape)}: {shape}")
    extents = shape
    if not all(type(v) is int for v in shape):
        extents = tuple(integer(f"each extent of {name}", v) for v in shape)
    if extents[0] < 0 or any(v < 1 for v in extents[1:]):
        raise ShapeError(f"every extent of {name} {letters} must be positive, not {extents}")
    return extents


def window_span(window: int, dilation: int) -> int:
    """Pixels from the first to the last tap of a dilated window, both included."""
    return (window - 1) * dilation + 1


def output_extent(
    size: int, window: int, stride: int, before: int, after: int, dilation: int = 1, ceil: bool = False
) -> int:
    """Number of positions of a window along one axis. The only output-size formula in the project.

    With `ceil` the last window may overhang the padded image, but must begin inside the image or the
    padding before it, as Caffe, PyTorch and ONNX have it: otherwise it would see nothing.
    """
    free = size + before + after - window_span(window, dilation)
    if free < 0:
        raise ShapeError(
            f"the window spans {window_span(window, dilation)} pixels, more than the padded image's "
            f"{size + before + after} ({before} + {size} + {after})"
        )
    if not ceil:
        return free // stride + 1
    count = -(-free // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


# ---------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Problem:
    """Base of the problem descriptions.

    A subclass has `shapes`: the shape of every tensor that any of its ops reads or writes, by name.
    """

    @property
    def shapes(self) -> dict[str, Shape]:
        raise NotImplementedError

    def dtype_of(self, tensor: str) -> str:
        """Storage dtype of a tensor; all are of the problem's own dtype unless a subclass differs."""
        return self.dtype  # type: ignore[attr-defined,no-any-return]

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


def np_itemsize(dtype: str) -> int:
    return ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Conv2d(Problem):
    """A 2-D convolution (cross-correlation, as in every deep-learning library), for all its passes."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        x_shape: Any,
        w_shape: Any,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        dtype: str = "float32",
    ) -> Conv2d:
        """Validate what a user wrote and make the problem.

        Parameters
        ----------
        x_shape : (N, C, H, W)
        w_shape : (K, C/groups, R, S)
        stride, dilation : int or (vertical, horizontal)
        padding : int, (vertical, horizontal), or ((top, bottom), (left, right))
        """
        N, C, H, W = shape_of("x", x_shape, 4, "(N, C, H, W)")
        K, C_group, R, S = shape_of("w", w_shape, 4, "(K, C/groups, R, S)")
        groups = integer("groups", groups, 1)
        if C % groups:
            raise ShapeError(f"x has C = {C} channels, not divisible by groups = {groups}")
        if K % groups:
            raise ShapeError(f"w has K = {K} filters, not divisible by groups = {groups}")
        if K == 0:
            raise ShapeError(f"w must have at least one filter: {tuple(w_shape)}")
        if C_group * groups != C:
            raise ShapeError(
                f"w of shape {tuple(w_shape)} has {C_group} channels per filter, but x of shape "
                f"{tuple(x_shape)} with groups = {groups} needs C/groups = {C // groups}"
            )
        return cls(
            *(N, C, H, W, K, R, S),
            *pair("stride", stride, 1),
            *padding4(padding),
            *pair("dilation", dilation, 1),
            groups,
            dtype,
        )

    @cached_property
    def P(self) -> int:
        return output_extent(self.H, self.R, self.stride_h, self.pad_top, self.pad_bottom, self.dilation_h)

    @cached_property
    def Q(self) -> int:
        return output_extent(self.W, self.S, self.stride_w, self.pad_left, self.pad_right, self.dilation_w)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x = (self.N, self.C, self.H, self.W)
        w = (self.K, self.C // self.groups, self.R, self.S)
        b = (self.K,)
        y = (self.N, self.K, self.P, self.Q)
        return {"x": x, "dx": x, "w": w, "dw": w, "b": b, "db": b, "y": y, "dy": y}

    def flops(self, op: str) -> int:
        return 2 * self.N * self.K * self.P * self.Q * (self.C // self.groups) * self.R * self.S

    def reduction(self, op: str) -> int:
        if op == "conv2d_fprop":
            return (self.C // self.groups) * self.R * self.S + 1
        if op.startswith("conv2d_dgrad"):
            return (self.K // self.groups) * self.R * self.S
        return max(1, self.N * self.P * self.Q)

    def __str__(self) -> str:
        extra = f" groups {self.groups}" if self.groups > 1 else ""
        pads = (self.pad_top, self.pad_bottom, self.pad_left, self.pad_right)
        extra += f" pad {pads[0] if len(set(pads)) == 1 else pads}" if any(pads) else ""
        extra += (
            "" if self.dilation_h == self.dilation_w == 1 else f" dil {self.dilation_h},{self.dilation_w}"
        )
        return f"x{self.shapes['x']} w{self.shapes['w']} stride {self.stride_h},{self.stride_w}{extra}"


@dataclass(frozen=True)
class ChannelSum(Problem):
    """The gradient of a bias: dy of shape (N, K, ...) summed over all but K."""

    N: int
    K: int
    P: int = 1
    Q: int = 1
    rank: int = 4
    dtype: str = "float32"

    @classmethod
    def of(cls, dy_shape: Any, rank: int, dtype: str = "float32") -> ChannelSum:
        letters = "(N, K, P, Q)" if rank == 4 else "(N, K)"
        N, K, *pixels = shape_of("dy", dy_shape, rank, letters)
        P, Q = pixels or (1, 1)
        return cls(N, K, P, Q, rank, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return {"dy": (self.N, self.K, self.P, self.Q)[: self.rank], "db": (self.K,)}

    def flops(self, op: str) -> int:
        return self.N * self.K * self.P * self.Q

    def reduction(self, op: str) -> int:
        return max(1, self.N * self.P * self.Q)


@dataclass(frozen=True)
class Linear(Problem):
    """y = x w^T + b: N rows of C inputs to K outputs."""

    N: int
    C: int
    K: int
    dtype: str = "float32"

    @classmethod
    def of(cls, x_shape: Any, w_shape: Any, dtype: str = "float32") -> Linear:
        N, C = shape_of("x", x_shape, 2, "(N, C)")
        K, C_w = shape_of("w", w_shape, 2, "(K, C)")
        if C_w != C or K == 0:
            raise ShapeError(
                f"w of shape {(K, C_w)} does not fit x of shape {(N, C)}: w must be (K, C) with C = {C}"
            )
        return cls(N, C, K, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x, w, b, y = (self.N, self.C), (self.K, self.C), (self.K,), (self.N, self.K)
        weights = dict.fromkeys(("w", "dw", "v", "w_new", "v_new"), w)
        return {"x": x, "dx": x, "b": b, "y": y, "dy": y, **weights, "finite": (1,)}

    def dtype_of(self, tensor: str) -> str:
        return "int32" if tensor == "finite" else self.dtype

    def flops(self, op: str) -> int:
        return 2 * self.N * self.C * self.K * (2 if op == "linear_dgrad_wgrad_sgd" else 1)

    def reduction(self, op: str) -> int:
        return {"linear_fprop": self.C + 1, "linear_dgrad": self.K}.get(op, max(1, self.N))


@dataclass(frozen=True)
class Pool2d(Problem):
    """2-D max pooling. argmax counts row by row inside the window, in the smallest unsigned type."""

    N: int
    C: int
    H: int
    W: int
    R: int
    S: int
    stride_h: int
    stride_w: int
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    ceil_mode: bool = False
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        x_shape: Any,
        *,
        window: Any = 3,
        stride: Any = 2,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        dtype: str = "float32",
    ) -> Pool2d:
        N, C, H, W = shape_of("x", x_shape, 4, "(N, C, H, W)")
        R, S = pair("window", window, 1)
        problem = cls(
            *(N, C, H, W, R, S),
            *pair("stride", stride, 1),
            *padding4(padding),
            *pair("dilation", dilation, 1),
            flag("ceil_mode", ceil_mode),
            dtype,
        )
        if R * S > 2**32:
            raise OptionError(f"window {window!r} has more pixels than argmax can count: 2^32")
        span_h, span_w = window_span(R, problem.dilation_h), window_span(S, problem.dilation_w)
        if (
            max(problem.pad_top, problem.pad_bottom) >= span_h
            or max(problem.pad_left, problem.pad_right) >= span_w
        ):
            raise OptionError(
                f"padding {padding!r} must be smaller than the window's span ({span_h}, {span_w}): "
                "a window would see padding alone"
            )
        return problem

    @cached_property
    def P(self) -> int:
        return output_extent(
            self.H, self.R, self.stride_h, self.pad_top, self.pad_bottom, self.dilation_h, self.ceil_mode
        )

    @cached_property
    def Q(self) -> int:
        return output_extent(
            self.W, self.S, self.stride_w, self.pad_left, self.pad_right, self.dilation_w, self.ceil_mode
        )

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x, y = (self.N, self.C, self.H, self.W), (self.N, self.C, self.P, self.Q)
        return {"x": x, "dx": x, "y": y, "dy": y, "argmax": y}

    def dtype_of(self, tensor: str) -> str:
        if tensor != "argmax":
            return self.dtype
        taps = self.R * self.S
        return "uint8" if taps <= 2**8 else "uint16" if taps <= 2**16 else "uint32"

    def flops(self, op: str) -> int:
        """Comparisons forward, additions backward."""
        return self.N * self.C * self.P * self.Q * (self.R * self.S if op == "maxpool2d_fprop" else 1)

    def reduction(self, op: str) -> int:
        if op == "maxpool2d_fprop":
            return 1
        return -(-self.R // self.stride_h) * -(-self.S // self.stride_w)

    def __str__(self) -> str:
        return (
            f"x{self.shapes['x']} window {self.R},{self.S} stride {self.stride_h},{self.stride_w} "
            f"pad {(self.pad_top, self.pad_bottom, self.pad_left, self.pad_right)} "
            f"dil {self.dilation_h},{self.dilation_w}{' ceil' if self.ceil_mode else ''}"
        )


@dataclass(frozen=True)
class LRN(Problem):
    """Local response normalisation: y = x * (k + alpha/n * sum of x^2 over the window)^-beta.

    `across_channels`: the window is `size` neighbouring channels, and n = size. A window never leaves
    its group of channels. `within_channel`: the window is size x size pixels of one map, n = size^2.
    An even window reaches further ahead than behind, as in ONNX and cuDNN (PyTorch: the other way):
    [c - (size-1)//2, c + size//2].
    """

    N: int
    C: int
    H: int
    W: int
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    groups: int = 1
    region: str = "across_channels"
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        x_shape: Any,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        groups: int = 1,
        region: str = "across_channels",
        dtype: str = "float32",
    ) -> LRN:
        N, C, H, W = shape_of("x", x_shape, 4, "(N, C, H, W)")
        size, groups = integer("size", size, 1, MAX_OPTION), integer("groups", groups, 1)
        if C % groups:
            raise ShapeError(f"x has C = {C} channels, not divisible by groups = {groups}")
        if region not in ("across_channels", "within_channel"):
            raise OptionError(f"region must be 'across_channels' or 'within_channel', not {region!r}")
        alpha, beta, k = finite("alpha", alpha, 0), finite("beta", beta), finite("k", k)
        if k <= 0:
            raise OptionError(f"k must be positive, not {k}: a window of zeros would divide by zero")
        return cls(N, C, H, W, size, alpha, beta, k, groups, region, dtype)

    @property
    def behind(self) -> int:
        """How far the window reaches to smaller indices."""
        return (self.size - 1) // 2

    @property
    def ahead(self) -> int:
        """How far the window reaches to larger indices."""
        return self.size // 2

    @property
    def taps(self) -> int:
        """n, by which alpha is divided: the elements of a whole window."""
        return self.size if self.region == "across_channels" else self.size**2

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x = (self.N, self.C, self.H, self.W)
        return {"x": x, "y": x, "dx": x, "dy": x}

    def scalars(self) -> dict[str, int | float]:
        """`within` is 1 for the region within a channel; `taps` is a float: size^2 may pass 2^31."""
        within = int(self.region == "within_channel")
        window = {"within": within, "behind": self.behind, "ahead": self.ahead, "taps": float(self.taps)}
        return {**super().scalars(), **window}

    def flops(self, op: str) -> int:
        """By convention: a multiply-add per tap of each window sum, and 4 operations around it."""
        sums = 1 if op == "lrn_fprop" else 2
        return self.N * self.C * self.H * self.W * sums * (2 * self.taps + 4)

    def reduction(self, op: str) -> int:
        return self.taps


@dataclass(frozen=True)
class Reorder(Problem):
    """The same tensor in another layout."""

    N: int
    C: int
    H: int
    W: int
    dtype: str = "float32"

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return dict.fromkeys(("x", "y"), (self.N, self.C, self.H, self.W))

    def flops(self, op: str) -> int:
        return 0


@dataclass(frozen=True)
class LrnMaxPool2d(Problem):
    """LRN across channels, and max pooling of its output, as one op: what lies between is not stored."""

    lrn: LRN
    pool: Pool2d
    dtype: str = "float32"

    def __post_init__(self) -> None:
        # One dtype, whichever way the problem was made.
        for name in ("lrn", "pool"):
            object.__setattr__(self, name, replace(getattr(self, name), dtype=self.dtype))
        if self.lrn.shape("x") != self.pool.shape("x"):
            raise ShapeError(f"LRN of {self.lrn.shape('x')} cannot feed a pool of {self.pool.shape('x')}")
        super().__post_init__()

    @property
    def N(self) -> int:
        return self.lrn.N

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return self.pool.shapes

    def dtype_of(self, tensor: str) -> str:
        return self.pool.dtype_of(tensor)

    def scalars(self) -> dict[str, int | float]:
        return {**self.pool.scalars(), **self.lrn.scalars()}

    def flops(self, op: str) -> int:
        way = op.rpartition("_")[2]
        return self.lrn.flops(f"lrn_{way}") + self.pool.flops(f"maxpool2d_{way}")

    def reduction(self, op: str) -> int:
        return self.lrn.reduction("") * self.pool.reduction("maxpool2d_dgrad")

    def __str__(self) -> str:
        return f"LRN size {self.lrn.size} groups {self.lrn.groups}, then {self.pool}"


def flag(name: str, value: Any) -> bool:
    """`value` as a bool: True and False, 0 and 1; words and arrays are refused by name."""
    if isinstance(value, (bool, np.bool_, int)) and value in (0, 1):
        return bool(value)
    raise OptionError(f"{name} must be True or False, not {value!r}")


def finite(name: str, value: Any, least: float | None = None) -> float:
    """`value` as a finite float of at least `least`."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"{name} must be a number, not {value!r}") from None
    if not np.isfinite(number) or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise OptionError(f"{name} must be a finite number{bound}, not {value!r}")
    return number


@dataclass(frozen=True)
class Pointwise(Problem):
    """An op that treats each element alone: ReLU, dropout, the update rule."""

    dims: Shape
    dtype: str = "float32"

    @property
    def size(self) -> int:
        return prod(self.dims)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        same = dict.fromkeys(("x", "y", "dx", "dy", "w", "dw", "v", "w_new", "v_new"), self.dims)
        return {**same, "finite": (1,)}

    def dtype_of(self, tensor: str) -> str:
        return "int32" if tensor == "finite" else self.dtype

    @property
    def empty(self) -> bool:
        return self.size == 0

    def flops(self, op: str) -> int:
        return self.size * (6 if op == "sgd_momentum" else 1)

    def scalars(self) -> dict[str, int | float]:
        return {"size": self.size}

    def c_type(self, scalar: str) -> str:
        return "long long"


@dataclass(frozen=True)
class SoftmaxXent(Problem):
    """Softmax and cross-entropy of N rows of K logits, and the label's rank among them.

    The loss is kept in the accumulation type.
    """

    N: int
    K: int
    dtype: str = "float32"

    @classmethod
    def of(cls, logits_shape: Any, dtype: str = "float32", name: str = "logits") -> SoftmaxXent:
        N, K = shape_of(name, logits_shape, 2, "(N, K)")
        return cls(N, K, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        rows, row = (self.N, self.K), (self.N,)
        each_row = dict.fromkeys(("labels", "loss", "dloss", "rank"), row)
        return {"logits": rows, "probs": rows, "dlogits": rows, **each_row}

    def dtype_of(self, tensor: str) -> str:
        if tensor in ("labels", "rank"):
            return "int64" if tensor == "labels" else "int32"
        if tensor in ("loss", "dloss"):
            return "float64" if self.dtype == "float64" else "float32"
        return self.dtype

    def flops(self, op: str) -> int:
        """Max, subtract, exp and sum per logit forward; subtract and scale backward; a rank compares."""
        return self.N * self.K * {"softmax_xent_fprop": 4, "label_rank": 1}.get(op, 2)

    def reduction(self, op: str) -> int:
        return self.K if op == "softmax_xent_fprop" else 1


@dataclass(frozen=True)
class LossSummary(Problem):
    """Losses and label ranks of N rows in a few numbers; the dtype is that of the losses."""

    N: int
    dtype: str = "float32"

    @classmethod
    def of(cls, loss_shape: Any, dtype: str = "float32") -> LossSummary:
        (N,) = shape_of("loss", loss_shape, 1, "(N,)")
        return cls(N, dtype)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return {"loss": (self.N,), "rank": (self.N,), "total": (1,), "errors": (2,), "finite": (1,)}

    def dtype_of(self, tensor: str) -> str:
        own = {"rank": "int32", "total": "float64", "errors": "int64", "finite": "int32"}
        return own.get(tensor, self.dtype)

    @property
    def empty(self) -> bool:
        """Never: of no rows, `finite` is 1."""
        return False

    def flops(self, op: str) -> int:
        """An addition for each loss."""
        return self.N

    def reduction(self, op: str) -> int:
        return max(1, self.N)
