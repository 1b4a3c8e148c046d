"""What `Network.state` returns: checked before any of it is loaded, and compared with what runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays
from ..errors import DtypeError, OptionError, ShapeError
from ..options import integer

#: Version of a state.
FORMAT = 1
_KEYS = ("format", "dtype", "shapes", "params", "velocities", "seed", "dropout_offset", "plan")
#: Lines of an error or a warning that lists differences.
_LISTED = 6

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class State:
    """A state that fits a network."""

    params: Arrays
    velocities: Arrays
    seed: int
    dropout_offset: int
    plan: dict[str, Any] | None


def checked(state: Any, params: Arrays, dtype: str) -> State:
    """A state after all checks against a network's parameters and dtype.

    Raises
    ------
    OptionError, ShapeError, DtypeError
        As `Network.load_state` says.
    """
    if not isinstance(state, Mapping):
        raise OptionError(f"a state is a dict, as Network.state returns it, not {type(state).__name__}")
    if "format" in state and state["format"] != FORMAT:
        raise OptionError(f"the state has format {state['format']!r}; this convkit reads {FORMAT}")
    _check_names("the state", state, _KEYS)
    if state["dtype"] != dtype:
        raise DtypeError(f"the state is {state['dtype']}, but the network is {dtype}")
    seed = integer("seed", state["seed"], 0, 2**64 - 1)
    offset = integer("dropout_offset", state["dropout_offset"], 0, 2**63 - 1)
    plan = state["plan"]
    if plan is not None and not isinstance(plan, Mapping):
        raise OptionError(f"plan must be a dict or None, not {plan!r}")
    if not isinstance(state["shapes"], Mapping):
        raise OptionError(f"shapes must be a dict, not {type(state['shapes']).__name__}")
    _check_names("shapes", state["shapes"], params)
    _check_shapes("shapes", state["shapes"], params)
    weights, velocities = (_part(name, state[name], params, dtype) for name in ("params", "velocities"))
    return State(weights, velocities, seed, offset, None if plan is None else dict(plan))


def copies(params: Arrays) -> dict[str, np.ndarray]:
    """Copies in host memory."""
    found = {}
    for name, array in params.items():
        found[name] = np.empty(array.shape, array.dtype)
        arrays.assign(found[name], array)
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Where two fingerprints of a plan differ: some lines, or an empty string."""
    old, new = _flat(before), _flat(now)
    return _some(
        [
            f"{name}: {new.get(name, '-')}, was {old.get(name, '-')}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    )


def _part(part: str, found: Any, params: Arrays, dtype: str) -> dict[str, np.ndarray]:
    """The arrays of a part of a state, after all checks."""
    if not isinstance(found, Mapping):
        raise OptionError(f"{part} must be a dict of arrays, not {type(found).__name__}")
    _check_names(part, found, params)
    values = {name: _restored(f'{part}["{name}"]', found[name], dtype) for name in params}
    _check_shapes(part, {name: array.shape for name, array in values.items()}, params)
    for name, array in values.items():
        if (other := arrays.dtype_name(f'{part}["{name}"]', array)) != dtype:
            raise DtypeError(f'{part}["{name}"] has dtype {other}, but the network is {dtype}')
    return values


def _restored(name: str, value: Any, dtype: str) -> np.ndarray:
    array, kind = arrays.view(name, value), arrays.np_dtype(dtype)
    # NumPy's files keep of bfloat16 that it has two bytes.
    return array.view(kind) if array.dtype == np.dtype(f"V{kind.itemsize}") else array


def _check_names(where: str, found: Mapping[str, Any], wanted: Iterable[str]) -> None:
    wanted = tuple(wanted)
    lines = [f"{name!r} is missing" for name in wanted if name not in found]
    lines += [f"{name!r} is not known" for name in found if name not in wanted]
    if lines:
        raise OptionError(f"{where} does not fit this network:{_some(lines)}")


def _check_shapes(where: str, shapes: Mapping[str, Any], params: Arrays) -> None:
    found = {name: tuple(s) if isinstance(s, (list, tuple)) else s for name, s in shapes.items()}
    lines = [
        f"{name} has shape {found[name]}, but the network's has {tuple(w.shape)}"
        for name, w in params.items()
        if found[name] != tuple(w.shape)
    ]
    if lines:
        raise ShapeError(f"{where} of the state do not fit this network:{_some(lines)}")


def _some(lines: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(lines) - _LISTED
    return "".join(f"\n  {line}" for line in lines[:_LISTED]) + (f"\n  and {more} more" if more > 0 else "")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested dict as one level: its leaves, by the words that lead to them."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name} {key}".strip()).items()}
