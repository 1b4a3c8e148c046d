"""Convolution as a matrix product: im2col lowering in Numba, the product in BLAS.

Idea      A column matrix holds, in row (c, r, s) and column (n, p, q), the pixel that tap (r, s) of channel c
          sees at output pixel (p, q) of image n; zero where that is padding. With it, per group,
              fprop   y   = W . col         (K, CRS) x (CRS, columns)
              wgrad   dw += dy . col^T      (K, columns) x (columns, CRS)
              dgrad   col = W^T . dy        (CRS, K) x (K, columns), then dx gathers from col
          Where R = S = stride = 1 without padding, an image is its own column matrix.
Tiling    The columns of one product are a tile: several whole images, some output rows of one image, or a
          part of one row, about COLUMNS of them, or fewer where MATRIX bytes would not hold them. Few enough
          that the column matrix stays near the caches (10 MB for AlexNet's conv2 ungrouped) and that large
          images and long rows need no large workspace; many enough that BLAS, which copies W anew for every
          product, does so once per 1000 columns and not once per 169.
Traffic   The column matrix is written and read once: 2 CRS words per output pixel, for 2 K CRS operations.
Order     A pixel of dx adds its taps in the order of (tile, r, s), and one thread does all of a channel.
          dw adds its tiles in float64, in order: its sums are the longest of all (387,200 terms in conv1
          at N = 128), and BLAS's own rounding averages out over the tiles.
Bound     BLAS. Measured on one thread of a Zen 3 (AVX2), of which np.matmul of 1024^3 made 90-94 GFLOP/s, in
          CPU time: AlexNet's layers (2012, grouped) at N = 16 make 48-80 GFLOP/s in all three passes, conv1
          59-67, conv3 68-80. Lowering is about a third of conv1 (363 rows, 96 filters), a seventh of conv3.
          A tile of 1024 columns against single images gained 10 % where an image has 169 pixels (conv3,
          conv4); 2048 and 4096 columns gained less than 5 % more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ops.conv2d import Conv2d
from . import blas, jit, threads
from .jit import uint
from .storage import accelerates, accumulator

Array = np.ndarray

#: Columns of a tile, about.
COLUMNS = 1024
#: Bytes of a column matrix at the most, as long as it has FEWEST columns.
MATRIX, FEWEST = 64 << 20, 16
#: Nanoseconds per element to lower, to raise and to finish on one thread, roughly.
_LOWER, _RAISE, _FINISH = 0.5, 0.5, 0.5


# ---------------------------------------------------------------------------------------------------
# Kernels. extents = (C, H, W, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w)
# tile = (n0, images, p0, rows, first, width). A tap at `left = pad_left - s * dilation_w` is inside the image
# for q in [q0, q1), where it sees column q * stride_w - left; q counts from the row's start, not the tile's.
# ---------------------------------------------------------------------------------------------------
@jit.kernel
def _lower(x, col, extents, tile, start, stop):
    """Fill the rows (c, r, s) of `col` with c in [start, stop)."""
    C, H, W, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w = extents
    n0, images, p0, rows, first, width = tile
    zero, behind = x.dtype.type(0), first + width
    at = start * R * S * images * rows * width - first
    for c in range(start, stop):
        for r in range(R):
            for s in range(S):
                left = pad_left - s * dilation_w
                q0 = min(behind, max(first, -(-left // stride_w)))
                q1 = max(q0, min(behind, (W - 1 + left) // stride_w + 1))
                for n in range(n0, n0 + images):
                    for p in range(p0, p0 + rows):
                        h = p * stride_h - pad_top + r * dilation_h
                        if h < 0 or h >= H:
                            for q in range(first, behind):
                                col[uint(at + q)] = zero
                        else:
                            row = ((n * C + c) * H + h) * W - left
                            for q in range(first, q0):
                                col[uint(at + q)] = zero
                            if stride_w == 1:
                                for q in range(q0, q1):
                                    col[uint(at + q)] = x[uint(row + q)]
                            else:
                                for q in range(q0, q1):
                                    col[uint(at + q)] = x[uint(row + q * stride_w)]
                            for q in range(q1, behind):
                                col[uint(at + q)] = zero
                        at += width


@jit.kernel
def _raise(col, dx, extents, tile, start, stop):
    """Add to the channels [start, stop) of `dx` what `col` has for their pixels."""
    C, H, W, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w = extents
    n0, images, p0, rows, first, width = tile
    behind = first + width
    h0 = max(0, p0 * stride_h - pad_top)  # the rows that the tile's windows reach
    h1 = min(H, (p0 + rows - 1) * stride_h - pad_top + (R - 1) * dilation_h + 1)
    for c in range(start, stop):
        for n in range(images):
            for h in range(h0, h1):
                row = (((n0 + n) * C + c) * H + h) * W
                for r in range(R):
                    shifted = h + pad_top - r * dilation_h
                    p = shifted // stride_h - p0
                    if p < 0 or p >= rows or shifted % stride_h != 0:
                        continue
                    for s in range(S):
                        left = pad_left - s * dilation_w
                        q0 = min(behind, max(first, -(-left // stride_w)))
                        q1 = max(q0, min(behind, (W - 1 + left) // stride_w + 1))
                        at = ((((c * R + r) * S + s) * images + n) * rows + p) * width - first
                        to = row - left
                        if stride_w == 1:
                            for q in range(q0, q1):
                                dx[uint(to + q)] += col[uint(at + q)]
                        else:
                            for q in range(q0, q1):
                                dx[uint(to + q * stride_w)] += col[uint(at + q)]


@jit.kernel
def _finish(product, b, y, relu, K, P, Q, tile, start, stop):
    """y = product + b, rectified or not, for the filters [start, stop); no b where it is empty."""
    n0, images, p0, rows, first, width = tile  # with a part of a row, rows is 1
    zero = y.dtype.type(0)
    for k in range(start, stop):
        bias = b[k] if b.size else zero
        for n in range(images):
            at = (k * images + n) * rows * width
            to = (((n0 + n) * K + k) * P + p0) * Q + first
            if relu:
                for i in range(rows * width):
                    value = product[uint(at + i)] + bias
                    y[uint(to + i)] = zero if value <= zero else value
            else:
                for i in range(rows * width):
                    y[uint(to + i)] = product[uint(at + i)] + bias


# ---------------------------------------------------------------------------------------------------
# Tiles and their matrices
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tile:
    """The columns of one product: output rows [p0, p0 + rows) of images [n0, n0 + images).

    Of a row only [first, first + width), which is less than all of it where the tile is of one row alone.
    """

    n0: int
    images: int
    p0: int
    rows: int
    first: int
    width: int

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        return self.n0, self.images, self.p0, self.rows, self.first, self.width

    @property
    def columns(self) -> int:
        return self.images * self.rows * self.width


def _largest(g: Conv2d) -> Tile:
    """The first tile, than which none is larger; shares are even, so that no small tile is left over."""
    room = max(FEWEST, min(COLUMNS, MATRIX // accumulator(g).itemsize // _taps(g)))
    if room >= g.P * g.Q:
        products = -(-g.N // (room // (g.P * g.Q)))
        return Tile(0, -(-g.N // products), 0, g.P, 0, g.Q)
    if room >= g.Q:
        products = -(-g.P // (room // g.Q))
        return Tile(0, 1, 0, -(-g.P // products), 0, g.Q)
    products = -(-g.Q // room)
    return Tile(0, 1, 0, 1, 0, -(-g.Q // products))


def _tiles(g: Conv2d) -> Iterator[Tile]:
    t = _largest(g)
    for n in range(0, g.N, t.images):
        for p in range(0, g.P, t.rows):
            for q in range(0, g.Q, t.width):
                yield Tile(*(n, min(t.images, g.N - n), p, min(t.rows, g.P - p), q, min(t.width, g.Q - q)))


def _taps(g: Conv2d) -> int:
    """Rows of the column matrix, of all groups together."""
    return g.C * g.R * g.S


def _in_place(g: Conv2d) -> bool:
    """Whether an image is its own column matrix, and a tile lies within one image."""
    taps = (g.R, g.S, g.stride_h, g.stride_w) == (1, 1, 1, 1)
    padded = g.pad_top or g.pad_bottom or g.pad_left or g.pad_right
    return taps and not padded and _largest(g).images == 1


def _extents(g: Conv2d) -> tuple[int, ...]:
    return (
        *(g.C, g.H, g.W, g.R, g.S, g.stride_h, g.stride_w),
        *(g.pad_top, g.pad_left, g.dilation_h, g.dilation_w),
    )


def _weights(g: Conv2d, w: Array) -> Array:
    return w.reshape(g.groups, g.K // g.groups, -1)


def _matrix(g: Conv2d, flat: Array, tile: Tile) -> Array:
    """The front of scratch memory as (groups, rows of a group, the tile's columns)."""
    return flat[: flat.size // _largest(g).columns * tile.columns].reshape(g.groups, -1, tile.columns)


def _pixels(g: Conv2d, maps: Array, tile: Tile, flat: Array | None = None) -> Array:
    """A tile's pixels of `maps`, (N, channels, P, Q), as (groups, channels of a group, columns).

    It is a view within one image; those of several images are gathered in `flat`.
    """
    if tile.images == 1:
        image = maps[tile.n0].reshape(g.groups, -1, g.P * g.Q)
        start = tile.p0 * g.Q + tile.first
        return image[:, :, start : start + tile.columns]
    assert flat is not None
    matrix = _matrix(g, flat, tile)
    images = maps[tile.n0 : tile.n0 + tile.images].reshape(tile.images, -1, g.P * g.Q)
    np.copyto(matrix.reshape(-1, tile.images, g.P * g.Q), images.transpose(1, 0, 2))
    return matrix


def _lowered(g: Conv2d, x: Array, col: Array, tile: Tile) -> Array:
    """The column matrix of a tile, as (groups, CRS of a group, columns)."""
    if _in_place(g):
        return _pixels(g, x, tile)
    matrix = _matrix(g, col, tile)
    source, extents, numbers = x.reshape(-1), _extents(g), tile.numbers
    threads.split(
        lambda start, stop: _lower(source, col, extents, numbers, start, stop), g.C, _LOWER * matrix.size
    )
    return matrix


def _scratch(workspace: Array, *parts: tuple[int, Any]) -> list[Array]:
    """Flat arrays of so many elements and such a dtype, one behind the other in the workspace."""
    found, at = [], 0
    for size, dtype in parts:
        found.append(workspace[at : at + size * dtype.itemsize].view(dtype))
        at += -(-size * dtype.itemsize // 64) * 64
    return found


def _scratch_bytes(*parts: tuple[int, Any]) -> int:
    return sum(-(-size * dtype.itemsize // 64) * 64 for size, dtype in parts)


# ---------------------------------------------------------------------------------------------------
# The passes
# ---------------------------------------------------------------------------------------------------
def _fprop_parts(g: Conv2d) -> tuple[tuple[int, Any], ...]:
    dtype, columns = accumulator(g), _largest(g).columns
    return (0 if _in_place(g) else _taps(g) * columns, dtype), (g.K * columns, dtype)


@accelerates(
    "conv2d_fprop",
    name="im2col_gemm",
    missing=jit.missing,
    workspace=lambda g: _scratch_bytes(*_fprop_parts(g)),
)
def conv2d_fprop(
    g: Conv2d, x: Array, w: Array, b: Array | None, y: Array, relu: bool = False, *, workspace: Array
) -> None:
    col, product = _scratch(workspace, *_fprop_parts(g))
    weights, flat = _weights(g, w), y.reshape(-1)
    bias = w.reshape(-1)[:0] if b is None else b
    for tile in _tiles(g):
        matrix = _matrix(g, product, tile)
        blas.product(weights, _lowered(g, x, col, tile), matrix)
        numbers = tile.numbers
        threads.split(
            lambda start, stop, numbers=numbers: _finish(  # type: ignore[misc]
                product, bias, flat, relu, g.K, g.P, g.Q, numbers, start, stop
            ),
            g.K,
            _FINISH * matrix.size,
        )


def _dgrad_parts(g: Conv2d) -> tuple[tuple[int, Any], ...]:
    dtype, columns = accumulator(g), _largest(g).columns
    return (
        (0 if _in_place(g) else _taps(g) * columns, dtype),
        (0 if _largest(g).images == 1 else g.K * columns, dtype),
    )


@accelerates(
    "conv2d_dgrad",
    name="im2col_gemm",
    missing=jit.missing,
    workspace=lambda g: _scratch_bytes(*_dgrad_parts(g)),
)
def conv2d_dgrad(g: Conv2d, dy: Array, w: Array, dx: Array, *, workspace: Array) -> None:
    col, gathered = _scratch(workspace, *_dgrad_parts(g))
    weights, flat, extents = _weights(g, w).swapaxes(1, 2), dx.reshape(-1), _extents(g)
    if not _in_place(g):
        dx.fill(0)
    for tile in _tiles(g):
        pixels = _pixels(g, dy, tile, gathered)
        if _in_place(g):
            blas.product(weights, pixels, _pixels(g, dx, tile))
            continue
        matrix = _matrix(g, col, tile)
        blas.product(weights, pixels, matrix)
        numbers = tile.numbers
        threads.split(
            lambda start, stop, numbers=numbers: _raise(  # type: ignore[misc]
                col, flat, extents, numbers, start, stop
            ),
            g.C,
            _RAISE * matrix.size,
        )


def _wgrad_parts(g: Conv2d) -> tuple[tuple[int, Any], ...]:
    dtype = accumulator(g)
    several = 0 if _largest(g) == Tile(0, g.N, 0, g.P, 0, g.Q) else g.K * _taps(g) // g.groups
    return (*_dgrad_parts(g), (several, dtype), (several, np.dtype(np.float64)))


@accelerates(
    "conv2d_wgrad",
    name="im2col_gemm",
    missing=jit.missing,
    workspace=lambda g: _scratch_bytes(*_wgrad_parts(g)),
)
def conv2d_wgrad(g: Conv2d, x: Array, dy: Array, dw: Array, *, workspace: Array) -> None:
    col, gathered, product, total = _scratch(workspace, *_wgrad_parts(g))
    one = product.size == 0  # one tile, which is the whole sum
    matrix = _weights(g, dw if one else product.reshape(dw.shape))
    for i, tile in enumerate(_tiles(g)):
        lowered = _lowered(g, x, col, tile)
        blas.product(_pixels(g, dy, tile, gathered), lowered.swapaxes(1, 2), matrix)
        if one:
            return
        if i == 0:
            total[...] = product
        else:
            np.add(total, product, out=total)
    dw.reshape(-1)[...] = total
