"""A node of a graph, bound to its row of the table."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.checker

from ..errors import ConvkitError, NoImplementation, OptionError, OutOfMemory
from . import operators  # noqa: F401  # so that the table has its rows
from .messages import require_valid, value_of
from .table import OPERATORS, Operator, known_operators

Array = np.ndarray


@dataclass(frozen=True)
class Node:
    """A node of the graph, bound to its operator and its attributes."""

    label: str
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(
        cls,
        proto: onnx.NodeProto,
        index: int,
        opsets: dict[str, int],
        ranks: dict[str, int],
        context: onnx.checker.C.CheckerContext,
    ) -> Node:
        """Bind a node; `ranks` are those that are known before the model runs."""
        domain = proto.domain or "ai.onnx"
        name = repr(proto.name) if proto.name else f"{index}, which makes {list(proto.output)},"
        opset = opsets.get(domain, "not imported")
        label = f"node {name} (operator {proto.op_type}, domain {domain}, opset {opset})"
        versions = [o for o in OPERATORS.get((domain, proto.op_type), ()) if o.since <= opsets.get(domain, 0)]
        if not versions:
            raise NoImplementation(f"{label} is not covered. Covered: {', '.join(known_operators())}")
        attributes = _attributes(label, versions[0], proto, context)
        found = [ranks[name] for name in proto.input[:2] if name in ranks]
        found += [2 + len(attributes["kernel_shape"])] if attributes.get("kernel_shape") else []
        for rank in found:
            if rank not in (versions[0].ranks or found):
                covered = " or ".join(map(str, versions[0].ranks))
                raise NoImplementation(
                    f"{label}: only inputs of {covered} dimensions are covered, not of {rank}"
                )
        return cls(label, versions[0], tuple(proto.input), tuple(proto.output), attributes)

    def run(self, inputs: list[Array | None]) -> list[Array | None]:
        """One result per output; None where the model has no name for it."""
        try:
            with np.errstate(all="ignore"):  # NaN and infinity propagate; they are no reason to warn
                results = self.operator.function(*inputs, **self.attributes)
                results = results if isinstance(results, tuple) else (results,)
                if len(results) < len(self.outputs):
                    raise NoImplementation(f"only the first {len(results)} outputs are covered")
                return [
                    None if not name else np.asarray(made() if callable(made) else made)
                    for name, made in zip(self.outputs, results)
                ]
        except ConvkitError as error:
            raise type(error)(f"{self.label}: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            shapes = [None if x is None else f"{x.dtype} {x.shape}" for x in inputs]
            kind = OutOfMemory if isinstance(error, MemoryError) else OptionError
            raise kind(f"{self.label}: {error}; its inputs are {shapes}") from error


def _attributes(
    label: str, operator: Operator, proto: onnx.NodeProto, context: onnx.checker.C.CheckerContext
) -> dict[str, Any]:
    """The operator's attributes with the node's values, as far as they are covered."""
    attributes = dict(operator.attributes)
    for entry in proto.attribute:
        if entry.name not in attributes:
            raise NoImplementation(
                f"{label}: its attribute {entry.name!r} is not covered. Covered are its attributes "
                f"{', '.join(attributes) or '(none)'}, and the operators {', '.join(known_operators())}"
            )
        attributes[entry.name] = entry
    for name, value in attributes.items():
        if value is inspect.Parameter.empty:
            raise OptionError(f"{label} lacks the attribute {name!r}")
    require_valid(label, onnx.checker.check_node, proto, context)  # so that each value has its type
    attributes.update((entry.name, value_of(label, entry)) for entry in proto.attribute)
    for name, choices in operator.choices.items():
        if attributes[name] not in choices:
            raise OptionError(f"{label}: {name} must be one of {choices}, not {attributes[name]!r}")
    return attributes
