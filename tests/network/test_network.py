"""Networks that are trained: their arrays, rates for each parameter, states, plans that are kept, presets."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import re
import sys
import threading
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import fake_cupy
import numpy as np
import pytest

import convkit as ck
from convkit import devices, registry
from convkit.cpu import extension
from convkit.cuda.emulate import Emulator
from convkit.network import layers, network, planned, update
from convkit.network.parameters import Parameters
from convkit.network.plan import Plan
from convkit.network.presets import PRESETS, Preset, diff, preset
from convkit.network.variant import variant

RNG = np.random.default_rng(3)
X = RNG.standard_normal((4, 3, 12, 12)).astype(np.float32)
Y = np.arange(4)


def tiny(**options) -> ck.Network:
    """Convolutions, fully connected layers, whose updates may be fused, and dropout."""
    init = layers.Normal(0.1)
    return ck.Network(
        (
            layers.Conv("conv1", 8, 3, init, init, padding=1),
            layers.Relu("relu1"),
            layers.MaxPool("pool1"),
            layers.Flatten("flatten"),
            layers.Linear("fc6", 16, init, init),
            layers.Relu("relu6"),
            layers.Dropout("drop6"),
            layers.Linear("fc8", None, init, init),
        ),
        (3, 12, 12),
        10,
        **{"seed": 1, **options},
    )


def values(net: ck.Network) -> dict[str, np.ndarray]:
    return {
        f"{part} {name}": array.copy()
        for part in ("params", "velocities")
        for name, array in getattr(net, part).items()
    }


def changed(before: dict[str, np.ndarray], net: ck.Network) -> set[str]:
    return {name for name, array in values(net).items() if not np.array_equal(array, before[name])}


def same(a: ck.Network, b: ck.Network) -> bool:
    return not changed(values(a), b)


# ---------------------------------------------------------------------------------------------------
# params, grads, velocities
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["params", "grads", "velocities"])
def test_arrays_of_a_network_are_not_replaced(part):
    net = tiny()
    arrays = getattr(net, part)
    w = arrays["fc8.w"]
    advice = rf"^[^\n]*net\.{part}\[.*\]\[\.\.\.\] = array$"

    def put():
        arrays["fc8.w"] = np.ones_like(w)

    def delete():
        del arrays["fc8.w"]

    def merge():
        both = arrays
        both |= {"fc8.w": w}

    for act in (
        put,
        delete,
        merge,
        lambda: arrays.update({"fc8.w": w}),
        lambda: arrays.update(other=w),
        lambda: arrays.pop("fc8.w"),
        lambda: arrays.popitem(),
        lambda: arrays.clear(),
        lambda: arrays.setdefault("fc8.w", w),
        lambda: setattr(net, part, {}),
    ):
        with pytest.raises(ck.OptionError, match=advice):
            act()
    with pytest.raises(ck.OptionError, match=rf"unknown name in net.{part} 'fc8.v'; did you mean 'fc8."):
        arrays["fc8.v"] = w
    assert getattr(net, part) is arrays and arrays["fc8.w"] is w and len(arrays) == 6


def test_arrays_of_a_network_are_changed_in_place():
    net = tiny()
    w = net.params["fc8.w"]
    twice = w * 2
    net.params["fc8.w"] *= 2
    assert net.params["fc8.w"] is w and np.array_equal(w, twice)
    net.params["fc8.w"][...] = 0
    assert not net.forward(X).any() or net.params["fc8.b"].any()


def test_arrays_of_a_network_are_a_mapping():
    net = tiny()
    assert list(net.params) == ["conv1.w", "conv1.b", "fc6.w", "fc6.b", "fc8.w", "fc8.b"]
    assert net.params.keys() == net.grads.keys() == net.velocities.keys() == set(net.params)
    plain = dict(net.params)
    assert type(plain) is dict and plain["fc6.b"] is net.params["fc6.b"] and "fc6.c" not in net.params
    assert list(net.params | {"x": X}) == [*net.params, "x"] and next(iter({"x": X} | net.params)) == "x"
    file = io.BytesIO()
    np.savez(file, **net.params)
    file.seek(0)
    assert np.array_equal(np.load(file)["conv1.w"], net.params["conv1.w"])
    assert "conv1.w: (8, 3, 3, 3)" in repr(net.params)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert isinstance(twin.params, Parameters) and same(net, twin)
        twin.params["fc8.w"][...] = 0
        assert net.params["fc8.w"].any()
        with pytest.raises(ck.OptionError, match=r"net.grads\[name\]"):
            twin.grads.clear()


# ---------------------------------------------------------------------------------------------------
# The update rule
# ---------------------------------------------------------------------------------------------------
def options(p: str, name: str, lr: float = 0.003) -> dict[str, float]:
    return preset(p).update.options(name, lr, "conv1")


@pytest.mark.parametrize(
    ("name", "w", "first_b", "b", "decay", "bias_decay", "in_velocity"),
    [
        ("paper", 0.003, 0.003, 0.003, 5e-4, 0, True),
        ("2012", 0.003, 0.006, 0.02, 5e-4, 0, True),  # the biases' rate was never lowered, but in conv1
        ("caffe", 0.003, 0.006, 0.006, 5e-4, 0, True),
        ("owt", 0.003, 0.003, 0.003, 1e-4, 1e-4, False),
        ("small", 0.003, 0.003, 0.003, 5e-4, 0, True),
    ],
)
def test_what_the_presets_give_each_parameter(name, w, first_b, b, decay, bias_decay, in_velocity):
    for layer in ("conv1", "conv2", "fc8"):
        rest = {"momentum": 0.9, "lr_in_velocity": in_velocity}
        assert options(name, f"{layer}.w") == {"lr": w, "weight_decay": decay, **rest}
        rate = first_b if layer == "conv1" else b
        assert options(name, f"{layer}.b") == {"lr": rate, "weight_decay": bias_decay, **rest}
    assert len(PRESETS) == 5


def test_the_most_specific_rate_counts():
    rates = {"conv1.w": 1, "conv*": 2, "*.b": 3, "conv?.[wb]": 4, "fc8.b": 5, "*": 6, "fc*": 7}
    update = ck.Update(rates=rates, bias_lr_multiplier=2, bias_lr_fixed=9, frozen=("fc7.*", "conv5.b"))
    rate = {n: update.options(n, 0.1, "conv1")["lr"] for n in ("conv1.w", "conv1.b", "fc8.w", "fc8.b")}
    assert rate == {"conv1.w": 1, "conv1.b": 6, "fc8.w": 7, "fc8.b": 5}
    for name in ("fc7.w", "fc7.b", "conv5.b"):
        assert update.options(name, 0.1, "conv1")["lr"] is None and update.is_frozen(name)
    assert not update.is_frozen("conv5.w")
    update = ck.Update(rates={"*.b": 3, "conv1.*": 4})
    assert [update.options(n, 0.1, "conv1")["lr"] for n in ("conv1.b", "fc.b", "fc.w")] == [4, 3, 0.1]
    assert ck.Update(rates={"conv?.w": 2}).options("Conv1.w", 0.1, "conv1")["lr"] == 0.1
    assert (
        ck.Update(rates={"a[1].w": 2}).options("a[1].w", 0.1, "conv1")["lr"] == 2
    )  # a name, though it looks so
    assert ck.Update(bias_lr_fixed=5).options("block.1.b", 0.1, "block.1")["lr"] == 0.1


def test_the_schedule_of_2012_can_be_said():
    base = preset("2012").update
    slow, frozen = replace(base, rates={"conv1.w": 1e-5}), replace(base, frozen=("conv1.*",))
    seen = [
        [update.options(name, 1e-4, "conv1")["lr"] for name in ("conv1.w", "conv1.b", "conv2.w", "conv2.b")]
        for update in (base, slow, frozen)
    ]
    assert seen == [[1e-4, 2e-4, 1e-4, 0.02], [1e-5, 2e-4, 1e-4, 0.02], [None, None, 1e-4, 0.02]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": float("nan")}, "lr must be a finite number of at least 0"),
        ({"lr": "0.1"}, "lr must be a number, not '0.1'"),
        ({"momentum": -0.1}, "momentum must be a finite number of at least 0"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite"),
        ({"bias_decay": None}, "bias_decay must be a number"),
        ({"bias_lr_multiplier": True}, "bias_lr_multiplier must be a number, not True"),
        ({"bias_lr_fixed": -1}, "bias_lr_fixed must be a finite"),
        ({"lr_in_velocity": "yes"}, "lr_in_velocity must be True or False"),
        ({"rates": [("conv1.w", 1)]}, "rates must be a mapping"),
        ({"rates": {"conv1.w": -1}}, r"rates\['conv1.w'\] must be a finite"),
        ({"rates": {1: 1}}, "rates names parameters: a name or a pattern is a str, not 1"),
        ({"frozen": "conv1.*"}, "frozen must be a tuple of names or patterns, not 'conv1"),
        ({"frozen": ("",)}, "frozen names parameters"),
    ],
)
def test_an_update_rule_that_cannot_be(given, message):
    with pytest.raises(ck.OptionError, match=message):
        ck.Update(**given)


def test_an_update_rule_is_a_value():
    update = ck.Update(rates={"a": 1, "b": 2}, frozen=["c"])
    assert update.frozen == ("c",) and update == replace(update) and hash(update) == hash(replace(update))
    assert pickle.loads(pickle.dumps(update)) == copy.deepcopy(update) == update
    assert asdict(update)["rates"] == {"a": 1.0, "b": 2.0} and str(update.rates) == "{'a': 1.0, 'b': 2.0}"
    with pytest.raises(TypeError):
        update.rates["a"] = 3


def test_a_pattern_that_fits_nothing_is_refused():
    net = tiny()
    for given in ({"rates": {"conv1.w": 1, "conv9.*": 1}}, {"frozen": ("fc*", "conv9.*")}):
        for make in (lambda u: tiny(update=u), lambda u: setattr(net, "update", u)):
            with pytest.raises(
                ck.OptionError, match=r"no parameter fits 'conv9.\*'; the network has conv1.w, "
            ):
                make(ck.Update(**given))
    assert net.update == ck.Update()
    with pytest.raises(ck.OptionError, match="update must be a convkit.Update"):
        net.update = {"lr": 1}


@pytest.mark.parametrize("apart", [False, True], ids=["fused", "apart"])
def test_what_is_set_holds_from_the_next_step(apart):
    """Each field: a network that has it from the start, and one that gets it after a step, do the same."""
    with ck.use(**({"linear_wgrad": "gemm"} if apart else {})):
        for field, value in (
            ("lr", 0.5),
            ("momentum", 0.1),
            ("weight_decay", 0.3),
            ("bias_decay", 0.4),
            ("bias_lr_multiplier", 3.0),
            ("bias_lr_fixed", 0.2),
            ("lr_in_velocity", False),
            ("rates", {"fc*": 0.3}),
        ):
            early, late, never = (tiny() for _ in range(3))
            never.step(X, Y)
            late.step(X, Y)
            late.update = replace(late.update, **{field: value})
            early.update = late.update
            for old, new in ((late.params, early.params), (late.velocities, early.velocities)):
                for name, array in old.items():
                    new[name][...] = array
            early.dropout_offset = late.dropout_offset
            for net in (early, late, never):
                net.step(X, Y)
            assert same(early, late) and not same(late, never), field


@pytest.mark.parametrize("apart", [False, True], ids=["fused", "apart"])
@pytest.mark.parametrize(
    ("frozen", "still"),
    [
        (("conv1.w",), {"conv1.w"}),
        (("fc6.*",), {"fc6.w", "fc6.b"}),
        (("*.w", "fc8.b"), {"conv1.w", "fc6.w", "fc8.w", "fc8.b"}),
        (("*",), {"conv1.w", "conv1.b", "fc6.w", "fc6.b", "fc8.w", "fc8.b"}),
    ],
)
def test_a_frozen_parameter_stays(apart, frozen, still):
    """Though it has momentum and would decay; the others go on as they would."""
    net, free = tiny(), tiny()
    with ck.use(**({"linear_wgrad": "gemm"} if apart else {})):
        fused = {c.layer for c in net.plan(4).phases()["backward"] if c.op.name == "linear_dgrad_wgrad_sgd"}
        whole = not apart and extension.kernels_missing() is None
        assert fused == ({"fc6+relu6", "fc8"} if whole else set())
        for each in (net, free):
            each.update = ck.Update(bias_decay=0.1)
            each.step(X, Y)
        before = values(net)
        net.update = replace(net.update, frozen=frozen)
        assert net.step(X, Y) == free.step(X, Y)
        kept = {f"{part} {name}" for part in ("params", "velocities") for name in still}
        assert changed(before, net) == before.keys() - kept
        for name in before.keys() - kept:  # one step: their gradients do not depend on what is frozen
            part, _, parameter = name.partition(" ")
            got, want = getattr(net, part)[parameter], getattr(free, part)[parameter]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=name)
        net.update = replace(net.update, frozen=())
        net.step(X, Y)
        assert changed(before, net) == before.keys()


# ---------------------------------------------------------------------------------------------------
# State
# ---------------------------------------------------------------------------------------------------
def small(**options) -> ck.AlexNet:
    return ck.AlexNet("small", image_size=28, channels=1, **options)


def batches(count: int, size: int = 4, shape=(1, 28, 28)):
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((size, *shape)).astype(np.float32), rng.integers(0, 10, size))
            for _ in range(count)]  # fmt: skip


def test_training_goes_on_with_the_same_bits():
    whole, first, second = small(seed=1), small(seed=1), small(seed=2)
    data = batches(4)
    losses = [whole.step(*batch) for batch in data]
    half = [first.step(*batch) for batch in data[:2]]
    state = first.state()
    first.step(*data[0])  # the state holds copies
    second.forward(data[0][0])
    second.load_state(pickle.loads(pickle.dumps(state)))
    with pytest.raises(ck.OptionError, match="forward comes first"):
        second.backward(np.zeros((4, 10), np.float32))
    assert half + [second.step(*batch) for batch in data[2:]] == losses
    assert same(whole, second) and (second.seed, second.dropout_offset) == (1, whole.dropout_offset)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_state_is_plain_data(dtype):
    net, twin = tiny(dtype=dtype), tiny(dtype=dtype, seed=2)
    x = X.astype(net.params["fc8.w"].dtype)
    net.step(x, Y)
    state = net.state()
    assert list(state) == [
        "format", "dtype", "shapes", "params", "velocities", "seed", "dropout_offset",
        *(["loss_scale"] if dtype == "float16" else []), "plan",
    ]  # fmt: skip
    assert state["shapes"]["conv1.w"] == (8, 3, 3, 3) and state["dtype"] == net.params["fc8.w"].dtype.name
    assert all(type(a) is np.ndarray for part in ("params", "velocities") for a in state[part].values())
    assert list(state["params"]) == list(net.params) and state["seed"] == 1 and state["dropout_offset"] == 16
    # As files keep it: shapes as lists.
    plain = {k: v for k, v in state.items() if k not in ("params", "velocities")}
    back = json.loads(json.dumps(plain))
    for part in ("params", "velocities"):
        file = io.BytesIO()
        np.savez(file, **state[part])
        file.seek(0)
        back[part] = dict(np.load(file))
    twin.load_state(back)
    assert same(net, twin)
    assert [net.step(x, Y) for _ in range(2)] == [twin.step(x, Y) for _ in range(2)] and same(net, twin)


def _with(part, name, value):
    return lambda s: s[part].__setitem__(name, value)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s: s.update(format=2), ck.OptionError, "has format 2; this convkit reads 1"),
        (
            lambda s: s.pop("velocities"),
            ck.OptionError,
            "the state does not fit.*\n  'velocities' is missing",
        ),
        (lambda s: s.update(epoch=1), ck.OptionError, "'epoch' is not known"),
        (lambda s: s.update(dtype="float64"), ck.DtypeError, "state is float64, but the network is float32"),
        (lambda s: s.update(seed=-1), ck.OptionError, "seed must be at least 0"),
        (lambda s: s.update(dropout_offset=0.5), ck.OptionError, "dropout_offset must be an integer"),
        (lambda s: s.update(plan="v4"), ck.OptionError, "plan must be a dict or None"),
        (lambda s: s.update(shapes=[1]), ck.OptionError, "shapes must be a dict"),
        (lambda s: s.update(params=[1]), ck.OptionError, "params must be a dict of arrays"),
        (_with("shapes", "fc8.b", 10), ck.ShapeError, "fc8.b has shape 10, but the network's has"),
        (lambda s: s["params"].pop("fc8.b"), ck.OptionError, "params does not fit.*\n  'fc8.b' is missing"),
        (
            _with("velocities", "fc9.b", Y),
            ck.OptionError,
            "velocities does not fit.*\n  'fc9.b' is not known",
        ),
        (_with("params", "fc8.b", np.zeros(10)), ck.DtypeError, r'params\["fc8.b"\] has dtype float64'),
        (_with("velocities", "fc8.b", [0] * 10), ck.DtypeError, r'velocities\["fc8.b"\] must be an array'),
        (
            _with("velocities", "fc8.b", np.zeros(9, np.float32)),
            ck.ShapeError,
            r"velocities of the state.*\n  fc8.b has shape \(9,\), but the network's has \(10,\)$",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(spoil, error, message):
    net, other = tiny(), tiny(seed=2)
    other.step(X, Y)
    state = other.state()
    spoil(state)
    before = values(net), net.seed, net.dropout_offset
    with pytest.raises(error, match=message):
        net.load_state(state)
    assert not changed(before[0], net) and (net.seed, net.dropout_offset) == before[1:]
    with pytest.raises(ck.OptionError, match="a state is a dict"):
        net.load_state(None)


def test_all_shapes_that_differ_are_listed_up_to_a_few():
    with pytest.raises(ck.ShapeError) as caught:
        small().load_state(ck.AlexNet("small", widths=0.5).state())
    lines = str(caught.value).splitlines()
    assert len(lines) == 8 and lines[-1] == "  and 9 more"
    assert lines[1] == "  conv1.w has shape (16, 3, 5, 5), but the network's has (32, 1, 5, 5)"


@pytest.fixture
def fingerprints(monkeypatch):
    """Plans say what they run, and this is it."""
    found = {"batch": 4, "device": "cpu", "isa": "v3", "calls": {"conv1 conv2d_fprop": "direct"}}
    monkeypatch.setattr(Plan, "fingerprint", lambda plan: copy.deepcopy(found), raising=False)
    return found


def test_a_state_says_what_ran_and_another_plan_is_warned_of_once(fingerprints):
    net = tiny()
    assert net.state()["plan"] is None
    net.step(X, Y)
    state = net.state()
    assert json.loads(json.dumps(state["plan"])) == fingerprints == copy.deepcopy(net).state()["plan"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state(state)
        assert net.state()["plan"] == fingerprints
        net.step(X, Y)
        net.load_state({**state, "plan": None})
        net.step(X, Y)

    fingerprints["isa"] = "v4"
    fingerprints["calls"] = {"conv1 conv2d_fprop": "winograd", "fc8 linear_fprop": "gemm"}
    net = pickle.loads(pickle.dumps(net))
    net.load_state(state)
    with pytest.warns(UserWarning) as caught:
        net.step(X, Y)
        net.step(X, Y)
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message).splitlines()[1:] == [
        "  isa: v4, was v3",
        "  calls conv1 conv2d_fprop: winograd, was direct",
        "  calls fc8 linear_fprop: gemm, was -",
    ]
    assert net.state()["plan"] == fingerprints


def test_a_network_on_a_gpu_has_a_state_in_host_memory(monkeypatch, compiler):
    module = fake_cupy.module(watch_races=True)

    def host(array):
        with module.cuda.Device(1):
            return array.get()

    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    net, twin = (tiny(device="cuda:1", seed=seed) for seed in (1, 2))
    net.step(X, Y)
    state = net.state()
    assert all(type(a) is np.ndarray for part in ("params", "velocities") for a in state[part].values())
    twin.load_state(state)
    assert twin.step(X, Y) == net.step(X, Y)
    for name, w in net.params.items():
        assert np.array_equal(host(w), host(twin.params[name])) and w.device.id == 1
    twin.load_state({**state, "params": dict(net.params)})  # as CuPy arrays too
    assert np.array_equal(host(twin.params["fc8.w"]), host(net.params["fc8.w"]))
    cpu = tiny()
    cpu.load_state(state)
    assert np.array_equal(cpu.params["fc8.w"], state["params"]["fc8.w"])
    with pytest.raises(ck.OptionError, match="write into this one"):
        net.params["fc8.w"] = net.params["fc6.w"]
    # A step of which parts are frozen.
    net.update = replace(net.update, frozen=("fc6.*",))
    before = {name: host(w) for name, w in net.params.items()}
    net.step(X, Y)
    still = {name for name, w in net.params.items() if np.array_equal(host(w), before[name])}
    assert still == {"fc6.w", "fc6.b"}


# ---------------------------------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------------------------------
def test_plans_are_kept_as_long_as_they_fit():
    net = tiny()
    plans = {n: net.plan(n) for n in (1, 2, 3, 4)}
    assert all(net.plan(n) is plan for n, plan in plans.items())
    net.plan(2)  # used again; 1 is now the oldest, then 3, 4
    net.plan_memory = plans[2].bytes + plans[3].bytes + plans[4].bytes
    assert [net.plan(n) is plans[n] for n in (3, 4, 2)] == [True] * 3
    again = net.plan(1)  # in the place of the oldest: 3
    assert again is not plans[1] and net.plan(2) is plans[2] and net.plan(4) is plans[4]
    assert net.plan(3) is not plans[3]
    net.plan_memory = 0
    last = net.plan(4)
    assert net.plan(4) is last  # the one in use stays
    for value, message in ((-1, "at least 0"), (1e9, "must be an integer")):
        with pytest.raises(ck.OptionError, match=f"plan_memory must be {message}|plan_memory {message}"):
            net.plan_memory = value
    assert net.plan_memory == 0 and tiny(plan_memory=7).plan_memory == 7
    assert tiny().plan_memory == 4 * 2**30


def test_training_and_testing_in_turn_plan_once(monkeypatch):
    made = []

    class Counted(Plan):
        def __init__(self, *args):
            made.append(args[0].graph.values["x"].shape[0])
            super().__init__(*args)

    monkeypatch.setattr(planned, "Plan", Counted)
    net = tiny()
    for _ in range(2):
        for size in (4, 4, 3, 2):  # batches, the last one of an epoch, one to test with
            net.step(X[:size], Y[:size])
    assert made == [4, 3, 2]


def test_plans_give_way_where_memory_is_short(monkeypatch):
    net = tiny()
    net.plan(1)
    asked = []

    def short(*args):
        asked.append(len(net._plans))
        if net._plans:
            raise ck.OutOfMemory("no memory for an array")
        return Plan(*args)

    monkeypatch.setattr(planned, "Plan", short)
    net.plan(2)
    assert asked == [1, 0]


def test_an_implementation_that_is_registered_anew_is_noticed(monkeypatch):
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    net = tiny()
    expected = net.forward(X)
    dx = net.backward(np.ones((4, 10), np.float32))
    net.forward(X)
    assert net.plan(4) is net.plan(4)

    @ck.implements("linear_fprop", name="newest", rank=1000)
    def newest(problem, x, w, b, y, relu=False):
        y[...] = x @ w.T + b
        if relu:
            np.maximum(y, 0, out=y)

    # What ran forward runs backward; the next pass has a plan of its own.
    assert np.array_equal(net.backward(np.ones((4, 10), np.float32)), dx)
    names = {c.implementation.name for c in net.plan(4).forward if c.op.name == "linear_fprop"}
    assert names == {"newest"} and len(net._plans) == 1
    np.testing.assert_allclose(net.forward(X), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------
# Presets and their variants
# ---------------------------------------------------------------------------------------------------
def test_the_small_alexnet():
    net = ck.AlexNet(preset="small", seed=1)
    assert net.input_shape == (3, 32, 32) and net.num_classes == 10 and net.preset.image_size == 32
    assert sum(w.size for w in net.params.values()) == 483_530
    shapes = {name: w.shape for name, w in net.params.items() if name.endswith("w")}
    assert shapes == {
        "conv1.w": (32, 3, 5, 5), "conv2.w": (64, 16, 5, 5), "conv3.w": (96, 64, 3, 3),
        "conv4.w": (96, 48, 3, 3), "conv5.w": (64, 48, 3, 3), "fc6.w": (256, 1024), "fc7.w": (256, 256),
        "fc8.w": (10, 256),
    }  # fmt: skip
    assert [layer.name for layer in net.layers] == [layer.name for layer in preset("paper").layers]
    for name in ("conv1", "conv4", "fc6"):
        w = net.params[f"{name}.w"]
        assert w.std() == pytest.approx(np.sqrt(2 / np.prod(w.shape[1:])), rel=0.05)
        assert not net.params[f"{name}.b"].any()
    ((x, y),) = batches(1, shape=(3, 32, 32))
    assert net.step(x, y) == pytest.approx(np.log(10), rel=0.2)
    for size in (28, 64):
        ((x, y),) = batches(1, shape=(1, size, size))
        assert ck.AlexNet("small", 3, image_size=size, channels=1).forward(x).shape == (4, 3)
    rows = {name: (a, b) for name, a, b in diff("paper", "small")}
    assert rows["num_classes"] == ("1000", "10")
    assert rows["conv1.weights"] == ("normal, sigma 0.01", "normal, sigma sqrt(2/fan in)")


def filters(net: ck.Network | Preset) -> list[int | None]:
    return [layer.filters for layer in net.layers if isinstance(layer, (layers.Conv, layers.Linear))]


def test_widths():
    half = ck.AlexNet("paper", widths=0.5, num_classes=5)
    assert filters(half) == [48, 128, 192, 192, 128, 2048, 2048, None]
    assert half.params["conv2.w"].shape == (128, 24, 5, 5) and half.params["fc8.w"].shape == (5, 2048)
    seven = (8, 16, 24, 32, 40, 48, 56)
    assert filters(ck.AlexNet("small", widths=seven)) == [*seven, None]
    assert filters(ck.AlexNet("small", widths=np.array(seven))) == [*seven, None]
    # To the nearest number that the groups allow; owt has none.
    assert filters(variant(preset("2012"), widths=0.13)) == [12, 34, 50, 50, 34, 532, 532, None]
    assert filters(variant(preset("owt"), widths=1e-6)) == [*[1] * 7, None]
    assert filters(ck.AlexNet("small", widths=1e-6)) == [2, 2, 2, 2, 2, 1, 1, None]


def test_another_start():
    for name in PRESETS:
        chosen = variant(preset(name), init="he")
        weighted = [layer for layer in chosen.layers if isinstance(layer, (layers.Conv, layers.Linear))]
        assert {layer.weights for layer in weighted} == {layers.He()}
        assert {layer.bias for layer in weighted} == {layers.Constant(0)}
    net = small(init="he")
    assert net.params["fc8.w"].std() == pytest.approx(np.sqrt(2 / 256), rel=0.05)
    assert net.params["conv4.w"].std() == pytest.approx(np.sqrt(2 / (48 * 9)), rel=0.05)


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        (
            "small",
            {"image_size": 11},
            ck.ShapeError,
            "'small' takes images of at least 12 x 12 pixels, not 11 x 11",
        ),
        ("owt", {"image_size": 32}, ck.ShapeError, "at least 63 x 63"),
        ("small", {"image_size": 0}, ck.OptionError, "image_size must be at least 1"),
        ("small", {"image_size": (32, 32)}, ck.OptionError, "image_size must be an integer"),
        ("small", {"channels": 0}, ck.OptionError, "channels must be at least 1"),
        ("small", {"init": "He"}, ck.OptionError, "unknown init 'He'. Known: he"),
        ("small", {"widths": 0}, ck.OptionError, "widths must be a positive factor"),
        ("small", {"widths": "half"}, ck.OptionError, "widths must be a positive factor"),
        ("small", {"widths": True}, ck.OptionError, "widths must be a positive factor"),
        ("small", {"widths": float("nan")}, ck.OptionError, "widths must be a finite number"),
        ("small", {"widths": (1, 2)}, ck.OptionError, "7 numbers, for conv1, conv2, .*; not 2"),
        ("small", {"widths": (2, 2, 2, 2, 2, 0, 1)}, ck.OptionError, "the width of fc6 must be at least 1"),
        (
            "small",
            {"widths": (2, 2, 2, 3, 2, 1, 1)},
            ck.ShapeError,
            "the width of conv4 must be divisible by 2",
        ),
        (
            "small",
            {"widths": (3, 2, 2, 2, 2, 1, 1)},
            ck.ShapeError,
            "the width of conv1 must be divisible by 2",
        ),
    ],
)
def test_a_variant_that_cannot_be(name, given, error, message):
    with pytest.raises(error, match=message):
        ck.AlexNet(name, **given)


@pytest.mark.parametrize("name", PRESETS)
def test_the_smallest_image_of_every_preset_runs(name):
    smallest = {"paper": 52, "2012": 52, "caffe": 55, "owt": 63, "small": 12}[name]
    net = ck.AlexNet(name, image_size=smallest, widths=0.05, num_classes=3)
    x = np.random.default_rng(0).standard_normal((2, *net.input_shape)).astype(np.float32)
    assert np.isfinite(net.step(x, np.array([0, 2])))
    with pytest.raises(ck.ShapeError, match=f"at least {smallest} x {smallest}"):
        ck.AlexNet(name, image_size=smallest - 1, widths=0.05)


def test_a_variant_for_photographs_of_another_size():
    assert variant(preset("paper"), image_size=112).preprocess.resize == 128
    assert variant(preset("small"), image_size=64).preprocess.resize == 64
    assert variant(preset("paper")) == preset("paper")


def test_public_names():
    assert ck.layers.Conv is layers.Conv and ck.Update is update.Update and ck.Network is network.Network
    assert {"He", "Normal", "Constant", "FanInUniform"} <= set(dir(ck.layers))


def test_the_small_alexnet_learns():
    """Ten patterns in noise, each shifted by up to two pixels: most are told apart after some steps."""
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((10, 1, 7, 7)).repeat(4, 2).repeat(4, 3)

    def draw(count):
        labels = rng.integers(0, 10, count)
        shifted = [np.roll(patterns[k], rng.integers(-2, 3, 2), (1, 2)) for k in labels]
        return (shifted + 0.5 * rng.standard_normal((count, 1, 28, 28))).astype(np.float32), labels

    net = small(seed=0)
    losses = [net.step(*draw(32), lr=0.01) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.5 * np.log(10)
    x, labels = draw(100)
    assert np.mean(net.forward(x).argmax(1) == labels) > 0.8


# ---------------------------------------------------------------------------------------------------
# Hooks
# ---------------------------------------------------------------------------------------------------
def by_hand(net: ck.Network, x=X, labels=Y) -> dict[str, np.ndarray]:
    """The gradients of a step of training, by forward and backward of a copy."""
    twin = copy.deepcopy(net)
    logits = twin.forward(x, training=True)
    _, probs = ck.softmax_xent_fprop(logits, labels)
    twin.backward(ck.softmax_xent_dgrad(probs, labels))
    return dict(twin.grads)


def test_on_gradient_is_told_of_each_final_gradient_once():
    net = tiny()
    for frozen in ((), ("fc8.*", "fc6.b"), ("conv1.*",), ("*",)):
        net.update = ck.Update(frozen=frozen)
        want, seen = by_hand(net), []

        def hook(name, gradient, net=net, want=want, seen=seen):
            assert gradient is net.grads[name] and np.array_equal(gradient, want[name])
            seen.append(name)

        net.on_gradient = hook
        net.step(X, Y)
        order = ["fc8.b", "fc8.w", "fc6.b", "fc6.w", "conv1.b", "conv1.w"]
        assert seen == [name for name in order if not net.update.is_frozen(name)]


def test_what_a_hook_writes_counts():
    """Written by the one hook or by the other: the update is made of it."""

    def halve(name, gradient):
        gradient *= 0.5

    def halve_all(grads, finite):
        for gradient in grads.values():
            gradient *= 0.5

    nets = [tiny() for _ in range(3)]
    nets[0].on_gradient, nets[1].before_update = halve, halve_all
    want = {name: gradient * np.float32(0.5) for name, gradient in by_hand(nets[2]).items()}
    for net in nets[:2]:
        before = {name: w.copy() for name, w in net.params.items()}
        net.step(X, Y, lr=0.25)
        rules = {name: net.update.options(name, 0.25, "conv1") for name in net.params}
        for name, w in before.items():
            new, v = ck.sgd_momentum(w, want[name], np.zeros_like(w), **rules[name])
            assert np.array_equal(net.params[name], new) and np.array_equal(net.velocities[name], v)
    nets[2].step(X, Y, lr=0.25)
    assert not same(nets[0], nets[2])


def test_clipping():
    """To a norm over all gradients that the step uses; not over what is left of those now frozen."""
    net, norms = tiny(), []

    def clip(grads, finite):
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values()))
        norms.append(norm)
        for g in grads.values():
            g *= min(1, 0.1 / norm)

    net.before_update = clip
    net.update = ck.Update(momentum=0, weight_decay=0)
    net.grads["fc8.w"].fill(1e6)
    for frozen in ((), ("fc8.w",)):
        net.update = replace(net.update, frozen=frozen)
        net.grads["fc8.w"][...] = 1e6
        used = {name: g for name, g in by_hand(net).items() if name not in frozen}
        before = {name: w.copy() for name, w in net.params.items()}
        net.step(X, Y, lr=1)
        assert norms[-1] == pytest.approx(np.sqrt(sum((g.astype(float) ** 2).sum() for g in used.values())))
        moved = np.sqrt(sum(((net.params[n] - w).astype(float) ** 2).sum() for n, w in before.items()))
        assert moved == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    "answer",
    [False, np.False_, np.zeros(1, bool), np.array(False), "flag"],
    ids=["False", "numpy", "array (1,)", "array ()", "flag"],
)
def test_before_update_can_forbid_the_update(answer):
    net = tiny()
    net.step(X, Y)
    before, offset = values(net), net.dropout_offset

    def hook(grads, finite):
        assert finite.shape == (1,) and finite.dtype == np.int32 and finite[0] == 1
        if isinstance(answer, str):
            finite[...] = 0
            return None
        return answer

    net.before_update = hook
    loss = net.step(X, Y)
    assert not changed(before, net) and net.dropout_offset == 2 * offset
    assert loss.finite is (not isinstance(answer, str))


@pytest.mark.parametrize("answer", [None, True, np.True_, 0, 0.0, np.float32(0), "", [], np.zeros(3)])
def test_what_else_a_hook_returns_forbids_nothing(answer):
    """A norm, say, which may be 0."""
    net, plain = tiny(), tiny()
    net.before_update = lambda grads, finite: answer
    plain.before_update = lambda grads, finite: None
    assert net.step(X, Y) == plain.step(X, Y) and same(net, plain)


@pytest.mark.parametrize("which", ["on_gradient", "before_update"])
def test_an_error_in_a_hook_ends_the_step_before_its_update(which):
    net, plain = tiny(), tiny()
    for each in (net, plain):
        each.step(X, Y)
    before = values(net)

    def hook(first, second):
        raise RuntimeError("no")

    setattr(net, which, hook)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="^no$"):
            net.step(X, Y)
    assert not changed(before, net)
    setattr(net, which, None)
    plain.dropout_offset = net.dropout_offset  # the counters were used
    assert net.step(X, Y) == plain.step(X, Y) and same(net, plain)
    assert np.array_equal(net.forward(X), plain.forward(X))


@pytest.mark.parametrize("which", ["on_gradient", "before_update"])
def test_a_hook_cannot_run_its_network(which):
    """What runs would overwrite the activations of the step that calls it."""
    net, plain, other = tiny(), tiny(), tiny()
    state, seen = net.state(), []
    acts = (
        lambda: net.forward(X), lambda: net.evaluate(X, Y), lambda: net.step(X, Y),
        lambda: net.load_step(X, Y), lambda: net.forward(X[:2]), lambda: net.load_state(state),
        lambda: net.backward(np.ones((4, 10), np.float32)),
    )  # fmt: skip

    def hook(first, second):
        for act in acts:
            with pytest.raises(ck.OptionError, match="a hook cannot run the network"):
                act()
        # These do no harm, and hold from the next step on.
        other.step(X, Y)
        copy.deepcopy(net).forward(X)
        net.state(), net.plan(4), net.plan(2)
        net.update = ck.Update(lr=0.5, frozen=("fc8.*",))
        net.on_gradient = net.before_update = None
        net.plan_memory = 0
        seen.append(first)

    setattr(net, which, hook)
    setattr(plain, which, lambda first, second: None)
    assert net.step(X, Y) == plain.step(X, Y) and same(net, plain) and seen
    before = values(net)
    net.step(X, Y)
    assert not [name for name in changed(before, net) if "fc8" in name] and changed(before, net)


def test_hooks_are_called_in_no_other_pass():
    net, seen = tiny(), []
    net.on_gradient = lambda name, gradient: seen.append(name)
    net.before_update = lambda grads, finite: seen.append("update")
    logits = net.forward(X)
    net.backward(logits)
    net.evaluate(X, Y)
    net.plan(4)
    assert not seen
    net.step(X, Y)
    assert seen[-1] == "update" and len(seen) == 7
    for bad in (3, "print", []):
        for which in ("on_gradient", "before_update"):
            net = tiny()
            setattr(net, which, bad)
            with pytest.raises(ck.OptionError, match=f"step: {which} must be a function or None, not"):
                net.step(X, Y)
            assert net.dropout_offset == 0


def ops_of_a_step(net: ck.Network) -> list[str]:
    return [f"{c.layer} {c.op.name}" for calls in net.plan(4).phases().values() for c in calls]


def test_hooks_that_are_gone_leave_the_step_as_it_was():
    net = tiny()
    fused = ops_of_a_step(net)
    for which in ("on_gradient", "before_update"):
        setattr(net, which, lambda first, second: None)
        apart = ops_of_a_step(net)
        assert "fc8 linear_wgrad" in apart and not [op for op in apart if "wgrad_sgd" in op]
        net.step(X, Y)
        for twin in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert twin.on_gradient is None and twin.before_update is None and ops_of_a_step(twin) == fused
        setattr(net, which, None)
        assert ops_of_a_step(net) == fused
        net.step(X, Y)


def test_a_copy_of_any_kind_learns_on_its_own():
    net = tiny()
    net.step(X, Y)
    before = values(net)
    twin = copy.copy(net)
    assert same(net, twin) and type(copy.copy(small())) is ck.AlexNet
    twin.step(X, Y)
    twin.use("fc8", linear_fprop="reference")
    assert not changed(before, net) and "reference" not in str(net.plan(4)).partition("loss")[0]


def test_hooks_and_shards_on_a_gpu(monkeypatch, compiler):
    """They are given CuPy arrays on the network's own GPU, which is current; the flag stays there."""
    module = fake_cupy.module(watch_races=True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))

    def host(array):
        with module.cuda.Device(1):
            return array.get()

    net, plain, seen = tiny(device="cuda:1"), tiny(device="cuda:1"), []

    def on_gradient(name, gradient):
        assert gradient.device.id == module.cuda.runtime.getDevice() == 1
        seen.append(name)

    def before_update(grads, finite):
        assert finite.device.id == module.cuda.runtime.getDevice() == 1 and len(grads) == 6
        seen.append("update")
        if len(seen) > 7:
            finite.fill(0)

    net.on_gradient, net.before_update = on_gradient, before_update
    plain.on_gradient = lambda name, gradient: None
    first = net.step(X, Y)
    assert first == plain.step(X, Y) and len(seen) == 7
    before = {name: host(w) for name, w in net.params.items()}
    assert all(np.array_equal(w, host(plain.params[name])) for name, w in before.items())
    net.step(X, Y)  # which the hook forbids
    net.before_update = lambda grads, finite: module.asarray(np.array([False]))
    net.step(X, Y)
    net.on_gradient = net.before_update = None
    with module.cuda.Device(1):
        labels = module.asarray(Y + 7)  # of which some are no class; the host does not look
    assert not net.step(X, labels).finite and not net.step(spoiled(np.nan), Y).finite
    for name, w in before.items():
        assert np.array_equal(host(net.params[name]), w), name
    parts = [net.evaluate(X[i : i + 2], Y[i : i + 2]) for i in (0, 2)]
    assert sum(parts) / 2 == pytest.approx(net.evaluate(X, Y), rel=1e-6)
    plain.dropout_offset = net.dropout_offset = 0
    parts = [copy.deepcopy(net).step(X[i : i + 2], Y[i : i + 2], shard=(i, 4)) for i in (0, 2)]
    assert sum(parts) == pytest.approx(plain.step(X, Y), rel=1e-6)


