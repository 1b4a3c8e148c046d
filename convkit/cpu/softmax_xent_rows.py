"""Softmax and cross-entropy, in NumPy, whose exp is vectorised.

Idea      Each row is shifted by its maximum, so that the largest exponential is 1. probs holds each stage in
          turn: shifted logits, exponentials, probabilities; nothing of size is allocated. The sum of a row is
          taken in float64, so that the logarithm of 1 + something small keeps that something.
Size      1000 classes by the batch: small beside any other layer, so it stays on one thread.
"""

from __future__ import annotations

import numpy as np

from ..ops.softmax_xent import SoftmaxXent
from .storage import accelerates

Array = np.ndarray


@accelerates("softmax_xent_fprop", name="rows")
def softmax_xent_fprop(g: SoftmaxXent, logits: Array, labels: Array, loss: Array, probs: Array) -> None:
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=probs)
    true_class = probs[np.arange(g.N), labels]
    np.exp(probs, out=probs)
    total = probs.sum(axis=1, dtype=np.float64, keepdims=True)
    loss[...] = np.log(total[:, 0]) - true_class
    np.divide(probs, total, out=probs, casting="same_kind")


@accelerates("softmax_xent_dgrad", name="rows")
def softmax_xent_dgrad(g: SoftmaxXent, probs: Array, labels: Array, dloss: Array, dlogits: Array) -> None:
    np.copyto(dlogits, probs)
    dlogits[np.arange(g.N), labels] -= 1
    np.multiply(dlogits, dloss[:, None], out=dlogits)
