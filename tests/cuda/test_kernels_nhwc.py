"""What the kernels in NHWC claim of memory: whole sectors, no bytes but the declared ones, no bank conflicts.

That they are right, the gate and tests/cuda/test_kernels_memory.py ask.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import convkit as ck
from convkit import arrays, layouts
from convkit.check.cases import Case
from convkit.check.inputs import make
from convkit.cuda.emulator import Counter
from convkit.cuda.prepare import implementation
from convkit.op import OPS, Problem
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.lrn import LRN
from convkit.ops.lrn_maxpool2d import LrnMaxPool2d
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.reorder import Reorder
from convkit.paths import kernels_dir

pytestmark = pytest.mark.usefixtures("compiler")


def counted(stem: str, problem: Problem, **options: object) -> list[Counter]:
    """How a kernel uses memory, on aligned arrays."""
    one = implementation(kernels_dir() / f"{stem}.cu")
    op, declared = OPS[one.op], layouts.declared(one.layout)
    inputs = make(Case(one.op, problem, "counted", options), 3)
    given = [declared.of(name).packed(array) for name, array in inputs.items()]
    for name in op.outputs:
        physical = declared.of(name).physical(problem.shape(name))
        given.append(arrays.empty(physical, problem.dtype_of(name)))
    assert not any(array.ctypes.data % 16 for array in given)
    assert one.when is not None and one.when(problem) is None
    more = {"workspace": np.empty(one.workspace(problem), np.uint8)} if one.workspace else {}
    with ck.emulate(counters=True) as how:
        one.prepare(problem)(*given, **more, **options)
    return list(how.counted)


POOL = Pool2d.of((1, 96, 15, 15), dtype="bfloat16")
LRN_OF = {"groups": 2, "k": 2.0, "dtype": "bfloat16"}
BOTH = LrnMaxPool2d(LRN.of((1, 256, 15, 15), **LRN_OF), Pool2d.of((1, 256, 15, 15)), "bfloat16")
WITHIN = LRN.of((1, 64, 13, 11), region="within_channel", dtype="bfloat16")
#: By kernel, a problem whose rows are whole packs and whose runs fill warps; and how often it may read its
#: inputs' bytes from L1.
WHOLE: dict[str, tuple[Problem, float]] = {
    "reorder_interleave": (Reorder(1, 128, 8, 16, "bfloat16"), 1),
    "reorder_deinterleave": (Reorder(1, 128, 8, 16, "bfloat16/float32"), 1),
    "reorder_cast": (Reorder(1, 128, 8, 16, "bfloat16/float32"), 1),
    "conv2d_bgrad_columns": (ChannelSum(2, 64, 9, 9, 4, "bfloat16"), 1),
    "lrn_fprop_lanes": (LRN.of((1, 256, 5, 7), **LRN_OF), 1),
    "lrn_dgrad_lanes": (LRN.of((1, 256, 5, 7), **LRN_OF), 1),
    "lrn_fprop_map_sliding": (WITHIN, 1),
    "lrn_dgrad_map_sliding": (WITHIN, 1),
    "maxpool2d_fprop_channels": (POOL, 9 / 4),
    "maxpool2d_dgrad_channels": (POOL, 4),
    "lrn_maxpool2d_fprop_lanes": (BOTH, 20 / 14),
    "lrn_maxpool2d_dgrad_lanes": (BOTH, 4),
}


@pytest.mark.parametrize("stem", WHOLE)
def test_whole_sectors_and_no_bytes_but_the_declared_ones(stem):
    """Each output is written once, and no sector for a part of it; inputs are read as often as said."""
    problem, often = WHOLE[stem]
    op = OPS[implementation(kernels_dir() / f"{stem}.cu").op]
    rows = counted(stem, problem, **({"relu": True} if op.options else {}))
    loads, stores = (
        [row for row in rows if row.kind == f"global {kind}" and row.actual] for kind in ("load", "store")
    )
    if stem == "conv2d_bgrad_columns":  # the parts are written and read besides
        loads, stores = loads[:1], []
    else:
        assert 32 * sum(row.actual for row in stores) == problem.bytes(*op.outputs)
    assert 32 * sum(row.actual for row in loads) <= often * problem.bytes(*op.inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bfloat16/float32"])
@pytest.mark.parametrize(
    "stem",
    [
        "reorder_interleave",
        "reorder_deinterleave",
        "conv2d_bgrad_columns",
        "lrn_fprop_map_sliding",
        "lrn_dgrad_map_sliding",
    ],
)
def test_shared_memory_without_bank_conflicts(stem, dtype):
    if stem.startswith("lrn") and "/" in dtype:
        pytest.skip("no parameters")
    problems = {
        "conv2d_bgrad_columns": [ChannelSum(2, K, 13, 13, 4, dtype) for K in (96, 256, 24, 11)],
        "lrn_fprop_map_sliding": [replace(WITHIN, dtype=dtype)],
        "lrn_dgrad_map_sliding": [replace(WITHIN, dtype=dtype)],
    }.get(stem, [Reorder(1, 128, 8, 16, dtype), Reorder(1, 67, 9, 15, dtype)])
    for problem in problems:
        rows = [row for row in counted(stem, problem) if row.kind.startswith("shared")]
        assert {row.kind for row in rows} == {"shared load", "shared store"}
        assert [(row.file, row.line, row.kind) for row in rows if row.ratio > 1] == [], problem
