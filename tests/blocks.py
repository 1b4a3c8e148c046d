"""nChw16c, as tests want it: packing by the channel count alone."""

from __future__ import annotations

import numpy as np

from convkit.layouts import NCHW16C, Tensor

BLOCKED = NCHW16C.name
physical, block = NCHW16C.physical, NCHW16C.packed


def unblock(data: np.ndarray, C: int) -> np.ndarray:
    """nChw16c to NCHW."""
    N, _, H, W, _ = data.shape
    return NCHW16C.unpack(data, (N, C, H, W))


def blocked(x: np.ndarray) -> Tensor:
    """A copy of an NCHW array."""
    return Tensor.of(x, BLOCKED)
