"""Implementations as they were: what a candidate changes in them does not last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ...registry import changed, implementations


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Put back every implementation that changes inside the block."""
    before = [(implementation, dict(vars(implementation))) for implementation in implementations(layout=None)]
    try:
        yield
    finally:
        for implementation, values in before:
            if vars(implementation) != values:
                vars(implementation).update(values)
                changed()
