"""The plans that a network keeps: one for each batch size and choice of implementations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .. import registry
from ..devices import emulating
from ..errors import OutOfMemory
from .plan import Plan

#: Bytes of plans that a network keeps by default. AlexNet's takes some 6.5 MB for each image of its batch.
PLAN_MEMORY = 4 * 2**30


class Setting(NamedTuple):
    """What is chosen for the block of code that runs here: by `convkit.use` and by `convkit.emulate`."""

    choice: registry.Choice
    emulated: bool

    @classmethod
    def here(cls) -> Setting:
        return cls(registry.current_choice(), emulating())


class Key(NamedTuple):
    """What a plan depends on.

    Attributes
    ----------
    batch : int
    names : tuple
        The network's own choice of implementations, layer by layer.
    setting : Setting
    generation : int
        Changes when an implementation is registered: it may be better than those of the plan.
    """

    batch: int
    names: tuple[tuple[object, ...], ...]
    setting: Setting
    generation: int

    @classmethod
    def here(cls, batch: int, names: Mapping[str, Mapping[str, str]], device: str) -> Key:
        """The key of a plan that is made here.

        Parameters
        ----------
        batch : int
        names : mapping
            For each layer, names of implementations by op.
        device : str
            The network's: "cpu", "cuda", "cuda:1", ...
        """
        # The built-in implementations are registered first. Else they would count as new ones later.
        registry.builtin("cuda" if emulating() else device.partition(":")[0])
        chosen = tuple((layer, *sorted(of.items())) for layer, of in sorted(names.items()) if of)
        return cls(batch, chosen, Setting.here(), registry.generation())


class PlanCache:
    """Plans by key, in the order of their last use.

    Parameters
    ----------
    limit : int
        Bytes. Where the plans take more, those used least recently are dropped; the last one used stays.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._plans: dict[Key, Plan] = {}  # the last one used is the last

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def limit(self) -> int:
        """Bytes of plans that are kept."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._trim()

    def get(self, key: Key, make: Callable[[], Plan]) -> Plan:
        """The plan of that key; `make` makes it where there is none.

        Plans of another generation are dropped. Where memory is short, all others are, and `make` is called
        once more.
        """
        self._plans = {k: plan for k, plan in self._plans.items() if k.generation == key.generation}
        plan = self._plans.pop(key, None) or self._made(make)
        self._plans[key] = plan
        self._trim()
        return plan

    def _made(self, make: Callable[[], Plan]) -> Plan:
        try:
            return make()
        except OutOfMemory:
            if not self._plans:
                raise
        self._plans.clear()
        return make()

    def _trim(self) -> None:
        while len(self._plans) > 1 and sum(plan.bytes for plan in self._plans.values()) > self._limit:
            self._plans.pop(next(iter(self._plans)))
