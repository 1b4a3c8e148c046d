"""Training in a candidate's process: what the candidate gets there is not copied, so its time counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ... import arrays, devices, registry
from ...cuda.emulate import Emulator
from ...network.alexnet import AlexNet
from ...registry import Implementation


def emulated(implementation: Implementation, emulator: Emulator) -> Implementation:
    """A kernel file as an implementation for the CPU: that one op is emulated, and nothing around it."""
    run = implementation.run

    def emulate(problem: Any, *tensors: Any, **options: Any) -> None:
        with devices.instead(emulator):
            run(problem, *tensors, **options)

    return replace(
        implementation, name=f"{implementation.name} (emulated)", device="cpu", run=emulate, prepare=None
    )


class Training:
    """A network in training, and a second one with the same implementations to ask for gradients.

    Parameters
    ----------
    implementations : sequence of Implementation
        Those of the candidate's file; they are registered by now.
    is_emulated : bool
        Whether they are kernel files that run under the emulator.
    told : dict
        Of the network: "network", the arguments of `AlexNet`; "names", for each layer the names of
        implementations by op; "timeout", seconds of a launch under the emulator.
    """

    def __init__(self, implementations: Sequence[Implementation], is_emulated: bool, told: Any) -> None:
        if is_emulated:
            emulator = Emulator(timeout=told["timeout"])
            for one in implementations:
                registry.add(emulated(one, emulator))
        self.net, self._probe = (AlexNet(**told["network"]) for _ in range(2))
        for net in (self.net, self._probe):
            for layer, names in told["names"].items():
                net.use(layer, **names)

    def step(self, x: np.ndarray, labels: np.ndarray, lr: float) -> dict[str, Any]:
        """One step: the loss before it, how many images were wrong, and whether the loss is finite."""
        loss = self.net.step(x, labels, lr=lr)
        return {"loss": float(loss), "errors": int(loss.errors), "finite": bool(loss.finite)}

    def gradients(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        weights: dict[str, np.ndarray],
        gradients: dict[str, np.ndarray],
    ) -> dict[str, Any]:
        """Fill `gradients`, of a batch at these weights."""
        probe = self._probe

        def keep(found: Any, finite: Any) -> bool:
            for name, gradient in found.items():
                gradients[name][...] = _host(gradient)
            return False  # nothing is updated

        for name, values in weights.items():
            arrays.assign(probe.params[name], values)
        probe.dropout_offset = 0  # everyone who is asked drops the same
        probe.before_update = keep
        loss = probe.step(x, labels)
        return {"loss": float(loss)}

    def weights(self, weights: dict[str, np.ndarray]) -> dict[str, Any]:
        """Fill `weights`."""
        for name, there in weights.items():
            there[...] = _host(self.net.params[name])
        return {}


def _host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()
