"""Every public op: it validates, lets dispatch choose an implementation, and returns the result.

Conventions, for all of them. Arrays are NumPy, CuPy, or any object with DLPack; the result is of the kind
of the first one, and NumPy (on a GPU CuPy) where its library is not known or cannot take it
(docs/arrays.md). They may be read-only or strided. Storage is float32, float64, float16 or bfloat16, the
same for all arrays of a call; the 16-bit types accumulate in float32. Layout is NCHW, weights are
(K, C/groups, R, S), and convolution is cross-correlation. NaN and infinity propagate: where Winograd is
picked, to some outputs more than they reach, and as NaN (docs/cpu.md).

Every op takes `impl`, the name of an implementation (`convkit.implementations(op)` lists them), and
`out`, an array, or a tuple of arrays where it returns several, that is filled and returned. A call that
is refused raises a `ConvkitError`, and has written nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import empty, kind_of, view
from .dispatch import Arguments, in_range, operation
from .errors import DtypeError, OptionError, ShapeError
from .geometry import (
    LRN,
    ChannelSum,
    Conv2d,
    Linear,
    LossSummary,
    Pointwise,
    Pool2d,
    SoftmaxXent,
    finite,
    flag,
    integer,
)

Array = Any


# ---------------------------------------------------------------------------------------------------
# Convolution
# ---------------------------------------------------------------------------------------------------
@operation
def conv2d_fprop(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    relu: bool = False,
    math: str | None = None,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """2-D convolution, forward.

    ``y[n,k,p,q] = b[k] + sum over c,r,s of x[n, c, p*stride + r*dilation - pad, ...] * w[k,c,r,s]``

    Parameters
    ----------
    x : array, (N, C, H, W)
    w : array, (K, C/groups, R, S)
    b : array, (K,), optional
    stride, dilation : int or (vertical, horizontal)
    padding : int, (vertical, horizontal), or ((top, bottom), (left, right))
        Zeros around the image.
    groups : int
        Channels and filters are split into so many independent parts.
    relu : bool
        Apply max(y, 0) before the result is stored.
    math : {"fp32", "tf32", "fp32-emulated"}, optional
        Coarsest arithmetic accepted for float32 data: "fp32" (the default) is true float32 throughout,
        "fp32-emulated" tensor cores with float32-grade error, "tf32" a 10-bit mantissa.
    impl, out
        See the module. The default may be Winograd, whose declared error is an RMS, not a bound for each
        element: beside an outlier, see "Winograd and outliers" in docs/cpu.md.

    Returns
    -------
    y : array, (N, K, P, Q)
        ``P = (H + top + bottom - ((R - 1) * dilation + 1)) // stride + 1``, Q likewise.

    Raises
    ------
    ShapeError, DtypeError, OptionError, NoImplementation
        All are `ConvkitError`, and a `ValueError` or `TypeError`.
    """
    a = Arguments("conv2d_fprop", x=x, w=w, b=b)
    problem = Conv2d.of(
        a.x.shape, a.w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl, math=math, relu=flag("relu", relu))


@operation
def conv2d_dgrad(
    dy: Array,
    w: Array,
    x_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    math: str | None = None,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """2-D convolution: gradient with respect to its input.

    Parameters
    ----------
    dy : array, (N, K, P, Q)
    w : array, (K, C/groups, R, S)
    x_shape : (N, C, H, W)
        Needed because several input sizes give the same output size where stride > 1.
    stride, padding, dilation, groups, math
        As in `conv2d_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
    """
    a = Arguments("conv2d_dgrad", dy=dy, w=w)
    problem = Conv2d.of(
        x_shape, a.w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def conv2d_wgrad(
    x: Array,
    dy: Array,
    w_shape: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    math: str | None = None,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """2-D convolution: gradient with respect to its weights, summed over the batch.

    Parameters
    ----------
    x : array, (N, C, H, W)
    dy : array, (N, K, P, Q)
    w_shape : (K, C/groups, R, S)
    stride, padding, dilation, groups, math
        As in `conv2d_fprop`.

    Returns
    -------
    dw : array, (K, C/groups, R, S)
        Zeros for an empty batch.
    """
    a = Arguments("conv2d_wgrad", x=x, dy=dy)
    problem = Conv2d.of(
        a.x.shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def conv2d_bgrad(dy: Array, *, impl: str | None = None, out: Array | None = None) -> Array:
    """2-D convolution: gradient with respect to its bias.

    Parameters
    ----------
    dy : array, (N, K, P, Q)

    Returns
    -------
    db : array, (K,)
        dy summed over images and pixels.
    """
    a = Arguments("conv2d_bgrad", dy=dy)
    return a.run(ChannelSum.of(a.dy.shape, 4, a.dtype), out=out, impl=impl)


# ---------------------------------------------------------------------------------------------------
# ReLU
# ---------------------------------------------------------------------------------------------------
@operation
def relu_fprop(x: Array, *, impl: str | None = None, out: Array | None = None) -> Array:
    """Rectified linear unit, max(x, 0), of an array of any shape. `out` may be `x` itself.

    Returns
    -------
    y : array, of the shape of x
        NaN where x is NaN.
    """
    a = Arguments("relu_fprop", x=x)
    return a.run(Pointwise(a.x.shape, a.dtype), out=out, impl=impl)


@operation
def relu_dgrad(dy: Array, y: Array, *, impl: str | None = None, out: Array | None = None) -> Array:
    """Gradient of the rectified linear unit: dy where the output y is positive, else 0.

    Parameters
    ----------
    dy, y : array, of any one shape
        y is the output of `relu_fprop`; its input serves as well. `out` may be either of them.

    Returns
    -------
    dx : array, of the shape of dy
        At y = 0 the gradient is 0, as everywhere. Where y is NaN it is dy, as in PyTorch.
    """
    a = Arguments("relu_dgrad", dy=dy, y=y)
    return a.run(Pointwise(a.dy.shape, a.dtype), out=out, impl=impl)


# ---------------------------------------------------------------------------------------------------
# Local response normalisation
# ---------------------------------------------------------------------------------------------------
@operation
def lrn_fprop(
    x: Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    groups: int = 1,
    region: str = "across_channels",
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Local response normalisation, forward.

    ``y = x * (k + alpha/n * sum of x^2 over the window)^-beta``

    alpha is divided by n, the elements of a whole window, also at the borders where part of the window
    lies outside: so do Caffe, cuda-convnet, cuDNN, PyTorch and ONNX. TensorFlow and the text of the 2012
    paper do not divide; pass ``alpha * size`` for theirs.

    Parameters
    ----------
    x : array, (N, C, H, W)
    size : int
        Extent of the window: channels [c - (size-1)//2, c + size//2].
    alpha, beta, k : float
        k must be positive. Squares of x must not overflow: in float32, |x| < 1.8e19.
    groups : int
        Windows never cross from one group of channels into the next (the two GPUs of 2012).
    region : {"across_channels", "within_channel"}
        "within_channel" sums over size x size pixels of one map instead, and n = size^2.

    Returns
    -------
    y : array, (N, C, H, W)
    """
    a = Arguments("lrn_fprop", x=x)
    problem = LRN.of(
        a.x.shape, size=size, alpha=alpha, beta=beta, k=k, groups=groups, region=region, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl)


@operation
def lrn_dgrad(
    dy: Array,
    x: Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    groups: int = 1,
    region: str = "across_channels",
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Local response normalisation: gradient with respect to its input.

    With ``d = k + alpha/n * sum of x^2``:
    ``dx = dy * d^-beta - 2*alpha*beta/n * x * sum of dy * x * d^(-beta-1)``, where the second sum is over
    the outputs whose window holds the element.

    Parameters
    ----------
    dy, x : array, (N, C, H, W)
        x is the input of `lrn_fprop`; nothing else needs to be kept for the backward pass.
    size, alpha, beta, k, groups, region
        As in `lrn_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
    """
    a = Arguments("lrn_dgrad", dy=dy, x=x)
    problem = LRN.of(
        a.x.shape, size=size, alpha=alpha, beta=beta, k=k, groups=groups, region=region, dtype=a.dtype
    )
    return a.run(problem, out=out, impl=impl)


# ---------------------------------------------------------------------------------------------------
# Max pooling
# ---------------------------------------------------------------------------------------------------
@operation
def maxpool2d_fprop(
    x: Array,
    *,
    window: Any = 3,
    stride: Any = 2,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    impl: str | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """2-D max pooling, forward.

    Parameters
    ----------
    x : array, (N, C, H, W)
    window, stride, dilation : int or (vertical, horizontal)
    padding : int, (vertical, horizontal), or ((top, bottom), (left, right))
        Smaller than the window's span. Padding never wins.
    ceil_mode : bool
        Round the output size up, so that the last window may overhang the image (Caffe, the 2012 code);
        a window that would begin behind the image is dropped, and one that is larger than the padded image
        is refused.

    Returns
    -------
    y : array, (N, C, P, Q)
        A window with a NaN gives NaN; one that sees padding alone, as a dilated one can, -inf.
    argmax : array of uint8, (N, C, P, Q)
        Position of the maximum in its window, r*S + s; of equal ones the first. uint16 or uint32 where
        the window has more than 256 or 65,536 taps.
    """
    a = Arguments("maxpool2d_fprop", x=x)
    problem = Pool2d.of(
        a.x.shape,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        dtype=a.dtype,
    )
    return a.run(problem, out=out, impl=impl)  # type: ignore[no-any-return]


@operation
def maxpool2d_dgrad(
    dy: Array,
    argmax: Array,
    x_shape: Any,
    *,
    window: Any = 3,
    stride: Any = 2,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """2-D max pooling: gradient with respect to its input.

    Parameters
    ----------
    dy : array, (N, C, P, Q)
    argmax : array of an integer dtype, (N, C, P, Q)
        The second result of `maxpool2d_fprop`.
    x_shape : (N, C, H, W)
    window, stride, padding, dilation, ceil_mode
        As in `maxpool2d_fprop`.

    Returns
    -------
    dx : array, (N, C, H, W)
        Each dy goes to the pixel that won; a pixel that won several windows gets their sum.

    Raises
    ------
    OptionError
        If argmax holds a position outside the window.
    """
    a = Arguments("maxpool2d_dgrad", dy=dy, argmax=argmax)
    problem = Pool2d.of(
        x_shape,
        window=window,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        dtype=a.dtype,
    )
    in_range("argmax", a.argmax, problem.R * problem.S, "a position in the window")
    return a.run(problem, out=out, impl=impl)


# ---------------------------------------------------------------------------------------------------
# Fully connected
# ---------------------------------------------------------------------------------------------------
@operation
def linear_fprop(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    relu: bool = False,
    math: str | None = None,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Fully connected layer, forward: ``y = x w^T + b``.

    Parameters
    ----------
    x : array, (N, C)
    w : array, (K, C)
    b : array, (K,), optional
    relu : bool
        Apply max(y, 0) before the result is stored.
    math
        As in `conv2d_fprop`.

    Returns
    -------
    y : array, (N, K)
    """
    a = Arguments("linear_fprop", x=x, w=w, b=b)
    return a.run(
        Linear.of(a.x.shape, a.w.shape, a.dtype), out=out, impl=impl, math=math, relu=flag("relu", relu)
    )


