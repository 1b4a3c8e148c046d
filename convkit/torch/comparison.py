"""`compare`: is a model on convkit as exact as on PyTorch? Outputs and gradients, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from ..errors import OptionError
from .modules import OnConvkit
from .operators.library import Impl
from .swapping import Handle, swap, unswap

#: Below this an error counts as right, whatever PyTorch's is: in float32 what `convkit.use(max_error=...)`
#: lets an implementation declare; in 16 bits one rounding of the result.
_FLOORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
#: The same for the gradients of the whole model. Where rounding decides which of two values wins a pool, or
#: whether a ReLU is open, whole elements of a gradient go another way: in each of two right models.
_FLOOR_OF_GRADIENTS = 1e-2


@dataclass(frozen=True)
class Row:
    """One tensor of one layer.

    Attributes
    ----------
    layer, tensor : str
        "features.0", "grad weight". The layer "(model)" is the model as a whole.
    plain, swapped : float
        Relative RMS error against float64, of PyTorch's layer and of convkit's.
    verdict : str
        "as exact": at most twice PyTorch's error; "right": within the bound; else "DIFFERS".
    """

    layer: str
    tensor: str
    plain: float
    swapped: float
    verdict: str

    @property
    def ratio(self) -> float:
        """The error of convkit's over PyTorch's; 1 where both are exact."""
        if self.plain:
            return self.swapped / self.plain
        return 1.0 if not self.swapped else float("inf")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    rows : tuple of Row
    handle : Handle
        What was swapped, and what was not.
    """

    rows: tuple[Row, ...]
    handle: Handle

    @property
    def ok(self) -> bool:
        """Whether some layer was swapped, and none differs."""
        return bool(self.handle.replaced) and all(row.verdict != "DIFFERS" for row in self.rows)

    def __str__(self) -> str:
        table = tabulate(
            [
                (r.layer, r.tensor, f"{r.plain:.1e}", f"{r.swapped:.1e}", f"{r.ratio:.2g}", r.verdict)
                for r in self.rows
            ],
            ("layer", "tensor", "PyTorch", "convkit", "ratio", "verdict"),
            colalign=("left", "left", "right", "right", "right", "left"),
            disable_numparse=True,
        )
        counts = [sum(r.verdict == v for r in self.rows) for v in ("as exact", "right", "DIFFERS")]
        kept = "".join(f"\nleft as it is: {name}: {why}" for name, why in self.handle.kept.items())
        result = "ok" if self.ok else "NOT OK" if self.handle.replaced else "NOT OK: no layer was swapped"
        return (
            f"{table}\n\nrelative RMS error against float64; {counts[0]} as exact as PyTorch's (at most "
            f"twice its error), {counts[1]} right, {counts[2]} differ{kept}\n{result}"
        )


@dataclass
class _Seen:
    """One call of a layer: its input, its output's gradient."""

    x: torch.Tensor
    dy: torch.Tensor | None = None


def compare(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
    only: str | Iterable[str] | None = None,
    **choices: Impl | bool,
) -> Comparison:
    """Compare a model on PyTorch and on convkit with float64.

    Each layer is judged alone: PyTorch's, convkit's and one of float64 get the input, and the gradient of
    the output, that the layer has in the model as it is. Then the model is judged as a whole. It works on
    copies, in which dropout is off.

    Parameters
    ----------
    model : nn.Module
        As it is, or swapped: layers that are on convkit already are compared as they are.
    batch : Tensor, tuple or dict
        The model's arguments; floating-point tensors are made float64 for the exact one.
    loss : callable, optional
        Makes a scalar of the model's output. By default its product with fixed random numbers, which needs
        an output that is one tensor.
    only, **choices
        As in `swap`.

    Returns
    -------
    Comparison
        Prints a table; `ok` is the verdict.
    """
    plain, swapped, exact = _copies(model)
    found = {n: m.convkit_impl or "picked" for n, m in model.named_modules() if isinstance(m, OnConvkit)}
    as_it_is = found and not choices and only is None
    handle = Handle(replaced=found) if as_it_is else swap(swapped, only=only, **choices)
    rows: list[Row] = []
    seen = _record(plain, list(handle.replaced), batch, loss)
    for name, call in seen.items():
        layers = [m.get_submodule(name) if name else m for m in (plain, swapped, exact)]
        rows += _judged(name, call, layers)
    worst = max((row.ratio for row in rows if row.plain and row.verdict != "DIFFERS"), default=1.0)
    rows += _whole((plain, swapped, exact), batch, loss, 2 * max(1.0, worst))
    return Comparison(tuple(rows), handle)


def _copies(model: nn.Module) -> list[nn.Module]:
    """The model on PyTorch, one to swap, and one on PyTorch in float64."""
    made = [copy.deepcopy(model) for _ in range(3)]
    unswap(made[0])
    unswap(made[2])
    made[2].double()
    for one in made:
        for layer in one.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.eval()
    return made


