"""The function that a user calls: written for each op, with the op's signature.

To build the key in a loop over the arguments takes twice as long as all the rest of a call.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import registry
from ..errors import ConvkitError
from ..layouts import Tensor
from ..op import OPS, Op
from .kept import MISS, caches, first
from .keys import IN_ORDER, VALUES, Unusual, flagged, typed
from .others import elsewhere

_TEMPLATE = """\
def key_of({inputs}, {parameters}):
    chosen = choice()
    return None if chosen is DEFAULT else chosen, {key}

def {name}({signature}):
    key = None
    inputs = ({inputs},)
    try:
        if {usual} and (out is None or type(out) is not Tensor):
            chosen = choice()
            key = (None if chosen is DEFAULT else chosen, {key})
    except (Unusual, RecursionError):
        return whole({arguments})
    if key is None:
        return elsewhere(op, cache, key_of, needed, whole, inputs, out, {options}, {values})
    bound = cache.get(key)
    if bound is not None:
        try:
            result = bound.run(inputs, out{changing})
        except ConvkitError as error:
            error.op = error.op or {name!r}
            raise
        if result is not MISS:
            return result
    return first(cache, key, inputs, out, lambda: whole({arguments}))
"""


def quick(function: Callable[..., Any], whole: Callable[..., Any]) -> Any:
    """A function with the signature of an op's, `function`, that runs a bound call where there is one.

    Parameters
    ----------
    function : callable
        The op. Its parameters are inputs by their names, options, and `out`.
    whole : callable
        Takes the same arguments, and goes the whole way.
    """
    name = function.__name__
    op = OPS[name]
    parameters = list(inspect.signature(function).parameters.values())
    cache = caches[name] = {}
    names: dict[str, Any] = {
        "ndarray": np.ndarray, "isfinite": math.isfinite, "choice": registry._choice.get,
        "DEFAULT": registry.DEFAULT, "ConvkitError": ConvkitError, "Unusual": Unusual, "MISS": MISS,
        "typed": typed, "cache": cache, "whole": whole, "first": first,
        "op": op, "elsewhere": elsewhere, "Tensor": Tensor, "flagged": flagged,
    }  # fmt: skip
    needed = (p.name for p in parameters if p.name in op.inputs and p.default is p.empty)
    names["needed"] = tuple(op.inputs.index(name) for name in needed)
    signature, arguments, usual, key, options, values, flags = [], [], [], [], [], [], []
    for p in parameters:
        keyword = p.kind is p.KEYWORD_ONLY
        if keyword and "*" not in signature:
            signature.append("*")
        default = f"default_{p.name}"
        if p.default is not p.empty:
            names[default] = p.default
        signature.append(p.name if p.default is p.empty else f"{p.name}={default}")
        arguments.append(f"{p.name}={p.name}" if keyword else p.name)
        if p.name == "out":
            continue
        if p.name in op.inputs:
            array = f"type({p.name}) is ndarray"
            parts = f"{p.name}.shape, {p.name}.dtype, {p.name}.flags.num & {IN_ORDER}"
            if p.default is None:
                array = f"({p.name} is None or {array})"
                parts = f"None if {p.name} is None else ({parts})"
            usual.append(array)
            key.append(parts)
        elif p.name in VALUES:
            usual.append(VALUES[p.name])
            values.append(f"{p.name!r}: {p.name}")
            continue
        elif p.name in op.flags:
            key.append(f"None if {p.name} is None else flagged({p.name})")
            flags.append(p.name)
        elif p.default is p.empty:
            key.append(f"typed({p.name})")
        else:
            key.append(f"{p.name} if {p.name} is {default} else typed({p.name})")
        if p.name not in op.inputs:
            options.append(f"{p.name!r}: {p.name}")
    changing = f"{{{', '.join(values)}}}" if values else ""
    for flag in flags:
        changing = f"{changing} if {flag} is None else {{{', '.join(values)}, {flag!r}: {flag}}}"
    source = _TEMPLATE.format(
        name=name,
        signature=", ".join(signature),
        usual=" and ".join(usual),
        key=", ".join(key),
        arguments=", ".join(arguments),
        inputs=", ".join(op.inputs),
        parameters=", ".join(p.name for p in parameters if p.name not in {*op.inputs, *VALUES, "out"}),
        options=f"{{{', '.join(options)}}}",
        values=f"{{{', '.join(values)}}}",
        changing=", " + changing if changing else "",
    )
    exec(compile(source, f"<bound call of {name}>", "exec"), names)
    made = names[name]
    made.__qualname__ = function.__qualname__
    return functools.update_wrapper(made, function)


def bindable(function: Callable[..., Any]) -> Op | None:
    """The op that a function is, by its name and its parameters, or None."""
    op = OPS.get(function.__name__)
    parameters = inspect.signature(function).parameters
    return op if op and "out" in parameters and parameters.keys() >= set(op.inputs) else None
