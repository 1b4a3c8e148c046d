"""PyTorch as an entry, eager, in NCHW and in channels_last.

Settings are explicit, since the defaults differ by version and by op: TF32 follows `--math`, cuDNN's
autotuner is on, threads are as many as convkit's. Inputs are copied, and turned into channels_last, before
the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...arrays import np_dtype
from ...op import OPS
from ...ops.conv2d import Conv2d
from ...ops.lrn import LRN
from ...ops.lrn_maxpool2d import LrnMaxPool2d
from ...ops.maxpool2d import Pool2d
from ..measure.entry import Entry
from ..work import Item
from . import Missing, need, threads

Tensors = dict[str, Any]
#: Makes the work from the inputs: () -> the outputs, in the order of the op's.
Make = Callable[["Box", Item, Tensors], Callable[[], tuple[Any, ...]]]


def about(device: str) -> dict[str, Any]:
    """Version and settings."""
    torch = need("torch")
    if device == "cuda" and not torch.cuda.is_available():
        raise Missing("this PyTorch sees no GPU: install a CUDA build")
    if device == "cuda":
        torch.cuda.set_device(need("cupy").cuda.runtime.getDevice())
    settings = {"threads": threads(), "allow_tf32": "as --math", "cudnn.benchmark": device == "cuda"}
    return {"version": torch.__version__, "settings": settings}


def entries(item: Item, device: str) -> list[Entry]:
    """NCHW, and channels_last where the tensors are images."""
    torch = need("torch")
    if item.op not in _MAKE:
        raise Missing(_LACKS.get(item.op, f"has no op like {item.op}"))
    _check(item)
    formats = {"torch": torch.contiguous_format}
    if any(len(item.problem.shape(name)) == 4 for name in item.inputs):
        formats["torch channels_last"] = torch.channels_last
    return [_entry(name, form, item, device) for name, form in formats.items()]


def _entry(name: str, form: Any, item: Item, device: str) -> Entry:
    box = Box(form, device, item.math)
    facts: dict[str, Any] = {"tf32": item.math == "tf32"}
    if isinstance(item.problem, Conv2d):  # its library may choose a fast algorithm, and does not say
        facts["algorithm_flops"] = item.fast_flops
    state: dict[str, Any] = {}

    def bind(inputs: dict[str, Any], outputs: dict[str, Any]) -> Callable[[], None]:
        box.settings()
        tensors = {n: None if a is None else box.tensor(a) for n, a in inputs.items()}
        work = _MAKE[item.op](box, item, tensors)

        def run() -> None:
            state["outputs"] = work()

        return run

    def read() -> dict[str, Any]:
        names = OPS[item.op].outputs
        found = {n: box.host(t, item.problem.dtype_of(n)) for n, t in zip(names, state["outputs"])}
        if "argmax" in found:
            found["argmax"] = taps(item.problem, found["argmax"])
        return found

    marks = ("tuned",) if device == "cuda" else ()
    return Entry(name, "PyTorch", bind, read, "NHWC" if "last" in name else "NCHW", facts, marks)


class Box:
    """PyTorch with a memory format, a device and an arithmetic."""

    def __init__(self, form: Any, device: str, math: str) -> None:
        self.torch = need("torch")
        self.form, self.device, self.math = form, device, math

    def settings(self) -> None:
        """Process-wide switches; all entries of an item want the same."""
        torch, tf32 = self.torch, self.math == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(threads())

    def tensor(self, array: Any) -> Any:
        """A copy in this memory format."""
        torch = self.torch
        if isinstance(array, np.ndarray):
            t = torch.from_numpy(array.view(np.int16).copy() if array.dtype == np_dtype("bfloat16") else
                                 np.array(array))  # fmt: skip
            t = t.view(torch.bfloat16) if array.dtype == np_dtype("bfloat16") else t
        else:
            t = torch.from_dlpack(array).clone()
        return t.contiguous(memory_format=self.form) if t.ndim == 4 else t

    def host(self, t: Any, dtype: str) -> Any:
        """A NumPy array, contiguous."""
        t = t.detach().contiguous().cpu()
        if t.dtype == self.torch.bfloat16:
            return t.view(self.torch.int16).numpy().view(np_dtype("bfloat16"))
        return t.numpy()


def taps(problem: Any, flat: Any) -> Any:
    """PyTorch's argmax, a place in the image, as convkit's: a place in the window."""
    g: Pool2d = problem.pool if isinstance(problem, LrnMaxPool2d) else problem
    p, q = np.arange(g.P)[:, None], np.arange(g.Q)[None, :]
    r = (flat // g.W - (p * g.stride_h - g.pad_top)) // g.dilation_h
    s = (flat % g.W - (q * g.stride_w - g.pad_left)) // g.dilation_w
    return (r * g.S + s).astype(g.dtype_of("argmax"))


def _flat(problem: Any, argmax: Any) -> Any:
    """The reverse."""
    g: Pool2d = problem.pool if isinstance(problem, LrnMaxPool2d) else problem
    p, q = np.arange(g.P)[:, None], np.arange(g.Q)[None, :]
    argmax = argmax.astype(np.int64)
    h = p * g.stride_h - g.pad_top + argmax // g.S * g.dilation_h
    w = q * g.stride_w - g.pad_left + argmax % g.S * g.dilation_w
    return h * g.W + w


# ---------------------------------------------------------------------------------------------------
# What it cannot do
# ---------------------------------------------------------------------------------------------------
_INPLACE = "its optimizers change the weights in place, so that no two runs do the same work"
_LACKS = {
    "dropout_fprop": "draws other random numbers, so that its result cannot be checked",
    "dropout_dgrad": "draws other random numbers, so that its result cannot be checked",
    "sgd_momentum": _INPLACE,
    "linear_wgrad_sgd": _INPLACE,
    "linear_dgrad_wgrad_sgd": _INPLACE,
    "reorder": "has no layout nChw16c",
}


def _check(item: Item) -> None:
    g = item.problem
    lrn = g.lrn if isinstance(g, LrnMaxPool2d) else g if isinstance(g, LRN) else None
    if lrn is not None:
        if lrn.region != "across_channels":
            raise Missing("has no LRN within a channel")
        if lrn.size % 2 == 0:
            raise Missing("an even LRN window leans the other way in PyTorch")
    pool = g.pool if isinstance(g, LrnMaxPool2d) else g if isinstance(g, Pool2d) else None
    if pool is not None:
        if (pool.pad_top, pool.pad_left) != (pool.pad_bottom, pool.pad_right):
            raise Missing("its pools pad alike on opposite sides")
        if pool.pad_top > pool.R // 2 or pool.pad_left > pool.S // 2:
            raise Missing("its pools pad by half a window at most")


# ---------------------------------------------------------------------------------------------------
# The ops
# ---------------------------------------------------------------------------------------------------
def _symmetric(g: Conv2d) -> bool:
    return (g.pad_top, g.pad_left) == (g.pad_bottom, g.pad_right)


def _geometry(g: Conv2d) -> tuple[Any, ...]:
    pads = (g.pad_top, g.pad_left) if _symmetric(g) else (0, 0)
    return (g.stride_h, g.stride_w), pads, (g.dilation_h, g.dilation_w)


def _padded(box: Box, g: Conv2d, x: Any) -> Any:
    """The image as PyTorch's convolution wants it: padded by hand where two sides differ."""
    if _symmetric(g):
        return x
    pads = (g.pad_left, g.pad_right, g.pad_top, g.pad_bottom)
    return box.torch.nn.functional.pad(x, pads)


