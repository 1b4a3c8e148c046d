"""Calls like one before them: what a bound call gives is what the whole way gives, errors too.

`both` makes each call twice, from arguments that are the same bit for bit: as it comes, and with nothing
bound. The sequences at the end draw ops, dtypes, memory, options, outputs and contexts at random; a failure
names the seed and the step, and CONVKIT_BOUND_SEED and CONVKIT_BOUND_STEPS replay and extend the slow one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import fake_cupy
import numpy as np
import pytest
import threadpoolctl

import convkit as ck
from convkit import arrays, bound, devices, layouts, registry
from convkit.arrays import np_dtype
from convkit.cpu import extension
from convkit.cuda.emulate import Emulator
from convkit.errors import OptionError
from convkit.layouts import Tensor
from convkit.op import OPS
from convkit.registry import ALL_DTYPES

LRN, POOL = {"size": 3}, {"window": 2, "stride": 2}
RULE = {"lr": 0.5, "momentum": 0.25}
IMAGE, FILTER, SMALL, MATRIX = (2, 4, 4, 4), (4, 4, 3, 3), (2, 4, 2, 2), (4, 4)


class Sample(NamedTuple):
    """How an op is called: the shape of each of its inputs, and options."""

    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any]


CONV = {"padding": 1}
#: Inputs that have a dtype of their own, and whose values here are whole numbers.
WHOLE = {
    "labels": np.int64, "argmax": np.uint8, "rank": np.int32, "images": np.uint8, "crops": np.int32,
    "scale": np.float32, "sound": np.int32, "steps": np.int32,
}  # fmt: skip
#: One call of every op.
SAMPLES = {
    "conv2d_fprop": Sample({"x": IMAGE, "w": FILTER, "b": (4,)}, CONV),
    "conv2d_dgrad": Sample({"dy": IMAGE, "w": FILTER}, {"x_shape": IMAGE, **CONV}),
    "conv2d_dgrad_relu": Sample({"dy": IMAGE, "w": FILTER, "x": IMAGE}, CONV),
    "conv2d_wgrad": Sample({"x": IMAGE, "dy": IMAGE}, {"w_shape": FILTER, **CONV}),
    "conv2d_bgrad": Sample({"dy": IMAGE}, {}),
    "conv2d_wgrad_bgrad": Sample({"x": IMAGE, "dy": IMAGE}, {"w_shape": FILTER, **CONV}),
    "relu_fprop": Sample({"x": IMAGE}, {}),
    "relu_dgrad": Sample({"dy": IMAGE, "y": IMAGE}, {}),
    "lrn_fprop": Sample({"x": IMAGE}, LRN),
    "lrn_dgrad": Sample({"dy": IMAGE, "x": IMAGE}, LRN),
    "maxpool2d_fprop": Sample({"x": IMAGE}, POOL),
    "maxpool2d_dgrad": Sample({"dy": SMALL, "argmax": SMALL}, {"x_shape": IMAGE, **POOL}),
    "avgpool2d_fprop": Sample({"x": IMAGE}, POOL),
    "avgpool2d_dgrad": Sample({"dy": SMALL}, {"x_shape": IMAGE, **POOL}),
    "reorder": Sample({"x": IMAGE}, {}),
    "crop_images": Sample(
        {"images": (2, 5, 4, 3), "crops": (2, 3), "mean": (3, 5, 4), "shift": (2, 3), "factor": (3,)},
        {"size": 3, "reverse": True},
    ),
    "label_rank": Sample({"logits": (3, 4), "labels": (3,)}, {}),
    "loss_summary": Sample({"loss": (3,), "rank": (3,)}, {}),
    "rescale": Sample({"x": IMAGE, "scale": (1,), "sound": (1,)}, {"inverse": True}),
    "adjust_loss_scale": Sample(dict.fromkeys(("scale", "steps", "sound"), (1,)), {"interval": 3}),
    "lrn_maxpool2d_fprop": Sample({"x": IMAGE}, {"lrn": LRN, "pool": POOL}),
    "lrn_maxpool2d_dgrad": Sample({"dy": SMALL, "argmax": SMALL, "x": IMAGE}, {"lrn": LRN, "pool": POOL}),
    "linear_fprop": Sample({"x": MATRIX, "w": MATRIX, "b": (4,)}, {}),
    "linear_dgrad": Sample({"dy": MATRIX, "w": MATRIX}, {}),
    "linear_wgrad": Sample({"x": MATRIX, "dy": MATRIX}, {}),
    "linear_bgrad": Sample({"dy": MATRIX}, {}),
    "linear_wgrad_sgd": Sample(dict.fromkeys(("x", "dy", "w", "v"), MATRIX), RULE),
    "linear_dgrad_wgrad_sgd": Sample(dict.fromkeys(("dy", "w", "x", "v"), MATRIX), RULE),
    "dropout_fprop": Sample({"x": IMAGE}, {"p": 0.5, "seed": 7}),
    "dropout_dgrad": Sample({"dy": IMAGE}, {"p": 0.5, "seed": 7}),
    "softmax_xent_fprop": Sample({"logits": MATRIX, "labels": (4,)}, {}),
    "softmax_xent_dgrad": Sample({"probs": MATRIX, "labels": (4,)}, {}),
    "sgd_momentum": Sample(dict.fromkeys(("w", "dw", "v"), MATRIX), RULE),
}


@pytest.fixture(autouse=True)
def nothing_bound():
    ck.relu_fprop(np.ones(1, np.float32))  # the very first call loads modules, and is not kept
    bound.clear()
    yield
    bound.clear()


@pytest.fixture(name="hits")
def _hits(monkeypatch):
    """Names of the ops whose calls were bound ones, as they come."""
    seen: list[str] = []
    for kind in (bound.Bound, bound.OnGpu):

        def counted(self, *arguments, run=kind.run):
            result = run(self, *arguments)
            if result is not bound.MISS:
                seen.append(self._op.name)
            return result

        monkeypatch.setattr(kind, "run", counted)
    return seen


# ---------------------------------------------------------------------------------------------------
# Arguments, twice the same
# ---------------------------------------------------------------------------------------------------
class Subclass(np.ndarray):
    """Of NumPy's, with nothing of its own."""


def memory(values: np.ndarray, how: str) -> np.ndarray:
    """The values in an array of their own that lies in memory in some way."""
    if how == "strided":
        wide = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    if how == "reversed":
        return np.ascontiguousarray(values[..., ::-1])[..., ::-1]
    if how == "Fortran":
        return np.asfortranarray(values)
    if how == "misaligned":
        raw = np.zeros(values.nbytes + 65, np.uint8)
        start = -raw.ctypes.data % 64 + 1
        found = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        found[...] = values
        return found
    if how == "broadcast":
        return np.broadcast_to(values[:1], values.shape)
    if how == "subclass":
        return values.copy().view(Subclass)
    if how == "masked":
        return np.ma.masked_array(values.copy())
    if how == "swapped":
        return values.astype(values.dtype.newbyteorder()) if values.dtype.kind != "V" else values.copy()
    found = values.copy()
    found.flags.writeable = how != "read-only"
    return found


