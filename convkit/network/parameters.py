"""The arrays of a network by name: they are written into, never replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, overload

import numpy as np

from ..arrays import Array, assign, empty
from ..errors import OptionError, unknown
from ..op import Shape
from .layers import Layer


class Parameters(Mapping[str, Any]):
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

    def __init__(self, kind: str, arrays: Mapping[str, Array]) -> None:
        self._kind = kind
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Any:
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


class Kept:
    """An attribute of a network that is never replaced: `params`, `grads` or `velocities`.

    The network has its value in a dict, `_arrays`.

    Parameters
    ----------
    doc : str
        Its docstring.
    """

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, network: None, owner: type) -> Kept: ...

    @overload
    def __get__(self, network: object, owner: type) -> Parameters: ...

    def __get__(self, network: Any, owner: type) -> Kept | Parameters:
        return self if network is None else network._arrays[self._name]

    def __set__(self, network: Any, value: Any) -> NoReturn:
        name = self._name
        raise OptionError(f"a network keeps its {name}; write into them: net.{name}[name][...] = array")


def initial(
    layers: Sequence[Layer], input_shape: Shape, num_classes: int, seed: int, dtype: str, device: str
) -> dict[str, Array]:
    """The first values of all parameters, by name.

    Each parameter has a random stream of its own, so that another layer leaves the others as they were.

    Parameters
    ----------
    layers : sequence of Layer
    input_shape : (C, H, W)
    num_classes, seed : int
    dtype, device : str
    """
    found: dict[str, Array] = {}
    shape: Shape = (1, *input_shape)
    for index, layer in enumerate(layers):
        parameters = layer.parameters(shape, num_classes)
        fan_in = int(np.prod(parameters["w"][0][1:])) if "w" in parameters else 1
        for which, (name, (w_shape, init)) in enumerate(parameters.items()):
            stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, which)))
            array = empty(w_shape, dtype, device)
            assign(array, init.fill(stream, w_shape, fan_in))
            found[f"{layer.name}.{name}"] = array
        shape = layer.output_shape(shape, num_classes)
    return found
