"""Softmax, cross-entropy and the label's rank in C++: native/kernels/softmax.hpp."""

from __future__ import annotations

import numpy as np

from ..geometry import SoftmaxXent
from ..registry import implements
from .native_call import NATIVE, STORAGE, call

Array = np.ndarray


@implements("softmax_xent_fprop", name="vectors", dtypes=STORAGE, **NATIVE)
def softmax_xent_fprop(g: SoftmaxXent, logits: Array, labels: Array, loss: Array, probs: Array) -> None:
    call("softmax_xent_fprop", g.dtype, g.N, g.K, logits, labels, loss, probs)


@implements("softmax_xent_dgrad", name="vectors", dtypes=STORAGE, **NATIVE)
def softmax_xent_dgrad(g: SoftmaxXent, probs: Array, labels: Array, dloss: Array, dlogits: Array) -> None:
    call("softmax_xent_dgrad", g.dtype, g.N, g.K, probs, labels, dloss, dlogits)


@implements("label_rank", name="vectors", dtypes=STORAGE, **NATIVE)
def label_rank(g: SoftmaxXent, logits: Array, labels: Array, rank: Array) -> None:
    call("label_rank", g.dtype, g.N, g.K, logits, labels, rank)
