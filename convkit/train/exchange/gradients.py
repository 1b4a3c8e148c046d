"""The hooks by which a network's steps exchange gradients: which one goes when.

Order     Every process must exchange the same arrays in the same order. Shares of a batch may differ by an
          image, so that processes run different plans, whose backward passes need not make gradients in the
          same order. So the order here is that of the parameters, from the last to the first, and a gradient
          that is early waits.
Small     Gradients below `SMALL` bytes go together, when all are final: each exchange is a meeting of all
          processes, which costs more than their bytes do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ... import arrays
from ...arrays import Array
from ...network.hooks import BeforeUpdate, OnGradient
from ...network.network import Network
from ...network.update import Update
from ..errors import RunError

#: Bytes below which a gradient is exchanged together with others.
SMALL = 256 << 10


class Gradients:
    """The hooks of one network.

    Parameters
    ----------
    net : Network
        Hooks that it has are called too.
    add : callable
        Replaces a contiguous array of one dimension by its sum over the processes.
    agree : callable
        Gets the step's flag `finite` and whether this process lets the update happen; writes into the flag
        whether all do.
    absent : callable
        Whether this process has no image of this batch.
    """

    def __init__(
        self,
        net: Network,
        add: Callable[[Array], None],
        agree: Callable[[Array, bool], None],
        absent: Callable[[], bool],
    ) -> None:
        self._net, self._add, self._agree, self._absent = net, add, agree, absent
        # Of a network that was attached before, the hooks that it had then.
        self._on_gradient: OnGradient | None = net.on_gradient
        if isinstance(before := getattr(net.on_gradient, "__self__", None), Gradients):
            self._on_gradient = before._on_gradient
        self._before_update: BeforeUpdate | None = net.before_update
        if isinstance(before := getattr(net.before_update, "__self__", None), Gradients):
            self._before_update = before._before_update
        self._rule: Update | None = None
        self._large: list[str] = []
        self._small: list[str] = []
        self._packed: Array | None = None
        self._ready: dict[str, Array] = {}
        self._exchanged = 0

    def on_gradient(self, name: str, gradient: Array) -> None:
        """A gradient of this process's images is final; exchange what is next."""
        if name in self._ready:
            raise RunError(
                "the last step did not come to its update: it failed, or a hook was replaced; attach it again"
            )
        if not self._ready:
            self._look_at_rule()
        if self._on_gradient is not None:
            self._on_gradient(name, gradient)
        if self._absent():
            gradient.fill(0)
        self._ready[name] = gradient
        while self._exchanged < len(self._large) and self._large[self._exchanged] in self._ready:
            self._add(self._ready[self._large[self._exchanged]].reshape(-1))
            self._exchanged += 1

    def before_update(self, grads: Any, finite: Array) -> None:
        """All gradients are final: exchange the small ones, and whether the step counts."""
        if not self._ready:
            self._look_at_rule()
        if self._exchanged != len(self._large) or len(self._ready) != len(self._large) + len(self._small):
            raise RunError(f"gradients of {len(self._ready)} parameters were made, expected {len(grads)}")
        self._add_small()
        self._ready.clear()
        self._exchanged = 0
        if self._absent():
            finite.fill(1)
        answer = True if self._before_update is None else self._before_update(grads, finite)
        self._agree(finite, not _refuses(answer))

    def _look_at_rule(self) -> None:
        """Which parameters the step updates; the others have no gradient."""
        if self._rule is self._net.update:
            return
        self._rule = self._net.update
        names = [name for name in reversed(list(self._net.grads)) if not self._rule.is_frozen(name)]
        grads = self._net.grads
        self._large = [name for name in names if grads[name].nbytes >= SMALL]
        self._small = [name for name in names if grads[name].nbytes < SMALL]
        size = sum(math.prod(grads[name].shape) for name in self._small)
        dtype = next(iter(grads.values())).dtype.name  # of parameters, not of activations
        self._packed = arrays.empty((size,), dtype, self._net.device)

    def _add_small(self) -> None:
        """Exchange the small ones, packed into one array."""
        if self._packed is None or not self._small:
            return
        places, start = [], 0
        for name in self._small:
            gradient = self._ready[name].reshape(-1)
            places.append((gradient, part := self._packed[start : start + gradient.size]))
            part[...] = gradient
            start += gradient.size
        self._add(self._packed)
        for gradient, part in places:
            gradient[...] = part


def _refuses(answer: Any) -> bool:
    """Whether a hook's answer is False: a bool, or an array of one, as `Network.before_update` has it."""
    is_bool = isinstance(answer, bool) or str(getattr(answer, "dtype", "")) == "bool"
    return is_bool and getattr(answer, "size", 1) == 1 and not bool(answer)
