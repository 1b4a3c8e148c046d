"""The PTX runner's `approx` functions: off by what the ISA allows, and exact where it says so."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import need
from ptx_texts import compute

need("cuda.core")
pytestmark = pytest.mark.usefixtures("compiler")


def floats(low: float, high: float) -> np.ndarray:
    """Numbers between two, evenly in their logarithm, with those near powers of two."""
    found = np.geomspace(low, high, 3000).astype(np.float32)
    powers = np.float32(2.0) ** np.arange(np.ceil(np.log2(low)), np.log2(high), dtype=np.float32)
    return np.concatenate([found, powers, np.nextafter(powers, np.float32(0))])


def approximated(instruction: str, x: np.ndarray, *more: np.ndarray) -> np.ndarray:
    operands = [a.astype(np.float32).view(np.uint32).tolist() for a in (x, *more)]
    types = ["f32"] * len(operands)
    words = f"{instruction} #0, {', '.join(f'${k}' for k in range(len(types)))};"
    found = compute(words, types, ["f32"], list(zip(*operands)))
    return np.array(found, np.uint32).reshape(-1).view(np.float32).astype(np.float64)


def ulps(y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(y - exact) / np.exp2(np.maximum(np.frexp(exact)[1] - 24, -149))


NORMAL = floats(2.0**-125, 2.0**127.9)
FUNCTIONS = {
    "rcp.approx.f32": (lambda x: 1 / x, NORMAL, ulps, 1.0),
    "rcp.approx.ftz.f32": (lambda x: 1 / x, floats(2.0**-125, 2.0**125), ulps, 1.0),
    "sqrt.approx.f32": (np.sqrt, NORMAL, lambda y, e: abs(y / e - 1), 2.0**-23),
    "sqrt.approx.ftz.f32": (np.sqrt, NORMAL, lambda y, e: abs(y / e - 1), 2.0**-23),
    "rsqrt.approx.f32": (lambda x: x**-0.5, NORMAL, lambda y, e: abs(y / e - 1), 2.0**-22.9),
    "rsqrt.approx.ftz.f32": (lambda x: x**-0.5, NORMAL, lambda y, e: abs(y / e - 1), 2.0**-22.9),
    "ex2.approx.ftz.f32": (np.exp2, np.linspace(-125, 127, 4000), ulps, 2.0),
    "ex2.approx.f32": (np.exp2, np.linspace(-140, 127, 4000), ulps, 2.0),
    "lg2.approx.f32": (np.log2, np.linspace(0.5001, 1.9999, 4000), lambda y, e: abs(y - e), 2.0**-22),
    "lg2.approx.ftz.f32": (np.log2, floats(2.5, 2.0**120), lambda y, e: abs(y / e - 1), 2.0**-22),
    "sin.approx.f32": (np.sin, np.linspace(-6.28, 6.28, 4000), lambda y, e: abs(y - e), 2.0**-20.5),
    "cos.approx.ftz.f32": (np.cos, np.linspace(-300, 300, 4000), lambda y, e: abs(y - e), 2.0**-14.7),
    "tanh.approx.f32": (np.tanh, np.linspace(-9, 9, 4000), lambda y, e: abs(y / e - 1), 2.0**-11),
}


@pytest.mark.parametrize("instruction", FUNCTIONS)
def test_approx_is_off_by_what_is_allowed_and_no_more(instruction):
    function, x, measure, most = FUNCTIONS[instruction]
    x = np.float32(x)
    exact = function(x.astype(np.float64))
    y = approximated(instruction, x)
    off = measure(y, exact)
    assert off.max() <= most * (1 + 1e-9)
    assert off.max() > 0.8 * most, "an error that is smaller than the ISA's shows nothing"
    np.testing.assert_array_equal(approximated(instruction, x), y)


@pytest.mark.parametrize("instruction", ["div.approx.f32", "div.full.f32"])
def test_quotients_are_off_by_two_ulp(instruction):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(4000).astype(np.float32) for _ in range(2))
    off = ulps(approximated(instruction, a, b), a.astype(np.float64) / b)
    assert 1.6 < off.max() <= 2
    assert approximated("div.approx.f32", np.float32([3]), np.float32([2.0**127]))[0] == 0


TINY, INF, NAN = 1e-40, np.inf, np.nan
EXACT = {
    "rcp.approx.f32": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-INF, -0.0), (NAN, NAN)],
    "rcp.approx.ftz.f32": [(TINY, INF), (-TINY, -INF), (2.0**127, 0.0)],
    "sqrt.approx.f32": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, NAN), (-1.0, NAN)],
    "sqrt.approx.ftz.f32": [(TINY, 0.0), (-TINY, -0.0)],
    "rsqrt.approx.f32": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-1.0, NAN), (-TINY, NAN)],
    "rsqrt.approx.ftz.f32": [(TINY, INF), (-TINY, -INF)],
    "ex2.approx.f32": [(0.0, 1.0), (-0.0, 1.0), (TINY, 1.0), (INF, INF), (-INF, 0.0), (NAN, NAN)],
    "ex2.approx.ftz.f32": [(TINY, 1.0), (-130.0, 0.0)],
    "lg2.approx.f32": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN), (-INF, NAN)],
    "lg2.approx.ftz.f32": [(TINY, -INF)],
    "sin.approx.f32": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN)],
    "cos.approx.f32": [(0.0, 1.0), (-0.0, 1.0), (-INF, NAN)],
    "tanh.approx.f32": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (NAN, NAN)],
}


@pytest.mark.parametrize("instruction", EXACT)
def test_approx_is_exact_where_the_isa_says_so(instruction):
    x, expected = np.float32(EXACT[instruction]).T.copy()
    y = approximated(instruction, x)
    np.testing.assert_array_equal(y, expected)
    defined = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(y[defined]), np.signbit(expected[defined]))
