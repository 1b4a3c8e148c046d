"""PyTorch's compiler as an entry: whole networks only, which is what it is made for."""

from __future__ import annotations

from typing import Any

from ..measure.entry import Entry
from ..work import Item
from . import Missing
from .torch import about as about  # the same library, and the same settings


def entries(item: Item, device: str) -> list[Entry]:
    """None for a single op."""
    raise Missing("takes part in --step and --forward")


__all__: list[Any] = ["about", "entries"]
