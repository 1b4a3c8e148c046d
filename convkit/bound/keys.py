"""Keys of bound calls: what of an option or an array decides how a call is carried out."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Options that are not in a key, but checked in each call by these expressions: what is not valid goes the
#: whole way.
VALUES: dict[str, str] = {
    "lr": "type(lr) is float and isfinite(lr)",
    "seed": "type(seed) is int and 0 <= seed < 2**64",
    "offset": "type(offset) is int and 0 <= offset < 2**63",
}
#: The flags C_CONTIGUOUS and ALIGNED of NumPy's `flags.num`, and WRITEABLE beside them.
IN_ORDER, FILLABLE = 0x101, 0x501


class Unusual(Exception):
    """An option has no key."""


def typed(value: Any) -> Any:
    """A key of an option's value, which tells True from 1 and from 1.0, and a list from a tuple."""
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value
    if kind is tuple:
        for one in value:
            if type(one) is not int:
                return tuple(map(typed, value))
        return value
    if kind is bool:
        return bool, value
    if kind is float:
        return float, value or str(value)  # -0.0 equals 0.0
    if kind is list:
        return list, *map(typed, value)
    if kind is dict:
        # What is usual is spelt out: a call of `typed` for each takes half as long again as the kernel.
        return (
            dict,
            *value,
            *[
                v if type(v) is int else (float, v) if type(v) is float and v else typed(v)
                for v in value.values()
            ],
        )
    raise Unusual


_INT32, _UINT8 = np.dtype(np.int32), np.dtype(np.uint8)


def flagged(value: Any) -> bool:
    """A key of a flag, an input that need not be given: that there is one. Each call reads its own."""
    if (
        type(value) is np.ndarray
        and value.dtype == _INT32
        and value.shape == (1,)
        and value.flags.num & IN_ORDER == IN_ORDER
    ):
        return True
    raise Unusual