def _call(model: nn.Module, batch: Any, dtype: torch.dtype | None = None) -> Any:
    def ready(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach().clone()
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    if isinstance(batch, Mapping):
        return model(**{name: ready(value) for name, value in batch.items()})
    return model(*map(ready, batch if isinstance(batch, (tuple, list)) else (batch,)))


def _scalar(output: Any, loss: Callable[[Any], torch.Tensor] | None) -> torch.Tensor:
    if loss is not None:
        return loss(output)
    if not isinstance(output, torch.Tensor):
        raise OptionError("the model's output is no tensor: pass loss=, which makes a scalar of it")
    return (output * _random(output)).sum()


def _backward(scalar: torch.Tensor) -> None:
    if scalar.requires_grad:  # else nothing is trained
        scalar.backward()


def _random(like: torch.Tensor) -> torch.Tensor:
    """The same numbers for each dtype, rounded to 8 bits, which all of them hold."""
    numbers = torch.Generator().manual_seed(0)
    drawn = torch.randint(-128, 128, like.shape, generator=numbers).to(torch.float64) / 64
    return drawn.to(device=like.device, dtype=like.dtype)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output


def _record(
    model: nn.Module, names: list[str], batch: Any, loss: Callable[[Any], torch.Tensor] | None
) -> dict[str, _Seen]:
    """What the first call of each layer gets in the model."""
    seen: dict[str, _Seen] = {}
    hooks = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if name not in seen:
                seen[name] = _Seen(args[0].detach().clone())

        return hook

    def after(name: str, calls: list[int]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls.append(1)
            y = _first(output)
            if len(calls) == 1 and y.requires_grad:
                y.register_hook(lambda dy: setattr(seen[name], "dy", dy.detach().clone()))

        return hook

    for name in names:
        layer = model.get_submodule(name) if name else model
        hooks += [layer.register_forward_pre_hook(before(name)), layer.register_forward_hook(after(name, []))]
    try:
        with torch.enable_grad():
            _backward(_scalar(_call(model, batch), loss))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _alone(layer: nn.Module, call: _Seen, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Output and gradients of a layer for one call."""
    x = call.x.clone()
    x = (x if dtype is None else x.to(dtype)).requires_grad_()
    parameters = {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
    with torch.enable_grad():
        # Not the leaf itself: a ReLU may work in place, and a view of a leaf may not be written to.
        output = _first(layer(x.clone()))
    yield "output", output
    dy = _random(output) if call.dy is None else call.dy.to(output.dtype)
    wanted = {"grad input": x, **{f"grad {name}": p for name, p in parameters.items()}}
    yield from zip(wanted, torch.autograd.grad(output, list(wanted.values()), dy), strict=True)


def _judged(name: str, call: _Seen, layers: list[nn.Module]) -> Iterator[Row]:
    plain, swapped, exact = (
        dict(_alone(layer, call, torch.float64 if i == 2 else None)) for i, layer in enumerate(layers)
    )
    for tensor, right in exact.items():
        yield _row(name, tensor, plain[tensor], swapped[tensor], right)


def _whole(
    models: Iterable[nn.Module], batch: Any, loss: Callable[[Any], torch.Tensor] | None, times: float
) -> Iterator[Row]:
    """The model as a whole, which may err so many times as much as on PyTorch.

    A model magnifies the errors of its layers, as a BatchNorm over few numbers does; PyTorch shows how far.
    """
    outputs, gradients = [], []
    for number, model in enumerate(models):
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            output = _call(model, batch, torch.float64 if number == 2 else None)
            _backward(_scalar(output, loss))
        outputs.append(_first(output))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    if isinstance(outputs[0], torch.Tensor):
        yield _row("(model)", "output", outputs[0], outputs[1], outputs[2], times=times)
    for name in gradients[2]:
        plain, swapped, exact = (g[name] for g in gradients)
        yield _row("(model)", f"grad {name}", plain, swapped, exact, _FLOOR_OF_GRADIENTS, times)


def _row(
    layer: str,
    tensor: str,
    plain: torch.Tensor,
    swapped: torch.Tensor,
    exact: torch.Tensor,
    floor: float = 0.0,
    times: float = 2.0,
) -> Row:
    before, after = _error(plain, exact), _error(swapped, exact)
    if plain.shape != swapped.shape or plain.dtype != swapped.dtype or not after < float("inf"):
        return Row(layer, tensor, before, float("inf"), "DIFFERS")
    if after <= 2 * before:
        return Row(layer, tensor, before, after, "as exact")
    right = after <= max(floor, _FLOORS.get(plain.dtype, 0.0), times * before)
    return Row(layer, tensor, before, after, "right" if right else "DIFFERS")


def _error(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative RMS error; infinite where not finite numbers stand at other places."""
    values, exact = values.detach().double(), exact.detach().double()
    finite = exact.isfinite()
    if values.shape != exact.shape or not torch.equal(finite, values.isfinite()):
        return float("inf")
    values, exact = values[finite], exact[finite]
    difference, size = float((values - exact).norm()), float(exact.norm())
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size
