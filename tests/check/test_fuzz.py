"""20,000 convolutions, half of them thin, by every implementation on the CPU, against float64.

Each call is a problem, a direction and a dtype of its own. Every implementation that takes it runs it, in
every layout, between guard bands, by turns at an address that suits its registers and at one that suits an
element alone, and is held to the gate's bounds. The seed is fresh; a failure prints it, with what replays
that call alone:

    CONVKIT_FUZZ_SEED=123 CONVKIT_FUZZ_CALL=4567 python -m pytest -m slow tests/check/test_fuzz.py

CONVKIT_FUZZ_CALLS says how many calls instead of 20,000.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import strategies

from convkit.arrays import np_dtype
from convkit.check import FIRST, Case, Question, attempt
from convkit.check.attempt import SECOND
from convkit.check.tolerance import _STORAGE, Expected, compare
from convkit.cpu import extension
from convkit.op import OPS
from convkit.ops.conv2d import Conv2d
from convkit.ops.window import window_span
from convkit.registry import ALL_DTYPES, implementations

CALLS = 20_000
DIRECTIONS = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_dgrad_relu")
Arrays = dict[str, "np.ndarray | None"]


# ---------------------------------------------------------------------------------------------------
# float64, by matrix products over all taps at once
# ---------------------------------------------------------------------------------------------------
def windows(g: Conv2d, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The maps between their padding, and a view of it: [n, group, c, r, s, p, q]."""
    rows = max(g.pad_top + g.H, (g.P - 1) * g.stride_h + window_span(g.R, g.dilation_h))
    columns = max(g.pad_left + g.W, (g.Q - 1) * g.stride_w + window_span(g.S, g.dilation_w))
    padded = np.zeros((g.N, g.groups, g.C // g.groups, rows, columns))
    padded[..., g.pad_top : g.pad_top + g.H, g.pad_left : g.pad_left + g.W] = maps.reshape(
        g.N, g.groups, -1, g.H, g.W
    )
    n, i, c, h, w = padded.strides
    view = np.lib.stride_tricks.as_strided(
        padded,
        (g.N, g.groups, g.C // g.groups, g.R, g.S, g.P, g.Q),
        (n, i, c, h * g.dilation_h, w * g.dilation_w, h * g.stride_h, w * g.stride_w),
    )
    return padded, view


def exact(op: str, g: Conv2d, given: Arrays, relu: bool) -> np.ndarray:
    """What an op should give, in float64."""
    x, w, dy, b = (given.get(name) for name in ("x", "w", "dy", "b"))
    taps = g.C // g.groups * g.R * g.S
    padded, seen = windows(g, np.zeros(g.shape("x")) if op.startswith("conv2d_dgrad") or x is None else x)
    if op == "conv2d_fprop":
        assert w is not None
        columns = seen.reshape(g.N, g.groups, taps, g.P * g.Q)
        y = (w.reshape(g.groups, -1, taps) @ columns).reshape(g.shape("y"))
        y = y if b is None else y + b[:, None, None]
        return np.maximum(y, 0) if relu else y
    assert dy is not None
    gradient = dy.reshape(g.N, g.groups, -1, g.P * g.Q)
    if op == "conv2d_wgrad":
        columns = seen.reshape(g.N, g.groups, taps, g.P * g.Q)
        return np.asarray((gradient @ columns.swapaxes(2, 3)).sum(axis=0).reshape(g.shape("dw")))
    assert w is not None
    products = w.reshape(g.groups, -1, taps).swapaxes(1, 2) @ gradient
    products = products.reshape(seen.shape)
    for r in range(g.R):
        for s in range(g.S):
            seen[:, :, :, r, s] += products[:, :, :, r, s]
    inner = padded[..., g.pad_top : g.pad_top + g.H, g.pad_left : g.pad_left + g.W]
    dx = inner.reshape(g.shape("dx"))
    return dx if x is None else np.where(x <= 0, 0, dx)


def expected(op: str, g: Conv2d, given: Arrays, relu: bool) -> dict[str, Expected]:
    """The gate's bounds: 4 u sqrt(L) (s + |value|) and storage; see convkit.check.tolerance."""
    value = exact(op, g, given, relu)
    squares = {n: a if a is None or (n, op) == ("x", "conv2d_dgrad_relu") else a**2 for n, a in given.items()}
    scale = np.sqrt(exact(op, g, squares, False)) + np.abs(value)
    u = 2 * 2.0**-53 if g.dtype == "float64" else 2.0**-24
    rounding = 4 * u * np.sqrt(g.reduction(op)) * scale
    relative, least = _STORAGE[g.dtype]
    storage = relative * (np.abs(value) + rounding) + least
    return {OPS[op].outputs[0]: Expected(value, rounding, storage, scale)}


# ---------------------------------------------------------------------------------------------------
# A call
# ---------------------------------------------------------------------------------------------------
def representable(a: np.ndarray) -> np.ndarray:
    """In every dtype, so that none rounds what it is given."""
    return a.astype(np_dtype("bfloat16")).astype(np.float16).astype(np.float64)


def draw(seed: int, call: int) -> tuple[str, Conv2d, Arrays, bool]:
    """Op, problem, inputs in float64, and relu."""
    rng = np.random.default_rng([seed, call])
    pick = strategies.seeded(rng)
    g = strategies.draw_conv2d(pick, thin=call % 2 == 0, long=40 if call % 2 else 150)
    op = DIRECTIONS[pick(0, 5) % 3 if pick(0, 4) else 3]
    g = replace(g, dtype=ALL_DTYPES[pick(0, 3)])
    given: Arrays = {name: representable(rng.standard_normal(g.shape(name))) for name in OPS[op].inputs}
    if op == "conv2d_fprop" and pick(0, 2) == 0:
        given["b"] = None
    return op, g, given, bool(pick(0, 1)) and op == "conv2d_fprop"


def faults(seed: int, call: int) -> list[str]:
    """What is wrong with each implementation's result of a call."""
    op, g, given, relu = draw(seed, call)
    kind = np_dtype(g.dtype)
    inputs = {name: None if a is None else a.astype(kind) for name, a in given.items()}
    case = Case(op, g, "fuzz", {"relu": relu} if "relu" in OPS[op].options else {})
    question = Question(case, inputs, inputs, expected(op, g, given, relu))
    found = []
    for number, i in enumerate(implementations(op, device="cpu", layout=None)):
        if i.refusal(g, i.math) is not None:
            continue
        run = attempt(i, question, (FIRST, SECOND)[(call + number) % 2])
        fault = run.fault
        for name, want in question.wanted.items() if not fault else ():
            fault = compare(name, run.outputs[name], want, i, op).reason
        if fault:
            found.append(f"{i.op} {i.label} at {extension.isa()}, {g.dtype}, {case}: {fault}")
    return found


def test_the_fast_float64_is_the_reference():
    for call in range(60):
        op, g, given, relu = draw(5, call)
        got = exact(op, g, given, relu)
        wanted = np.empty(got.shape)
        inputs = [given[name] for name in OPS[op].inputs]
        OPS[op].define(g, *inputs, wanted, **({"relu": relu} if op == "conv2d_fprop" else {}))
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_fuzz(capsys):
    seed = int(os.environ.get("CONVKIT_FUZZ_SEED") or int(np.random.SeedSequence().entropy) % 2**32)
    alone = os.environ.get("CONVKIT_FUZZ_CALL")
    calls = [int(alone)] if alone else range(int(os.environ.get("CONVKIT_FUZZ_CALLS") or CALLS))
    with capsys.disabled():
        print(f"\nfuzz: seed {seed}, {len(calls)} calls")
    isas: tuple[Any, ...] = extension.isas() or (extension.NONE,)
    for call in calls:
        # The widest is what runs on this machine; the others have a quarter of the calls each.
        isa = isas[min(call % 4, len(isas) - 1)] if call % 4 else isas[0]
        with extension.using(isa):
            if found := faults(seed, call):
                replay = f"CONVKIT_FUZZ_SEED={seed} CONVKIT_FUZZ_CALL={call}"
                pytest.fail("\n".join([f"{replay} replays this", *found]))
