"""convkit's ops as operators of PyTorch, and in the place of a model's layers.

    y = convkit.torch.conv2d(x, w, padding=1)                      # as torch.nn.functional's, with autograd
    with convkit.torch.swap(model, conv2d="mine") as handle:       # layers of any nn.Module
        print(handle)
    print(convkit.torch.compare(model, batch))                     # as exact as PyTorch? layer by layer

PyTorch is an optional neighbour: `pip install 'convkit[torch]'`. Nothing in convkit imports this package;
docs/torch.md describes it.
"""

from __future__ import annotations

from ..errors import MissingExtra

try:
    import torch as _torch
except ImportError as error:
    raise MissingExtra("convkit.torch", "PyTorch", "torch") from error

from .comparison import Comparison, compare
from .operators.conv2d import conv2d
from .operators.linear import linear
from .operators.lrn import local_response_norm
from .operators.pooling import avg_pool2d, max_pool2d
from .operators.relu import relu
from .swapping import Handle, swap, unswap

__all__ = [
    "Comparison", "Handle", "avg_pool2d", "compare", "conv2d", "linear", "local_response_norm", "max_pool2d",
    "relu", "swap", "unswap",
]  # fmt: skip
