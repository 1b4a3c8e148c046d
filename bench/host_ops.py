"""The tiny calls of `bench/host.py`: each op by its public function, and what PyTorch has for the same.

So small that the arithmetic takes well below a microsecond: what is left is what a call costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import convkit as ck
from convkit import arrays
from convkit.layouts import Tensor
from convkit.op import OPS

Call = Callable[[], Any]
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
POOL = {"window": 3, "stride": 2}
LRN = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
P, SEED = 0.5, 1


def tensors() -> dict[str, np.ndarray]:
    """The inputs by name; what an op makes of others (argmax, probabilities) is made of them."""
    rng = np.random.default_rng(0)
    shapes = {
        "x": (1, 1, 3, 3), "w": (1, 1, 3, 3), "b": (1,), "dy": (1, 1, 1, 1),
        "image": (1, 5, 3, 3), "dpool": (1, 5, 1, 1), "row": (1, 4), "matrix": (4, 4), "drow": (1, 4),
    }  # fmt: skip
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def convkit_calls() -> dict[str, Call]:
    """By op, a call of its public function on NumPy arrays, with results in new memory."""
    t = tensors()
    x, w, b, dy, image, dpool = (t[n] for n in ("x", "w", "b", "dy", "image", "dpool"))
    row, drow, matrix = t["row"], t["drow"], t["matrix"]
    labels, velocity = np.array([2]), np.zeros_like(matrix)
    argmax = np.zeros(dpool.shape, np.uint8)
    probs = np.full((1, 4), 0.25, np.float32)
    loss, rank = np.ones(1, np.float32), np.zeros(1, np.int32)
    wide = arrays.empty((1, 16, 2, 2), "float32")
    wide.fill(1)
    blocked = Tensor.empty(wide.shape, "float32", "nChw16c")
    both = {"lrn": LRN, "pool": POOL}
    stored, crop = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 3), np.int32)
    colours = np.zeros((3, 1, 1), np.float32)
    calls: dict[str, Call] = {
        "conv2d_fprop": lambda: ck.conv2d_fprop(x, w, b),
        "conv2d_dgrad": lambda: ck.conv2d_dgrad(dy, w, x.shape),
        "conv2d_dgrad_relu": lambda: ck.conv2d_dgrad_relu(dy, w, x),
        "conv2d_wgrad": lambda: ck.conv2d_wgrad(x, dy, w.shape),
        "conv2d_bgrad": lambda: ck.conv2d_bgrad(dy),
        "conv2d_wgrad_bgrad": lambda: ck.conv2d_wgrad_bgrad(x, dy, w.shape),
        "relu_fprop": lambda: ck.relu_fprop(x),
        "relu_dgrad": lambda: ck.relu_dgrad(x, x),
        "lrn_fprop": lambda: ck.lrn_fprop(image, **LRN),
        "lrn_dgrad": lambda: ck.lrn_dgrad(image, image, **LRN),
        "maxpool2d_fprop": lambda: ck.maxpool2d_fprop(image, **POOL),
        "maxpool2d_dgrad": lambda: ck.maxpool2d_dgrad(dpool, argmax, image.shape, **POOL),
        "avgpool2d_fprop": lambda: ck.avgpool2d_fprop(image, **POOL),
        "avgpool2d_dgrad": lambda: ck.avgpool2d_dgrad(dpool, image.shape, **POOL),
        "reorder": lambda: ck.reorder(wide, out=blocked),
        "crop_images": lambda: ck.crop_images(stored, crop, colours, size=2),
        "lrn_maxpool2d_fprop": lambda: ck.lrn_maxpool2d_fprop(image, **both),
        "lrn_maxpool2d_dgrad": lambda: ck.lrn_maxpool2d_dgrad(dpool, argmax, image, **both),
        "linear_fprop": lambda: ck.linear_fprop(row, matrix),
        "linear_dgrad": lambda: ck.linear_dgrad(drow, matrix),
        "linear_wgrad": lambda: ck.linear_wgrad(row, drow),
        "linear_bgrad": lambda: ck.linear_bgrad(drow),
        "linear_wgrad_sgd": lambda: ck.linear_wgrad_sgd(row, drow, matrix, velocity, **SGD),
        "linear_dgrad_wgrad_sgd": lambda: ck.linear_dgrad_wgrad_sgd(drow, matrix, row, velocity, **SGD),
        "dropout_fprop": lambda: ck.dropout_fprop(row, p=P, seed=SEED),
        "dropout_dgrad": lambda: ck.dropout_dgrad(drow, p=P, seed=SEED),
        "softmax_xent_fprop": lambda: ck.softmax_xent_fprop(row, labels),
        "softmax_xent_dgrad": lambda: ck.softmax_xent_dgrad(probs, labels),
        "label_rank": lambda: ck.label_rank(row, labels),
        "loss_summary": lambda: ck.loss_summary(loss, rank),
        "rescale": lambda: ck.rescale(matrix, loss, rank),
        "adjust_loss_scale": lambda: ck.adjust_loss_scale(loss, rank, rank),
        "sgd_momentum": lambda: ck.sgd_momentum(matrix, matrix, velocity, **SGD),
    }
    return {op: calls[op] for op in OPS}


def torch_calls(torch: Any) -> dict[str, Call]:
    """By op, PyTorch's call for the same problem; the ops for which it has no single one are left out.

    Gradients by the functions that autograd itself calls; where there is none, by autograd, on a graph that
    is kept.
    """
    t = {name: torch.from_numpy(array.copy()) for name, array in tensors().items()}
    x, w, b, dy, image, dpool = (t[n] for n in ("x", "w", "b", "dy", "image", "dpool"))
    row, drow, matrix = t["row"], t["drow"], t["matrix"]
    labels = torch.tensor([2])
    F, aten = torch.nn.functional, torch.ops.aten
    one, none, three = [1, 1], [0, 0], [3, 3]
    indices = torch.zeros(dpool.shape, dtype=torch.int64)
    mask = torch.ones(row.shape, dtype=torch.bool)

    def convolution_gradients(*wanted: bool) -> Any:
        return aten.convolution_backward(dy, x, w, [1], one, none, one, False, none, 1, list(wanted))

    leaf = image.clone().requires_grad_()
    lrn = F.local_response_norm(leaf, **LRN)
    logits = row.clone().requires_grad_()
    loss = F.cross_entropy(logits, labels)
    parameter = matrix.clone().requires_grad_()
    parameter.grad = matrix.clone()
    sgd = torch.optim.SGD([parameter], **SGD)
    return {
        "conv2d_fprop": lambda: F.conv2d(x, w, b),
        "conv2d_dgrad": lambda: convolution_gradients(True, False, False),
        "conv2d_wgrad": lambda: convolution_gradients(False, True, False),
        "conv2d_bgrad": lambda: dy.sum((0, 2, 3)),
        "conv2d_wgrad_bgrad": lambda: convolution_gradients(False, True, True),
        "relu_fprop": lambda: F.relu(x),
        "relu_dgrad": lambda: aten.threshold_backward(x, x, 0),
        "lrn_fprop": lambda: F.local_response_norm(image, **LRN),
        "lrn_dgrad": lambda: torch.autograd.grad(lrn, leaf, image, retain_graph=True),
        "maxpool2d_fprop": lambda: F.max_pool2d(image, 3, 2, return_indices=True),
        "maxpool2d_dgrad": lambda: aten.max_pool2d_with_indices_backward(
            dpool, image, three, [2, 2], none, one, False, indices
        ),
        "avgpool2d_fprop": lambda: F.avg_pool2d(image, 3, 2),
        "avgpool2d_dgrad": lambda: aten.avg_pool2d_backward(
            dpool, image, three, [2, 2], none, False, True, None
        ),
        "linear_fprop": lambda: F.linear(row, matrix),
        "linear_dgrad": lambda: drow @ matrix,
        "linear_wgrad": lambda: drow.T @ row,
        "linear_bgrad": lambda: drow.sum(0),
        "dropout_fprop": lambda: F.dropout(row, P, training=True),
        "dropout_dgrad": lambda: aten.native_dropout_backward(drow, mask, 2.0),
        "softmax_xent_fprop": lambda: F.cross_entropy(row, labels, reduction="none"),
        "softmax_xent_dgrad": lambda: torch.autograd.grad(loss, logits, retain_graph=True),
        "sgd_momentum": sgd.step,
    }
