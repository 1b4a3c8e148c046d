"""Cases of a user's own sizes, from a text such as "8,64,56,56,128,3,3,stride=2,pad=1"."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from ..errors import ConvkitError, OptionError, unknown
from ..op import OPS, Problem
from . import sizes
from .cases import Case, varied
from .explain import LIKE

#: What an option is called in the text, where the ops' own name is longer.
_NAMES = {"pad": "padding"}
#: Sizes that a text may begin with, for the error.
FORM = "N,C,H,W[,K,R,S][,option=value,...]"


def like(text: str, ops: Sequence[str]) -> list[Case]:
    """Cases of these sizes, for each of the ops that they fit.

    Parameters
    ----------
    text : str
        Sizes, then options. A convolution takes N,C,H,W,K,R,S and stride, pad, dilation, groups; a pool
        N,C,H,W and window, stride, pad, ...; LRN N,C,H,W and size, alpha, ...; a linear layer N,C,K; an op
        that treats each element alone any shape. An option is one number, or two with an x between them.
    ops : sequence of str

    Raises
    ------
    OptionError
        The text is not of this form, or fits none of the ops.
    """
    extents, options = _parsed(text)
    found: list[Case] = []
    refused: list[str] = []
    for op in dict.fromkeys(ops):
        try:
            problem = _problem(OPS[op].cases.bases()[0], extents, options)
        except ConvkitError as error:
            refused.append(f"{op}: {error}")
            continue
        name = LIKE + "".join(text.split())
        heavy = not sizes.within(op, problem, sizes.CHEAP)
        tried = {str(c): c for c in (varied(op, problem, name, index) for index in (0, 1, 5))}
        found += [replace(case, heavy=heavy, sized=True) for case in tried.values()]
    if not found:
        raise OptionError(f"--like {text}: " + "; ".join(refused))
    return found


def _parsed(text: str) -> tuple[list[int], dict[str, Any]]:
    extents: list[int] = []
    options: dict[str, Any] = {}
    for word in (part.strip() for part in text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        if equals:
            options[_NAMES.get(name, name)] = _value(text, name, value)
        elif options or not (word.isascii() and word.isdigit()) or len(word) > 12:
            raise OptionError(f"--like {text}: {word!r} is neither a size nor option=value; {FORM}")
        else:
            extents.append(int(word))
    if not extents or not all(extents):
        raise OptionError(f"--like {text}: sizes of at least 1 are needed, {FORM}")
    return extents, options


def _value(text: str, name: str, value: str) -> Any:
    parts = value.split("x") if not value.isalpha() else [value]
    found: list[Any] = []
    for part in parts:
        if part.isascii() and part.isdigit() and len(part) <= 12:
            found.append(int(part))
        elif part.lower() in ("true", "false"):
            found.append(part.lower() == "true")
        elif part.replace("_", "").isalpha() and part.isascii():
            found.append(part)
        else:
            try:
                found.append(float(part))
            except ValueError:
                raise OptionError(
                    f"--like {text}: {name} is a number, or two such as 2x1, not {value!r}"
                ) from None
    if len(found) > 2:
        raise OptionError(f"--like {text}: {name} is one number, or two such as 2x1, not {value!r}")
    return found[0] if len(found) == 1 else tuple(found)


def _problem(base: Problem, extents: list[int], options: dict[str, Any]) -> Problem:
    """The problem that has these sizes, of the kind of another one."""
    parts = {f.name: getattr(base, f.name) for f in fields(base)}
    if any(isinstance(part, Problem) for part in parts.values()):  # several ops in one
        return _of_parts(type(base), {k: v for k, v in parts.items() if k != "dtype"}, extents, options)
    make: Any = getattr(type(base), "of", None)
    parameters = inspect.signature(make).parameters if make is not None else {}
    known = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} - {"dtype"}
    for name in options:
        if name not in known:
            short = {long: short for short, long in _NAMES.items()}
            raise unknown("option", name, {short.get(n, n) for n in known})
    if "w_shape" in parameters and known:
        N, C, H, W, K, R, S = _count(extents, "N,C,H,W,K,R,S")
        groups = options.get("groups", 1)
        if not isinstance(groups, int) or groups < 1 or C % groups:
            raise OptionError(f"C = {C} channels are not divisible by groups = {groups}")
        return make((N, C, H, W), (K, C // groups, R, S), **options)
    if "x_shape" in parameters and known:
        return make(tuple(_count(extents, "N,C,H,W")), **options)
    if "dims" in parts:
        return replace(base, dims=tuple(extents))  # type: ignore[call-arg]
    names = [name for name in parts if len(name) == 1]
    if parts.get("rank") == 2:  # rows alone: the other extents stay 1
        names = names[:2]
    return replace(base, **dict(zip(names, _count(extents, ",".join(names)), strict=True)))


def _of_parts(
    kind: type[Problem], parts: dict[str, Problem], extents: list[int], options: dict[str, Any]
) -> Problem:
    """A problem of several, each of which takes the options that it knows."""
    left, made = dict(options), {}
    for name, part in parts.items():
        known = inspect.signature(type(part).of).parameters  # type: ignore[attr-defined]
        own = {k: left.pop(k) for k in list(left) if k in known}
        made[name] = _problem(part, extents, own)
    if left:
        raise OptionError(f"takes no option {', '.join(left)}")
    return kind(**made)


def _count(extents: list[int], form: str) -> list[int]:
    count = form.count(",") + 1
    if len(extents) != count:
        raise OptionError(f"takes {count} sizes, {form}, not {len(extents)}")
    return extents
