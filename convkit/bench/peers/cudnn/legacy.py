"""cuDNN's legacy API: each algorithm of each convolution, LRN, max pooling, ReLU, softmax, a bias's gradient.

What cuDNN wants beyond what convkit's ops take, since its conventions are older:

- `lrn_dgrad` wants y too, and `maxpool2d_dgrad` x and y in place of argmax: max pooling here makes no argmax.
- `relu_dgrad` wants x too; y serves, since one is positive where the other is.
- `softmax_fprop` and `softmax_dgrad` stop before the loss, on which cuDNN has nothing.
- A convolution with bias and ReLU is one call; with one of them it is two. `conv2d_dgrad_relu` is two.

What it does not do is refused here with the reason: padding that differs on opposite sides, a dilated pool,
one whose last window leaves the padded image, LRN outside cuDNN's limits. LRN's alpha is divided by the size,
as convkit's is.

Written to the documentation, checked against the headers of cuDNN 9.28 and with a library that stands in for
it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ....op import Problem
from ....ops.channel_sum import ChannelSum
from ....ops.conv2d import Conv2d
from ....ops.elementwise import Elementwise
from ....ops.lrn import LRN
from ....ops.maxpool2d import Pool2d
from ....ops.softmax_xent import SoftmaxXent
from .engine import ARGUMENTS, Engine, Launch
from .library import AlgorithmPerf, CudnnError, Descriptor, Handle

# Values of cuDNN's enumerations.
DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}
FORMATS = {"NCHW": 0, "NHWC": 1}
MATH_TYPES = ("default", "tensor_op", "tensor_op_allow_conversion", "fma")
CROSS_CORRELATION = 1
#: CUDNN_PROPAGATE_NAN: a NaN in a window is its maximum, as in convkit.
PROPAGATE_NAN = 1
POOLINGS = {"max": 0, "max_deterministic": 3}
RELU, IDENTITY = 1, 5
SOFTMAXES = {"fast": 0, "accurate": 1}
SOFTMAX_MODES = {"instance": 0, "channel": 1}
LRN_CROSS_CHANNEL = 0
# Limits of cudnnSetLRNDescriptor.
LRN_SIZES, LRN_LEAST_BETA, LRN_LEAST_K = (1, 16), 0.01, 1e-5


@dataclass(frozen=True)
class Direction:
    """One of the three convolutions: its part of the functions' names, and its algorithms by number.

    `order` names its tensors as its functions take them; `random` are the algorithms whose documentation
    calls them non-deterministic (they add with atomics).
    """

    function: str
    order: tuple[str, str, str]
    algorithms: tuple[str, ...]
    random: tuple[str, ...] = ()


DIRECTIONS = {
    "conv2d_fprop": Direction(
        "Forward",
        ("x", "w", "y"),
        (
            "implicit_gemm", "implicit_precomp_gemm", "gemm", "direct", "fft", "fft_tiling", "winograd",
            "winograd_nonfused",
        ),
    ),
    "conv2d_dgrad": Direction(
        "BackwardData",
        ("w", "dy", "dx"),
        ("algo_0", "algo_1", "fft", "fft_tiling", "winograd", "winograd_nonfused"),
        random=("algo_0",),
    ),
    "conv2d_wgrad": Direction(
        "BackwardFilter",
        ("x", "dy", "dw"),
        ("algo_0", "algo_1", "fft", "algo_3", "winograd", "winograd_nonfused", "fft_tiling"),
        random=("algo_0", "algo_3"),
    ),
}  # fmt: skip


def engines(
    handle: Handle, problem: Problem, op: str, math: str | None, layout: str, bias: bool, relu: bool
) -> list[Engine]:
    """Every way of the legacy API to do an op in a layout; `refused` says why one cannot."""
    _, make = OPS[op]
    maker = Maker(handle, problem, op, math, layout, bias, relu)
    if problem.empty:
        return [maker.refused(op, "cuDNN takes no empty batch")]
    try:
        return make(maker, problem)
    except CudnnError as error:
        return [maker.refused(op, str(error))]


def forbidden(dtype: str, math: str | None, math_type: str) -> str:
    """Why a math type is not what was asked for, or an empty string.

    cuDNN's default lets float32 run as TF32 on GPUs that have it: only "fma" is true float32.
    """
    if dtype == "float64":
        return "" if math_type == "default" else "float64 has one arithmetic, the default's"
    if math_type == "tensor_op_allow_conversion":
        if dtype == "float32":
            return f"may round float32 to half, and {math or 'fp32'} was asked for"
        return "converts float32 only: otherwise it is tensor_op"
    if dtype == "float32" and math != "tf32" and math_type != "fma":
        return f"may round float32 to TF32, and {math or 'fp32'} was asked for"
    return ""


def usual(dtype: str, math: str | None) -> str:
    """The math type that the heuristic is asked about: what a framework would set."""
    if dtype in ("float16", "bfloat16"):
        return "tensor_op"
    return "fma" if dtype == "float32" and math != "tf32" else "default"


class Maker:
    """Makes engines for one problem in one layout, and the descriptors that they share."""

    def __init__(
        self, handle: Handle, problem: Problem, op: str, math: str | None, layout: str, bias: bool, relu: bool
    ) -> None:
        self.handle, self.library = handle, handle.library
        self.op, self.math, self.layout, self.bias, self.relu = op, math, layout, bias, relu
        self.dtype = str(problem.dtype)  # type: ignore[attr-defined]
        scalar = ctypes.c_double if self.dtype == "float64" else ctypes.c_float
        self._one, self._zero = scalar(1), scalar(0)
        self.one, self.zero = ctypes.byref(self._one), ctypes.byref(self._zero)
        self.kind = DATA_TYPES[self.dtype]

    def tensor(self, shape: Sequence[int]) -> Descriptor:
        n, c, h, w = (*shape, 1, 1)[:4]
        return Descriptor(self.library, "Tensor", "Tensor4d", FORMATS[self.layout], self.kind, n, c, h, w)

    def filter(self, shape: Sequence[int]) -> Descriptor:
        return Descriptor(self.library, "Filter", "Filter4d", self.kind, FORMATS[self.layout], *shape)

    def activation(self, mode: int) -> Descriptor:
        return Descriptor(self.library, "Activation", "Activation", mode, PROPAGATE_NAN, 0.0)

    def convolution(self, g: Conv2d, math_type: str) -> Descriptor:
        found = Descriptor(
            self.library, "Convolution", "Convolution2d",
            g.pad_top, g.pad_left, g.stride_h, g.stride_w, g.dilation_h, g.dilation_w,
            CROSS_CORRELATION, DATA_TYPES["float64" if self.dtype == "float64" else "float32"],
        )  # fmt: skip
        found.set("cudnnSetConvolutionGroupCount", g.groups)
        found.set("cudnnSetConvolutionMathType", MATH_TYPES.index(math_type))
        return found

    def refused(self, name: str, reason: str, *, asked: bool = True, **facts: Any) -> Engine:
        inputs, outputs = self.arguments
        return Engine(
            f"legacy:{name}", "legacy", self.layout, inputs, outputs, refused=reason, asked=asked, facts=facts
        )

    @property
    def arguments(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        inputs, outputs = ARGUMENTS[self.op]
        return (*inputs, *(("b",) if self.bias and self.op == "conv2d_fprop" else ())), outputs

    def engine(self, name: str, launch: Launch, deterministic: bool | None, **more: Any) -> Engine:
        inputs, outputs = self.arguments
        handle = self.handle

        def on_stream(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
            handle.use(stream)
            launch(read, write, workspace, stream)

        return Engine(
            f"legacy:{name}", "legacy", self.layout, inputs, outputs, declared_deterministic=deterministic,
            launch=on_stream, **more,
        )  # fmt: skip

    def call(self, function: str, *arguments: Any) -> None:
        """A function that works on the GPU: descriptors as themselves, tensors by their addresses."""
        passed = [a.address if isinstance(a, Descriptor) else a for a in arguments]
        self.library.call(function, self.handle.address, *passed)


# ---------------------------------------------------------------------------------------------------
# Convolution
# ---------------------------------------------------------------------------------------------------
def _convolutions(make: Maker, g: Conv2d) -> list[Engine]:
    if (g.pad_top, g.pad_left) != (g.pad_bottom, g.pad_right):
        reason = "pads alike on opposite sides only; the graph API takes each side's"
        return [make.refused("convolution", reason)]
    direction = DIRECTIONS[make.op.removesuffix("_relu")]
    first, second, result = (
        (make.filter if name in ("w", "dw") else make.tensor)(g.shape(name)) for name in direction.order
    )
    found: list[Engine] = []
    ranks = _ranking(make, g, direction, (first, second, result))
    for math_type in MATH_TYPES:
        if reason := forbidden(make.dtype, make.math, math_type):
            found.append(make.refused(f"*/{math_type}", reason, asked=False, math_type=math_type))
            continue
        convolution = make.convolution(g, math_type)
        for number, algorithm in enumerate(direction.algorithms):
            name = f"{algorithm}/{math_type}"
            facts: dict[str, Any] = {"algorithm": algorithm, "math_type": math_type}
            work = _Convolution(make, g, direction, number, convolution, (first, second, result))
            try:
                size = work.workspace()
            except CudnnError as error:
                found.append(make.refused(name, str(error), **facts))
                continue
            found.append(
                make.engine(
                    name, work, algorithm not in direction.random, workspace_bytes=size, facts=facts,
                    heuristic_rank=ranks.get((number, MATH_TYPES.index(math_type))),
                )
            )  # fmt: skip
    return found


def _ranking(
    make: Maker, g: Conv2d, direction: Direction, tensors: Sequence[Descriptor]
) -> dict[tuple[int, int], int]:
    """Places in the heuristic's ranking, by algorithm and math type; without what it says fails."""
    with make.convolution(g, usual(make.dtype, make.math)) as convolution:
        most = len(MATH_TYPES) * len(direction.algorithms)
        results, count = (AlgorithmPerf * most)(), ctypes.c_int()
        first, second, result = tensors
        try:
            make.call(
                f"cudnnGetConvolution{direction.function}Algorithm_v7",
                first, second, convolution, result, most, ctypes.byref(count), results,
            )  # fmt: skip
        except CudnnError:
            return {}  # a heuristic that has nothing to say ranks nothing
    usable = [entry for entry in results[: count.value] if entry.status == 0]
    ranks: dict[tuple[int, int], int] = {}
    for place, entry in enumerate(usable):
        ranks.setdefault((entry.algo, entry.math_type), place)
    return ranks