@operation
def linear_dgrad(
    dy: Array, w: Array, *, math: str | None = None, impl: str | None = None, out: Array | None = None
) -> Array:
    """Fully connected layer: gradient with respect to its input, ``dx = dy w``.

    Parameters
    ----------
    dy : array, (N, K)
    w : array, (K, C)

    Returns
    -------
    dx : array, (N, C)
    """
    a = Arguments("linear_dgrad", dy=dy, w=w)
    if a.dy.ndim != 2 or a.w.ndim != 2:
        raise ShapeError(f"dy must be (N, K) and w (K, C), not {a.dy.shape} and {a.w.shape}")
    problem = Linear.of((a.dy.shape[0], a.w.shape[1]), a.w.shape, a.dtype)
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def linear_wgrad(
    x: Array, dy: Array, *, math: str | None = None, impl: str | None = None, out: Array | None = None
) -> Array:
    """Fully connected layer: gradient with respect to its weights, ``dw = dy^T x``.

    Parameters
    ----------
    x : array, (N, C)
    dy : array, (N, K)

    Returns
    -------
    dw : array, (K, C)
        Summed over the batch; zeros for an empty one.
    """
    a = Arguments("linear_wgrad", x=x, dy=dy)
    if a.x.ndim != 2 or a.dy.ndim != 2:
        raise ShapeError(f"x must be (N, C) and dy (N, K), not {a.x.shape} and {a.dy.shape}")
    problem = Linear.of(a.x.shape, (a.dy.shape[1], a.x.shape[1]), a.dtype)
    return a.run(problem, out=out, impl=impl, math=math)


