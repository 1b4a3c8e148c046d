"""Bound calls: what an op's call works out from shapes, dtypes and options is worked out once.

The first call of a kind takes the whole way: `dispatch.Arguments` checks it, chooses an implementation and
runs it. It leaves behind a `Bound`, under a key: shape, dtype and contiguity of each array, every option
with its type, and the choice of `use`. The next call of that key checks what a key cannot hold, and runs:

- `out`: its shape, dtype, order and writeability, and that it shares no memory with another array;
- the flag `finite`, whose value is read when the call runs: that it shares no memory with `out`;
- values: labels and argmax in range, and the options of `VALUES`, which change from call to call;
- that implementations, instruction set and emulator are what they were.

Whatever is unusual (a subclass, an array of a library that is not known, an option of an unknown type) is no
bound call, and nothing is refused here: the whole way says what is wrong, in its own words.

A `layouts.Tensor` of NumPy's counts by its data; layout and logical shape are in the key (`laid_out`).

NumPy's arrays come first: their call is a few microseconds. CuPy's and PyTorch's go through `elsewhere`,
which looks at each array as the whole way does, with device and stream; under a key of the same kind.

`quick` writes the function that a user calls, with the op's signature, as `dataclasses` writes `__init__`:
to build the key in a loop over the arguments takes twice as long as all the rest.
"""

from __future__ import annotations

from .function import bindable, quick
from .kept import FEW, MISS, Bound, OnGpu, caches, clear, leave, ranged, unkeyed
from .keys import Unusual, typed

__all__ = [
    "FEW",
    "MISS",
    "Bound",
    "OnGpu",
    "Unusual",
    "bindable",
    "caches",
    "clear",
    "leave",
    "quick",
    "ranged",
    "typed",
    "unkeyed",
]