class _Convolution:
    """One algorithm on one set of descriptors; called, it runs."""

    def __init__(
        self, make: Maker, g: Conv2d, direction: Direction, number: int, convolution: Descriptor,
        tensors: tuple[Descriptor, Descriptor, Descriptor],
    ) -> None:  # fmt: skip
        self.make, self.direction, self.number = make, direction, number
        self.convolution, self.tensors = convolution, tensors
        self.size = 0
        self.names = make.arguments
        self.bias = make.tensor((1, g.K, 1, 1)) if make.bias else None
        self.relu = make.activation(RELU) if make.relu or make.op.endswith("_relu") else None

    def workspace(self) -> int:
        """Bytes that it needs; raises where cuDNN refuses the algorithm."""
        size = ctypes.c_size_t()
        first, second, result = self.tensors
        self.make.call(
            f"cudnnGetConvolution{self.direction.function}WorkspaceSize",
            first, second, self.convolution, result, self.number, ctypes.byref(size),
        )  # fmt: skip
        self.size = size.value
        return self.size

    def __call__(self, read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        at = dict(zip(self.names[0], read)) | dict(zip(self.names[1], write))
        (first, second, result), make = self.tensors, self.make
        a, b, c = (at[name] for name in self.direction.order)
        common = (
            make.one,
            first,
            a,
            second,
            b,
            self.convolution,
            self.number,
            workspace,
            self.size,
            make.zero,
        )
        if self.bias is not None and self.relu is not None:
            # With a factor of zero for what might be added: z is there only to be a valid address.
            make.call(
                "cudnnConvolutionBiasActivationForward",
                *common, result, c, self.bias, at["b"], self.relu, result, c,
            )  # fmt: skip
            return
        make.call(f"cudnnConvolution{self.direction.function}", *common, result, c)
        if self.bias is not None:
            make.call("cudnnAddTensor", make.one, self.bias, at["b"], make.one, result, c)
        elif self.relu is not None and make.op == "conv2d_dgrad_relu":
            x = at["x"]
            make.call(
                "cudnnActivationBackward",
                self.relu, make.one, result, x, result, c, result, x, make.zero, result, c,
            )  # fmt: skip
        elif self.relu is not None:
            make.call("cudnnActivationForward", self.relu, make.one, result, c, make.zero, result, c)


def _bias_gradient(make: Maker, g: ChannelSum) -> list[Engine]:
    dy, db = make.tensor((g.N, g.K, g.P, g.Q)), make.tensor((1, g.K, 1, 1))

    def launch(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        make.call("cudnnConvolutionBackwardBias", make.one, dy, read[0], make.zero, db, write[0])

    return [make.engine("bias", launch, None)]


# ---------------------------------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------------------------------
def _relu(make: Maker, g: Elementwise) -> list[Engine]:
    shape = g.dims if len(g.dims) == 4 else (g.dims[0], prod(g.dims[1:]))
    t, relu = make.tensor(shape), make.activation(RELU)

    def forward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        make.call("cudnnActivationForward", relu, make.one, t, read[0], make.zero, t, write[0])

    def backward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        dy, y = read
        make.call("cudnnActivationBackward", relu, make.one, t, y, t, dy, t, y, make.zero, t, write[0])

    return [make.engine("activation", forward if make.op == "relu_fprop" else backward, None)]


def lrn_refusal(g: LRN, layout: str) -> str:
    """Why cuDNN cannot do an LRN, or an empty string."""
    least, most = LRN_SIZES
    if g.region != "across_channels":
        return "normalises across channels only"
    if not least <= g.size <= most:
        return f"takes windows of {least} to {most} channels, not {g.size}"
    if g.beta < LRN_LEAST_BETA:
        return f"takes beta of at least {LRN_LEAST_BETA}, not {g.beta:g}"
    if g.k < LRN_LEAST_K:
        return f"takes k of at least {LRN_LEAST_K:g}, not {g.k:g}"
    if g.groups > 1 and layout == "NHWC":
        return "has no groups, and in NHWC a group is not an image of its own"
    return ""


def _lrn(make: Maker, g: LRN) -> list[Engine]:
    if reason := lrn_refusal(g, make.layout):
        return [make.refused("lrn", reason)]
    # In NCHW a group of channels lies as an image does.
    t = make.tensor((g.N * g.groups, g.C // g.groups, g.H, g.W))
    lrn = Descriptor(make.library, "LRN", "LRN", g.size, g.alpha, g.beta, g.k)

    def forward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        make.call(
            "cudnnLRNCrossChannelForward",
            lrn,
            LRN_CROSS_CHANNEL,
            make.one,
            t,
            read[0],
            make.zero,
            t,
            write[0],
        )

    def backward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        dy, x, y = read
        make.call(
            "cudnnLRNCrossChannelBackward",
            lrn, LRN_CROSS_CHANNEL, make.one, t, y, t, dy, t, x, make.zero, t, write[0],
        )  # fmt: skip

    return [make.engine("lrn", forward if make.op == "lrn_fprop" else backward, None)]


def pool_refusal(g: Pool2d) -> str:
    """Why cuDNN cannot do a pool, or an empty string."""
    if (g.pad_top, g.pad_left) != (g.pad_bottom, g.pad_right):
        return "its pools pad alike on opposite sides"
    if (g.dilation_h, g.dilation_w) != (1, 1):
        return "has no dilated pool"
    if (g.P, g.Q) != (replace(g, ceil_mode=False).P, replace(g, ceil_mode=False).Q):
        return "rounds a pool's output size down: its windows do not leave the padded image"
    return ""


def _pool(make: Maker, g: Pool2d) -> list[Engine]:
    if reason := pool_refusal(g):
        return [make.refused("pooling", reason)]
    found = []
    for name, mode in POOLINGS.items():
        pooling = Descriptor(
            make.library, "Pooling", "Pooling2d",
            mode, PROPAGATE_NAN, g.R, g.S, g.pad_top, g.pad_left, g.stride_h, g.stride_w,
        )  # fmt: skip
        launch = _pooling(make, g, pooling)
        # Where windows overlap, plain max adds the gradients with atomics.
        deterministic = name == "max_deterministic" or make.op == "maxpool2d_fprop"
        found.append(make.engine(name, launch, deterministic, facts={"algorithm": name}))
    return found


def _pooling(make: Maker, g: Pool2d, pooling: Descriptor) -> Launch:
    x, y = make.tensor(g.shape("x")), make.tensor(g.shape("y"))

    def forward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        make.call("cudnnPoolingForward", pooling, make.one, x, read[0], make.zero, y, write[0])

    def backward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
        dy, of_x, of_y = read
        make.call(
            "cudnnPoolingBackward",
            pooling, make.one, y, of_y, y, dy, x, of_x, make.zero, x, write[0],
        )  # fmt: skip

    return forward if make.op == "maxpool2d_fprop" else backward


def _softmax(make: Maker, g: SoftmaxXent) -> list[Engine]:
    t = make.tensor((g.N, g.K))

    def launch_of(algorithm: int, mode: int) -> Launch:
        def forward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
            make.call("cudnnSoftmaxForward", algorithm, mode, make.one, t, read[0], make.zero, t, write[0])

        def backward(read: Sequence[int], write: Sequence[int], workspace: int, stream: int) -> None:
            probs, dprobs = read
            make.call(
                "cudnnSoftmaxBackward", algorithm, mode, make.one, t, probs, t, dprobs, make.zero, t, write[0]
            )

        return forward if make.op == "softmax_fprop" else backward

    return [
        make.engine(f"{algorithm}/{mode}", launch_of(a, m), None, facts={"algorithm": algorithm})
        for algorithm, a in SOFTMAXES.items()
        for mode, m in SOFTMAX_MODES.items()
    ]


OPS: dict[str, tuple[type[Problem], Callable[[Maker, Any], list[Engine]]]] = {
    **dict.fromkeys((*DIRECTIONS, "conv2d_dgrad_relu"), (Conv2d, _convolutions)),
    **dict.fromkeys(("conv2d_bgrad", "linear_bgrad"), (ChannelSum, _bias_gradient)),
    **dict.fromkeys(("relu_fprop", "relu_dgrad"), (Elementwise, _relu)),
    **dict.fromkeys(("lrn_fprop", "lrn_dgrad"), (LRN, _lrn)),
    **dict.fromkeys(("maxpool2d_fprop", "maxpool2d_dgrad"), (Pool2d, _pool)),
    **dict.fromkeys(("softmax_fprop", "softmax_dgrad"), (SoftmaxXent, _softmax)),
}
