"""ONNX's standard interface of a backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.backend.base
import onnx.helper

from ..errors import ConvkitError, NoImplementation, OptionError
from .messages import type_of
from .model import Model
from .reading import load
from .table import TRAINING

Array = np.ndarray


class Backend(onnx.backend.base.Backend):
    """convkit as ONNX's standard backend interface, which `onnx.backend.test` can drive.

    Examples
    --------
    >>> onnx.backend.test.BackendTest(convkit.onnx.Backend, __name__)
    """

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is the CPU."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def _on(cls, device: str) -> None:
        if not cls.supports_device(device):
            raise NoImplementation(f"convkit.onnx runs on the CPU, not on {device!r}")

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every node of the model is covered."""
        try:
            cls.prepare(model, device, **kwargs)
        except ConvkitError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Model:
        """`load`, for a device."""
        cls._on(device)
        return load(model)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Array, ...]:
        """Load a model and run it once."""
        return tuple(cls.prepare(model, device, **kwargs).run(inputs))

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Array, ...]:
        """Run a single node.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of arrays
            One for each input that the node names.
        device : str
        outputs_info
            Accepted for the interface; the results say it themselves.
        **kwargs
            `opset_version`: that of ONNX's own domain; by default the newest that the onnx package knows.
        """
        cls._on(device)
        names = [name for name in node.input if name]
        values = [np.asarray(value) for value in inputs]
        if len(names) != len(values):
            raise OptionError(f"the node takes {len(names)} inputs {names}, not {len(values)}")
        described = [
            onnx.helper.make_tensor_value_info(name, type_of(f"input {name!r}", value.dtype), value.shape)
            for name, value in zip(names, values)
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        opsets = {TRAINING: 1, "": kwargs.get("opset_version") or onnx.defs.onnx_opset_version()}
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "node", described, outputs),
            opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        )
        return tuple(Model(model).run(values))