def _conv_fprop(box: Box, item: Item, t: Tensors) -> Any:
    g, F = item.problem, box.torch.nn.functional
    assert isinstance(g, Conv2d)
    w, b, relu = t["w"], t.get("b"), item.options.get("relu")

    def work() -> tuple[Any, ...]:
        with box.torch.inference_mode():
            y = F.conv2d(_padded(box, g, t["x"]), w, b, *_geometry(g), g.groups)
            return (F.relu(y, inplace=True) if relu else y,)

    return work


def _conv_back(box: Box, item: Item, t: Tensors) -> Any:
    g, torch = item.problem, box.torch
    assert isinstance(g, Conv2d)
    wgrad = item.op == "conv2d_wgrad"
    shape = g.shape("x")
    x = t.get("x") if wgrad else None
    if x is None:  # only its shape counts
        x = torch.empty(shape, dtype=t["dy"].dtype, device=t["dy"].device).contiguous(memory_format=box.form)
    w = t.get("w")
    if w is None:
        w = torch.empty(g.shape("w"), dtype=t["dy"].dtype, device=t["dy"].device)
        w = w.contiguous(memory_format=box.form)
    mask, rectified = [not wgrad, wgrad, False], t.get("x") if item.op.endswith("relu") else None
    place = (..., slice(g.pad_top, g.pad_top + g.H), slice(g.pad_left, g.pad_left + g.W))

    def work() -> tuple[Any, ...]:
        with torch.inference_mode():
            found = torch.ops.aten.convolution_backward(
                t["dy"], _padded(box, g, x), w, None, *_geometry(g), False, (0, 0), g.groups, mask
            )[int(wgrad)]
            if not wgrad and not _symmetric(g):
                found = found[place]
            if rectified is not None:
                found = torch.ops.aten.threshold_backward(found, rectified, 0)
            return (found,)

    return work


def _simple(function: Callable[[Box, Item, Tensors], Any]) -> Make:
    """Work that is one expression."""

    def make(box: Box, item: Item, t: Tensors) -> Callable[[], tuple[Any, ...]]:
        def work() -> tuple[Any, ...]:
            with box.torch.inference_mode():
                found = function(box, item, t)
                return found if isinstance(found, tuple) else (found,)

        return work

    return make


def _linear(box: Box, item: Item, t: Tensors) -> Any:
    F = box.torch.nn.functional
    y = F.linear(t["x"], t["w"], t.get("b"))
    return F.relu(y, inplace=True) if item.options.get("relu") else y


