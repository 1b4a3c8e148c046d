"""Which values a result file is made of: checked once, when it is read.

A shape is a type; `Maybe` of one, for null; `[shape]`, a list of such; `Each` of one, an object of any names;
or a dict, an object with these names, of which those that end in "!" must be there. Names that a shape does
not know may have any value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Finite, and so small that products of a few do not overflow.
MOST = 1e30


@dataclass(frozen=True)
class Number:
    """A number from `low` on, not above `high`."""

    low: float = -MOST
    high: float = MOST

    def __str__(self) -> str:
        if self.high < MOST:
            return f"a number from {self.low:g} to {self.high:g}"
        return "a number" if self.low < 0 else f"a number of at least {self.low:g}"


@dataclass(frozen=True)
class Maybe:
    """Or null."""

    shape: Any


@dataclass(frozen=True)
class Each:
    """An object whose values have this shape."""

    shape: Any


_WORDS = {str: "text", bool: "true or false", dict: "an object", list: "a list"}
_SIZE, _REAL, _TEXT = Number(0), Maybe(Number()), Maybe(str)
_VERDICT = Maybe({
    "name!": str, "ratio!": _SIZE, "low!": _SIZE, "high!": _SIZE, "rounds!": _SIZE,
    "verdict!": str,
})  # fmt: skip
_ENTRY = {
    "name!": str, "library!": str, "version": _TEXT, "layout": _TEXT, "marks!": [str],
    "facts": {"algorithm_flops": _REAL, "rank": _REAL, "declared_error": _REAL, "workspace_bytes": _REAL},
    "workspace_bytes": _REAL, "deterministic": Maybe(bool), "error": _REAL, "checks": Maybe(Each(_TEXT)),
    "looks": _REAL, "refused": _TEXT, "samples_ms!": [[_SIZE]], "host_us": Maybe(_SIZE),
    "median_ms": _REAL, "low_ms": _REAL,
    "high_ms": _REAL, "gflops": _REAL, "gbs": _REAL, "percent": _REAL, "ceiling": _TEXT,
}  # fmt: skip
_ROW = {
    "id!": str, "net!": str, "layer!": str, "op!": str, "direction": str, "problem!": dict,
    "problem_text": str, "dtype!": str, "math!": str, "batch!": _SIZE, "options": dict, "absent": [str],
    "flops!": _SIZE, "bytes!": _SIZE, "unit": _TEXT,
    "contenders!": [_ENTRY], "probes": Each([_REAL]), "bound": _TEXT,
    "ranking!": Maybe({
        "own!": _TEXT, "rank!": _REAL, "of!": _REAL, "against!": Each(_VERDICT),
    }),
}  # fmt: skip
_KERNEL = {
    "file": _TEXT, "source_sha256": _TEXT, "includes": Maybe(Each(_TEXT)), "flags": Maybe([str]),
    "cubin_sha256": _TEXT, "cubins": [str], "status": _TEXT,
    "extension": Maybe({"file!": str, "sha256!": str}),
}  # fmt: skip
DOCUMENT = {
    "created": str, "command": [str], "digest": str,
    "convkit!": {"version!": str, "commit": _TEXT, "dirty": Maybe(bool)},
    "machine!": {
        "device": str, "name": str, "cpu": _TEXT, "threads": _REAL, "isa": _TEXT, "memory_gb": _REAL,
        "versions": Each(str), "gpu": Maybe(dict),
    },
    "settings!": {
        "rounds": _REAL, "cache": str, "confidence": Maybe(Number(1e-6, 1 - 1e-9)), "environment": Each(str),
        "against": [str],
    },
    "ceilings!": Each({"value": Maybe(_SIZE), "unit": str, "samples": [_REAL]}),
    "conditions": [{"row": str, "others": _REAL, "throttle": Maybe([str])}],
    "kernels!": Each(_KERNEL), "peers!": Each({"version": _TEXT}), "missing!": Each(str), "rows!": [_ROW],
    "failures!": [{"row!": str, "contender!": str}], "resumed": _REAL,
}  # fmt: skip


def faults(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """What of a value does not have its shape, a line each."""
    if isinstance(shape, Maybe):
        if value is not None:
            yield from faults(value, shape.shape, where)
        return
    if isinstance(shape, Number):
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (real and shape.low <= value <= shape.high):
            yield f"{where} is {_short(value)}, not {shape}"
        return
    kind: type = shape if isinstance(shape, type) else list if isinstance(shape, list) else dict
    fits = isinstance(value, kind)
    if not fits:
        yield f"{where or 'it'} is {_short(value)}, not {_WORDS[kind]}"
    elif isinstance(shape, list):
        for number, item in enumerate(value):
            yield from faults(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, Each):
        for name, item in value.items():
            yield from faults(item, shape.shape, f"{where}[{name!r}]")
    elif isinstance(shape, dict):
        yield from _object(value, shape, where)


def _object(value: Mapping[str, Any], shape: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, inner in shape.items():
        name = key.rstrip("!")
        inside = f"{where}.{name}" if where else name
        if name in value:
            yield from faults(value[name], inner, inside)
        elif key != name:
            yield f"{inside} is missing"


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
