"""Every op of a training step of AlexNet, each implementation, timed by pytest-benchmark.

    pytest bench/                                   the paper's network, batch 16
    pytest bench/ --preset owt --batch 1 -k conv2   another network, only some layers
    pytest bench/ --benchmark-autosave --benchmark-compare

A call is compared with the float64 reference before it is timed; one that is wrong is not timed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from convkit.arrays import empty
from convkit.profile import run_and_compare


def test_call(benchmark, call, implementation):
    call = replace(call, implementation=implementation, options=dict(call.options))
    call.options.pop("workspace", None)
    if call.workspace_bytes:
        call.options["workspace"] = empty((call.workspace_bytes,), "uint8")
    error = run_and_compare(call)
    if not error <= max(1e-6, implementation.error):
        pytest.fail(f"relative RMS error {error:.1e} against float64: not timed")
    flops, moved = (
        call.problem.flops(call.op.name),
        sum(a.nbytes for a in (*call.inputs, *call.outputs) if a is not None),
    )
    benchmark.group = f"{call.layer} {call.op.name}"
    benchmark.extra_info.update(flops=flops, bytes=moved, error=error)
    benchmark.pedantic(call.run, rounds=5, warmup_rounds=1)
    seconds = benchmark.stats.stats.median if benchmark.stats else float("nan")
    benchmark.extra_info.update(gflops=flops / seconds / 1e9, gbytes_per_s=moved / seconds / 1e9)
