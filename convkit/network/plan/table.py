"""What a plan runs, as text and as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ... import checked
from ...call import Call
from ...cpu import extension
from ...registry import MATH


class Row(NamedTuple):
    """A call, as `print(plan)` shows it. A pair of dtypes is that of activations and that of parameters.

    `math` is the arithmetic of float32, in a column where it is not "fp32" everywhere.
    """

    layer: str
    op: str
    implementation: str
    layout: str
    dtype: str
    math: str
    output: str
    MB: float
    MFLOP: float
    marks: str = ""


def row(call: Call) -> Row:
    """The row of a call."""
    op, problem, implementation = call.op, call.problem, call.implementation
    present = [name for name, array in zip(op.inputs, call.inputs, strict=True) if array is not None]
    return Row(
        call.layer,
        op.name,
        implementation.name_and_tile,
        implementation.layout_text,
        problem.dtype,  # type: ignore[attr-defined]
        implementation.math,
        "x".join(map(str, problem.shape(op.outputs[0]))),
        problem.bytes(*present, *op.outputs) / 1e6,
        problem.flops(op.name) / 1e6,
        checked.mark(implementation),
    )


def text(rows: Sequence[Row], batch: int, dtype: str, size: int) -> str:
    """The rows as a table, and their sums.

    Parameters
    ----------
    rows : sequence of Row
    batch : int
    dtype : str
    size : int
        Bytes of memory that the plan owns.
    """
    from tabulate import tabulate

    shown = dict.fromkeys(Row._fields, "") | {"MB": ".2f", "MFLOP": ".1f"}
    if all(row.math == MATH[-1] for row in rows):
        del shown["math"]
    if not any(row.marks for row in rows):
        del shown["marks"]
    table = tabulate(
        [[getattr(row, name) for name in shown] for row in rows],
        list(shown),
        tablefmt="simple",
        floatfmt=tuple(shown.values()),
    )
    flops = sum(row.MFLOP for row in rows) / 1e3
    return (
        f"{table}\n\nbatch {batch}, {dtype}: {flops:.2f} GFLOP a step, "
        f"{size / 2**20:.0f} MiB besides the parameters"
    )


def fingerprint(calls: Iterable[Call], batch: int, dtype: str, device: str) -> dict[str, Any]:
    """What decides the bits of these calls, as plain values.

    Parameters
    ----------
    calls : iterable of Call
    batch : int
    dtype : str
    device : {"cpu", "cuda", "cuda:1", ...}
    """
    return {
        "batch": batch,
        "dtype": dtype,
        "device": device.partition(":")[0],
        "instructions": extension.isa() if device == "cpu" else "",
        "implementations": {f"{c.layer} {c.op.name}": c.implementation.label for c in calls},
    }
