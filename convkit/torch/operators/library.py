"""PyTorch's dispatcher: how an op of convkit becomes an operator of PyTorch, and tensors arrays and back.

Each operator has kernels for CPU and CUDA, which call the op of convkit; a fake kernel, which says shape,
dtype and strides alone; and a formula for its gradient. The last argument of each is `impl`, a text:

- "": convkit picks an implementation;
- "mine": that one, for each of the family's ops that has one of this name;
- "conv2d_fprop=mine,conv2d_dgrad=other": one for each op that is named.

It goes along to the operators of the backward pass, so that a choice made for the forward pass holds there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.autograd import forward_ad

from ... import arrays, registry
from ...errors import ConvkitError, DtypeError, NoImplementation, OptionError, ShapeError, unknown
from ...options import pair

NAMESPACE = "convkit"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
#: Inputs may come with other strides than they were traced with, but outputs are as the fake kernel says.
_TAGS = (torch.Tag.pt2_compliant_tag,)
_BFLOAT16 = arrays.DTYPES["bfloat16"]

#: What a layer is called here, and the ops of convkit that make it: forward first.
FAMILIES: dict[str, tuple[str, ...]] = {
    "conv2d": ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_bgrad"),
    "relu": ("relu_fprop", "relu_dgrad"),
    "local_response_norm": ("lrn_fprop", "lrn_dgrad"),
    "max_pool2d": ("maxpool2d_fprop", "maxpool2d_dgrad"),
    "avg_pool2d": ("avgpool2d_fprop", "avgpool2d_dgrad"),
    "linear": ("linear_fprop", "linear_dgrad", "linear_wgrad", "linear_bgrad"),
}
F = TypeVar("F", bound=Callable[..., Any])
#: A user's choice: a name, or a name for each op ("conv2d_dgrad") or pass ("dgrad").
Impl = str | Mapping[str, str] | None


# ---------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------
# PyTorch's own functions raise RuntimeError: who catches that catches these.
class TorchShapeError(ShapeError, RuntimeError):
    """A `ShapeError` that is also a RuntimeError, as PyTorch raises."""


class TorchDtypeError(DtypeError, RuntimeError):
    """A `DtypeError` that is also a RuntimeError, as PyTorch raises."""


class TorchOptionError(OptionError, RuntimeError):
    """An `OptionError` that is also a RuntimeError, as PyTorch raises."""


class TorchNoImplementation(NoImplementation, RuntimeError):
    """A `NoImplementation` that is also a RuntimeError, as PyTorch raises."""


_ERRORS: dict[type, type] = {
    ShapeError: TorchShapeError,
    DtypeError: TorchDtypeError,
    OptionError: TorchOptionError,
    NoImplementation: TorchNoImplementation,
}


def as_pytorch(function: F) -> F:
    """Decorator: convkit's errors leave the function as RuntimeErrors too."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ConvkitError as error:
            kind = _ERRORS.get(type(error))
            if kind is None:
                raise
            name = function.__name__
            text = str(error) if error.op or name.startswith(("_", "<")) else f"{name}: {error}"
            raise kind(text) from error

    return run  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------
# Operators
# ---------------------------------------------------------------------------------------------------
class Operator:
    """An operator of PyTorch, called through the dispatcher, or past it.

    The dispatcher, and what `torch.library` puts around a gradient, take longer than a small kernel. Where
    none of what they are for is at work, the kernel is called at once, with the same formula for its
    gradient: no tracing, no mode, no transform, no subclass, no profiler.
    """

    def __init__(
        self, op: Any, kernel: Callable[..., Any], backward: Callable[..., Any], setup: Callable[..., Any]
    ) -> None:
        self.op = op
        self.name = str(op._opname)
        self._kernel = kernel

        def forward(ctx: Any, *args: Any) -> Any:
            output = kernel(*args)
            setup(ctx=ctx, inputs=args, output=output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._function: Any = type(f"convkit_{self.name}", (torch.autograd.Function,), methods)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.op(*args)
        needs_grad = False
        for x in args:
            if isinstance(x, torch.Tensor):
                if x.layout is not torch.strided or x.is_nested:
                    kind = "nested" if x.is_nested else f"of the layout {x.layout}"
                    raise TorchDtypeError(f"{self.name}: convkit takes dense tensors, and one is {kind}")
                if type(x) not in _PLAIN or not (x.is_cpu or x.is_cuda):
                    return self.op(*args)
                needs_grad |= x.requires_grad
        if forward_ad._current_level >= 0:
            _no_tangent(args)
        if (
            torch._C._len_torch_dispatch_stack()
            or torch._C._are_functorch_transforms_active()
            or torch._C._get_tracing_state() is not None
            or torch.autograd._profiler_enabled()
        ):
            return self.op(*args)
        if needs_grad and torch.is_grad_enabled():
            return self._function.apply(*args)
        return self._kernel(*args)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _no_tangent(args: tuple[Any, ...]) -> None:
    for x in args:
        if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise TorchDtypeError("convkit has no forward-mode gradients: a tensor has a tangent")


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., Any],
) -> Operator:
    """Register one operator, and return it.

    Parameters
    ----------
    schema : str
        "relu(Tensor x, str impl) -> Tensor".
    kernel, fake : callable
        With the schema's arguments; on the CPU and on CUDA, and for tensors without data.
    backward : callable
        `backward(ctx, *grads)` returns the gradient of each argument.
    setup : callable
        `setup(ctx, inputs, output)` keeps what that needs.
    """
    name = schema.partition("(")[0]
    kernel = as_pytorch(kernel)
    _LIBRARY.define(schema, tags=_TAGS)
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", as_pytorch(fake), lib=_LIBRARY)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=_LIBRARY)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    return Operator(op, kernel, backward, setup)


