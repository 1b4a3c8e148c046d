"""The implementation "reference" of every op: its definition, in float64 whatever the storage is.

The definitions stand beside their ops, in `convkit.ops`. The one rounding is the assignment to the output.
"""

from __future__ import annotations

from ..op import OPS
from ..registry import ALL_DTYPES, Implementation, add

for _op in OPS.values():
    add(
        Implementation(
            _op.name, "reference", _op.define, dtypes=(*ALL_DTYPES, *_op.pairs), rank=-100, error=0.0,
            source=_op.define.__code__.co_filename,
        )
    )  # fmt: skip