def _norm(box: Box, g: LRN, x: Any) -> Any:
    F = box.torch.nn.functional
    if g.groups == 1:
        return F.local_response_norm(x, g.size, g.alpha, g.beta, g.k)
    parts = x.reshape(g.N * g.groups, g.C // g.groups, g.H, g.W)
    return F.local_response_norm(parts, g.size, g.alpha, g.beta, g.k).reshape(x.shape)


def _pool_geometry(g: Pool2d) -> tuple[Any, ...]:
    pads, dilation = (g.pad_top, g.pad_left), (g.dilation_h, g.dilation_w)
    return (g.R, g.S), (g.stride_h, g.stride_w), pads, dilation, g.ceil_mode


def _pool(box: Box, g: Pool2d, x: Any) -> Any:
    return tuple(box.torch.ops.aten.max_pool2d_with_indices(x, *_pool_geometry(g)))


def _lrn_pool(box: Box, item: Item, t: Tensors) -> Any:
    g = item.problem
    assert isinstance(g, LrnMaxPool2d)
    return _pool(box, g.pool, _norm(box, g.lrn, t["x"]))


def _lrn_dgrad(box: Box, item: Item, t: Tensors) -> Any:
    """The backward pass alone: the graph is built before the clock starts, and kept."""
    g = item.problem
    assert isinstance(g, LRN)
    x = t["x"].clone().requires_grad_(True)
    y = _norm(box, g, x)
    return lambda: box.torch.autograd.grad(y, x, t["dy"], retain_graph=True)


def _indices(box: Box, item: Item, t: Tensors) -> Any:
    flat = _flat(item.problem, t["argmax"].cpu().numpy())
    found = box.torch.from_numpy(np.ascontiguousarray(flat)).to(t["dy"].device)
    return found.contiguous(memory_format=box.form)


def _pool_dgrad(box: Box, item: Item, t: Tensors) -> Any:
    g = item.problem
    assert isinstance(g, Pool2d)
    indices = _indices(box, item, t)
    x = box.torch.empty(g.shape("x"), dtype=t["dy"].dtype, device=t["dy"].device)
    x = x.contiguous(memory_format=box.form)
    back = box.torch.ops.aten.max_pool2d_with_indices_backward

    def work() -> tuple[Any, ...]:
        with box.torch.inference_mode():
            return (back(t["dy"], x, *_pool_geometry(g), indices),)

    return work


def _lrn_pool_dgrad(box: Box, item: Item, t: Tensors) -> Any:
    g, aten = item.problem, box.torch.ops.aten
    assert isinstance(g, LrnMaxPool2d)
    indices = _indices(box, item, t)
    x = t["x"].clone().requires_grad_(True)
    n, relu = _norm(box, g.lrn, x), item.options.get("relu")
    normed = n.detach()

    def work() -> tuple[Any, ...]:
        dn = aten.max_pool2d_with_indices_backward(t["dy"], normed, *_pool_geometry(g.pool), indices)
        (dx,) = box.torch.autograd.grad(n, x, dn, retain_graph=True)
        return (aten.threshold_backward(dx, t["x"], 0) if relu else dx,)

    return work


def _softmax(box: Box, item: Item, t: Tensors) -> Any:
    logs = box.torch.log_softmax(t["logits"], 1)
    loss = -logs.gather(1, t["labels"][:, None])[:, 0]
    return loss.float(), logs.exp()


def _softmax_dgrad(box: Box, item: Item, t: Tensors) -> Any:
    dloss = t["dloss"][:, None].to(t["probs"].dtype)
    found = t["probs"] * dloss
    return found.scatter_add_(1, t["labels"][:, None], -dloss)


_MAKE: dict[str, Make] = {
    "conv2d_fprop": _conv_fprop,
    "conv2d_dgrad": _conv_back,
    "conv2d_dgrad_relu": _conv_back,
    "conv2d_wgrad": _conv_back,
    "conv2d_bgrad": _simple(lambda box, item, t: t["dy"].sum((0, 2, 3))),
    "relu_fprop": _simple(lambda box, item, t: box.torch.relu(t["x"])),
    "relu_dgrad": _simple(lambda box, item, t: box.torch.ops.aten.threshold_backward(t["dy"], t["y"], 0)),
    "lrn_fprop": _simple(lambda box, item, t: _norm(box, item.problem, t["x"])),  # type: ignore[arg-type]
    "lrn_dgrad": _lrn_dgrad,
    "maxpool2d_fprop": _simple(lambda box, item, t: _pool(box, item.problem, t["x"])),  # type: ignore[arg-type]
    "maxpool2d_dgrad": _pool_dgrad,
    "lrn_maxpool2d_fprop": _simple(_lrn_pool),
    "lrn_maxpool2d_dgrad": _lrn_pool_dgrad,
    "linear_fprop": _simple(_linear),
    "linear_dgrad": _simple(lambda box, item, t: t["dy"] @ t["w"]),
    "linear_wgrad": _simple(lambda box, item, t: t["dy"].T @ t["x"]),
    "linear_bgrad": _simple(lambda box, item, t: t["dy"].sum(0)),
    "softmax_xent_fprop": _simple(_softmax),
    "softmax_xent_dgrad": _simple(_softmax_dgrad),
}
