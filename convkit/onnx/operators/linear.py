"""Products of matrices."""

from __future__ import annotations

import numpy as np

from ... import arrays
from ...errors import DtypeError, ShapeError
from ...ops.linear import linear_fprop
from ..table import operator

Array = np.ndarray

SIXTEEN_BITS = ("float16", "bfloat16")
#: Weights that are widened at a time, in elements: 16 MiB of float32.
WIDENED = 1 << 22


def _matrices(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2:
        raise ShapeError(
            f"only the product of two matrices is covered, not of shapes {a.shape} and {b.shape}"
        )


def _linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """x w^T + b, of extents of 0 too, which the op does not take."""
    if x.shape[1] != w.shape[1]:
        raise ShapeError(f"matrices of shapes {x.shape} and {w.shape[::-1]} have no product")
    if 0 not in (*x.shape, *w.shape):
        return linear_fprop(x, w, b)
    y = np.zeros((len(x), len(w)), arrays.DTYPES[arrays.dtype_name("x", x)])
    return y if b is None else y + b


@operator("Gemm", ranks=(2,))
def gemm_before_7(a, b, c, *, alpha=1.0, beta=1.0, broadcast=0, transA=0, transB=0):
    _matrices(a, b)
    shape = (a.shape[1 if transA else 0], b.shape[0 if transB else 1])
    if not broadcast and c.shape != shape:
        raise ShapeError(f"C must have shape {shape}, not {c.shape}, without the attribute broadcast")
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@operator("Gemm", since=7, ranks=(2,))
def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    """In one op where that can be; else in three steps, of which 16 bits see the last result alone."""
    _matrices(a, b)
    x, w = a.T if transA else a, b if transB else b.T
    dtypes = [str(m.dtype) for m in (a, b, c) if m is not None]
    if len(set(dtypes)) > 1:
        raise DtypeError(f"A, B and C must share a dtype, not {', '.join(dtypes)}")
    if c is not None:
        np.broadcast_to(c, (len(x), len(w)))  # refuses what does not broadcast in one direction
    if beta == 0:
        c = None
    if alpha == 1 and (c is None or (beta == 1 and (c.ndim < 2 or len(c) == 1))):
        return _linear(x, w, None if c is None else np.broadcast_to(c.reshape(-1), w.shape[:1]))
    wide = np.dtype(np.float32) if arrays.dtype_name("A", a) in SIXTEEN_BITS else a.dtype
    if a.dtype == wide:
        y = _linear(x, w)
    else:
        y, x = np.empty((len(x), len(w)), wide), x.astype(wide, order="C")
        step = max(1, WIDENED // max(1, w.shape[1]))
        for k in range(0, len(w), step):
            y[:, k : k + step] = _linear(x, w[k : k + step].astype(wide, order="C"))
    y *= wide.type(alpha)
    if c is not None:
        y += c.astype(wide, copy=False) * wide.type(beta)
    return y.astype(a.dtype, copy=False)


@operator("MatMul", ranks=(2,))
def matmul(a, b):
    _matrices(a, b)
    return _linear(a, b.T)
