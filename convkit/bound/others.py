"""Calls whose arrays are not all NumPy's: CuPy's, PyTorch's, and `layouts.Tensor`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arrays, devices, layouts, registry
from ..errors import ConvkitError
from ..layouts import Tensor
from ..op import Op
from .kept import MISS, Bound, Wrapping, first
from .keys import VALUES, Unusual, typed

_VALID: dict[str, Callable[[Any], bool]] = {
    name: eval(f"lambda {name}: {text}", {"isfinite": math.isfinite}) for name, text in VALUES.items()
}
Seen = tuple[Any, tuple[Any, ...], tuple[Any, ...] | None, arrays.Kind]


def elsewhere(
    op: Op,
    cache: dict[Any, Bound],
    key_of: Callable[..., Any],
    needed: tuple[int, ...],
    whole: Callable[..., Any],
    inputs: tuple[Any, ...],
    out: Any,
    options: dict[str, Any],
    values: dict[str, Any],
) -> Any:
    """A call whose arrays are not all NumPy's, or that is unusual."""

    def run() -> Any:
        return whole(**dict(zip(op.inputs, inputs)), **options, **values, out=out)

    if any(inputs[i] is None for i in needed) or any(options[name] is not None for name in op.flags):
        return run()
    several = len(op.outputs) > 1
    wanted = (out,) if not several else (None,) * len(op.outputs) if out is None else out
    if type(wanted) not in (tuple, list) or len(wanted) != len(op.outputs) or devices.emulating():
        return run()
    if Tensor in map(type, (*inputs, *wanted)):
        return laid_out(op, cache, key_of, run, inputs, out, wanted, options, values)
    given = [a for a in (*inputs, *wanted) if a is not None]
    known = (
        getattr(sys.modules.get("torch"), "Tensor", None),
        getattr(sys.modules.get("cupy"), "ndarray", None),
    )
    if not all(type(a) is np.ndarray or type(a) in known for a in given):
        return run()
    if not all(_VALID[name](value) for name, value in values.items()):
        return run()
    memory = [arrays.plain(a) for a in given]
    if all(a is not None for a in memory):  # on the CPU
        found = iter(memory)
        views = tuple([None if a is None else next(found) for a in inputs])
        targets = None if out is None else tuple([None if a is None else next(found) for a in wanted])
        try:
            key = key_of(*views, **options)
        except (Unusual, RecursionError):
            return run()
        leading = next(a for a in inputs if a is not None)
        kind = arrays.NUMPY if type(leading) is np.ndarray else arrays.TORCH
        result = _again(op, cache.get(key), views, targets, values, wanted, kind)
        return first(cache, key, views, targets, run) if result is MISS else result
    with arrays.queue(given):
        seen = _look(op, inputs, wanted, options)
        if seen is not None:
            key, views, targets, kind = seen
            result = _again(op, cache.get(key), views, targets, values, wanted, kind)
            if result is not MISS:
                return result
    if seen is None:
        return run()
    return first(cache, key, views, targets, run, kind.device)


#: Names of the layouts of the table. One that is made elsewhere goes the whole way: its hash takes long.
_ROWS = {id(row): row.name for row in (*layouts.ACTIVATIONS.values(), *layouts.WEIGHTS.values())}


def laid_out(
    op: Op,
    cache: dict[Any, Bound],
    key_of: Callable[..., Any],
    run: Callable[[], Any],
    inputs: tuple[Any, ...],
    out: Any,
    wanted: Any,
    options: dict[str, Any],
    values: dict[str, Any],
) -> Any:
    """A call some of whose arrays are each a `Tensor`: those count by their data.

    What the memory's shape does not tell is in the key: layout and logical shape.
    """
    memory: list[Any] = []
    key: Any = [Tensor]
    try:
        for one in (*inputs, *wanted):
            if type(one) is Tensor:
                key += (_ROWS.get(id(one.layout)), typed(one.shape))
                if key[-2] is None:
                    return run()
                one = one.data
            else:
                key.append(one is None)  # an output that is not given follows the inputs' layout
            if one is not None and type(one) is not np.ndarray:
                return run()
            memory.append(one)
        views, targets = tuple(memory[: len(inputs)]), None if out is None else tuple(memory[len(inputs) :])
        key = (*key, key_of(*views, **options))
    except (Unusual, RecursionError):
        return run()
    for name, value in values.items():
        if not _VALID[name](value):
            return run()
    several = len(op.outputs) > 1
    if not several and targets is not None:
        targets = targets[0]
    bound = cache.get(key)
    if bound is not None:
        try:
            result = bound.run(views, targets, values)
        except ConvkitError as error:
            error.op = error.op or op.name
            raise
        if result is not MISS:
            if not several:
                return out if out is not None else _wrap(result, bound._wrapped[0])
            return tuple(
                [
                    _wrap(array, how) if one is None else one
                    for array, one, how in zip(result, wanted, bound._wrapped, strict=True)
                ]
            )
    return first(cache, key, views, targets, run)


def _wrap(array: Any, how: Wrapping | None) -> Any:
    return array if how is None else Tensor(array, *how)


def _again(
    op: Op,
    bound: Bound | None,
    views: tuple[Any, ...],
    targets: tuple[Any, ...] | None,
    values: dict[str, Any],
    wanted: Any,
    kind: arrays.Kind,
) -> Any:
    """The result of a bound call as the caller's kind, or MISS."""
    if bound is None:
        return MISS
    several = len(op.outputs) > 1
    try:
        result = bound.run(views, targets if several or targets is None else targets[0], values)
    except ConvkitError as error:
        error.op = error.op or op.name
        raise
    if result is MISS:
        return MISS
    if targets is None:
        return tuple([kind.wrap(a) for a in result]) if several else kind.wrap(result)
    arrays.written(a for a in wanted if a is not None)
    if not several:
        return wanted[0]
    return tuple([kind.wrap(a) if one is None else one for a, one in zip(result, wanted, strict=True)])


def _look(op: Op, inputs: tuple[Any, ...], wanted: Any, options: dict[str, Any]) -> Seen | None:
    """The key of a call, its arrays and outputs as NumPy's or CuPy's, and the kind of its results."""
    try:
        kinds = [None if a is None else arrays.kind_of(n, a) for n, a in zip(op.inputs, inputs)]
        kind = next(found for found in kinds if found is not None)
        views = tuple(
            None if a is None else arrays.view(n, a, kind=k) for n, a, k in zip(op.inputs, inputs, kinds)
        )
        targets = None
        if any(a is not None for a in wanted):
            places = [None if a is None else arrays.kind_of("out", a) for a in wanted]
            kinds += places
            targets = tuple(
                None if a is None else arrays.view("out", a, write=True, kind=k)
                for a, k in zip(wanted, places)
            )
        if any(found is not None and found.device != kind.device for found in kinds):
            return None
        chosen = registry.current_choice()
        signature = [None if a is None else (a.shape, a.dtype, arrays.in_order(a)) for a in views]
        key = (kind.device, chosen, *signature, *((name, typed(value)) for name, value in options.items()))
    except (ConvkitError, Unusual, RecursionError):
        return None
    return key, views, targets, kind
