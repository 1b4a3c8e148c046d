"""Fully connected layers: one product in BLAS.

Traffic   w (or dw) once and nothing else of size: 151 MB in AlexNet's fc6, so that memory is the bound for
          small batches, BLAS for large ones. Bias and ReLU touch y alone, which is small, in NumPy.
One row   dw is then an outer product, a case that BLAS packs as if it were a large one.
Measured  Zen 3, one thread, CPU time, N = 16: 37-56 GFLOP/s, of 90 in large products. N = 1: forward and
          dgrad 25 GB/s; the outer product 12 GB/s, against 2.7 GB/s by matmul.
"""

from __future__ import annotations

import numpy as np

from ..ops.linear import Linear
from . import blas, threads
from .storage import accelerates

Array = np.ndarray


@accelerates("linear_fprop", name="gemm")
def linear_fprop(g: Linear, x: Array, w: Array, b: Array | None, y: Array, relu: bool = False) -> None:
    blas.product(x, w.T, y)
    if b is not None:
        np.add(y, b, out=y)
    if relu:
        np.maximum(y, 0, out=y)


@accelerates("linear_dgrad", name="gemm")
def linear_dgrad(g: Linear, dy: Array, w: Array, dx: Array) -> None:
    blas.product(dy, w, dx)


@accelerates("linear_wgrad", name="gemm")
def linear_wgrad(g: Linear, x: Array, dy: Array, dw: Array) -> None:
    if g.N > 1:
        blas.product(dy.T, x, dw)
        return

    def rows(start: int, stop: int) -> None:
        np.multiply(dy.T[start:stop], x, out=dw[start:stop])

    threads.split(rows, g.K, 0.5 * dw.size)