USUAL = ("plain", "strided", "reversed", "Fortran", "misaligned", "broadcast", "read-only")
UNUSUAL = ("subclass", "masked", "swapped")


def drawn(op: str, dtype: str, rng: np.random.Generator, how: Callable[[], str] = lambda: "plain") -> dict:
    """The inputs of a sample, by name."""
    found = {}
    for name, shape in SAMPLES[op].shapes.items():
        if name in WHOLE:
            values = rng.integers(0, 4, shape).astype(WHOLE[name])
        else:
            values = rng.standard_normal(shape).astype(np_dtype(dtype))
        found[name] = memory(values, how())
    return found


def results(op: str, given: dict) -> list[np.ndarray]:
    """New arrays for the outputs of a sample."""
    made = getattr(ck, op)(**given, **SAMPLES[op].options)
    made = made if isinstance(made, tuple) else (made,)
    return [np.full(a.shape, 3, a.dtype) for a in made]


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, to be compared: types, shapes and bits; or the error."""
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    several = result if isinstance(result, tuple) else (result,)
    return type(result), [traits(a) for a in several]


def traits(a: Any) -> tuple[Any, ...]:
    if isinstance(a, Tensor):
        return Tensor, a.layout, a.shape, *traits(a.data)
    return type(a), a.dtype, a.shape, a.flags.c_contiguous, a.tobytes()


@contextlib.contextmanager
def none_bound():
    """A block that begins with nothing bound, and leaves behind what was bound before it."""
    kept = {name: dict(cache) for name, cache in bound.caches.items()}
    bound.clear()
    try:
        yield
    finally:
        bound.clear()
        for name, cache in kept.items():
            bound.caches[name].update(cache)


def both(make: Callable[[], tuple[Callable[[], Any], list[Any]]]) -> Any:
    """The outcome of a call, which is the same with nothing bound; and so is what it leaves of its arguments.

    `make` gives a call, and the arrays that it may touch; the same each time.
    """
    first, touched = make()
    got = outcome(first)
    with none_bound():
        second, others = make()
        wanted = outcome(second)
    assert got == wanted
    for a, b in zip(touched, others, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return got


def test_every_op_is_called_here():
    assert SAMPLES.keys() == OPS.keys() == bound.caches.keys()


# ---------------------------------------------------------------------------------------------------
# The same call again
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("op", SAMPLES)
def test_later_calls_are_bound_and_give_the_same_bits(op, dtype, hits):
    for how in USUAL:
        bound.clear()
        for step in range(3):

            def make(step=step, how=how):
                given = drawn(op, dtype, np.random.default_rng(step), lambda: how)
                return lambda: getattr(ck, op)(**given, **SAMPLES[op].options), list(given.values())

            del hits[:]
            both(make)
            assert hits == ([op] if step else [])


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("op", SAMPLES)
def test_out_is_filled_and_returned(op, dtype, hits):
    given = drawn(op, dtype, np.random.default_rng(0))
    expected = outcome(lambda: getattr(ck, op)(**given, **SAMPLES[op].options))
    for _ in range(2):
        outs = results(op, given)
        del hits[:]
        out = outs[0] if len(outs) == 1 else tuple(outs)
        got = getattr(ck, op)(**given, **SAMPLES[op].options, out=out)
        assert hits == [op]
        assert all(a is b for a, b in zip(outs, got if len(outs) > 1 else (got,), strict=True))
        assert outcome(lambda got=got: got) == expected


@pytest.mark.parametrize("op", ["relu_fprop", "relu_dgrad", "dropout_fprop", "sgd_momentum"])
def test_in_place(op, hits):
    places = {"sgd_momentum": ("w", "v")}.get(op, (OPS[op].inputs[0],))
    for step in range(3):

        def make(step=step):
            given = drawn(op, "float32", np.random.default_rng(step))
            outs = tuple(given[name] for name in places)
            out = outs if len(outs) > 1 else outs[0]
            return lambda: getattr(ck, op)(**given, **SAMPLES[op].options, out=out), list(given.values())

        del hits[:]
        both(make)
        assert hits == ([op] if step else [])


def test_weights_are_updated_in_place(hits):
    for op in ("linear_wgrad_sgd", "linear_dgrad_wgrad_sgd"):
        for step in range(3):

            def make(step=step, op=op):
                given = drawn(op, "float32", np.random.default_rng(step))
                out = (given["w"], given["v"])
                out = out if len(OPS[op].outputs) == 2 else (None, *out)
                return lambda: getattr(ck, op)(**given, **RULE, out=out), list(given.values())

            both(make)
    assert len(hits) == 4


def test_large_results_are_aligned():
    x = np.zeros((1, 4, 40, 40), np.float32)
    for _ in range(3):
        assert ck.relu_fprop(x).ctypes.data % 64 == 0


def test_nan_does_not_warn(recwarn):
    for dtype in ALL_DTYPES:
        for op in ("lrn_fprop", "softmax_xent_fprop", "conv2d_fprop", "linear_fprop"):
            for value in (np.nan, np.inf, 6e4):
                given = drawn(op, dtype, np.random.default_rng(0))
                first = next(iter(given.values()))
                first.reshape(-1)[0] = value
                for _ in range(3):
                    getattr(ck, op)(**given, **SAMPLES[op].options)
    x, labels = np.ones(MATRIX, np.float32), np.zeros(4, int)
    for _ in range(3):
        ck.softmax_xent_dgrad(x, labels, np.full(4, 1e300))
    assert not recwarn.list


# ---------------------------------------------------------------------------------------------------
# A later call that is not like the first
# ---------------------------------------------------------------------------------------------------
def frozen(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


def overlapping(rows: int) -> np.ndarray:
    """An array several of whose elements share memory."""
    return np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (rows, 4), (4, 4))


OUTS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "is an input": lambda x, w: w,
    "lies across an input": lambda x, w: x.base[1:5],
    "is read-only": lambda x, w: frozen((4, 4)),
    "of another shape": lambda x, w: np.zeros((4, 5), np.float32),
    "of another dtype": lambda x, w: np.zeros((4, 4)),
    "overlaps itself": lambda x, w: overlapping(4),
    "is no array": lambda x, w: [[0.0] * 4] * 4,
    "is a tuple": lambda x, w: (np.zeros((4, 4), np.float32),),
    "is masked": lambda x, w: np.ma.zeros((4, 4), np.float32),
    "is transposed": lambda x, w: np.zeros((4, 4), np.float32).T,
    "is misaligned": lambda x, w: memory(np.zeros((4, 4), np.float32), "misaligned"),
    "is a subclass": lambda x, w: memory(np.zeros((4, 4), np.float32), "subclass"),
    "is a view of an input": lambda x, w: w[:],
}


@pytest.mark.parametrize("kind", OUTS)
def test_out_of_a_later_call(kind, hits):
    def make():
        rng = np.random.default_rng(0)
        x, w = (rng.standard_normal((6, 4)).astype(np.float32)[:4] for _ in range(2))
        out = OUTS[kind](x, w)
        return lambda: ck.linear_fprop(x, w, out=out), [x.base, w, np.asarray(out)]

    x = np.ones((4, 4), np.float32)
    ck.linear_fprop(x, x)
    ck.linear_fprop(x, x, out=np.zeros((4, 4), np.float32))
    assert len(hits) == 1
    both(make)
    assert len(hits) == 1  # none of these is for a bound call


def test_outputs_of_a_later_call_that_share_memory():
    w = np.ones((4, 4), np.float32)
    for _ in range(2):
        ck.sgd_momentum(w, w, w.copy(), lr=0.5, out=(np.ones_like(w), np.ones_like(w)))

    def make():
        shared = np.ones((8, 4), np.float32)
        return lambda: ck.sgd_momentum(w, w, w.copy(), lr=0.5, out=(shared[:4], shared[2:6])), [shared]

    assert "share memory with each other" in both(make)[1]
    v = w.copy()
    assert (
        "share memory with each other"
        in both(lambda: (lambda: ck.sgd_momentum(w, w, v, lr=0.5, out=(v, v)), [v]))[1]
    )


def test_values_of_a_later_call(hits):
    logits, dy = np.ones((4, 4), np.float32), np.ones(SMALL, np.float32)
    for labels in ([0, 1, 2, 3], [3, 3, 3, 3], [0, 4, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 0]):
        for kind in (np.int64, np.int16):
            array = np.array(labels, kind)
            both(lambda a=array: (lambda: ck.softmax_xent_fprop(logits, a), [a]))
            both(lambda a=array: (lambda: ck.softmax_xent_dgrad(logits, a), [a]))
    for last in (3, 4, 255, 0):
        argmax = np.full(SMALL, 1, np.uint8)
        argmax[-1, -1, -1, -1] = last
        both(lambda a=argmax: (lambda: ck.maxpool2d_dgrad(dy, a, IMAGE, **POOL), [a]))
    assert {"softmax_xent_fprop", "softmax_xent_dgrad", "maxpool2d_dgrad"} == set(hits)
    many = np.zeros(bound.FEW + 1, np.int64)
    for last in (0, 3, 4, -1):
        many[-1] = last
        both(lambda: (lambda: ck.softmax_xent_fprop(np.ones((many.size, 4), np.float32), many.copy()), []))


def test_numbers_of_a_later_call(hits):
    w = np.ones((2, 3), np.float32)
    for lr in (0.5, 0.25, 1, np.float32(2), np.nan, np.inf, True, "1", None, -0.0, 0.5):
        both(lambda lr=lr: (lambda: ck.sgd_momentum(w, w, w, lr=lr), [w]))
    for seed in (0, 1, True, 2**64 - 1, 2**64, -1, 1.0, np.int64(5), 5):
        both(lambda seed=seed: (lambda: ck.dropout_fprop(w, p=0.5, seed=seed), [w]))
        both(lambda seed=seed: (lambda: ck.dropout_fprop(w, p=0.5, seed=1, offset=seed), [w]))
    assert {"sgd_momentum", "dropout_fprop"} == set(hits)


@pytest.mark.parametrize(
    "op, name, values",
    [
        ("conv2d_fprop", "stride", [1, True, 1.0, np.int64(1), (1, 1), [1, 1], (1, True), (1.0, 1), "1", 1]),
        ("conv2d_fprop", "padding", [((1, 1), (1, 1)), [[1, 1], [1, True]], ((1, 1.0), (1, 1)), 1, True]),
        ("conv2d_fprop", "relu", [False, True, 0, 1, 0.0, "no", None, np.True_, np.array(1), False]),
        ("conv2d_fprop", "groups", [1, True, 1.0, [], {}, object, 1]),
        ("conv2d_fprop", "math", [None, "fp32", "tf32", "fp64", 0, None]),
        ("conv2d_fprop", "impl", [None, "direct", "reference", "nobody", 1, None]),
        ("conv2d_dgrad", "x_shape", [IMAGE, list(IMAGE), np.array(IMAGE), (2.0, 4, 4, 4), (2, 4, 5, 4)]),
        ("lrn_fprop", "alpha", [1, 1.0, True, 0.0, -0.0, 0, np.nan, np.nan, "1", 1]),
        ("lrn_fprop", "size", [3, 3.0, 1, True, 3]),
        ("maxpool2d_fprop", "ceil_mode", [False, 0, 1, True, 2, 0.0, None]),
        ("dropout_fprop", "p", [0.5, 0, 0.0, -0.0, 1, 1.0, True, np.nan, 0.5]),
        ("sgd_momentum", "nesterov", [False, True, 0, 1, 1.0, None]),
        ("sgd_momentum", "dampening", [0.0, -0.0, 0, True, 0.5, np.inf]),
        ("lrn_maxpool2d_fprop", "pool", [POOL, {"window": True}, {"window": [2, 2]}, {"windows": 2}, 1]),
    ],
)  # fmt: skip
def test_options_of_a_later_call(op, name, values):
    nested: list[Any] = []
    nested.append(nested)
    for value in [*values, nested, *values]:

        def make(value=value):
            given = drawn(op, "float32", np.random.default_rng(0))
            options = {**SAMPLES[op].options, name: value}
            return lambda: getattr(ck, op)(**given, **options), list(given.values())

        both(make)


def test_keys_of_options():
    values = [
        1,
        True,
        1.0,
        "1",
        (1,),
        [1],
        (True,),
        ((1,),),
        None,
        0.0,
        -0.0,
        0,
        False,
        {"a": 1},
        {"a": True},
    ]
    keys = [bound.typed(value) for value in values]
    assert len(set(keys)) == len(keys)
    assert [bound.typed(value) for value in values] == keys
    for value in (np.int64(1), np.ones(1), object(), (1, np.int64(1)), type("Text", (str,), {})("1")):
        with pytest.raises(bound.Unusual):
            bound.typed(value)


def test_an_option_within_itself_is_refused():
    nested: list[Any] = []
    nested.append(nested)
    given = drawn("conv2d_fprop", "float32", np.random.default_rng(0))
    for _ in range(2):
        with pytest.raises(OptionError, match="must be an int or a pair"):
            ck.conv2d_fprop(**given, stride=nested)


@pytest.mark.parametrize("how", UNUSUAL)
def test_arrays_of_a_later_call(how, hits):
    for op in SAMPLES:
        given = drawn(op, "float32", np.random.default_rng(0))
        getattr(ck, op)(**given, **SAMPLES[op].options)
        del hits[:]

        def make(op=op):
            given = drawn(op, "float32", np.random.default_rng(0), lambda: how)
            return lambda: getattr(ck, op)(**given, **SAMPLES[op].options), list(given.values())

        both(make)
        assert hits == []


@pytest.mark.parametrize("op", SAMPLES)
def test_an_array_that_is_none_in_a_later_call(op, need):
    torch = need("torch")
    for kind in (lambda a: a, lambda a: torch.from_numpy(a)):
        given = {n: kind(a) for n, a in drawn(op, "float32", np.random.default_rng(0)).items()}
        call = functools.partial(getattr(ck, op), **SAMPLES[op].options)
        call(**given)
        for name in given.keys() - set(OPS[op].optional):
            with pytest.raises(ck.DtypeError, match=f"{op}: {name} must be an array"):
                call(**{**given, name: None})


def test_torch_in_a_later_call(need):
    torch = need("torch")
    x = np.ones((2, 3), np.float32)
    for _ in range(2):
        ck.relu_fprop(x)
    tensor = torch.ones(2, 3)
    for _ in range(2):
        assert type(ck.relu_fprop(tensor)) is torch.Tensor
        assert ck.relu_fprop(x, out=tensor) is tensor
    tensor.requires_grad = True
    for call in (lambda: ck.relu_fprop(tensor), lambda: ck.relu_fprop(x, out=tensor)):
        with pytest.raises(ck.ConvkitError, match="requires grad"):
            call()


FLAGS: dict[str, Callable[[dict], Any]] = {
    "1": lambda given: np.ones(1, np.int32),
    "0": lambda given: np.zeros(1, np.int32),
    "none": lambda given: None,
    "0 again": lambda given: np.zeros(1, np.int32),
    "read-only": lambda given: memory(np.zeros(1, np.int32), "read-only"),
    "misaligned": lambda given: memory(np.zeros(1, np.int32), "misaligned"),
    "strided": lambda given: np.zeros(4, np.int32)[1::4],
    "two of them": lambda given: np.zeros(2, np.int32),
    "of no dimension": lambda given: np.zeros((), np.int32),
    "of another dtype": lambda given: np.zeros(1, np.int64),
    "swapped": lambda given: np.zeros(1, ">i4"),
    "a subclass": lambda given: memory(np.zeros(1, np.int32), "subclass"),
    "a list": lambda given: [0],
    "a number": lambda given: 0,
    "in the weights": lambda given: given["w"].reshape(-1)[3:4].view(np.int32),
    "in the last weight of a row": lambda given: given["w"][1, 3:].view(np.int32),
    "in the gradient": lambda given: next(iter(given.values())).reshape(-1)[:1].view(np.int32),
}


@pytest.mark.parametrize("place", ["new", "in place", "apart"])
@pytest.mark.parametrize("impl", [None, "reference"])
@pytest.mark.parametrize("op", [name for name, op in OPS.items() if op.flags])
def test_the_flag_of_a_later_call(op, impl, place, hits):
    bits = []
    for kind in [*FLAGS] * 2:

        def make(kind=kind):
            given = drawn(op, "float32", np.random.default_rng(0))
            flag = FLAGS[kind](given)
            outs = {"in place": (given["w"], given["v"]), "apart": (np.ones(MATRIX, np.float32),) * 2}
            out = tuple(a if place == "in place" else a.copy() for a in outs.get(place, ())) or None
            if out and len(OPS[op].outputs) == 3:
                out = (None, *out)
            call = functools.partial(getattr(ck, op), **given, **RULE, impl=impl)
            return lambda: call(finite=flag, out=out), [
                *given.values(),
                *(a for a in out or () if a is not None),
            ]

        bits.append(both(make))
    assert bits[0] == bits[2] == bits[len(FLAGS)]
    assert bits[1] == bits[3]
    assert bits[0] != bits[1]
    assert len(hits) > 8


def test_a_flag_that_lies_in_the_results_is_read_before_they_are_written(hits):
    """As int32, 1e-45 is 1 and 0.0 is 0."""
    for bits in (1, 0, 1):
        for _ in range(2):

            def make(bits=bits):
                memory = np.ones(6, np.float32)
                flag = memory[5:].view(np.int32)
                flag[0] = bits
                w, v = memory[:4], np.ones(4, np.float32)
                out = (memory[2:6], v)
                return lambda: ck.sgd_momentum(w, w, v, lr=0.5, finite=flag, out=out), [memory, v]

            both(make)
            with contextlib.suppress(ck.ConvkitError):
                ck.sgd_momentum(*np.ones((3, 4), np.float32), lr=0.5, finite=np.ones(1, np.int32))
    assert len(hits) > 3


def test_a_flag_beside_other_arrays(need):
    torch = need("torch")
    w, flag = np.ones((2, 2), np.float32), np.zeros(1, np.int32)
    tensor = torch.ones(2, 2)
    for value in (0, 1, 0):
        for given in (flag, torch.from_numpy(flag)):
            for kind in (w, tensor):
                flag[0] = value
                new, _ = ck.sgd_momentum(kind, kind, kind, lr=0.5, finite=given)
                assert (np.asarray(new) == 1).all() == (value == 0)
                laid = Tensor(np.ones((1, 2, 1, 1), np.float32), layouts.NHWC, (1, 1, 2, 1))
                new, _ = ck.sgd_momentum(laid, laid, laid, lr=0.5, finite=flag)
                assert (new.data == 1).all() == (value == 0)


# ---------------------------------------------------------------------------------------------------
# Tensors of layouts
# ---------------------------------------------------------------------------------------------------
def in_layout(layout: str, seed: int = 0, C: int = 17, dtype: str = "float32", N: int = 2) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((N, C, 3, 3)).astype(np_dtype(dtype))
    return Tensor.of(values, layout)


@pytest.mark.parametrize("layout", ["NHWC", "nChw16c"])
def test_later_calls_in_a_layout_are_bound(layout, hits):
    def to(x):
        return ck.reorder(x.logical(), out=Tensor.empty(x.shape, "float32", layout))

    def back(x):
        return ck.reorder(x, out=np.empty(x.shape, np.float32))

    def in_place(x):
        result = ck.relu_fprop(x, out=x)
        assert result is x
        return result

    def pooled(x):  # several results, one of them given
        argmax = Tensor.empty((2, 17, 1, 1), "uint8", layout)
        y, found = ck.maxpool2d_fprop(x, window=3, impl="reference" if layout == "NHWC" else None)
        assert ck.maxpool2d_fprop(x, window=3, out=(None, argmax))[1] is argmax
        assert found.data.tobytes() == argmax.data.tobytes()
        return y, argmax

    calls = {"reorder": (to, back), "relu_fprop": (ck.relu_fprop, in_place)}
    if layout == "nChw16c":
        calls["maxpool2d_fprop"] = (pooled,)
        calls["lrn_fprop"] = (ck.lrn_fprop,)
    for op, kinds in calls.items():
        for call in kinds:
            bound.clear()
            for step in range(3):

                def make(step=step, call=call):
                    x = in_layout(layout, step)
                    return lambda: call(x), [x.data]

                del hits[:]
                got = both(make)
                assert not isinstance(got[1], str), got
                assert hits == ([op] * (2 if call is pooled else 1) if step else [])


TENSORS: dict[str, Callable[[Tensor], tuple[Any, Any]]] = {
    "of other channels": lambda x: (x, Tensor(x.data.copy(), x.layout, (2, 18, 3, 3))),
    "of other channels, in place": lambda x: (x, Tensor(x.data, x.layout, (2, 18, 3, 3))),
    "input and output of other channels": lambda x: (
        Tensor(x.data, x.layout, (2, 18, 3, 3)),
        in_layout("nChw16c", C=18),
    ),
    "in another layout": lambda x: (x, in_layout("NHWC")),
    "in the logical order": lambda x: (x, np.zeros(x.shape, np.float32)),
    "of the memory": lambda x: (x, np.zeros(x.data.shape, np.float32)),
    "both of the memory": lambda x: (x.data, np.zeros(x.data.shape, np.float32)),
    "read-only": lambda x: (x, Tensor(frozen(x.data.shape), x.layout, x.shape)),
    "strided": lambda x: (x, Tensor(memory(x.data.copy(), "strided"), x.layout, x.shape)),
    "misaligned": lambda x: (x, Tensor(memory(x.data, "misaligned"), x.layout, x.shape)),
    "of a subclass": lambda x: (x, Tensor(memory(x.data, "subclass"), x.layout, x.shape)),
    "of another dtype": lambda x: (x, Tensor(np.zeros(x.data.shape), x.layout, x.shape)),
    "in place": lambda x: (x, x),
    "a view of the input": lambda x: (x, Tensor(x.data[:], x.layout, x.shape)),
    "across the input": lambda x: (Tensor(x.data[:1], x.layout, (1, 17, 3, 3)), across_tensor(x)),
    "a tuple": lambda x: (x, (x,)),
    "of a list": lambda x: (Tensor(x.data, x.layout, list(x.shape)), None),
    "of numbers that are no integers": lambda x: (Tensor(x.data, x.layout, (2.0, 17, 3, 3)), None),
    "of a layout of its own": lambda x: (
        Tensor(x.data, layouts.Layout("nChw16c", (0, 1, 2, 3), 16), x.shape),
        x,
    ),
    "not given": lambda x: (x, None),
}


def across_tensor(x: Tensor) -> Tensor:
    flat = x.data.reshape(-1)
    return Tensor(flat[16 : 16 + flat.size // 2].reshape(1, 2, 3, 3, 16), x.layout, (1, 17, 3, 3))


@pytest.mark.parametrize("op", ["relu_fprop", "lrn_fprop", "reorder"])
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_of_a_later_call(kind, op):
    call = getattr(ck, op)
    for N in (1, 2):
        x, y = in_layout("nChw16c", N=N), in_layout("nChw16c", N=N)
        for given in (x, x.logical()):
            for out in (y, y.logical(), None):
                for _ in range(2):
                    with contextlib.suppress(ck.ConvkitError):
                        call(given, out=out)

    def make():
        x = in_layout("nChw16c")
        x, out = TENSORS[kind](x)
        given = [a.data if isinstance(a, Tensor) else a for a in (x, out) if not isinstance(a, tuple)]
        return lambda: call(x, out=out), [a for a in given if a is not None]

    for _ in range(2):
        both(make)


def test_options_of_a_later_call_in_a_layout(hits):
    x = in_layout("nChw16c")
    for alpha in (1, 1.0, True, np.nan, "1", np.float32(1), [], 1):
        for _ in range(2):
            both(lambda alpha=alpha: (lambda: ck.lrn_fprop(x, alpha=alpha), [x.data]))
    assert hits
    for seed in (0, 1, 2**64, True):
        for _ in range(2):
            both(lambda seed=seed: (lambda: ck.dropout_fprop(x, p=0.5, seed=seed), [x.data]))
    w = Tensor.of(np.ones((4, 4, 3, 3), np.float32), "KRSC")
    del hits[:]
    for lr in (0.5, 0.25, 1, np.nan, True, 0.5):
        for _ in range(2):
            both(lambda lr=lr: (lambda: ck.sgd_momentum(w, w, w, lr=lr), [w.data]))
    assert hits


# ---------------------------------------------------------------------------------------------------
# What a call depends on besides its arguments
# ---------------------------------------------------------------------------------------------------
X = np.array([-1, 2], np.float32)


@pytest.fixture
def registry_kept():
    registry.builtin()
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


def plant(name: str, value: float, **declared: Any) -> None:
    @ck.implements("relu_fprop", name=name, **declared)
    def relu(problem, x, y):
        y[...] = value


def test_a_new_implementation_is_noticed(registry_kept):
    for _ in range(2):
        assert ck.relu_fprop(X).tolist() == [0, 2]
    plant("mine", 5, rank=1000)
    for _ in range(2):
        assert ck.relu_fprop(X).tolist() == [5, 5]
    plant("mine", 6, rank=1000)  # the same name from the same file: in its place
    for _ in range(2):
        assert ck.relu_fprop(X).tolist() == [6, 6]
    del registry._IMPLEMENTATIONS["relu_fprop", "cpu", "mine", "NCHW"]
    assert ck.relu_fprop(X).tolist() == [0, 2]


def test_an_implementation_that_comes_during_the_first_call_is_noticed(registry_kept):
    @ck.implements("relu_fprop", name="first", rank=1000)
    def relu(problem, x, y):
        y[...] = 5
        plant("second", 6, rank=2000)

    assert [ck.relu_fprop(X)[0] for _ in range(3)] == [5, 6, 6]


def test_use_is_noticed(registry_kept):
    plant("five", 5, rank=-1000)
    plant("coarse", 6, rank=1000, error=1e-3)
    for _ in range(2):
        for _ in range(2):
            assert ck.relu_fprop(X).tolist() == [0, 2]
        with ck.use(relu_fprop="five"):
            for _ in range(2):
                assert ck.relu_fprop(X).tolist() == [5, 5]
                assert ck.relu_fprop(X, impl="coarse").tolist() == [6, 6]
            with ck.use(relu_fprop="coarse"):
                assert ck.relu_fprop(X).tolist() == [6, 6]
        with ck.use(max_error=1e-2):
            for _ in range(2):
                assert ck.relu_fprop(X).tolist() == [6, 6]


def test_implementations_cannot_write_to_inputs_in_a_later_call(registry_kept):
    greedy = []

    @ck.implements("relu_fprop", name="greedy", rank=-1)
    def relu(problem, x, y):
        y[...] = x
        if greedy:
            x[...] = 0

    before = X.copy()
    ck.relu_fprop(X, impl="greedy")
    greedy.append(True)
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            ck.relu_fprop(X, impl="greedy")
    assert np.array_equal(X, before)
    assert X.flags.writeable


def test_what_is_prepared_runs(registry_kept):
    prepared = []

    def prepare(problem):
        prepared.append(problem)
        return lambda x, y: np.copyto(y, 7)

    plant("prepared", 7, rank=1000, prepare=prepare)
    assert [ck.relu_fprop(X).tolist() for _ in range(4)] == [[7, 7]] * 4
    assert len(prepared) == 1


def test_errors_of_an_implementation_keep_their_name(registry_kept):
    errors = []

    @ck.implements("relu_fprop", name="fails", rank=-1)
    def relu(problem, x, y):
        if errors:
            raise errors[0]

    ck.relu_fprop(X, impl="fails")
    errors.append(OptionError("no luck"))
    with pytest.raises(OptionError, match="^relu_fprop: no luck"):
        ck.relu_fprop(X, impl="fails")


def test_an_implementation_may_call_ops(registry_kept):
    """The call that it makes is bound under its own key."""

    @ck.implements("lrn_fprop", name="nested", rank=-1)
    def lrn(problem, x, y):
        ck.relu_fprop(x, out=y)
        y += 1

    x = np.arange(-8, 8, dtype=np.float32).reshape(1, 4, 2, 2)
    for _ in range(3):
        assert np.array_equal(ck.lrn_fprop(x, impl="nested"), np.maximum(x, 0) + 1)
        assert np.array_equal(ck.relu_fprop(x), np.maximum(x, 0))


def test_scratch_memory_of_a_later_call(registry_kept):
    seen = []

    @ck.implements("relu_fprop", name="scratch", rank=1000, workspace=lambda g: 10 * g.size)
    def run(problem, x, y, *, workspace):
        seen.append((workspace.dtype, workspace.size, workspace.ctypes.data % 64))
        y[...] = x
        if len(seen) == 2:
            ck.conv2d_fprop(np.ones(IMAGE, np.float32), np.ones(FILTER, np.float32))  # takes its own

    for _ in range(3):
        ck.relu_fprop(X)
    assert seen == [(np.uint8, 20, 0)] * 3


def test_instruction_sets_are_noticed(hits):
    found = []
    given = drawn("conv2d_fprop", "float32", np.random.default_rng(0))
    for isa in (*extension.isas(), extension.NONE, *extension.isas()):
        with extension.using(isa):
            del hits[:]
            for _ in range(2):
                both(lambda: (lambda: ck.conv2d_fprop(**given, padding=1), []))
            found.append(len(hits))
    assert found == [1] * len(found)


def test_emulation_is_noticed(compiler, hits):
    for _ in range(2):
        ck.relu_fprop(X)
    with ck.emulate() as emulator:
        del hits[:]
        for _ in range(2):
            assert ck.relu_fprop(X).tolist() == [0, 2]
        with pytest.raises(ck.ConvkitError):
            ck.relu_fprop(X, impl="vectors")
        assert hits == []
        assert emulator._functions
    ck.relu_fprop(X)
    assert hits == ["relu_fprop"]


def test_threads_are_asked_for_in_each_call(monkeypatch, kernels):
    asked, module = [], extension.kernels()

    class Watched:
        def relu_fprop_vectors(self, *arguments):
            asked.append(arguments[-1])
            return module.relu_fprop_vectors(*arguments)

        def __getattr__(self, name):
            return getattr(module, name)

    monkeypatch.setattr(devices, "cpu_kernels", (Watched(), extension.isa(), ""))
    monkeypatch.setenv("CONVKIT_NUM_THREADS", "3")
    ck.relu_fprop(X)
    ck.relu_fprop(X)
    monkeypatch.setenv("CONVKIT_NUM_THREADS", "2")
    ck.relu_fprop(X)
    with threadpoolctl.threadpool_limits(1, user_api="convkit"):
        ck.relu_fprop(X)
    ck.relu_fprop(X)
    assert asked == [3, 3, 2, 1, 2]
    monkeypatch.setenv("CONVKIT_NUM_THREADS", "many")
    with pytest.raises(ck.ConvkitError, match="must be a number of threads"):
        ck.relu_fprop(X)


def test_an_empty_batch_after_another():
    for N in (2, 0, 2, 0):
        x, dy = np.ones((N, 4, 4, 4), np.float32), np.ones((N, 4), np.float32)
        w = np.ones((4, 4), np.float32)
        update = functools.partial(ck.linear_wgrad_sgd, dy, dy, w, w, lr=0.5, weight_decay=0.5)
        for call in (functools.partial(ck.conv2d_bgrad, x), functools.partial(ck.relu_fprop, x), update):
            for _ in range(2):
                both(lambda call=call: (call, []))


# ---------------------------------------------------------------------------------------------------
# PyTorch on the CPU; a GPU, with stand-ins for CuPy and for PyTorch
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", SAMPLES)
def test_tensors_are_as_arrays(op, hits, need):
    torch = need("torch")

    def tensor(array):
        return torch.from_numpy(array.copy())

    for step in range(3):
        arrays_ = drawn(op, "float32", np.random.default_rng(step))
        with none_bound():
            expected = outcome(lambda given=arrays_: getattr(ck, op)(**given, **SAMPLES[op].options))
            outs = [tensor(a) for a in results(op, arrays_)]
        tensors = {name: tensor(a) for name, a in arrays_.items()}
        for out in (None, outs[0] if len(outs) == 1 else tuple(outs)):
            versions = [a._version for a in outs]
            del hits[:]
            got = getattr(ck, op)(**tensors, **SAMPLES[op].options, out=out)
            assert hits == ([op] if step or out is not None else [])
            several = got if isinstance(got, tuple) else (got,)
            assert all(type(a) is torch.Tensor for a in several)
            assert [a.numpy().tobytes() for a in several] == [a[-1] for a in expected[1]]
            if out is not None:
                assert all(a is b for a, b in zip(several, outs, strict=True))
                assert [a._version for a in outs] == [v + 1 for v in versions]


def test_tensors_of_a_later_call(need):
    torch = need("torch")
    w = np.eye(4, dtype=np.float32)

    def sparse(x):
        return x.to_sparse()

    changes = {
        "requires grad": lambda x: x.requires_grad_(),
        "a sign": lambda x: torch.complex(torch.zeros_like(x), x).conj().imag,
        "bfloat16": lambda x: x.to(torch.bfloat16),
        "strided": lambda x: x.repeat(1, 2)[:, ::2],
        "sparse": sparse,
        "parameter": lambda x: torch.nn.Parameter(x),
        "meta": lambda x: x.to("meta"),
        "nothing": lambda x: x,
        "NumPy": lambda x: x.numpy(),
    }
    for change in [*changes.values()] * 2:
        for weights in (torch.from_numpy(w), w):

            def make(change=change, weights=weights):
                x, out = change(torch.arange(16.0).reshape(4, 4)), torch.zeros(4, 4)
                return lambda: host(ck.linear_fprop(x, weights, out=out)), [out]

            def make_out(change=change, weights=weights):
                x, out = torch.arange(16.0).reshape(4, 4), change(torch.zeros(4, 4))
                return lambda: host(ck.linear_fprop(x, weights, out=out)), []

            both(make)
            both(make_out)


def host(tensor):
    return tensor.detach().double().numpy() if hasattr(tensor, "detach") else tensor


@pytest.fixture
def cupy(monkeypatch, compiler):
    registry.builtin()
    module = fake_cupy.module(watch_races=True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    return module


@pytest.mark.parametrize("op", ["relu_fprop", "relu_dgrad", "sgd_momentum", "maxpool2d_fprop"])
def test_later_calls_on_a_gpu(op, cupy, hits):
    for device in (0, 1):
        for step in range(3):
            given = drawn(op, "float32", np.random.default_rng(step))
            expected = outcome(lambda given=given: getattr(ck, op)(**given, **SAMPLES[op].options))
            with cupy.cuda.Device(device):
                moved = {name: cupy.asarray(a) for name, a in given.items()}
                outs = tuple(cupy.empty(a.shape, a.dtype) for a in results(op, given))
            for out in (None, outs[0] if len(outs) == 1 else outs):
                del hits[:]
                got = getattr(ck, op)(**moved, **SAMPLES[op].options, out=out)  # with device 0 current
                assert hits == ([op] if step or out is not None else [])
                several = got if isinstance(got, tuple) else (got,)
                assert all(a.device.id == device for a in several)
                if out is not None:
                    assert all(a is b for a, b in zip(several, outs, strict=True))
                with cupy.cuda.Device(device):
                    assert [a.get().tobytes() for a in several] == [a[-1] for a in expected[1]]


def test_arrays_and_out_of_a_later_call_on_a_gpu(cupy, hits):
    values = np.arange(-8, 8, dtype=np.float32).reshape(4, 4)

    def outs():
        base = cupy.asarray(np.concatenate([values, values[:2]]))
        x = base[:4]
        with cupy.cuda.Device(1):
            other = cupy.empty((4, 4), np.float32)
        wide = cupy.empty((4, 8), np.float32)
        odd = cupy.empty(65, np.uint8)[1:].view(np.float32).reshape(4, 4)
        return x, {
            "new": cupy.empty((4, 4), np.float32),
            "in place": x,
            "across": base[1:5],
            "strided": wide[:, ::2],
            "misaligned": odd,
            "shape": cupy.empty((4, 5), np.float32),
            "dtype": cupy.empty((4, 4), np.int32),
            "device": other,
            "host": np.zeros((4, 4), np.float32),
            "tuple": (cupy.empty((4, 4), np.float32),),
        }

    ck.relu_fprop(cupy.asarray(values))
    for kind in [*outs()[1]] * 2:

        def make(kind=kind):
            x, found = outs()
            out = found[kind]

            def call():
                result = ck.relu_fprop(x, out=out)
                assert result is out
                return arrays.contiguous(result, "float32").get()

            return call, []

        both(make)
    assert hits.count("relu_fprop") == 4
    x = cupy.asarray(values)
    for given in (x[:, ::-1], x.T if hasattr(x, "T") else x[::-1], x[1:]):
        for _ in range(2):
            both(lambda a=given: (lambda: ck.relu_fprop(a).get(), []))


def test_work_of_a_later_call_is_in_order_with_pytorchs_stream(cupy, monkeypatch, hits):
    monkeypatch.setitem(sys.modules, "torch", fake_cupy.torch_module())
    values = np.arange(-8, 8, dtype=np.float32).reshape(4, 4)
    x = fake_cupy.Tensor(cupy.asarray(values))
    out = fake_cupy.Tensor(cupy.empty((4, 4), np.float32))
    fake_cupy.synchronize()
    with fake_cupy.torch_streams():
        for step in range(4):
            x.use(write=True)[...] = values + step
            y = ck.relu_fprop(x, out=out if step % 2 else None)
            x.use(write=True)[...] = -1
            assert type(y) is fake_cupy.Tensor
            assert np.array_equal(y.use(write=True), np.maximum(values + step, 0))
    assert (len(hits), out._version) == (3, 2)
    arrays._library_of.cache_clear()


# ---------------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------------
def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(bound.kept, "KEPT", 4)
    for size in [*range(1, 20), 3, 3]:
        assert ck.relu_fprop(np.full(size, -1, np.float32)).tolist() == [0] * size
        assert len(bound.caches["relu_fprop"]) <= 4


def test_failed_calls_leave_nothing():
    for _ in range(3):
        for call in (
            lambda: ck.relu_fprop(np.ones(3, int)),
            lambda: ck.relu_fprop(X, impl="nobody"),
            lambda: ck.relu_fprop(X, out=np.ones(3, np.float32)),
        ):
            with pytest.raises(ck.ConvkitError):
                call()
    assert not bound.caches["relu_fprop"]


def test_signature_and_name_are_the_ops():
    import inspect

    signature = str(inspect.signature(ck.conv2d_fprop))
    assert signature.startswith("(x: 'A', w: 'A', b: 'A | None' = None, *, stride: 'Any' = 1")
    assert ck.conv2d_fprop.__name__ == "conv2d_fprop"
    with pytest.raises(TypeError, match=r"conv2d_fprop\(\) missing 1 required positional argument: 'w'"):
        ck.conv2d_fprop(X)
    with pytest.raises(TypeError, match="unexpected keyword argument 'strides'"):
        ck.conv2d_fprop(X, X, strides=1)


def test_threads_share_bound_calls():
    """Several threads, on keys of their own and on the same ones, while bound calls come and go."""
    problems = [(op, dtype) for op in ("relu_fprop", "lrn_fprop", "conv2d_fprop") for dtype in ALL_DTYPES[:1]]
    problems += [("linear_fprop", "float32"), ("softmax_xent_fprop", "float16"), ("sgd_momentum", "bfloat16")]
    given = [drawn(op, dtype, np.random.default_rng(0)) for op, dtype in problems]

    def call(i):
        op = problems[i][0]
        return outcome(lambda: getattr(ck, op)(**given[i], **SAMPLES[op].options))

    expected = [call(i) for i in range(len(problems))]
    wrong: list[Any] = []

    def work(number):
        rng = np.random.default_rng(number)
        for step in range(150):
            i = int(rng.integers(len(problems)))
            if step % 50 == number:
                bound.clear()
            if (got := call(i)) != expected[i]:
                wrong.append((problems[i], got))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# ---------------------------------------------------------------------------------------------------
# Sequences of calls
# ---------------------------------------------------------------------------------------------------
#: What an option may be instead, right or wrong, by its name.
OTHERS: dict[str, tuple[Any, ...]] = {
    "stride": (1, 2, True, (1, 2), [1, 1], 1.0, np.int64(1), 0, (1, True)),
    "padding": (0, 1, (1, 0), ((1, 1), (0, 1)), True, -1),
    "groups": (1, 2, True, 3),
    "relu": (False, True, 0, 1, 2, 0.0),
    "math": (None, "fp32", "tf32", "fp64"),
    "impl": (None, "reference", "vectors", "nobody"),
    "lr": (0.5, 0.25, 1, np.nan, True),
    "momentum": (0.0, -0.0, 0.5, True),
    "nesterov": (False, True, 1.0),
    "seed": (0, 1, 2**64, True),
    "alpha": (1, 1.0, 0.0, -0.0, np.nan),
    "size": (3, 5, 3.0, True),
    "window": (2, (2, 2), [2, 1], 2.0, True),
    "x_shape": (IMAGE, list(IMAGE), (2, 4, 5, 5), None),
    "dloss": (None,),
}


def across(array: np.ndarray) -> np.ndarray:
    """An array of the same shape over almost the same memory, where there is room; else the array."""
    whole = array if array.base is None else array.base
    flat = whole.reshape(-1) if isinstance(whole, np.ndarray) and whole.flags.c_contiguous else array
    if flat.dtype != array.dtype or flat.dtype == np.uint8 or flat.size <= array.size:  # uint8: `misaligned`
        return array[::-1] if array.ndim else array
    return flat[1 : 1 + array.size].reshape(array.shape)


def draw_out(op: str, given: dict, rng: np.random.Generator) -> Any:
    """Outputs of one kind or another, or None."""
    kinds = ["none", "new", "alias", "across", "update", "read-only", "strided", "shape", "dtype", "share"]
    kind = rng.choice(kinds, p=[0.4, 0.2, 0.1, 0.04, 0.1, 0.04, 0.03, 0.03, 0.03, 0.03])
    if kind == "none":
        return None
    with none_bound():
        try:
            outs: list[Any] = results(op, drawn(op, "float32", rng))
        except ck.ConvkitError:
            return None
    dtype = next(iter(given.values())).dtype
    outs = [a.astype(dtype) if a.dtype == np.float32 else a for a in outs]
    which = int(rng.integers(len(outs)))
    inputs = list(given.values())
    if kind == "alias":
        outs[which] = inputs[int(rng.integers(len(inputs)))]
    elif kind == "across":
        outs[which] = across(inputs[int(rng.integers(len(inputs)))])
    elif kind == "update":
        outs = [
            given.get(name.removesuffix("_new"), a) for name, a in zip(OPS[op].outputs, outs, strict=True)
        ]
    elif kind == "read-only":
        outs[which].flags.writeable = False
    elif kind == "strided":
        outs[which] = memory(outs[which], "strided")
    elif kind == "shape":
        outs[which] = np.zeros((*outs[which].shape, 1), outs[which].dtype)
    elif kind == "dtype":
        outs[which] = np.zeros(outs[which].shape, np.int32)
    elif kind == "share":
        outs = [outs[0]] * len(outs)
    return outs[0] if len(outs) == 1 else tuple(outs)


def draw_context(rng: np.random.Generator) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    isas = (*extension.isas(), extension.NONE)
    choices: tuple[Callable[[], Any], ...] = (
        lambda: ck.use(conv2d_fprop="reference", relu_fprop="reference"),
        lambda: ck.use(max_error=1e-7),
        lambda: threadpoolctl.threadpool_limits(1, user_api="convkit"),
        functools.partial(extension.using, isas[int(rng.integers(len(isas)))]),
    )
    return contextlib.nullcontext if rng.random() < 0.8 else choices[int(rng.integers(len(choices)))]


def play(seed: int, steps: int, ops: tuple[str, ...], dtypes: tuple[str, ...]) -> None:
    for step in range(steps):

        def make(step=step):
            rng = np.random.default_rng([seed, step])
            op = ops[int(rng.integers(len(ops)))]
            dtype = dtypes[int(rng.integers(len(dtypes)))]
            odd = rng.random()
            kinds = ("plain",) if odd < 0.6 else USUAL if odd < 0.9 else (*USUAL, *UNUSUAL)
            given = drawn(op, dtype, rng, lambda: str(rng.choice(kinds)))
            if "labels" in given and rng.random() < 0.2 and given["labels"].flags.writeable:
                given["labels"][-1] = rng.choice([4, -1])
            if "b" in given and rng.random() < 0.3:
                given["b"] = None
            options = dict(SAMPLES[op].options)
            signature = getattr(ck, op).__wrapped__.__code__
            names = signature.co_varnames[: signature.co_argcount + signature.co_kwonlyargcount]
            for name in names:
                if name in OTHERS and rng.random() < 0.15:
                    choices = OTHERS[name]
                    options[name] = choices[int(rng.integers(len(choices)))]
            present = {name: a for name, a in given.items() if a is not None}
            out = draw_out(op, present, rng)
            if out is not None:
                options["out"] = out
            context = draw_context(rng)
            touched = [*present.values(), *(out if isinstance(out, tuple) else () if out is None else (out,))]

            def call():
                with context():
                    return getattr(ck, op)(**given, **options)

            return call, touched

        try:
            both(make)
        except AssertionError as error:
            raise AssertionError(f"CONVKIT_BOUND_SEED={seed}, step {step}: {error}") from error


def test_a_sequence_of_calls(hits):
    play(0, 700, tuple(SAMPLES), ("float32", "float16"))
    assert len(hits) > 60


@pytest.mark.parametrize("op", ["conv2d_fprop", "sgd_momentum", "softmax_xent_fprop", "relu_dgrad"])
def test_a_sequence_of_calls_of_one_op(op, hits):
    play(1, 150, (op,), ("float32",))
    assert len(hits) > 30


@pytest.mark.slow
def test_long_sequences_of_calls(capsys):
    seed = int(os.environ.get("CONVKIT_BOUND_SEED") or int(np.random.SeedSequence().entropy) % 2**32)
    steps = int(os.environ.get("CONVKIT_BOUND_STEPS") or 12_000)
    with capsys.disabled():
        print(f"\nsequences: seed {seed}, {steps} steps")
    play(seed, steps, tuple(SAMPLES), ALL_DTYPES)


def test_arrays_empty_is_aligned():
    for shape in ((), (1,), (3, 5), (0,), (2, 0)):
        for dtype in (*ALL_DTYPES, "uint8"):
            found = arrays.empty(shape, dtype)
            assert (found.shape, found.dtype) == (shape, np_dtype(dtype))
            assert found.size == 0 or found.ctypes.data % 64 == 0
            assert found.flags.c_contiguous
            assert found.flags.writeable
