"""An update that is not to be: where the flag `finite` holds 0, weights and velocity stay as they are."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def forbidden(finite: Array | None) -> bool:
    """Whether the flag is given and holds 0. It is read when the update runs, not when it is planned."""
    return finite is not None and not finite[0]


def copy(old: tuple[Array, ...], new: tuple[Array, ...]) -> None:
    """Each new array gets the bits of the old one. It may be that one, or another of the old ones."""
    moved = [(a, b) for a, b in zip(old, new, strict=True) if not _same(a, b)]
    if any(np.may_share_memory(a, b) for a, _ in moved for b in new):
        moved = [(a.copy(), b) for a, b in moved]
    for a, b in moved:
        b[...] = a


def _same(a: Array, b: Array) -> bool:
    return bool(a.ctypes.data == b.ctypes.data)
