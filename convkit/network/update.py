"""The update rule: SGD with momentum, and what it does to each parameter of a network."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import OptionError
from ..options import finite, flag

_NUMBERS = ("lr", "momentum", "weight_decay", "bias_decay", "bias_lr_multiplier")


class Rates(Mapping[str, float]):
    """Learning rates by name or pattern, in the order given; they cannot be changed."""

    def __init__(self, rates: Mapping[str, float] | None = None) -> None:
        self._rates = dict(rates or {})

    def __getitem__(self, name: str) -> float:
        return self._rates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rates)

    def __len__(self) -> int:
        return len(self._rates)

    def __hash__(self) -> int:
        return hash(tuple(self._rates.items()))

    def __repr__(self) -> str:
        return repr(self._rates)


@dataclass(frozen=True)
class Update:
    """SGD with momentum: its rates, which parameters have rates of their own, which are frozen.

    Parameters are named "conv1.w", "conv1.b", ... A pattern has ``*``, ``?`` or ``[...]`` in it, as for file
    names: "conv1.*" are the parameters of a layer, "*.b" all biases.

    Parameters
    ----------
    lr : float
        Learning rate of the weights, unless a step is given another one.
    momentum, weight_decay, bias_decay : float
        Momentum of all parameters; decay of weights and of biases.
    bias_lr_multiplier : float
        A bias learns at this times the rate of the weights ...
    bias_lr_fixed : float, optional
        ... or at this rate throughout, in every layer but the first.
    lr_in_velocity : bool
        Convention of `convkit.sgd_momentum`.
    rates : mapping of str to float
        Learning rates by parameter name or pattern. Such a rate is used as it is: it comes before a step's
        `lr` and before the rules for biases. A parameter's own name comes before a pattern; among the
        patterns that fit it, the last one given counts.
    frozen : tuple of str
        Names or patterns of parameters that a step does not change at all: no gradient step, no momentum,
        no weight decay; their velocities stay as they are. It comes before `rates`.

    Raises
    ------
    OptionError
        For a number that is not finite or is negative, and for what is not of the type above.

    Examples
    --------
    The first layer's weights in the last epochs of 2012, while all others go on at 1e-4, and its end:

    >>> slow = replace(net.update, rates={"conv1.w": 1e-5})  # dataclasses.replace
    >>> frozen = replace(net.update, frozen=("conv1.*",))
    >>> for epoch in range(51, 79):
    ...     if epoch in (67, 72):
    ...         net.update = slow if epoch == 67 else frozen
    ...     for x, labels in batches(epoch):
    ...         net.step(x, labels, lr=1e-4)
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_decay: float = 0.0
    bias_lr_multiplier: float = 1.0
    bias_lr_fixed: float | None = None
    lr_in_velocity: bool = True
    rates: Mapping[str, float] = field(default_factory=Rates)
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)  # the dataclass is frozen

        for name in _NUMBERS:
            put(name, number(name, getattr(self, name)))
        if self.bias_lr_fixed is not None:
            put("bias_lr_fixed", number("bias_lr_fixed", self.bias_lr_fixed))
        put("lr_in_velocity", flag("lr_in_velocity", self.lr_in_velocity))
        if not isinstance(self.rates, Mapping):
            raise OptionError(f"rates must be a mapping of names to learning rates, not {self.rates!r}")
        put(
            "rates",
            Rates({_name("rates", n): number(f"rates[{n!r}]", rate) for n, rate in self.rates.items()}),
        )
        if not isinstance(self.frozen, (tuple, list)):
            raise OptionError(f"frozen must be a tuple of names or patterns, not {self.frozen!r}")
        put("frozen", tuple(_name("frozen", n) for n in self.frozen))

    def is_frozen(self, name: str) -> bool:
        """Whether a step leaves the parameter of that name as it is."""
        return any(_fits(name, pattern) for pattern in self.frozen)

    def options(self, name: str, lr: float, first_layer: str) -> dict[str, Any]:
        """What `convkit.sgd_momentum` is given for a parameter.

        Parameters
        ----------
        name : str
            "conv1.w", "fc8.b", ...
        lr : float
            Learning rate of this step.
        first_layer : str
            Name of the first layer with parameters, whose bias `bias_lr_fixed` passes over.

        Returns
        -------
        dict
            "lr" (None for a frozen parameter, which is not updated), "momentum", "weight_decay" and
            "lr_in_velocity".
        """
        return {
            "lr": None if self.is_frozen(name) else self._rate(name, lr, first_layer),
            "momentum": self.momentum,
            "weight_decay": self.bias_decay if _is_bias(name) else self.weight_decay,
            "lr_in_velocity": self.lr_in_velocity,
        }

    def _rate(self, name: str, lr: float, first_layer: str) -> float:
        if name in self.rates:
            return self.rates[name]
        fitting = [rate for pattern, rate in self.rates.items() if _fits(name, pattern)]
        if fitting:
            return fitting[-1]
        if not _is_bias(name):
            return lr
        if self.bias_lr_fixed is not None and name.rpartition(".")[0] != first_layer:
            return self.bias_lr_fixed
        return lr * self.bias_lr_multiplier

    def require(self, names: Iterable[str]) -> None:
        """Refuse a name or pattern of `rates` or `frozen` that fits none of a network's parameters.

        Parameters
        ----------
        names : iterable of str
            The network's parameters.

        Raises
        ------
        OptionError
            It lists the patterns that fit none, and the parameters.
        """
        known = list(names)
        for where, patterns in (("rates", self.rates), ("frozen", self.frozen)):
            idle = [p for p in patterns if not any(_fits(name, p) for name in known)]
            if idle:
                raise OptionError(
                    f"{where}: no parameter fits {', '.join(map(repr, idle))}; the network has "
                    f"{', '.join(known) or 'none'}"
                )


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "b"


def number(name: str, value: Any) -> float:
    """`value` as a finite float of at least 0."""
    if isinstance(value, (str, bytes, bool, np.bool_)):  # which float() takes
        raise OptionError(f"{name} must be a number, not {value!r}")
    return finite(name, value, 0)


def _name(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise OptionError(f"{where} names parameters: a name or a pattern is a str, not {value!r}")
    return value