# ---------------------------------------------------------------------------------------------------
# Frozen parameters
# ---------------------------------------------------------------------------------------------------
FROZEN = [
    ("conv1.*",), ("*.b",), ("*.w",), ("fc6.w",), ("fc8.*",), ("fc*",), ("conv1.*", "fc6.*"),
    ("conv1.w", "fc8.b"), ("conv1.b", "fc6.b", "fc8.w"), ("*",),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", FROZEN, ids=",".join)
def test_freezing_some_leaves_the_others_their_bits(frozen, dtype):
    """With the same ops: gradients are not fused with updates."""
    x = X.astype(tiny(dtype=dtype).params["fc8.w"].dtype)
    net, free = tiny(dtype=dtype), tiny(dtype=dtype)
    for each in (net, free):
        each.on_gradient = lambda name, gradient: None
        each.update = ck.Update(bias_decay=0.1)
        each.step(x, Y)
    before = values(net)
    net.update = replace(net.update, frozen=frozen)
    assert net.step(x, Y) == free.step(x, Y)
    for name, w in values(net).items():
        still = net.update.is_frozen(name.split()[1])
        assert np.array_equal(w, before[name] if still else values(free)[name]), name


def test_freezing_and_thawing_keeps_the_velocities():
    net = tiny()
    net.step(X, Y)
    velocity = net.velocities["fc6.w"].copy()
    assert velocity.any()
    net.update = replace(net.update, frozen=("fc6.*",))
    for _ in range(2):
        net.step(X, Y)
    assert np.array_equal(net.velocities["fc6.w"], velocity)
    net.update = ck.Update(lr=0)
    w = net.params["fc6.w"].copy()
    net.step(X, Y)
    # With a rate of 0, what it moves by is momentum times what the velocity was.
    np.testing.assert_allclose(net.params["fc6.w"] - w, 0.9 * velocity, rtol=1e-3, atol=1e-7)
    assert net.plan(4).frozen == frozenset()


# ---------------------------------------------------------------------------------------------------
# Shards
# ---------------------------------------------------------------------------------------------------
def shards_of(sizes: list[int]) -> list[tuple[int, int]]:
    return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [1, 4, 3], [8], [7, 1]], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shards_with_summed_gradients_are_the_whole_batch(sizes, dtype):
    rng = np.random.default_rng(2)
    x, labels = rng.standard_normal((8, 3, 12, 12)).astype(dtype), rng.integers(0, 10, 8)
    whole, workers = tiny(dtype=dtype), [tiny(dtype=dtype) for _ in sizes]
    for _ in range(3):  # with momentum, and further counters
        sums = {name: np.zeros_like(g) for name, g in whole.grads.items()}

        def add(name, gradient, sums=sums):
            sums[name] += gradient

        def put(name, gradient, sums=sums):
            gradient[...] = sums[name]

        parts = []
        for exchange in (add, put):  # one process stands for all: first the sum, then the step
            for net, (first, size) in zip(workers, shards_of(sizes), strict=True):
                net.on_gradient = exchange
                net.before_update = (lambda grads, finite: False) if exchange is add else None
                offset = net.dropout_offset
                here = slice(first, first + size)
                loss = net.step(x[here], labels[here], shard=(first, 8))
                if exchange is add:
                    net.dropout_offset = offset
                    parts.append(loss)
        loss = whole.step(x, labels)
        assert sum(parts) == pytest.approx(loss, rel=1e-5 if dtype == "float32" else 1e-12)
        for count in ("errors", "top5_errors", "images"):
            assert sum(getattr(part, count) for part in parts) == getattr(loss, count)
        for net in workers:
            assert net.dropout_offset == whole.dropout_offset
            assert same(net, workers[0])
        for name, w in values(whole).items():
            np.testing.assert_allclose(
                values(workers[0])[name],
                w,
                rtol=0,
                atol=(1e-5 if dtype == "float32" else 1e-13) * abs(w).max(),
            )


