"""Softmax, cross-entropy and the label's rank in C++: native/kernels/softmax.hpp."""

from __future__ import annotations

from collections.abc import Callable

from ..geometry import SoftmaxXent
from .native_call import STORAGE, compiled, kernel

Launch = Callable[..., None]


@compiled("softmax_xent_fprop", name="vectors", dtypes=STORAGE)
def softmax_xent_fprop(g: SoftmaxXent) -> Launch:
    return kernel("softmax_xent_fprop", g.dtype, g.N, g.K)


@compiled("softmax_xent_dgrad", name="vectors", dtypes=STORAGE)
def softmax_xent_dgrad(g: SoftmaxXent) -> Launch:
    return kernel("softmax_xent_dgrad", g.dtype, g.N, g.K)


@compiled("label_rank", name="vectors", dtypes=STORAGE)
def label_rank(g: SoftmaxXent) -> Launch:
    return kernel("label_rank", g.dtype, g.N, g.K)
