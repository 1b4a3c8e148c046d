"""DRAFT"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import jit, threads
from .storage import accelerates, accumulator
from ..geometry import Conv2d

Array = np.ndarray

COLUMNS = 1024


@dataclass(frozen=True)
class Tile:
    """Images [n0, n1) and their output rows [p0, p1), which share one GEMM."""

    n0: int
    n1: int
    p0: int
    p1: int


def _tile_extent(g: Conv2d) -> tuple[int, int]:
    """(images, rows) of a tile: whole images, or, where one image has too many pixels, some of its rows."""
    if g.P * g.Q <= COLUMNS:
        images = min(g.N, max(1, COLUMNS // (g.P * g.Q)))
        images = -(-g.N // -(-g.N // images)) # even shares
        return images, g.P
    rows = max(1, COLUMNS // g.Q)
    return 1, -(-g.P // -(-g.P // rows))


def _tiles(g: Conv2d) -> Iterator[Tile]:
    images, rows = _tile_extent(g)
    for n in range(0, g.N, images):
        for p in range(0, g.P, rows):
            yield Tile(n, min(n + images, g.N), p, min(p + rows, g.P))


def _pointwise(g: Conv2d) -> bool:
    """Whether the column matrix of an image is the image itself."""
    one = (g.R, g.S, g.stride_h, g.stride_w) == (1, 1, 1, 1)
    return one and not (g.pad_top or g.pad_bottom or g.pad_left or g.pad_right)


class Lowering:
    """Memory and views"""


def _scratch(g: Conv2d, workspace: Array | None, *rows: int) -> list[Array]:
    """Matrices of so many rows, and a tile's columns, one behind the other in the workspace."""


@jit.kernel
def _lower(x, col, C, H, W, R, S, sh, sw, pt, pl, dh, dw, n0, p0, p1, Q, images, start, stop):
    """Rows (c, r, s) of `col`, for c in [start, stop): what each tap sees at pixels (n, p, q)."""
    zero = x.dtype.type(0)
    columns = images * (p1 - p0) * Q
    for c in range(start, stop):
        for r in range(R):
            for s in range(S):
                at = ((c * R + r) * S + s) * columns
                left = pl - s * dw  # q * sw >= left is inside
                q0 = min(Q, max(0, -(-left // sw)))
                q1 = max(q0, min(Q, (W - 1 + left) // sw + 1))
                for n in range(n0, n0 + images):
                    for p in range(p0, p1):
                        h = p * sh - pt + r * dh
                        if h < 0 or h >= H:
                            for q in range(Q):
                                col[at + q] = zero
                        else:
                            for q in range(q0):
                                col[at + q] = zero
                            row = ((n * C + c) * H + h) * W - left
                            if sw == 1:
                                for q in range(q0, q1):
                                    col[at + q] = x[row + q]
                            else:
                                for q in range(q0, q1):
                                    col[at + q] = x[row + q * sw]
                            for q in range(q1, Q):
                                col[at + q] = zero
                        at += Q


@jit.kernel
def _raise(col, dx, C, H, W, R, S, sh, sw, pt, pl, dh, dw, n0, p0, p1, Q, images, start, stop):
    """Add to maps (n, c) of `dx`, n*C + c in [start, stop), the rows of `col` that its pixels were lowered to."""
    columns = images * (p1 - p0) * Q
    for c in range(start, stop):
        for n in range(images):
            for h in range(H):
                row = ((n0 + n) * C + c) * H * W + h * W
                for r in range(R):
                    up = h + pt - r * dh
                    p = up // sh
                    if up % sh != 0 or p < p0 or p >= p1:
                        continue
                    for s in range(S):
                        left = pl - s * dw
                        q0 = min(Q, max(0, -(-left // sw)))
                        q1 = max(q0, min(Q, (W - 1 + left) // sw + 1))
                        at = ((c * R + r) * S + s) * columns + (n * (p1 - p0) + p - p0) * Q
                        if sw == 1:
                            for q in range(q0, q1):
                                dx[row - left + q] += col[at + q]
                        else:
                            for q in range(q0, q1):
                                dx[row - left + q * sw] += col[at + q]