def test_shards_drop_what_the_whole_batch_drops():
    """Bit for bit, in each of two dropouts, of images whose elements are no multiple of 4."""

    def of() -> ck.Network:
        stack = (
            layers.Dropout("d1"), layers.MaxPool("pool", 1, 1), layers.Dropout("d2", inverted=False),
            layers.Flatten("f"), layers.Linear("fc", None, layers.Normal(0.1), layers.Constant(0)),
        )  # fmt: skip
        return ck.Network(stack, (3, 5, 5), 4, seed=5)

    x = np.random.default_rng(0).standard_normal((12, 3, 5, 5)).astype(np.float32)
    labels = np.zeros(12, int)

    def dropped(net: ck.Network, *batch, **options) -> list[np.ndarray]:
        net.step(*batch, **options)
        calls = [c for c in net.plan(len(batch[0])).forward if c.op.name == "dropout_fprop"]
        return [c.outputs[0].copy() for c in calls]

    whole = of()
    workers = {(0, 4): of(), (4, 1): of(), (4, 8): of(), (8, 3): of()}
    for _ in range(2):
        all_ = dropped(whole, x, labels)
        for (first, size), net in workers.items():
            here = slice(first, first + size)
            net.params["fc.w"][...] = whole.params["fc.w"]
            for got, want in zip(dropped(net, x[here], labels[here], shard=(first, 12)), all_, strict=True):
                assert np.array_equal(got, want[here]) and (got == 0).any()
            assert net.dropout_offset == whole.dropout_offset
    with pytest.raises(
        ck.OptionError, match="step: a shard cannot begin with image 5: .* d1 has 75 for each"
    ):
        whole.step(x[5:], labels[5:], shard=(5, 12))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ((0, 3), r"shard \(0, 3\): 4 images from 0 on are more than 3"),
        ((1, 4), "are more than 4"),
        ((4, 4), "are more than 4"),
        ((-4, 8), r"shard\[0\] must be at least 0"),
        ((0, 0), r"shard\[1\] must be at least 1"),
        ((0, 8.0), r"shard\[1\] must be an integer"),
        ((True, 8), r"shard\[0\] must be an integer"),
        ((0,), r"shard must be \(first, total\)"),
        (4, r"shard must be \(first, total\)"),
        ("04", r"shard must be \(first, total\)"),
        ((0, 2**62), "no dropout counters are left"),
    ],
)
def test_a_shard_that_cannot_be_changes_nothing(shard, message):
    net, plain = tiny(), tiny()
    before = values(net)
    with pytest.raises(ck.OptionError, match=message):
        net.step(X, Y, shard=shard)
    assert not changed(before, net) and net.dropout_offset == 0
    assert net.step(X, Y) == plain.step(X, Y) and same(net, plain)


