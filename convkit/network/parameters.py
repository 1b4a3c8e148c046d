"""The arrays of a network by name: they are written into, never replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from ..errors import OptionError, unknown


class Parameters(Mapping[str, np.ndarray]):
    """A network's parameters, their gradients or their velocities: arrays by name, in the layers' order.

    A network's plans are bound to these very arrays. So values are written into an array,
    ``net.params["fc8.w"][...] = values``, and what would put another array into its place is refused.

    Parameters
    ----------
    kind : {"params", "grads", "velocities"}
        What the network calls them.
    arrays : mapping of str to ndarray
        "conv1.w", "conv1.b", ...; on a GPU CuPy arrays.
    """

    def __init__(self, kind: str, arrays: Mapping[str, np.ndarray]) -> None:
        self._kind = kind
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in self.items())
        return f"<{self._kind} {{{shapes}}}>"

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self}

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._arrays:
            raise unknown(f"name in net.{self._kind}", name, self._arrays)
        if value is not self._arrays[name]:  # it is after `net.params["fc8.w"] *= 2`
            raise OptionError(
                f'a network keeps its arrays; write into this one: net.{self._kind}["{name}"][...] = array'
            )

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise OptionError(
            f"net.{self._kind} keeps its names and arrays; write into them: "
            f"net.{self._kind}[name][...] = array"
        )

    __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse
