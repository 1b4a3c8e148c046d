"""The table of operators: one row says how an operator of ONNX is computed by convkit's ops.

A row is a short function under `@operator`. Its positional parameters are the inputs, its keyword-only
parameters the attributes with their defaults. An output that costs something and may not be wanted is
returned as a function that makes it. The rows stand in `operators/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TRAINING = "ai.onnx.preview.training"


@dataclass(frozen=True)
class Operator:
    """How one operator is computed, from an opset version on.

    Attributes
    ----------
    name, domain : str
        As in ONNX; the domain of ONNX itself is "ai.onnx".
    since : int
        First opset version with this meaning.
    function : callable
        `function(*inputs, **attributes)` returns an array or a tuple of them.
    choices : dict
        Attributes that take a few values only, which are checked when a model is loaded.
    ranks : tuple of int
        Numbers of dimensions that the first two inputs may have; any, if empty.
    """

    name: str
    domain: str
    since: int
    function: Callable[..., Any]
    choices: dict[str, tuple] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes with their defaults; `inspect.Parameter.empty` where there is none."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


OPERATORS: dict[tuple[str, str], list[Operator]] = {}


def operator(
    name: str,
    *,
    since: int = 1,
    domain: str = "ai.onnx",
    choices: dict[str, tuple] | None = None,
    ranks: tuple[int, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that registers a function as an operator; see `Operator` for the arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        versions = OPERATORS.setdefault((domain, name), [])
        versions.append(Operator(name, domain, since, function, choices or {}, ranks))
        versions.sort(key=lambda version: -version.since)
        return function

    return register


def known_operators() -> list[str]:
    """Names of the covered operators, those of another domain than ONNX's own with it."""
    return sorted(name if domain == "ai.onnx" else f"{domain}.{name}" for domain, name in OPERATORS)