def test_a_whole_batch_behind_a_shard_counts_as_a_whole():
    net, plain = tiny(), tiny()
    for each, shard in ((net, (0, 8)), (plain, None)):
        each.update = ck.Update(frozen=("*",))
        each.step(X, Y, shard=shard)
        each.update = ck.Update()
        each.dropout_offset = 100
    assert net.step(X, Y) == plain.step(X, Y) and same(net, plain)


# ---------------------------------------------------------------------------------------------------
# Steps that change nothing
# ---------------------------------------------------------------------------------------------------
def spoiled(value: float, x: np.ndarray = X) -> np.ndarray:
    bad = x.copy()
    bad[2] = value
    return bad


@contextlib.contextmanager
def own_rule(monkeypatch, net: ck.Network, everywhere: bool):
    """A user's update rule that knows no flag, for all or for one layer."""
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    calls = []

    @ck.implements("sgd_momentum", name="own", rank=-1000)
    def own(
        problem, w, dw, v, w_new, v_new, *, lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity
    ):
        calls.append(problem)
        v_new[...] = momentum * v - lr * (dw + weight_decay * w)
        w_new[...] = w + v_new

    if everywhere:
        with ck.use(sgd_momentum="own"):
            yield calls
    else:
        net.use("fc8", sgd_momentum="own")
        yield calls
        net.use("fc8", sgd_momentum=None)


def and_again(net: ck.Network, bad: np.ndarray, good: np.ndarray) -> None:
    """A bad step leaves every bit, and the next one is as if it had not been."""
    net.step(good, Y)
    assert all(v.any() for v in net.velocities.values())
    twin = copy.deepcopy(net)
    twin.on_gradient = net.on_gradient  # a gradient that is stored may be rounded
    before = values(net)
    loss = net.step(bad, Y)
    assert not loss.finite and not np.isfinite(loss) and not changed(before, net)
    assert net.dropout_offset == 2 * twin.dropout_offset  # its counters are used
    twin.dropout_offset = net.dropout_offset
    good_loss = net.step(good, Y)
    assert good_loss.finite and good_loss == twin.step(good, Y)
    assert same(net, twin) and changed(before, net) == before.keys()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("hook", [False, True], ids=["fused", "hook"])
def test_a_step_of_no_use_changes_nothing(value, dtype, hook):
    net = tiny(dtype=dtype, update=ck.Update(bias_decay=0.1))
    if hook:
        net.on_gradient = lambda name, gradient: None
    good = X.astype(net.params["fc8.w"].dtype)
    and_again(net, spoiled(value, good), good)


@pytest.mark.parametrize("everywhere", [True, False], ids=["ck.use", "net.use"])
def test_a_step_of_no_use_changes_nothing_by_a_rule_without_the_flag(monkeypatch, everywhere):
    net = tiny(update=ck.Update(bias_decay=0.1))
    with own_rule(monkeypatch, net, everywhere) as calls:
        net.step(X, Y)
        assert len(calls) == (6 if everywhere else 2) and not net.plan(4).guarded
        twin = copy.deepcopy(net)
        before = values(net)
        assert not net.step(spoiled(np.nan), Y).finite and not changed(before, net)
        twin.dropout_offset = net.dropout_offset
        assert net.step(X, Y) == twin.step(X, Y) and same(net, twin) and changed(before, net) == before.keys()
        before = values(net)
        net.before_update = lambda grads, finite: finite.fill(0)
        net.step(X, Y)
        assert not changed(before, net)
    net.before_update = None
    assert net.plan(4).guarded