@operation
def linear_bgrad(dy: Array, *, impl: str | None = None, out: Array | None = None) -> Array:
    """Fully connected layer: gradient with respect to its bias, dy summed over the batch.

    Parameters
    ----------
    dy : array, (N, K)

    Returns
    -------
    db : array, (K,)
    """
    a = Arguments("linear_bgrad", dy=dy)
    return a.run(ChannelSum.of(a.dy.shape, 2, a.dtype), out=out, impl=impl)


# ---------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------
@operation
def dropout_fprop(
    x: Array,
    *,
    p: float,
    seed: int,
    offset: int = 0,
    scale: float | None = None,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Dropout: each element is zeroed with probability p, the others are multiplied by `scale`.

    The mask is not stored: it is a function of (seed, offset, index), so that the backward pass, another
    machine, or a replay of the run makes the same one. Element i takes word i % 4 of Philox4x32-10 with
    counter offset + i // 4 and key seed, and is dropped where that word is below p * 2^32.

    Parameters
    ----------
    x : array, of any shape
        `out` may be `x` itself.
    p : float
        Probability of a zero, 0 <= p <= 1.
    seed : int
        0 <= seed < 2^64.
    offset : int
        First counter, 0 <= offset < 2^63. A call uses ceil(size / 4) of them; start the next one behind.
    scale : float, optional
        1 / (1 - p) by default ("inverted" dropout: nothing to do at test time). The 2012 code has 1, and
        multiplies by 1 - p at test time.

    Returns
    -------
    y : array, of the shape of x

    Source
    ------
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    a = Arguments("dropout_fprop", x=x)
    return a.run(Pointwise(a.x.shape, a.dtype), out=out, impl=impl, **_dropout(p, seed, offset, scale))


@operation
def dropout_dgrad(
    dy: Array,
    *,
    p: float,
    seed: int,
    offset: int = 0,
    scale: float | None = None,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of `dropout_fprop` with the same p, seed, offset and scale: the same mask, applied to dy."""
    a = Arguments("dropout_dgrad", dy=dy)
    return a.run(Pointwise(a.dy.shape, a.dtype), out=out, impl=impl, **_dropout(p, seed, offset, scale))


def _dropout(p: float, seed: int, offset: int, scale: float | None) -> dict[str, Any]:
    p = finite("p", p, 0)
    if p > 1:
        raise OptionError(f"p must be a probability, not {p}")
    if scale is None:
        scale = 1 / (1 - p) if p < 1 else 0.0
    seed, offset = integer("seed", seed, 0), integer("offset", offset, 0)
    if seed >= 2**64 or offset >= 2**63:
        raise OptionError(f"seed must be below 2^64 and offset below 2^63, not {seed} and {offset}")
    return {"p": p, "seed": seed, "offset": offset, "scale": finite("scale", scale)}


# ---------------------------------------------------------------------------------------------------
# Softmax and cross-entropy
# ---------------------------------------------------------------------------------------------------
@operation
def softmax_xent_fprop(
    logits: Array, labels: Array, *, impl: str | None = None, out: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Softmax and its cross-entropy with the true classes.

    Parameters
    ----------
    logits : array, (N, K)
    labels : array of integers, (N,)
        True class of each row, 0 <= label < K. There is no `ignore_index`: a row is left out of the gradient
        by `dloss` = 0 in `softmax_xent_dgrad`, with any label that is a class, and out of a mean by its user.
        PyTorch's -100 is no class.

    Returns
    -------
    loss : array, (N,)
        ``-log(probs[n, labels[n]])``, for each row, in nats; not averaged. float32, or float64 for
        float64 logits. On a GPU, NaN where the label is no class.
    probs : array, (N, K)
        Softmax of each row; what the backward pass needs.

    Raises
    ------
    OptionError
        If a label is no class; not on a GPU, where to read the labels would be to wait for it.
    """
    a = Arguments("softmax_xent_fprop", logits=logits, labels=labels)
    problem = SoftmaxXent.of(a.logits.shape, a.dtype)
    in_range("labels", a.labels, problem.K, "a class")
    return a.run(problem, out=out, impl=impl)  # type: ignore[no-any-return]


@operation
def softmax_xent_dgrad(
    probs: Array,
    labels: Array,
    dloss: Array | None = None,
    *,
    impl: str | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of `softmax_xent_fprop` with respect to the logits.

    Parameters
    ----------
    probs : array, (N, K)
        The second result of `softmax_xent_fprop`.
    labels : array of integers, (N,)
        As in `softmax_xent_fprop`.
    dloss : array of real numbers, (N,), optional
        Gradient of each row's loss; 1/N, that of the mean loss, by default. It is cast to the dtype of the
        loss. 0 leaves the row out.

    Returns
    -------
    dlogits : array, (N, K)
        ``(probs - onehot(labels)) * dloss``. On a GPU, a row of NaN where the label is no class.

    Raises
    ------
    OptionError
        If a label is no class; not on a GPU.
    """
    if dloss is None:
        rows = view("probs", probs).shape[:1]  # an object with DLPack need not have a shape itself
        dloss = empty(rows, "float64", kind_of("probs", probs).device)
        dloss.fill(1 / max(1, dloss.size))
    a = Arguments("softmax_xent_dgrad", probs=probs, labels=labels, dloss=dloss)
    if not np.can_cast(a.dloss.dtype, np.float64, "same_kind"):
        raise DtypeError(f"dloss must be of real numbers, not of dtype {a.dloss.dtype}")
    problem = SoftmaxXent.of(a.probs.shape, a.dtype, name="probs")
    in_range("labels", a.labels, problem.K, "a class")
    with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity there
        return a.run(problem, out=out, impl=impl)


# ---------------------------------------------------------------------------------------------------
# Errors and losses of a batch
# ---------------------------------------------------------------------------------------------------
@operation
def label_rank(logits: Array, labels: Array, *, impl: str | None = None, out: Array | None = None) -> Array:
    """Number of classes that stand before the true one, for each row.

    A class stands before the label's where its logit is larger, or equal with a smaller index. So the
    label is the argmax where its rank is 0; a rank of at least 1 is a top-1 error, of at least 5 a top-5
    error.

    Parameters
    ----------
    logits : array, (N, K)
        Probabilities serve as well.
    labels : array of integers, (N,)
        True class of each row, 0 <= label < K.

    Returns
    -------
    rank : array of int32, (N,)
        K where any logit of the row is NaN. On a GPU also where the label is no class.

    Raises
    ------
    OptionError
        If a label is no class; not on a GPU.
    """
    a = Arguments("label_rank", logits=logits, labels=labels)
    problem = SoftmaxXent.of(a.logits.shape, a.dtype)
    in_range("labels", a.labels, problem.K, "a class")
    return a.run(problem, out=out, impl=impl)


@operation
def loss_summary(
    loss: Array, rank: Array, *, impl: str | None = None, out: tuple[Array, Array, Array] | None = None
) -> tuple[Array, Array, Array]:
    """What a batch's losses and ranks come to: three small arrays, left where the losses are.

    Parameters
    ----------
    loss : array of float32 or float64, (N,)
        As of `softmax_xent_fprop`.
    rank : array of int32, (N,)
        As of `label_rank`.

    Returns
    -------
    total : array of float64, (1,)
        Sum of the losses, added up in float64 in a fixed order.
    errors : array of int64, (2,)
        Rows of a rank of at least 1, and of at least 5: top-1 and top-5 errors.
    finite : array of int32, (1,)
        1 where every loss is finite, else 0: the flag of `sgd_momentum`. 1 for no rows.
    """
    a = Arguments("loss_summary", loss=loss, rank=rank)
    problem = LossSummary.of(a.loss.shape, a.dtype)
    return a.run(problem, out=out, impl=impl)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------
# Update rule
# ---------------------------------------------------------------------------------------------------
@operation
def sgd_momentum(
    w: Array,
    dw: Array,
    v: Array,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    lr_in_velocity: bool = False,
    finite: Array | None = None,
    impl: str | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Stochastic gradient descent with momentum: one step.

    There are two conventions, which agree only while lr is constant; `lr_in_velocity` chooses.

    ===================  ================================================  ============================
    ``lr_in_velocity``   velocity                                          weights
    ===================  ================================================  ============================
    False (PyTorch)      ``v = momentum*v + (1-dampening)*(dw + wd*w)``    ``w = w - lr*v``
    True (2012, Caffe)   ``v = momentum*v - lr*(dw + wd*w)``               ``w = w + v``
    ===================  ================================================  ============================

    The 2012 code writes ``+ lr*g`` because its g is the gradient of the log-likelihood, which is -dw.

    Parameters
    ----------
    w, dw, v : array, of any one shape
        Weights, their gradient (of the mean loss) and velocity; v starts as zeros.
    lr : float
        Learning rate.
    momentum, weight_decay : float
    dampening : float
        Only for ``lr_in_velocity=False``. PyTorch skips it in the first step, and so should the caller.
    nesterov : bool
        Only for ``lr_in_velocity=False``: the weights move by ``lr * (dw + wd*w + momentum*v)``.
    finite : array of int32, (1,), optional
        On the device of the others. Where it holds 0, nothing changes: w_new is w and v_new is v, bit for
        bit. The update reads it when it runs, so that on a GPU a step of no use (its loss is NaN, say)
        changes nothing though nobody waits for it. An implementation that does not take it is passed over.
    out : (w, v), optional
        May be w and v themselves: an update in place.

    Returns
    -------
    w_new, v_new : array
    """
    a = Arguments("sgd_momentum", w=w, dw=dw, v=v, finite=finite)
    if lr_in_velocity and (nesterov or dampening):
        raise OptionError("nesterov and dampening are defined for lr_in_velocity=False only")
    numbers = _finite_numbers(lr=lr, momentum=momentum, weight_decay=weight_decay, dampening=dampening)
    return a.run(  # type: ignore[no-any-return]
        Pointwise(a.w.shape, a.dtype),
        out=out,
        impl=impl,
        **numbers,
        nesterov=flag("nesterov", nesterov),
        lr_in_velocity=flag("lr_in_velocity", lr_in_velocity),
    )


def _finite_numbers(**numbers: float) -> dict[str, Any]:
    return {name: finite(name, value) for name, value in numbers.items()}
