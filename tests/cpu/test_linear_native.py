"""The fully connected layers in C++: every instruction set and blocking, any number of threads, 16 bits."""

from __future__ import annotations

import numpy as np
import pytest

from convkit.arrays import np_dtype
from convkit.call import Call
from convkit.check import Case, Question, judge
from convkit.cpu import extension, threads
from convkit.dispatch import Arguments
from convkit.op import OPS
from convkit.ops.linear import Linear
from convkit.ops.sgd import TRIED as SGD
from convkit.registry import implementations

pytestmark = pytest.mark.skipif(
    extension.kernels_missing() is not None, reason="the C++ kernels are not built"
)

NAMES = ("linear_fprop", "linear_dgrad", "linear_wgrad", "linear_wgrad_sgd", "linear_dgrad_wgrad_sgd")
#: Beyond the gate's: each blocking, with its tails. Few images are those of the dot products; long rows have
#: blocks of their own; 128 images are one block, 384 rows of w one task of the weights' gradient;
#: with fewer than 32 tasks, a sum over 512 rows or more is split.
SHAPES = (
    (3, 4099, 50),
    (9, 4099, 50),
    (24, 600, 49),
    (25, 600, 49),
    (65, 4100, 20),
    (131, 300, 101),
    (2, 40, 801),
    (40, 5000, 530),
)


def _implementation(op: str):
    return next(i for i in implementations(op, device="cpu") if i.name == "panels")


def _options(op: str, relu: bool = True) -> dict:
    sgd = dict(SGD[4]) if "momentum" in OPS[op].options else {}
    return {**sgd, **({"relu": relu} if "relu" in OPS[op].options else {})}


def _run(op: str, g: Linear, seed: int = 0) -> dict[str, np.ndarray]:
    """The outputs on normal data."""
    rng = np.random.default_rng(seed)
    declared = OPS[op]
    inputs = [rng.standard_normal(g.shape(n)).astype(np_dtype(g.dtype)) for n in declared.inputs]
    outputs = [np.empty(g.shape(n), np_dtype(g.dtype)) for n in declared.outputs]
    Call(declared, _implementation(op), g, tuple(inputs), tuple(outputs), _options(op)).run()
    return dict(zip(declared.outputs, outputs, strict=True))


@pytest.mark.parametrize("isa", extension.isas())
@pytest.mark.parametrize("op", NAMES)
def test_every_blocking_passes_the_gate(op, isa):
    with extension.using(isa):
        for index, (N, C, K) in enumerate(SHAPES):
            case = Case(op, Linear(N, C, K), isa, _options(op, relu=index % 2 == 0))
            for dtype in ("float32", "bfloat16", "float16")[: 3 if index < 2 else 1]:
                verdict = judge(_implementation(op), Question.of(case, dtype))
                assert verdict.ok and not verdict.declined, str(verdict)


@pytest.mark.parametrize("op", NAMES)
def test_the_number_of_threads_changes_no_bit(op, monkeypatch):
    for N, C, K in SHAPES:
        found = []
        for count in (1, 2, 3, 5):
            monkeypatch.setenv(threads.VARIABLE, str(count))
            found.append({n: a.tobytes() for n, a in _run(op, Linear(N, C, K)).items()})
        assert all(f == found[0] for f in found), (N, C, K)


@pytest.mark.parametrize("isa", extension.isas())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("factor", [1.0, 1.0078125, -0.0625, 3.0, 2.0**-8])
def test_sixteen_bits_widen_and_round_as_they_should(dtype, factor, isa):
    """Every value, times a factor: exact in float32, so that what is seen is the rounding to 16 bits."""
    narrow = np_dtype(dtype)
    x = np.arange(1 << 16, dtype=np.uint16).view(narrow).reshape(-1, 1)
    w = np.full((1, 1), factor, narrow)
    g = Linear(x.size, 1, 1, dtype)
    y = np.empty((x.size, 1), narrow)
    with extension.using(isa), np.errstate(all="ignore"):
        Call(OPS["linear_fprop"], _implementation("linear_fprop"), g, (x, w, None), (y,)).run()
        wanted = (x.astype(np.float32) * np.float32(w[0, 0])).astype(narrow)
    is_nan = np.isnan(wanted.astype(np.float32))
    assert np.array_equal(np.isnan(y.astype(np.float32)), is_nan)
    # bfloat16's subnormals are float32's too, and may be flushed where something is computed.
    tiny = np.abs(wanted.astype(np.float32)) < 2.0**-126
    same = (y.view(np.uint16) == wanted.view(np.uint16)) | is_nan | (tiny & (y.astype(np.float32) == 0))
    zero = wanted.astype(np.float32) == 0  # a sum that begins with 0 has no negative zero
    same |= zero & (y.astype(np.float32) == 0)
    if factor == 1.0:  # nothing is rounded: subnormals come through
        same &= ~tiny | zero | (y.view(np.uint16) == wanted.view(np.uint16))
    assert same.all(), x[~same][:5]


@pytest.mark.parametrize("op", ["linear_wgrad_sgd", "linear_dgrad_wgrad_sgd"])
def test_weights_are_updated_in_place(op):
    g = Linear(5, 37, 11)
    rng = np.random.default_rng(0)
    given = {n: rng.standard_normal(g.shape(n)).astype(np.float32) for n in OPS[op].inputs}
    wanted = Arguments(op, **given).run(g, **_options(op))
    w, v, dx = given["w"], given["v"], np.empty(g.shape("dx"), np.float32)
    out = (dx, w, v) if "dx" in OPS[op].outputs else (w, v)
    found = Arguments(op, **given).run(g, out=out, **_options(op))
    assert found[-2] is w and found[-1] is v
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_images_weights_decay_alone():
    g = Linear(0, 6, 4)
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal((4, 6)).astype(np.float32) for _ in range(2))
    options = {**SGD[0], "weight_decay": 0.5}
    empty = {"x": np.empty((0, 6), np.float32), "dy": np.empty((0, 4), np.float32)}
    w_new, v_new = Arguments("linear_wgrad_sgd", **empty, w=w, v=v).run(g, **options)
    beside_dx = Arguments("linear_dgrad_wgrad_sgd", **empty, w=w, v=v).run(g, relu=True, **options)
    np.testing.assert_array_equal(beside_dx[1], w_new)
    velocity = np.float32(0.9) * v + np.float32(0.5) * w
    np.testing.assert_allclose(v_new, velocity, rtol=1e-6)
    np.testing.assert_allclose(w_new, w - np.float32(0.01) * velocity, rtol=1e-6)