def test_an_emulated_step_of_no_use_changes_nothing(compiler):
    net = tiny(update=ck.Update(bias_decay=0.1))
    with ck.emulate():
        and_again(net, spoiled(np.nan), X)


# ---------------------------------------------------------------------------------------------------
# A layer's own implementations
# ---------------------------------------------------------------------------------------------------
def chosen(net: ck.Network, op: str, batch: int = 4) -> dict[str, str]:
    calls = [call for calls in net.plan(batch).phases().values() for call in calls]
    return {call.layer.partition("+")[0]: call.implementation.name for call in calls if call.op.name == op}


def test_one_layer_runs_what_it_is_told():
    net = tiny()
    usual = chosen(net, "linear_fprop")["fc6"]
    assert usual != "reference"
    net.use("fc6", linear_fprop="reference", linear_bgrad="reference")
    assert chosen(net, "linear_fprop") == {"fc6": "reference", "fc8": usual}
    assert "reference" not in chosen(net, "linear_bgrad")["fc8"]
    row = next(line for line in str(net.plan(4)).splitlines() if line.startswith("fc6"))
    assert row.split()[1:3] == ["linear_fprop", "reference"]
    # It comes before `convkit.use`, which holds for the others.
    with ck.use(linear_fprop="gemm"):
        assert chosen(net, "linear_fprop") == {"fc6": "reference", "fc8": "gemm"}
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert chosen(twin, "linear_fprop") == {"fc6": "reference", "fc8": usual}
        twin.use("fc6", linear_fprop=None)
        assert chosen(twin, "linear_fprop")["fc6"] == usual
    assert chosen(net, "linear_fprop", 3)["fc6"] == "reference"
    net.use("fc6", linear_fprop=None)
    assert chosen(net, "linear_fprop")["fc6"] == usual and chosen(net, "linear_bgrad")["fc6"] == "reference"
    net.use("fc6", linear_bgrad=None)
    assert ops_of_a_step(net) == ops_of_a_step(tiny())
    net.use("conv1", sgd_momentum="reference")
    assert {n for n, i in chosen(net, "sgd_momentum").items() if i == "reference"} == {"conv1.w", "conv1.b"}


