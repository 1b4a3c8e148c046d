"""2-D average pooling: `avgpool2d_fprop`, `avgpool2d_dgrad`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import A
from ..dispatch import Arguments, operation
from ..op import Op, Problem, Shape, Tensors, Weights, defines
from ..options import flag
from .pooling import Pooling, PoolingCases
from .rounding import f64
from .window import seen

Array = np.ndarray


@dataclass(frozen=True)
class AvgPool2d(Pooling):
    """2-D average pooling: the sum of a window over the number of its taps that count."""

    count_include_pad: bool = True

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        x, y = (self.N, self.C, self.H, self.W), (self.N, self.C, self.P, self.Q)
        return {"x": x, "dx": x, "y": y, "dy": y}

    def flops(self, op: str) -> int:
        """An addition for each tap, and one operation for each window."""
        return self.N * self.C * self.P * self.Q * (self.R * self.S + 1)

    def reduction(self, op: str) -> int:
        if op == "avgpool2d_fprop":
            return self.R * self.S
        return -(-self.R // self.stride_h) * -(-self.S // self.stride_w)

    def scalars(self) -> dict[str, int | float]:
        """`count_h` and `count_w` are the extents of what counts behind the first pixel: image, or padded."""
        behind = (self.pad_bottom, self.pad_right) if self.count_include_pad else (0, 0)
        return {**super().scalars(), "count_h": self.H + behind[0], "count_w": self.W + behind[1]}

    def __str__(self) -> str:
        return super().__str__() + ("" if self.count_include_pad else " padding not counted")


# ---------------------------------------------------------------------------------------------------
# Definition
# ---------------------------------------------------------------------------------------------------
def divisors(g: AvgPool2d) -> Array:
    """For each window, (P, Q), how many of its taps count; 1 where none does."""

    def along(taps: int, windows: int, stride: int, pad: int, dilation: int, size: int, after: int) -> Array:
        at = np.arange(windows)[:, None] * stride - pad + np.arange(taps) * dilation
        first, end = (-pad, size + after) if g.count_include_pad else (0, size)
        found: Array = ((at >= first) & (at < end)).sum(axis=1)
        return found

    rows = along(g.R, g.P, g.stride_h, g.pad_top, g.dilation_h, g.H, g.pad_bottom)
    columns = along(g.S, g.Q, g.stride_w, g.pad_left, g.dilation_w, g.W, g.pad_right)
    return np.maximum(rows[:, None] * columns, 1)


def _fprop_rounding(
    op: Op, g: AvgPool2d, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    # The sum's bound over the divisor, and a division.
    spread = op.evaluate(g, {"x": f64(inputs["x"]) ** 2}, {})["y"] / divisors(g)
    scale = np.sqrt(spread) + np.abs(values["y"])
    return {"y": (4 * (np.sqrt(g.reduction(op.name)) + 1) * scale, scale)}


def _dgrad_rounding(
    op: Op, g: AvgPool2d, inputs: Tensors, options: dict[str, Any], values: dict[str, Array]
) -> Weights:
    spread = op.evaluate(g, {"dy": f64(inputs["dy"]) ** 2 / divisors(g)}, {})["dx"]
    scale = np.sqrt(spread) + np.abs(values["dx"])
    return {"dx": (4 * (np.sqrt(g.reduction(op.name)) + 1) * scale, scale)}


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
class _Cases(PoolingCases):
    """Each edge with the padding counted, and not."""

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "a ResNet's last map", AvgPool2d.of((8, 2048, 7, 7), window=7, stride=1)
        yield "a small network's pool", AvgPool2d.of((4, 32, 16, 16))

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, problem in super().edges():
            yield name, problem
            if "padding" in name or "ceil_mode" in name:
                not_counted = replace(problem, count_include_pad=False)  # type: ignore[call-arg]
                yield f"{name}, not counted", not_counted

    def data(self) -> Iterable[Problem]:
        return [*super().data(), AvgPool2d.of((2, 3, 7, 6), padding=1, count_include_pad=False)]

    def random(self, rng: np.random.Generator) -> AvgPool2d:
        return replace(super().random(rng), count_include_pad=bool(rng.random() < 0.5))  # type: ignore


# ---------------------------------------------------------------------------------------------------
# Ops
# ---------------------------------------------------------------------------------------------------
@defines(
    "avgpool2d_fprop", AvgPool2d, ("x",), ("y",), slices="rows", cases=_Cases(AvgPool2d),
    rounding=_fprop_rounding,
)  # fmt: skip
def _fprop(g: AvgPool2d, x: Array, y: Array) -> None:
    image, total = f64(x), np.zeros(y.shape)
    for _, _, windows, pixels in seen(g):
        total[windows] += image[pixels]
    y[...] = total / divisors(g)


@defines(
    "avgpool2d_dgrad", AvgPool2d, ("dy",), ("dx",), slices="rows", cases=_Cases(AvgPool2d),
    rounding=_dgrad_rounding,
)  # fmt: skip
def _dgrad(g: AvgPool2d, dy: Array, dx: Array) -> None:
    share, total = f64(dy) / divisors(g), np.zeros(dx.shape)
    for _, _, windows, pixels in seen(g):
        total[pixels] += share[windows]
    dx[...] = total


@operation
def avgpool2d_fprop(
    x: A,
    *,
    window: Any = 3,
    stride: Any = 2,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """2-D average pooling, forward: the mean of each window.

    Parameters
    ----------
    x : array, (N, C, H, W)
    window, stride, dilation : int or (vertical, horizontal)
    padding : int, (vertical, horizontal), or ((top, bottom), (left, right))
        Zeros around the image. Smaller than the window's span.
    ceil_mode : bool
        As in `maxpool2d_fprop`.
    count_include_pad : bool
        Divide by the taps on the padded image, as Caffe does, and PyTorch by default; else by those on the
        image itself, as ONNX by default. Taps beyond the padding, where `ceil_mode` lets a window overhang,
        never count.

    Returns
    -------
    y : array, (N, C, P, Q)
        0 where no tap counts, as a dilated window can have it.
    """
    a = Arguments("avgpool2d_fprop", x=x)
    problem = AvgPool2d.of(
        a.x.shape,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        dtype=a.dtype,
        count_include_pad=flag("count_include_pad", count_include_pad),
    )
    return a.run(problem, out=out, impl=impl)


@operation
def avgpool2d_dgrad(
    dy: A,
    x_shape: Any,
    *,
    window: Any = 3,
    stride: Any = 2,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    impl: str | None = None,
    out: A | None = None,
) -> A:
    """2-D average pooling: gradient with respect to its input.

    Parameters
    ----------
    dy : array, (N, C, P, Q)
    x_shape : (N, C, H, W)
    window, stride, padding, dilation, ceil_mode, count_include_pad
        As in `avgpool2d_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
        The sum of dy over its window's divisor, for each window that sees the pixel.
    """
    a = Arguments("avgpool2d_dgrad", dy=dy)
    problem = AvgPool2d.of(
        x_shape,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        dtype=a.dtype,
        count_include_pad=flag("count_include_pad", count_include_pad),
    )
    return a.run(problem, out=out, impl=impl)
