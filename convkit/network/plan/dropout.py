"""Dropout in a plan: which counters each of its calls draws with."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from ...call import Call
from ...errors import OptionError
from ..layers import Dropout, Layer

#: End of dropout's counters.
COUNTERS = 2**63


class Dropped(NamedTuple):
    """A dropout layer with its calls: that of its forward pass, and that of its gradient."""

    layer: Dropout
    calls: list[Call]


def found(calls: Iterable[Call], layers: Iterable[Layer]) -> list[Dropped]:
    """The dropouts among some calls, in the order of the calls.

    Parameters
    ----------
    calls : iterable of Call
    layers : iterable of Layer
        Those of the network.
    """
    by_layer: dict[str, list[Call]] = {}
    for call in calls:
        if "offset" in call.op.options:  # an op that draws random numbers
            by_layer.setdefault(call.layer, []).append(call)
    named = {layer.name: layer for layer in layers if isinstance(layer, Dropout)}
    return [Dropped(named[name], calls) for name, calls in by_layer.items() if name in named]


def point(
    dropouts: Iterable[Dropped],
    images: int,
    *,
    training: bool,
    seed: int,
    offset: int,
    first: int = 0,
    total: int | None = None,
) -> int:
    """Point every dropout at its counters and mode; returns the first counter that none of them uses.

    Parameters
    ----------
    dropouts : iterable of Dropped
    images : int
        Of the plan.
    training : bool
        At test time nothing is drawn, and no counter is used.
    seed, offset : int
        The seed, and the first counter.
    first : int
    total : int, optional
        The images are those from `first` on of a batch of `total`, by default the whole of it.

    Raises
    ------
    OptionError
        Where an image begins between two counters, each of which is for four elements, and where there
        are not enough counters left. Nothing is changed then.
    """
    N = max(1, images)
    total = N if total is None else total
    chosen = []
    for layer, calls in dropouts:
        size = prod(calls[0].problem.shape("x")) // N  # of an image
        if first * size % 4:
            raise OptionError(
                f"a shard cannot begin with image {first}: dropout counts elements in fours, and "
                f"{layer.name} has {size} for each image; begin with a multiple of 4"
            )
        here = offset + first * size // 4 if training else 0
        chosen.append((calls, {**layer.options(training), "offset": here, "seed": seed}))
        offset += -(-size * total // 4) if training else 0
    if offset >= COUNTERS:
        raise OptionError(f"no dropout counters are left: this step would end with counter {offset}")
    for calls, options in chosen:
        for call in calls:
            call.options.update(options)
    return offset