def test_backward_runs_what_forward_ran_though_another_is_chosen():
    net, plain = tiny(), tiny()
    dlogits = np.ones((4, 10), np.float32)
    for each in (net, plain):
        each.forward(X)
    net.use("fc6", linear_dgrad="reference")
    assert np.array_equal(net.backward(dlogits), plain.backward(dlogits))


@pytest.mark.parametrize(
    ("layer", "names", "message"),
    [
        ("fc9", {"linear_fprop": "gemm"}, "unknown layer 'fc9'"),
        (["fc6"], {"linear_fprop": "gemm"}, r"unknown layer \['fc6'\]"),
        ("fc6", {"conv2d_fprop": "direct"}, "unknown op of fc6 'conv2d_fprop'"),
        ("fc6", {"linear_fporp": "gemm"}, "did you mean 'linear_fprop'"),
        ("flatten", {"relu_fprop": "reference"}, "unknown op of flatten"),
        (
            "fc6",
            {"linear_fprop": "gmem"},
            "unknown implementation of linear_fprop 'gmem'; did you mean 'gemm'",
        ),
        ("fc6", {"linear_fprop": ["gemm"]}, "unknown implementation of linear_fprop"),
        ("fc6", {"linear_dgrad": "gemm", "linear_fprop": "none"}, "unknown implementation"),
    ],
)
def test_a_choice_that_cannot_be_changes_nothing(layer, names, message):
    net = tiny()
    with pytest.raises(ck.OptionError, match=message):
        net.use(layer, **names)
    assert ops_of_a_step(net) == ops_of_a_step(tiny()) and chosen(net, "linear_fprop") == chosen(
        tiny(), "linear_fprop"
    )


def test_a_choice_that_does_not_fit_is_an_error_when_planned():
    net = tiny(dtype="float64")
    net.use("conv1", conv2d_fprop="winograd")
    with pytest.raises(ck.NoImplementation, match="winograd"):
        net.plan(4)
    net.use("conv1", conv2d_fprop=None)
    net.plan(4)


# ---------------------------------------------------------------------------------------------------
# Evaluation, and what a step says
# ---------------------------------------------------------------------------------------------------
def test_evaluation_changes_nothing_and_says_what_a_step_says():
    net = tiny()
    net.step(X, Y)
    before, state = values(net), net.state()
    grads = {name: g.copy() for name, g in net.grads.items()}
    first = net.evaluate(X, Y)
    assert net.evaluate(X, Y) == first and not changed(before, net)
    assert net.dropout_offset == state["dropout_offset"] and net.state()["plan"] == state["plan"]
    assert all(np.array_equal(g, net.grads[name]) for name, g in grads.items())
    losses, _ = ck.softmax_xent_fprop(net.forward(X), Y)
    assert first == pytest.approx(losses.mean(), rel=1e-6)
    rank = ck.label_rank(net.forward(X), Y)
    assert (first.errors, first.top5_errors, first.images) == ((rank > 0).sum(), (rank > 4).sum(), 4)
    # Without dropout a step's loss is the same, as it is before the update.
    plain = ck.Network([n for n in net.layers if n.name != "drop6"], (3, 12, 12), 10, seed=1)
    loss = plain.evaluate(X, Y)
    assert loss == plain.step(X, Y) and vars(loss) == vars(plain.evaluate(X, Y)) | {"errors": loss.errors}
    # In between, training goes on as if nothing had been.
    twin = copy.deepcopy(net)
    net.evaluate(X[:3], Y[:3])
    net.forward(X)
    net.evaluate(X, Y)
    with pytest.raises(ck.OptionError, match="forward comes first"):
        net.backward(np.ones((4, 10), np.float32))
    assert net.step(X, Y) == twin.step(X, Y) and same(net, twin)
    for wrong in ((X[:0], Y[:0]), (X, Y[:2]), (X, Y + 10), (X[:, :1], Y)):
        with pytest.raises(ck.ConvkitError):
            net.evaluate(*wrong)


