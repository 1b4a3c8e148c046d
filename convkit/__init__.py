"""convkit: convolution, ReLU, LRN and max-pooling kernels, forward and backward, in a thin layer."""

from . import layers
from .cpu import threads as _threads  # threadpoolctl's limits hold from the first call on
from .cuda.emulate import emulate
from .discovery import register
from .errors import (
    ConvkitError,
    ConvkitWarning,
    DtypeError,
    NoImplementation,
    NotChecked,
    OptionError,
    OutOfMemory,
    ShapeError,
    UncheckedWarning,
)
from .network.alexnet import AlexNet
from .network.loss import Loss, PendingLoss
from .network.network import Network
from .network.update import Update
from .ops.avgpool2d import AvgPool2d, avgpool2d_dgrad, avgpool2d_fprop
from .ops.channel_sum import ChannelSum
from .ops.conv2d import (
    Conv2d,
    conv2d_bgrad,
    conv2d_dgrad,
    conv2d_dgrad_relu,
    conv2d_fprop,
    conv2d_wgrad,
    conv2d_wgrad_bgrad,
)
from .ops.crop_images import CropImages, crop_images
from .ops.dropout import dropout_dgrad, dropout_fprop
from .ops.elementwise import Elementwise
from .ops.linear import (
    Linear,
    linear_bgrad,
    linear_dgrad,
    linear_dgrad_wgrad_sgd,
    linear_fprop,
    linear_wgrad,
    linear_wgrad_sgd,
)
from .ops.loss_scale import LossScale, adjust_loss_scale, rescale
from .ops.loss_summary import loss_summary
from .ops.lrn import LRN, lrn_dgrad, lrn_fprop
from .ops.lrn_maxpool2d import lrn_maxpool2d_dgrad, lrn_maxpool2d_fprop
from .ops.maxpool2d import Pool2d, maxpool2d_dgrad, maxpool2d_fprop
from .ops.relu import relu_dgrad, relu_fprop
from .ops.reorder import reorder
from .ops.sgd import sgd_momentum
from .ops.softmax_xent import SoftmaxXent, label_rank, softmax_xent_dgrad, softmax_xent_fprop
from .registry import implementations, implements, use
from .version import __version__

Pointwise = Elementwise  # its name before
