"""A model that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.backend.base
import onnx.checker

from .. import arrays
from ..errors import DtypeError, NoImplementation, OptionError, ShapeError
from .messages import array_of, dtype_of, extents_of
from .node import Node

Array = np.ndarray


class Model(onnx.backend.base.BackendRep):
    """An ONNX model, ready to run any number of times.

    Made by `load`.

    Attributes
    ----------
    inputs, outputs : list of str
        Names of the tensors that `run` takes and returns, in order. Inputs that the model itself has a
        value for are not among them.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
        if graph.sparse_initializer:
            raise NoImplementation("sparse initialisers are not covered")
        self._constants = {t.name: array_of(f"initialiser {t.name!r}", t) for t in graph.initializer}
        self._declared = {i.name: i for i in graph.input}
        self.inputs = [name for name in self._declared if name not in self._constants]
        self.outputs = [o.name for o in graph.output]
        for name, info in self._declared.items():
            if info.type.WhichOneof("value") not in (None, "tensor_type"):
                raise NoImplementation(
                    f"input {name!r} is a {info.type.WhichOneof('value')}; only tensors are covered"
                )
        extents = ((name, extents_of(info)) for name, info in self._declared.items())
        ranks = {name: len(found) for name, found in extents if found is not None}
        ranks.update((name, array.ndim) for name, array in self._constants.items())
        context = onnx.checker.C.CheckerContext()
        context.ir_version = proto.ir_version
        context.opset_imports = {**opsets, "": opsets.get("ai.onnx", 1)}  # two names of one domain
        self._nodes = [Node.of(node, i, opsets, ranks, context) for i, node in enumerate(graph.node)]
        self._spent = self._order()

    def _order(self) -> list[set[str]]:
        """For each node, the tensors that are not read after it; each must be made before it is read."""
        made = {name: i for i, node in enumerate(self._nodes) for name in node.outputs}
        known = {"", *self._declared, *self._constants}
        for node in self._nodes:
            for name in node.inputs:
                if name not in known and name not in made:
                    raise OptionError(f"{node.label} reads {name!r}, which nothing makes")
                if name not in known:
                    raise OptionError(
                        f"{node.label} reads {name!r} before {self._nodes[made[name]].label} makes it: "
                        "the graph has a cycle, or is not sorted"
                    )
            known.update(node.outputs)
        for name in self.outputs:
            if not name or name not in known:
                raise OptionError(f"the model returns {name!r}, which nothing makes")
        spent, kept = [], {"", *self.outputs}
        for node in reversed(self._nodes):
            spent.append({*node.inputs, *node.outputs} - kept)
            kept |= spent[-1]
        return spent[::-1]

    def run(  # type: ignore[override]  # a list, which the interface's users take as well
        self, inputs: Mapping[str, Any] | Sequence[Any], **kwargs: Any
    ) -> list[Array]:
        """Run the model.

        Parameters
        ----------
        inputs : dict or sequence
            Arrays by name, or in the order of `inputs`. A dict may also replace a value that the model
            has, where the model declares that tensor as an input.
        **kwargs
            Accepted for `onnx.backend`, without meaning here.

        Returns
        -------
        list of ndarray
            In the order of `outputs`; they share no memory with the inputs or the model.

        Raises
        ------
        ShapeError, DtypeError, OptionError, NoImplementation
            All are `ConvkitError`. Where a node fails, the message begins with it.
        """
        given = self._given(inputs)
        tensors: dict[str, Any] = {**self._constants, **given, "": None}
        for node, spent in zip(self._nodes, self._spent):
            tensors.update(zip(node.outputs, node.run([tensors[name] for name in node.inputs])))
            for name in spent:
                del tensors[name]
        foreign = [*self._constants.values(), *given.values()]
        results = (tensors[name] for name in self.outputs)
        # A result is read-only where it is a constant of a node.
        return [
            r.copy() if not r.flags.writeable or any(np.may_share_memory(r, f) for f in foreign) else r
            for r in results
        ]

    def _given(self, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Array]:
        """The inputs by name, each checked against what the model declares."""
        if not isinstance(inputs, Mapping):
            if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Sequence):
                raise DtypeError(
                    f"inputs must be a dict or a sequence of arrays, not {type(inputs).__name__}"
                )
            if len(inputs) != len(self.inputs):
                raise OptionError(
                    f"the model takes {len(self.inputs)} inputs {self.inputs}, not {len(inputs)}"
                )
            inputs = dict(zip(self.inputs, inputs))
        for name in self.inputs:
            if name not in inputs:
                raise OptionError(f"missing input {name!r}; the model takes {self.inputs}")
        symbols: dict[str, int] = {}
        given = {}
        for name, value in inputs.items():
            if name not in self._declared:
                raise OptionError(f"unknown input {name!r}; the model takes {self.inputs}")
            given[name] = _checked(self._declared[name], value, symbols)
        return given


def _checked(info: onnx.ValueInfoProto, value: Any, symbols: dict[str, int]) -> Array:
    """An input as an array of the declared dtype and shape; `symbols` fill up with the named extents."""
    label = f"input {info.name!r}"
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if arrays.kind_of(label, value).device != "cpu":
        raise DtypeError(f"{label} must live on the CPU")
    array = arrays.view(label, value)
    code = info.type.tensor_type.elem_type
    if code not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        dtype = dtype_of(label, code)
        if array.dtype != dtype:
            raise DtypeError(f"{label} must have dtype {dtype}, not {array.dtype}")
    extents = extents_of(info)
    if extents is not None:
        wanted = [
            symbols.setdefault(e, n) if isinstance(e, str) else n if e is None else e
            for e, n in zip(extents, array.shape)
        ]
        if len(extents) != array.ndim or wanted != list(array.shape):
            known = f", where {symbols}" if symbols else ""
            raise ShapeError(f"{label} must have shape {tuple(extents)}{known}, not {array.shape}")
    return array