def test_a_loss_is_a_number():
    loss = tiny().step(X, Y)
    assert isinstance(loss, float) and json.loads(json.dumps({"loss": loss})) == {"loss": float(loss)}
    for twin in (
        copy.copy(loss),
        copy.deepcopy(loss),
        *(pickle.loads(pickle.dumps(loss, p)) for p in range(2, 6)),
    ):
        assert type(twin) is type(loss) and twin == loss and vars(twin) == vars(loss)
    assert f"{loss:.3f}" == f"{float(loss):.3f}" and type(loss + 1) is float
    assert loss.images == 4 and loss.finite and 0 <= loss.top5_errors <= loss.errors <= 4
    assert {loss: 1}[float(loss)] == 1 and min(loss, 1e9) is loss


# ---------------------------------------------------------------------------------------------------
# Whatever is called between
# ---------------------------------------------------------------------------------------------------
def test_a_step_does_not_depend_on_what_ran_between():
    """Other batch sizes, passes, plans that are thrown away, errors."""
    net, plain = tiny(), tiny()
    rng = np.random.default_rng(9)

    def bad():
        with pytest.raises(ck.ConvkitError):
            net.step(X, Y + 10)
        with pytest.raises(ck.ConvkitError):
            net.step(X, Y, lr="0.1")

    acts = (
        lambda: net.forward(X), lambda: net.forward(X[:1]), lambda: net.evaluate(X[:2], Y[:2]),
        lambda: net.backward(net.forward(X)), lambda: setattr(net, "plan_memory", 0),
        lambda: net.plan(7), bad, lambda: setattr(net, "update", replace(net.update)),
        lambda: net.forward(X[:0]), lambda: net.evaluate(spoiled(np.nan), Y),
        lambda: net.load_state(net.state()),
    )  # fmt: skip
    for _ in range(8):
        for i in rng.integers(0, len(acts), 3):
            acts[i]()
        size = int(rng.integers(1, 5))
        assert net.step(X[:size], Y[:size]) == plain.step(X[:size], Y[:size])
    assert same(net, plain)


@pytest.mark.parametrize("lr", ["0.1", True, None, -1, float("nan"), [0.1]])
def test_a_learning_rate_is_a_number(lr):
    net, plain = tiny(), tiny()
    if lr is not None:
        with pytest.raises(ck.OptionError, match="step: lr must be a"):
            net.step(X, Y, lr=lr)
        assert net.dropout_offset == 0
    assert net.step(X, Y) == plain.step(X, Y, lr=0.01)


def test_counters_of_dropout_end():
    net = tiny()
    net.load_state({**net.state(), "dropout_offset": 2**63 - 17})
    net.step(X, Y)
    before = values(net)
    with pytest.raises(ck.OptionError, match="no dropout counters are left"):
        net.step(X, Y)
    assert net.dropout_offset == 2**63 - 1 and not changed(before, net)
    net.forward(X)


def test_threads_that_train_and_test_take_turns():
    """Whatever their order, as many steps are made, and each evaluation sees whole weights."""
    net, plain, wrong = tiny(), tiny(), []
    known = {plain.evaluate(X, Y)}
    for _ in range(12):
        plain.step(X, Y)
        known.add(plain.evaluate(X, Y))

    def train():
        for _ in range(6):
            net.step(X, Y)

    def test():
        wrong.extend(loss for loss in (net.evaluate(X, Y) for _ in range(12)) if loss not in known)

    threads = [threading.Thread(target=work) for work in (train, train, test, test)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and same(net, plain)


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ([3], "layers must be a sequence of convkit.layers, and not hold 3"),
        (3, "layers must be a sequence of convkit.layers, and not hold 3"),
        ([layers.Relu], "layers must be a sequence"),
        ([layers.Relu("")], "a layer's name must be a str, and not empty"),
        ([layers.Relu(7)], "a layer's name must be a str"),
        ([layers.Linear("fc", None, layers.He(), layers.He())], r"x must have 2 dimensions"),
        ([layers.Flatten("f"), layers.Lrn("n")], "x must have 4 dimensions"),
        ([layers.Lrn("n", size=0)], "size must be at least 1"),
        ([layers.MaxPool("p", 20)], "the window spans 20 pixels"),
    ],
)
def test_layers_that_cannot_be(stack, message):
    """Said when the network is made, and not by its first step."""
    with pytest.raises(ck.ConvkitError, match=message):
        ck.Network(stack, (3, 12, 12), 10)


@pytest.mark.parametrize("shape", [3, (3, 12), (3, 12, 0), (3.0, 12, 12), "abc", None])
def test_images_that_cannot_be(shape):
    with pytest.raises(ck.OptionError, match="input_shape"):
        ck.Network([layers.Flatten("f")], shape, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv("c", 0, 3, None, None), "filters of c must be at least 1"),
        (lambda: layers.Conv("c", 2.5, 3, None, None), "filters of c must be an integer"),
        (lambda: layers.Conv("c", 4, 0, None, None), "window of c must be at least 1"),
        (lambda: layers.Conv("c", 4, 3, None, None, groups=0), "groups of c must be at least 1"),
        (lambda: layers.Linear("l", -1, None, None), "filters of l must be at least 1"),
        (lambda: layers.Dropout("d", 1.5), "p of d must be a probability, not 1.5"),
        (lambda: layers.Dropout("d", -0.1), "p of d must be a finite number of at least 0"),
        (lambda: layers.Dropout("d", float("nan")), "p of d must be a finite number"),
        (lambda: layers.Dropout("d", "half"), "p of d must be a number"),
    ],
)
def test_a_layer_that_cannot_be(make, message):
    with pytest.raises(ck.OptionError, match=message):
        make()


@pytest.mark.parametrize("inverted", [True, False])
def test_a_dropout_of_everything(inverted):
    init = layers.Normal(0.1)
    stack = (layers.Flatten("f"), layers.Dropout("d", 1.0, inverted), layers.Linear("fc", None, init, init))
    net = ck.Network(stack, (3, 12, 12), 10)
    w = net.params["fc.w"].copy()
    net.update = ck.Update(weight_decay=0)
    assert net.step(X, Y).finite and np.array_equal(net.params["fc.w"], w) and net.velocities["fc.b"].any()


def test_an_implementation_of_the_same_name_is_noticed_by_the_next_step(monkeypatch):
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))
    seen = []

    def register(which: str) -> None:
        @ck.implements("relu_fprop", name="again", rank=-1)
        def again(problem, x, y):
            seen.append(which)
            np.maximum(x, 0, out=y)

    net, plain = tiny(), tiny()
    for which in ("first", "second"):
        register(which)
        with ck.use(relu_fprop="again"):
            seen.clear()
            assert net.step(X, Y) == pytest.approx(plain.step(X, Y), rel=1e-5)
        assert set(seen) == {which}


# ---------------------------------------------------------------------------------------------------
# What the documentation shows
# ---------------------------------------------------------------------------------------------------
def test_the_examples_of_the_documentation_run(capsys):
    text = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(code, scope)
    assert "conv1+relu1" in capsys.readouterr().out
    assert scope["loss"].finite and scope["net"].update.frozen == ("conv1.*",)


def test_layers_have_their_public_name():
    from convkit.layers import Conv, He
    from convkit.network import layers

    assert Conv is layers.Conv is ck.layers.Conv and ck.layers.He is He
    own = [
        name for name, value in vars(layers).items() if getattr(value, "__module__", "") == layers.__name__
    ]
    assert {name for name in own if name[0] != "_"} <= set(ck.layers.__all__)