# ---------------------------------------------------------------------------------------------------
# Implementations by name
# ---------------------------------------------------------------------------------------------------
def chosen(family: str, impl: Impl) -> str:
    """The operators' argument `impl` for a user's choice, and for what `convkit.use` has set around a call.

    What is compiled looks `convkit.use` up when it runs, since the choice is no part of its trace.
    """
    text = "" if impl is None else impl if isinstance(impl, str) else _listed(family, impl)
    if torch.compiler.is_compiling():
        return text
    around = registry.current_choice()
    return _joined(family, text, around.names) if around.names else text


def _listed(family: str, impl: Mapping[str, str]) -> str:
    ops = FAMILIES[family]
    by_pass = {op.rpartition("_")[2]: op for op in ops}
    if not isinstance(impl, Mapping):
        raise OptionError(f"impl of {family} must be a name, or a dict of names by pass, not {impl!r:.100}")
    found = {}
    for key, name in impl.items():
        op = by_pass.get(key, key)
        if op not in ops:
            raise unknown(f"op of {family}", key, (*ops, *by_pass))
        found[op] = name
    return ",".join(f"{op}={name}" for op, name in found.items())


@functools.lru_cache(maxsize=1024)
def _joined(family: str, text: str, around: tuple[tuple[str, str], ...]) -> str:
    found = {op: name for op, name in around if op in FAMILIES[family]}
    if not found:
        return text
    found |= {op: name for op, name in names(family, text).items() if name}
    return ",".join(f"{op}={name}" for op, name in found.items())


def names(family: str, text: str) -> dict[str, str | None]:
    """The implementation's name for each op of a family; None where convkit picks it.

    Raises
    ------
    OptionError
        If no op of the family has an implementation of that name; suggests the nearest.
    """
    return dict(_names(family, text, registry.generation()))


@functools.lru_cache(maxsize=1024)
def _names(family: str, text: str, generation: int) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(FAMILIES[family])
    if not text:
        return found
    known = {op: {i.name for i in registry.implementations(op, layout=None)} for op in found}
    if "=" not in text:
        for op in found:
            if text in known[op]:
                found[op] = text
        if not any(found.values()):
            raise unknown(f"implementation of {family}", text, set().union(*known.values()))
        return found
    for entry in text.split(","):
        op, _, name = entry.partition("=")
        if op not in found:
            raise unknown(f"op of {family}", op, found)
        if name not in known[op]:
            raise unknown(f"implementation of {op}", name, known[op])
        found[op] = name
    return found


def name_of(op: str, family: str, text: str) -> str | None:
    """The implementation's name for one op."""
    return _names(family, text, registry.generation())[op] if text else None


# ---------------------------------------------------------------------------------------------------
# Tensors
# ---------------------------------------------------------------------------------------------------
def channels_last(x: torch.Tensor) -> bool:
    """Whether the channels of (N, C, H, W) lie innermost, and those of a result are to.

    A tensor that is contiguous in both ways, as one of a single channel is, counts as contiguous.
    """
    return x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()


def empty(like: torch.Tensor, shape: Sequence[Any], last: bool, dtype: Any = None) -> torch.Tensor:
    """A new tensor of that shape, in channels_last or contiguous, on the device of another."""
    return torch.empty(
        tuple(shape),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def array(x: torch.Tensor) -> Any:
    """What convkit's ops take: contiguous, and without autograd."""
    if not x.is_contiguous():
        x = x.contiguous()
    if not x.is_cpu:
        return x.detach()
    if x.dtype is torch.bfloat16:
        return x.detach().view(torch.int16).numpy().view(_BFLOAT16)
    return x.numpy(force=True)  # without autograd, and with a sign that is put off


def tensor(result: Any, last: bool = False) -> torch.Tensor:
    """A result of convkit's ops as a tensor, in that memory format."""
    found: torch.Tensor
    if not isinstance(result, np.ndarray):
        found = result
    elif result.dtype == _BFLOAT16:
        found = torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    else:
        found = torch.from_numpy(result)
    return empty(found, found.shape, True).copy_(found) if last else found


def two(name: str, value: Any, least: int) -> list[int]:
    """An int, or one or two of them, as PyTorch takes it: [vertical, horizontal]."""
    if isinstance(value, (tuple, list)):
        if len(value) == 1:
            return two(name, value[0], least)
        value = tuple(value)
    return list(pair(name, value, least))


def autocast(*tensors: Any) -> Any:
    """The tensors in autocast's dtype where it is on, for what PyTorch casts there: products of matrices."""
    kind = tensors[0].device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    ]


def batched(x: torch.Tensor, what: str) -> tuple[torch.Tensor, bool]:
    """(C, H, W) as a batch of one; and whether it was that.

    Raises
    ------
    TorchShapeError
        If it has neither three nor four dimensions.
    """
    if x.dim() == 4:
        return x, False
    if x.dim() == 3:
        return x.unsqueeze(0), True
    raise TorchShapeError(f"{what}: input must be (N, C, H, W) or (C, H, W), not of shape {tuple(x.shape)}")
