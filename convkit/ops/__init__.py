"""The ops, a file for each family.

A file holds all that is said of its ops: the problem, the float64 definition, the row in `op.OPS` with the
cases of the gate and the bound of the rounding, and the public functions. A file that is put here is found.
What several families share stands in `window`, `elementwise`, `channel_sum`, `rounding` and `philox`.

Conventions, for all public functions. Arrays are NumPy, CuPy, or any object with DLPack; the result is of the
kind of the first one, and NumPy (on a GPU CuPy) where its library is not known or cannot take it
(docs/arrays.md). They may be read-only or strided. Storage is float32, float64, float16 or bfloat16, the same
for all arrays of a call, but for gradients of parameters, which may be float32 beside 16-bit arrays
(`dtype=`); the 16-bit types accumulate in float32. Layout is NCHW, weights are
(K, C/groups, R, S), and convolution is cross-correlation. NaN and infinity propagate: where Winograd is
picked, to some outputs more than they reach, and as NaN (docs/cpu.md).

Every op takes `impl`, the name of an implementation (`convkit.implementations(op)` lists them), and `out`, an
array, or a tuple of arrays where it returns several, that is filled and returned. A call that is refused
raises a `ConvkitError`, and has written nothing.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
