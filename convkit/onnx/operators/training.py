"""Dropout and the update rule."""

from __future__ import annotations

import numpy as np

from ...errors import OptionError
from ...ops.sgd import sgd_momentum
from ..table import TRAINING, operator


@operator("Dropout", choices={"is_test": (1,)})
def dropout_before_7(x, *, is_test=0, ratio=0.5):
    return x, lambda: np.ones_like(x)


@operator("Dropout", since=7)
def dropout_before_10(x, *, ratio=0.5):
    return x, lambda: np.ones_like(x)


@operator("Dropout", since=10)
def dropout_before_12(x, *, ratio=0.5):
    return x, lambda: np.ones(x.shape, bool)


@operator("Dropout", since=12)
def dropout(x, ratio=None, training_mode=None, *, seed=None):
    if training_mode is not None and training_mode.item() and (ratio is None or ratio.item() != 0):
        raise OptionError(
            "dropout in training mode is random, and ONNX does not say by which generator: not covered"
        )
    return x, lambda: np.ones(x.shape, bool)


@operator("Momentum", domain=TRAINING, choices={"mode": ("standard", "nesterov")})
def momentum(rate, step, *tensors, alpha, beta, mode, norm_coefficient):
    n = len(tensors) // 3
    if n == 0 or len(tensors) != 3 * n:
        raise OptionError(f"{len(tensors)} tensors are not as many weights as gradients as velocities")
    updated = [
        sgd_momentum(
            *(w, dw, v),
            lr=rate.item(),
            momentum=alpha,
            weight_decay=norm_coefficient,
            dampening=1 - beta if step.item() > 0 else 0.0,
            nesterov=mode == "nesterov",
        )
        for w, dw, v in zip(tensors[:n], tensors[n : 2 * n], tensors[2 * n :])
    ]
    return (*(w for w, _ in updated), *(v for _, v in updated))
