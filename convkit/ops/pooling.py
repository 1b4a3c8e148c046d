"""What max pooling and average pooling share: windows on each map, their options, and cases for the gate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from ..errors import OptionError
from ..op import Cases, Problem, Stretch, draw
from ..options import flag, pair, shape_of
from . import window
from .window import output_extent, padding4, window_span

Kind = TypeVar("Kind", bound="Pooling")


@dataclass(frozen=True)
class Pooling(Problem):
    """Windows on the maps of (N, C, H, W), each of which gives one value of (N, C, P, Q)."""

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
        cls: type[Kind],
        x_shape: Any,
        *,
        window: Any = 3,
        stride: Any = 2,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        dtype: str = "float32",
        **more: Any,
    ) -> Kind:
        """Validate what a user wrote and make the problem; `more` are fields of the subclass."""
        N, C, H, W = shape_of("x", x_shape, 4, "(N, C, H, W)")
        R, S = pair("window", window, 1)
        problem = cls(
            *(N, C, H, W, R, S),
            *pair("stride", stride, 1),
            *padding4(padding),
            *pair("dilation", dilation, 1),
            flag("ceil_mode", ceil_mode),
            dtype,
            **more,
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

    def __str__(self) -> str:
        return (
            f"x{self.shapes['x']} window {self.R},{self.S} stride {self.stride_h},{self.stride_w} "
            f"pad {(self.pad_top, self.pad_bottom, self.pad_left, self.pad_right)} "
            f"dil {self.dilation_h},{self.dilation_w}{' ceil' if self.ceil_mode else ''}"
        )


# ---------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------
#: (name, x, options)
_EDGES: tuple[tuple[str, tuple, dict[str, Any]], ...] = (
    ("one pixel", (1, 1, 1, 1), {"window": 1, "stride": 1}),
    ("1 x 1 window, stride 2", (2, 3, 7, 6), {"window": 1, "stride": 2}),
    ("window 2, stride 2", (2, 3, 8, 7), {"window": 2}),
    ("overlap", (2, 3, 9, 11), {"window": 3, "stride": 1, "padding": 1}),
    ("stride beyond the window", (2, 3, 13, 11), {"window": 2, "stride": (5, 4)}),
    ("ceil_mode overhang", (2, 3, 8, 6), {"ceil_mode": True}),
    (
        "ceil_mode drops a window behind the image",
        (1, 2, 4, 4),
        {"window": 1, "stride": 4, "ceil_mode": True},
    ),
    ("ceil_mode with padding", (1, 2, 8, 9), {"window": 3, "stride": 3, "padding": 1, "ceil_mode": True}),
    ("padding that differs on each side", (2, 3, 7, 8), {"window": 4, "padding": ((0, 3), (2, 1))}),
    ("dilation", (2, 3, 13, 12), {"dilation": (2, 3), "stride": 1}),
    ("taps wholly in the padding", (1, 2, 3, 3), {"dilation": 3, "padding": 3, "stride": 1}),
    ("one window on the whole image", (2, 3, 6, 5), {"window": (6, 5)}),
    ("primes", (3, 7, 17, 19), {"window": (5, 3), "stride": (3, 2)}),
    ("a row", (1, 3, 1, 23), {"window": (1, 3)}),
    ("a column", (1, 3, 23, 1), {"window": (3, 1)}),
    ("one column, strides that differ", (2, 3, 7, 1), {"window": (2, 1), "stride": (1, 2)}),
    ("one row, strides that differ", (2, 3, 1, 7), {"window": (1, 2), "stride": (2, 1)}),
    ("one column of outputs", (2, 3, 7, 4), {"window": (2, 3), "stride": (1, 5)}),
    ("one row of outputs", (2, 3, 4, 9), {"window": (3, 2), "stride": (5, 1)}),
    ("one pixel, a window of padding around", (3, 5, 1, 1), {"window": 3, "stride": (1, 2), "padding": 1}),
    ("padding up to the window's last tap", (2, 3, 5, 4), {"padding": 2}),
    ("padding beyond the image", (1, 2, 1, 1), {"window": 9, "stride": 3, "padding": 8}),
    ("65,538 taps: argmax of uint32", (1, 1, 2, 1), {"window": (65538, 1), "padding": ((65537, 0), (0, 0))}),
    ("256 taps: the last that fit uint8", (1, 2, 20, 19), {"window": 16, "stride": 2}),
    ("289 taps: argmax of uint16", (1, 2, 21, 20), {"window": 17, "stride": 2}),
    ("empty batch", (0, 3, 7, 7), {}),
)


class PoolingCases(Cases):
    """What the gate asks.

    Parameters
    ----------
    kind : type of Pooling
    """

    extents: dict[str, Stretch] = {
        name: window.extent(name, pads_within=True)
        for name in ("N", "C", "H", "W", *window.WINDOW, *window.PADS)
    }
    small = frozenset((*window.WINDOW, *window.PADS))

    def __init__(self, kind: type[Pooling]) -> None:
        self._kind = kind

    def layers(self) -> Iterable[tuple[str, Problem]]:
        yield "pool1", self._kind.of((1, 96, 55, 55))
        yield "pool2", self._kind.of((1, 256, 27, 27))
        yield "pool5", self._kind.of((2, 256, 13, 13))

    def edges(self) -> Iterable[tuple[str, Problem]]:
        for name, x, options in _EDGES:
            yield name, self._kind.of(x, **options)

    def data(self) -> Iterable[Problem]:
        return [
            self._kind.of((2, 3, 11, 12), padding=1),
            self._kind.of((2, 3, 9, 9)),
            self._kind.of((1, 2, 8, 8), ceil_mode=True),
        ]

    def bases(self) -> list[Problem]:
        return [self._kind(2, 3, 7, 6, 3, 2, 2, 1, 1, 0, 0, 1), self._kind(1, 1, 2, 3, 2, 2, 1, 1)]

    def more(self) -> Iterable[tuple[str, Problem]]:
        return window.strides_and_dilations(self.bases()[0])

    def random(self, rng: np.random.Generator) -> Pooling:
        (N, C), (R, S), (u, v), (i, j) = (
            draw(rng, 1, 4, 2),
            draw(rng, 1, 4, 2),
            draw(rng, 1, 4, 2),
            draw(rng, 1, 2, 2),
        )
        pads = window.random_pads(rng, min(window_span(R, i), window_span(S, j)) - 1)
        H = window.random_extent(rng, R, i, pads[0], pads[1])
        W = window.random_extent(rng, S, j, pads[2], pads[3])
        if thin := window.thin(rng):
            H, W = thin
            (R, i), (S, j) = window.fit(H, R, i, 0), window.fit(W, S, j, 0)
            spans = [window_span(n, d) for n, d in ((R, i), (R, i), (S, j), (S, j))]
            pads = [min(p, span - 1) for p, span in zip(pads, spans, strict=True)]
        return self._kind(N, C, H, W, R, S, u, v, *pads, i, j, bool(rng.random() < 0.4))  # type: ignore[call-arg]

    def large(self) -> Iterable[tuple[str, Problem]]:
        yield "66,049 maps", self._kind(257, 257, 2, 1, 2, 1, 1, 1)

    def huge(self) -> list[Problem]:
        many = 100_000
        return [
            self._kind(many, 3, 32, 32, 3, 3, 2, 2),
            self._kind(512, 512, 200, 200, 3, 3, 2, 2),
            self._kind(1, 1, many, many, 3, 3, 2, 2),
            self._kind(1, 2, 2, 2_000_000, 2, 3, 1, 2),
            self._kind(1, 2, 2_000_000, 2, 3, 2, 2, 1),
        ]
