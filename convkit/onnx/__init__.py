"""ONNX models on convkit's ops: load one and run it, or let ONNX's own test runner drive it.

    model = convkit.onnx.load("alexnet.onnx")
    (probs,) = model.run({"data_0": x})

Covered are the operators that convkit has ops for, and the shape plumbing between them. `table.py` says what
a row of an operator is; `operators/` has the rows. A model that uses anything else is refused when it is
loaded, by name.

In 16 bits an operator rounds to storage once, at its end: what is composed of several steps takes them in
float32, a loss in float64. NaN and infinity propagate, without a warning.

ONNX is an optional neighbour: `pip install 'convkit[onnx]'`. Nothing in convkit imports this module.
"""

from __future__ import annotations

from ..errors import MissingExtra

try:
    import onnx.backend.base  # the package: `convkit.onnx` is another name
    import onnx.checker
    import onnx.helper
    import onnx.numpy_helper
except ImportError as error:
    raise MissingExtra("convkit.onnx", "the package onnx", "onnx") from error

from .backend import Backend
from .model import Model
from .reading import load
from .table import OPERATORS, TRAINING, Operator, known_operators, operator

__all__ = ["OPERATORS", "TRAINING", "Backend", "Model", "Operator", "known_operators", "load", "operator"]
