"""The state of a network: checks before it is loaded, and a comparison with what runs afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays
from ..arrays import Array
from ..errors import DtypeError, OptionError, ShapeError
from ..ops.loss_scale import INITIAL, checked_scale
from ..options import integer
from .plan import Plan

#: Version of a state.
FORMAT = 1
_KEYS = ("format", "dtype", "shapes", "params", "velocities", "seed", "dropout_offset", "plan")
#: Lines of an error or a warning that lists differences.
_LISTED = 6

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class State:
    """A state that fits a network."""

    params: Arrays
    velocities: Arrays
    seed: int
    dropout_offset: int
    plan: dict[str, Any] | None
    loss_scale: tuple[float, int]


@dataclass
class Record:
    """What the steps of a network run, as fingerprints of their plans.

    Attributes
    ----------
    ran : dict, optional
        Of the last step; None where that is not known.
    expected : dict, optional
        Of the last step of a loaded state, until a step is compared with it.
    plan : weak reference, optional
        The plan that `ran` is of.
    fused : bool
        Whether updates were fused in it.
    """

    ran: Mapping[str, Any] | None = None
    expected: Mapping[str, Any] | None = None
    plan: weakref.ref[Plan] | None = None
    fused: bool = True

    def note(self, plan: Plan) -> str:
        """Note that a step runs this plan; returns where it differs from the expected one, as lines of text.

        Implementations depend on the batch, so the comparison waits for a plan of the same batch.
        """
        if self.plan is None or self.plan() is not plan or self.fused != plan.fused:
            self.ran, self.plan, self.fused = plan.fingerprint(), weakref.ref(plan), plan.fused
        before, now = self.expected, self.ran
        if before is None or now is None or before.get("batch") != now["batch"]:
            return ""
        self.expected = None
        return differences(before, now)


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
    known = {name: value for name, value in state.items() if name != "loss_scale"}  # which only float16 has
    _check_names("the state", known, _KEYS)
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
    scale = _loss_scale(state.get("loss_scale", {"scale": INITIAL, "steps": 0}))
    return State(weights, velocities, seed, offset, None if plan is None else dict(plan), scale)


def _loss_scale(found: Any) -> tuple[float, int]:
    """The loss scale of a state, and the good steps in a row."""
    if not isinstance(found, Mapping):
        raise OptionError(f"loss_scale must be a dict, not {found!r}")
    _check_names("loss_scale", found, ("scale", "steps"))
    return checked_scale(found["scale"]), integer("steps", found["steps"], 0, 2**31 - 1)


def copies(params: Arrays) -> dict[str, np.ndarray]:
    """Copies in host memory."""
    found = {}
    for name, array in params.items():
        found[name] = np.empty(array.shape, array.dtype)
        arrays.assign(found[name], array)
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences of two fingerprints of plans as lines of text; empty if there are none."""
    old, new = _flat(before), _flat(now)
    return _some(
        [
            f"{name}: {new.get(name, '-')}, was {old.get(name, '-')}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    )


def _part(part: str, found: Any, params: Arrays, dtype: str) -> dict[str, Array]:
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


def _restored(name: str, value: Any, dtype: str) -> Array:
    array, kind = arrays.view(name, value), arrays.np_dtype(dtype)
    # A file of NumPy's keeps bfloat16 as items of two bytes.
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
    """A nested dict as a flat one: each leaf by the keys that lead to it, joined by spaces."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name} {key}".strip()).items()}
