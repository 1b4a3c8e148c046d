"""Layers of networks, under their public name, and how their parameters begin; see docs/networks.md."""

from .network.init import Constant, FanInUniform, He, Init, Normal
from .network.layers import Conv, Dropout, Flatten, Layer, Linear, Lrn, MaxPool, Passes, Relu, Use

__all__ = [
    "Constant", "Conv", "Dropout", "FanInUniform", "Flatten", "He", "Init", "Layer", "Linear", "Lrn",
    "MaxPool", "Normal", "Passes", "Relu", "Use",
]  # fmt: skip
