"""`swap`: layers of a model on convkit's operators, and back."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate
from torch import nn

from ..errors import OptionError, unknown
from .modules import KINDS, OnConvkit, refusal
from .operators.library import Impl, chosen, names

#: What a layer was: its class, and its own `convkit_impl`, if it had one.
_Before = tuple[type[nn.Module], "str | None"]


@dataclass
class Handle:
    """What `swap` has done, and the way back.

    Attributes
    ----------
    replaced : dict of str to str
        Names of the layers that run on convkit, and by which implementations.
    kept : dict of str to str
        Names of the layers of these kinds that are as they were, and why.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    _kinds: dict[str, str] = field(default_factory=dict, repr=False)
    _done: list[tuple[nn.Module, _Before, tuple[type, str]]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Make the layers what they were; the second time it does nothing.

        Raises
        ------
        OptionError
            If a layer has been swapped again since: undo that first.
        """
        for layer, _, now in self._done:
            if (type(layer), vars(layer).get("convkit_impl")) != now:
                raise OptionError("a layer has been swapped again since, or put back: undo that first")
        for layer, before, _ in self._done:
            _become(layer, *before)
        self._done.clear()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __str__(self) -> str:
        rows = [(name, self._kinds[name], impl) for name, impl in self.replaced.items()]
        rows += [(name, self._kinds[name], f"left as it is: {why}") for name, why in self.kept.items()]
        table = tabulate(rows, ("layer", "kind", "convkit's implementation"), disable_numparse=True)
        count = len(self.replaced)
        return f"{table}\n\n{count} layer{'s' * (count != 1)} swapped, {len(self.kept)} left as they are"


def swap(model: nn.Module, *, only: str | Iterable[str] | None = None, **choices: Impl | bool) -> Handle:
    """Run layers of a model on convkit, forward and backward.

    The layers stay the objects that they are, with their parameters, hooks and keys in `state_dict`, and the
    optimizer that has their parameters goes on. Functions that a model calls itself (`F.relu`) are not
    layers, and stay PyTorch's.

    Parameters
    ----------
    model : nn.Module
    only : str or sequence of str, optional
        Names of layers as `named_modules` has them: "features.3", what contains layers, "features", or a
        pattern, "*.conv1". All layers by default.
    **choices
        Kinds of layers: conv2d, relu, local_response_norm, max_pool2d, avg_pool2d, linear; all, if none is
        named. The value is the name of an implementation, which counts for each pass that has one of that
        name; names by pass, ``{"fprop": "mine", "dgrad": "direct"}``; or True: convkit picks.

    Returns
    -------
    Handle
        Prints what was swapped and what was not, and why. `undo` and the end of a `with` block put the
        layers back.

    Raises
    ------
    OptionError
        If a kind, an implementation, or a layer's name is not known.

    Examples
    --------
    >>> with convkit.torch.swap(model, conv2d="mine", only="features.3") as handle:
    ...     print(handle)
    ...     model(x).sum().backward()
    """
    specs = {kind: _spec(kind, choice) for kind, choice in choices.items() if choice is not False}
    if not choices:
        specs = dict.fromkeys(KINDS, "")
    handle = Handle()
    for name, layer in _wanted(model, only):
        kind = next((k for k in specs if isinstance(layer, KINDS[k][0])), None)
        if kind is None:
            continue
        handle._kinds[name] = kind
        if (reason := refusal(kind, layer)) is not None:
            handle.kept[name] = reason
            continue
        before = type(layer), vars(layer).get("convkit_impl")
        _become(layer, KINDS[kind][1], specs[kind])
        handle._done.append((layer, before, (type(layer), specs[kind])))
        handle.replaced[name] = words(kind, specs[kind])
    return handle


def unswap(model: nn.Module) -> int:
    """Put every layer of a model back on PyTorch, whoever swapped it; for copies and what was unpickled.

    Returns
    -------
    int
        How many layers that were.
    """
    found = [layer for layer in model.modules() if isinstance(layer, OnConvkit)]
    for layer in found:
        plain = next(plain for plain, ours in KINDS.values() if isinstance(layer, ours))
        _become(layer, plain, None)
    return len(found)


def _become(layer: nn.Module, kind: type[nn.Module], impl: str | None) -> None:
    layer.__class__ = kind
    if impl is None:
        vars(layer).pop("convkit_impl", None)
    else:
        vars(layer)["convkit_impl"] = impl


def _spec(kind: str, choice: Impl | bool) -> str:
    """The operators' argument for a choice, checked."""
    if kind not in KINDS:
        raise unknown("kind of layer", kind, KINDS)
    if choice is True or choice is None:
        return ""
    if isinstance(choice, bool):
        raise OptionError(f"{kind} must be an implementation's name, not {choice!r}")
    text = chosen(kind, choice)
    names(kind, text)
    return text


def words(kind: str, spec: str) -> str:
    by_op = names(kind, spec)
    return ", ".join(f"{op.rpartition('_')[2]}: {name or 'picked'}" for op, name in by_op.items())


def _wanted(model: nn.Module, only: str | Iterable[str] | None) -> Iterator[tuple[str, nn.Module]]:
    """The layers that are meant, each once, by their first name that is meant."""
    known = list(model.named_modules(remove_duplicate=False))
    patterns: Sequence[str] = [only] if isinstance(only, str) else [] if only is None else list(only)
    for pattern in patterns:
        if not any(_meant(name, pattern) for name, _ in known):
            raise unknown("layer", pattern, [name for name, _ in known if name])
    seen: set[Any] = set()
    for name, layer in known:
        if layer in seen or (only is not None and not any(_meant(name, p) for p in patterns)):
            continue
        seen.add(layer)
        yield name, layer


def _meant(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)
