"""Training runs in processes of their own, side by side; the judge owns the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..check.faults import Lost, Raised
from ..check.process import Contained
from ..errors import OptionError
from .places import Names

Arrays = dict[str, np.ndarray]
#: Seconds beyond the limit that are given to what is done for the first time.
FIRST = 30.0


@dataclass
class Curve:
    """What a run has shown.

    Attributes
    ----------
    losses : list of float
        Before each update.
    seconds : list of float
        Of each step, by the judge's clock: from the question to the answer.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """Seconds of the steps but the first, which plans the network."""
        return self.seconds[1:]


class Run:
    """A network in training, in another process.

    Parameters
    ----------
    group : Contained
        The process.
    network : dict
        Arguments of `AlexNet`: the same for all runs that are compared.
    names : dict
        For each layer, names of implementations by op.
    emulated : bool
        Whether the loaded kernel files run under the emulator.
    """

    def __init__(
        self, group: Contained, network: Mapping[str, Any], names: Names, *, emulated: bool = False
    ) -> None:
        self.group, self.curve = group, Curve()
        self._known: set[str] = set()  # what it has done once
        told = self._send(
            do="network", network=dict(network), names=names, emulated=emulated, timeout=group.limits.timeout
        )
        shapes = {name: (tuple(shape), dtype) for name, (shape, dtype) in told["parameters"].items()}
        self._weights = {name: self._empty(*what) for name, what in shapes.items()}
        self._gradients = {name: self._empty(*what) for name, what in shapes.items()}
        self._batch: Arrays = {}

    def _empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        return self.group.shared.empty(size)[:size].view(kind).reshape(shape)

    def _send(self, **message: Any) -> dict[str, Any]:
        # What convkit itself plans and compiles the first time is not the candidate's.
        grace = 0.0 if message["do"] in self._known else FIRST
        self._known.add(message["do"])
        try:
            return self.group.ask(message, grace=grace)
        except (Lost, Raised) as error:
            if self.group.what != "shipped":
                raise
            # No fault of the candidate's.
            raise OptionError(f"a run without the candidate came to its end: {error}") from error

    def _places(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: self.group.shared.place(array) for name, array in arrays.items()}

    def load(self, x: np.ndarray, labels: np.ndarray) -> None:
        """The batch of the next step."""
        for name, given in (("x", x), ("labels", labels)):
            if name not in self._batch:
                self._batch[name] = self._empty(given.shape, given.dtype.name)
            self._batch[name][...] = given

    def step(self, lr: float) -> dict[str, Any]:
        """A step of training with the loaded batch."""
        message = {"do": "step", "lr": lr, **self._places(self._batch)}
        begin = time.perf_counter()
        answer = self._send(**message)
        self.curve.seconds.append(time.perf_counter() - begin)
        self.curve.losses.append(float(answer["loss"]))
        return answer

    def weights(self) -> Arrays:
        """The weights that it has reached; overwritten by the next call."""
        self._send(do="weights", weights=self._places(self._weights))
        return self._weights

    def gradients(self, weights: Arrays) -> Arrays:
        """The gradients of the loaded batch at these weights; overwritten by the next call."""
        for name, values in weights.items():
            self._weights[name][...] = values
        for array in self._gradients.values():
            array.fill(np.nan)
        given, made = self._places(self._weights), self._places(self._gradients)
        self._send(do="gradients", weights=given, gradients=made, **self._places(self._batch))
        return self._gradients
