"""Softmax, cross-entropy, the label's rank and a batch's summary in C++: native/kernels/softmax.hpp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..ops.loss_summary import LossSummary
from ..ops.softmax_xent import SoftmaxXent
from .native_call import STORAGE, compiled, kernel, kernels

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


@compiled("loss_summary", name="vectors", dtypes=("float32", "float64"))
def loss_summary(g: LossSummary) -> Launch:
    return partial(kernels().loss_summary, g.dtype == "float64", g.N)
