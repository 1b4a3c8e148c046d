"""convkit: convolution, ReLU, LRN and max-pooling kernels, forward and backward, in a thin layer."""

from .cpu import threads as _threads  # threadpoolctl's limits hold from the first call on
from .cuda.emulate import emulate
from .errors import ConvkitError, DtypeError, NoImplementation, OptionError, OutOfMemory, ShapeError
from .fused import (
    conv2d_dgrad_relu,
    linear_dgrad_wgrad_sgd,
    linear_wgrad_sgd,
    lrn_maxpool2d_dgrad,
    lrn_maxpool2d_fprop,
    reorder,
)
from .geometry import LRN, ChannelSum, Conv2d, Linear, Pointwise, Pool2d, SoftmaxXent
from .network import layers
from .network.alexnet import AlexNet
from .network.loss import Loss
from .network.network import Network
from .network.update import Update
from .ops import (
    conv2d_bgrad,
    conv2d_dgrad,
    conv2d_fprop,
    conv2d_wgrad,
    dropout_dgrad,
    dropout_fprop,
    label_rank,
    linear_bgrad,
    linear_dgrad,
    linear_fprop,
    linear_wgrad,
    loss_summary,
    lrn_dgrad,
    lrn_fprop,
    maxpool2d_dgrad,
    maxpool2d_fprop,
    relu_dgrad,
    relu_fprop,
    sgd_momentum,
    softmax_xent_dgrad,
    softmax_xent_fprop,
)
from .registry import implementations, implements, register, use

__version__ = "0.1.0"
