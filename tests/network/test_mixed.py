"""Mixed precision: 16-bit activations, float32 parameters, and a loss scale in float16.

The oracle is `Model`, an independent one in PyTorch's float32 on the CPU: whatever an op of the network makes
in 16 bits is rounded to them there, forward and backward, and nothing else is.
"""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest

import convkit as ck
from convkit import check
from convkit.arrays import DTYPES
from convkit.network import layers
from convkit.network.plan.graph import SCALE
from convkit.ops import loss_scale

torch = pytest.importorskip("torch")

SIXTEEN = ("bfloat16", "float16")
RNG = np.random.default_rng(11)
X = RNG.standard_normal((8, 3, 12, 12)).astype(np.float32)
Y = np.arange(8) % 10
INIT = layers.Normal(0.1)


def tiny(dtype: str, **options) -> ck.Network:
    """Each kind of layer, without dropout."""
    return ck.Network(
        (
            layers.Conv("conv1", 8, 3, INIT, INIT, padding=1),
            layers.Relu("relu1"),
            layers.Lrn("norm1"),
            layers.MaxPool("pool1"),
            layers.Conv("conv2", 12, 3, INIT, INIT, padding=1, groups=2),
            layers.Relu("relu2"),
            layers.Flatten("flatten"),
            layers.Linear("fc6", 16, INIT, INIT),
            layers.Relu("relu6"),
            layers.Linear("fc8", None, INIT, INIT),
        ),
        (3, 12, 12),
        10,
        **{"seed": 1, "dtype": dtype, "update": ck.Update(lr=0.05, bias_decay=1e-3), **options},
    )


class Rounded(torch.autograd.Function):
    """A value that is stored in 16 bits, and whose gradient is, too."""

    @staticmethod
    def forward(ctx, value, kind):
        ctx.kind = kind
        return value.to(kind).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(ctx.kind).float(), None


class Narrow(torch.autograd.Function):
    """The working copy of a parameter: its gradient stays float32."""

    @staticmethod
    def forward(ctx, value, kind):
        return value.to(kind).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Model:
    """The same network and update rule, written with PyTorch's functions."""

    def __init__(self, net: ck.Network, dtype: str, scale: float = 1.0) -> None:
        self.kind, self.scale, self.rule = getattr(torch, dtype), scale, net.update
        self.params = {n: torch.tensor(w, requires_grad=True) for n, w in net.params.items()}
        self.velocities = {n: torch.zeros(w.shape) for n, w in net.params.items()}

    def logits(self, x: np.ndarray) -> torch.Tensor:
        F, p = torch.nn.functional, {n: Narrow.apply(w, self.kind) for n, w in self.params.items()}

        def stored(value):
            return Rounded.apply(value, self.kind)

        h = torch.from_numpy(x).to(self.kind).float()
        h = stored(F.relu(F.conv2d(h, p["conv1.w"], p["conv1.b"], padding=1)))
        h = stored(F.max_pool2d(F.local_response_norm(h, 5, 1e-4, 0.75, 1.0), 3, 2, ceil_mode=True))
        h = stored(F.relu(F.conv2d(h, p["conv2.w"], p["conv2.b"], padding=1, groups=2)))
        h = stored(F.relu(F.linear(h.flatten(1), p["fc6.w"], p["fc6.b"])))
        return stored(F.linear(h, p["fc8.w"], p["fc8.b"]))

    def step(self, x: np.ndarray, labels: np.ndarray) -> float:
        loss = torch.nn.functional.cross_entropy(self.logits(x), torch.from_numpy(labels))
        (loss * self.scale).backward()
        with torch.no_grad():
            for name, w in self.params.items():
                gradient = w.grad / self.scale + self._decay(name) * w
                v = self.velocities[name] = (
                    self.rule.momentum * self.velocities[name] - self.rule.lr * gradient
                )
                w += v
                w.grad = None
        return float(loss.detach())

    def _decay(self, name: str) -> float:
        return self.rule.bias_decay if name.endswith(".b") else self.rule.weight_decay


# ---------------------------------------------------------------------------------------------------
# What is of which dtype
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_dtypes(dtype):
    net = tiny(dtype)
    loss = net.step(X, Y)
    assert np.isfinite(loss) and not loss.overflow
    for part in (net.params, net.grads, net.velocities):
        assert {a.dtype for a in part.values()} == {np.dtype(np.float32)}
    assert net.inputs(8)[0].dtype == net.plan(8).logits.dtype == net.plan(8).dlogits.dtype == DTYPES[dtype]
    assert net.plan(8).losses.dtype == np.float32
    logits = net.forward(X)
    assert logits.dtype == net.backward(logits).dtype == np.float32
    pair = f"{dtype}/float32"
    found = {(call.op.name, call.problem.dtype) for call in net.plan(8).calls()}
    assert {
        ("conv2d_fprop", dtype),
        ("conv2d_wgrad", pair),
        ("linear_bgrad", pair),
        ("reorder", pair),
    } <= found
    names = [f"{call.layer} {call.op.name}" for calls in net.plan(8).phases().values() for call in calls]
    assert len(set(names)) == len(names) and {"conv1.w reorder", "conv1.b reorder"} <= set(names)
    assert ("sgd_momentum", "float32") in found and ("conv2d_wgrad", dtype) not in found
    assert pair in str(net.plan(8)) and f"batch 8, {dtype}:" in str(net.plan(8))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_dtypes_have_no_copies_and_no_scale(dtype):
    net = tiny(dtype)
    net.step(X.astype(dtype), Y)
    names = {call.op.name for call in net.plan(8).calls()}
    assert not names & {"reorder", "rescale", "adjust_loss_scale"} and net.loss_scale == 1
    assert {call.problem.dtype for call in net.plan(8).calls() if call.op.name != "loss_summary"} == {dtype}
    with pytest.raises(ck.OptionError, match="only a network in float16 scales its loss; this one is float"):
        net.loss_scale = 2.0
    with pytest.raises(ck.DtypeError, match=f"x has dtype float16, but the network is {dtype}$"):
        net.step(X.astype(np.float16), Y)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_images_of_several_dtypes(dtype):
    """The same pixels give the same bits, whatever they come as; also where they lie in `inputs`."""
    pixels = RNG.integers(0, 256, X.shape, np.uint8)
    net = tiny(dtype)
    wanted = net.forward(pixels)
    for kind in (np.float32, DTYPES[dtype]):
        np.testing.assert_array_equal(net.forward(pixels.astype(kind)), wanted)
    x, _ = net.inputs(8)
    x[...] = pixels
    np.testing.assert_array_equal(net.forward(x), wanted)
    tensor = net.forward(torch.from_numpy(pixels))
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.forward(np.full(X.shape, 1e38, np.float32))
    with pytest.raises(ck.DtypeError, match=f"the network is {dtype}, which takes float32 and uint8 too"):
        net.forward(pixels.astype(np.float64))
    with pytest.raises(ck.DtypeError, match=f"x has dtype int32, but the network is {dtype}, which takes"):
        net.forward(pixels.astype(np.int32))
    with pytest.raises(ck.DtypeError, match="x has dtype uint8, but the network is float32$"):
        tiny("float32").forward(pixels)


# ---------------------------------------------------------------------------------------------------
# Against the model
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_gradients_are_those_of_mixed_precision(dtype):
    """To a part of the rounding of 16 bits: so every rounding is where it should be, and no other is."""
    net = tiny(dtype)
    model = Model(net, dtype, net.loss_scale)
    logits = torch.from_numpy(net.forward(X))
    found = model.logits(X)
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    assert (found - logits).abs().max() <= 2 * unit * logits.abs().max()
    dlogits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)) / 100
    with net._scaled_for_once(dlogits.numpy()):
        scale = net.loss_scale
    (found * dlogits * scale).sum().backward()
    net.backward(dlogits.numpy())
    for name, gradient in net.grads.items():
        wanted = model.params[name].grad.numpy() / scale
        error = np.linalg.norm(gradient - wanted) / np.linalg.norm(wanted)
        assert error < unit / 2, (name, error / unit)
        assert not np.array_equal(gradient, gradient.astype(DTYPES[dtype]).astype(np.float32)), name


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_ten_steps(dtype):
    """Losses differ from the model's by no more than two right ways of this library do, and it learns."""
    net, other = tiny(dtype), tiny(dtype)
    model = Model(net, dtype, net.loss_scale)
    with ck.use(conv2d_fprop="reference", conv2d_wgrad="reference", linear_fprop="reference"):
        spread = [float(other.step(X, Y)) for _ in range(10)]
    mine, theirs = [float(net.step(X, Y)) for _ in range(10)], [model.step(X, Y) for _ in range(10)]
    allowed = 4 * max(np.abs(np.subtract(mine, spread)).max(), 2.0**-9)
    assert np.abs(np.subtract(mine, theirs)).max() <= allowed and mine[-1] < mine[0] - 0.3


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_small_updates_are_not_lost(dtype):
    """What float32 is kept for: in 16 bits, a weight would stay where it is."""
    net = tiny(dtype, update=ck.Update(lr=1e-5, momentum=0.0))
    before = {name: w.copy() for name, w in net.params.items()}
    net.step(X, Y)
    kind = DTYPES[dtype]
    w, was = net.params["conv1.w"], before["conv1.w"]
    assert (w != was).mean() > 0.9 and (w.astype(kind) != was.astype(kind)).mean() < 0.1


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_every_call_of_a_step_is_right(dtype):
    verdicts = check.check_step(tiny(dtype), X, Y)
    assert all(v.ok for v in verdicts) and len(verdicts) > 30, [v for v in verdicts if not v.ok]


# ---------------------------------------------------------------------------------------------------
# The working copies
# ---------------------------------------------------------------------------------------------------
def test_what_is_written_into_a_parameter_counts():
    """In forward, step and evaluate, in plans of other batches, and after `load_state`."""
    net, twin = tiny("bfloat16"), tiny("bfloat16", seed=2)
    for each in (net, twin):
        for batch in (8, 3):
            each.forward(X[:batch])
    for name, w in twin.params.items():
        net.params[name][...] = w
    for batch in (8, 3):
        np.testing.assert_array_equal(net.forward(X[:batch]), twin.forward(X[:batch]))
    assert net.evaluate(X, Y) == twin.evaluate(X, Y) and net.step(X, Y) == twin.step(X, Y)
    fresh = tiny("bfloat16", seed=3)
    fresh.forward(X)
    fresh.load_state(twin.state())
    assert fresh.step(X, Y) == twin.step(X, Y)


def test_states_of_float32_and_mixed_precision_are_interchangeable():
    single, mixed, half = tiny("float32"), tiny("bfloat16"), tiny("float16")
    for net in (single, mixed, half):
        net.step(X, Y)
    assert single.state()["dtype"] == mixed.state()["dtype"] == half.state()["dtype"] == "float32"
    for source in (single, mixed, half):
        for target in (tiny("float32", seed=5), tiny("bfloat16", seed=5), tiny("float16", seed=5)):
            target.load_state(source.state())
            for part in ("params", "velocities"):
                for name, a in getattr(source, part).items():
                    np.testing.assert_array_equal(getattr(target, part)[name], a)
    with pytest.raises(ck.DtypeError, match="the state is float32, but the network is float64"):
        tiny("float64").load_state(mixed.state())


# ---------------------------------------------------------------------------------------------------
# The loss scale
# ---------------------------------------------------------------------------------------------------
def arrays_of(net):
    return [a.copy() for part in (net.params, net.velocities) for a in part.values()]


def unchanged(net, before):
    return all(np.array_equal(a, b) for a, b in zip(arrays_of(net), before, strict=True))


@pytest.mark.parametrize("hook", [False, True], ids=["plain", "hook"])
def test_overflow_skips_the_step_and_halves_the_scale(hook):
    net = tiny("float16")
    if hook:
        net.on_gradient = lambda name, gradient: None
    assert net.loss_scale == loss_scale.INITIAL == 65536
    net.step(X, Y)
    net.loss_scale = 2.0**30
    before = arrays_of(net)
    loss = net.step(X, Y)
    assert loss.finite and loss.overflow and unchanged(net, before) and net.loss_scale == 2.0**29
    while loss.overflow:
        before, scale = arrays_of(net), net.loss_scale
        loss = net.step(X, Y)
    assert not unchanged(net, before) and net.loss_scale == scale < 2.0**29
    assert copy.copy(loss).overflow is False and pickle.loads(pickle.dumps(loss)).finite


def test_one_gradient_that_overflows_stops_all_updates():
    """Also those of layers whose gradients were made, and found to be finite, before it and after it."""
    net = tiny("float16")
    net.step(X, Y)
    for bad in net.params:
        before, scale = arrays_of(net), net.loss_scale
        calls = {call.layer: call for call in net.plan(8).backward if call.op.name == "rescale"}
        makers = [c for c in net.plan(8).backward if any(o is net.grads[bad] for o in c.outputs)]
        assert calls and makers
        maker = next(c for c in makers if c.op.name != "rescale")
        spoil = replace(maker.implementation, prepare=None, run=_spoiling(net.grads[bad]), workspace=None)
        kept, maker.implementation = maker.implementation, spoil
        options, maker.options = maker.options, {k: v for k, v in maker.options.items() if k != "workspace"}
        net.plan(8)._bare.clear()
        loss = net.step(X, Y)
        maker.implementation, maker.options = kept, options
        net.plan(8)._bare.clear()
        assert loss.overflow and unchanged(net, before) and net.loss_scale == scale / 2, bad
        net.loss_scale = scale


def _spoiling(gradient):
    """An implementation that makes one infinity."""

    def spoiled(problem, *arrays, **options):
        gradient.fill(1)
        gradient.flat[-1] = np.inf

    return spoiled


def test_the_scale_grows_after_good_steps():
    net = tiny("float16")
    net.scaling = 1024.0, loss_scale.INTERVAL - 2
    seen = []
    for _ in range(3):
        net.step(X, Y)
        seen.append(net.scaling)
    assert seen == [(1024.0, loss_scale.INTERVAL - 1), (2048.0, 0), (2048.0, 1)]


def test_the_scale_changes_no_gradient():
    """It is a power of two, and hooks see what has been divided by it."""
    found = []
    for scale in (2.0**10, 2.0**12):
        net, seen = tiny("float16"), {}
        net.loss_scale = scale
        net.on_gradient = lambda name, gradient, seen=seen: seen.setdefault(name, gradient.copy())
        net.before_update = lambda grads, finite, seen=seen: seen.setdefault("finite", finite.copy()) is None
        assert net.step(X, Y) == net.evaluate(X, Y)  # the hook has forbidden the update
        assert seen.pop("finite")[0] == 1
        found.append(seen)
    assert set(found[0]) == set(tiny("float16").params)
    for name, gradient in found[0].items():
        wanted = found[1][name]
        assert np.abs(gradient - wanted).max() <= 2.0**-11 * np.abs(wanted).max(), name


def test_a_loss_that_is_not_finite_is_no_overflow():
    net = tiny("float16")
    before = arrays_of(net)
    spoiled = X.copy()
    spoiled[0] = np.nan
    loss = net.step(spoiled, Y)
    assert not loss.finite and not loss.overflow and unchanged(net, before)
    assert not net.evaluate(spoiled, Y).finite and not net.evaluate(X, Y).overflow


def test_the_scale_is_part_of_the_state():
    net = tiny("float16")
    net.step(X, Y)
    net.loss_scale = 4096
    net.step(X, Y)
    state = net.state()
    assert json.loads(json.dumps(state["loss_scale"])) == {"scale": 4096.0, "steps": 1}
    twin = tiny("float16", seed=3)
    twin.load_state(state)
    assert twin.loss_scale == 4096 and twin.step(X, Y) == net.step(X, Y)
    assert pickle.loads(pickle.dumps(net)).loss_scale == copy.deepcopy(net).loss_scale == 4096
    other = copy.deepcopy(net)
    other.loss_scale = 2
    assert net.loss_scale == 4096 and net._scale[SCALE] is not other._scale[SCALE]
    twin.load_state(tiny("float32").state())
    assert twin.loss_scale == loss_scale.INITIAL
    for bad, message in (
        ({"scale": 0.5, "steps": 0}, "loss_scale must be"),
        ({"scale": 1e39, "steps": 0}, "loss_scale must be at most 3.4e"),
        ({"scale": 2.0}, "'steps' is missing"),
    ):
        with pytest.raises(ck.OptionError, match=message):
            twin.load_state({**state, "loss_scale": bad})


def test_a_scale_that_is_infinite_in_float32_is_refused():
    """Halved for ever, it would stay so: no step would count again."""
    net = tiny("float16")
    with pytest.raises(ck.OptionError, match="loss_scale must be at most 3.4e.*where float32 ends, not 1e"):
        net.loss_scale = 1e39
    net.loss_scale = loss_scale.MOST
    assert net.step(X, Y).overflow and net.loss_scale == loss_scale.MOST / 2


def test_backward_lowers_the_scale_as_far_as_the_gradients_ask():
    """For this call alone."""
    net = tiny("float16")
    logits = net.forward(X)
    dx = net.backward(np.full(logits.shape, 3, np.float32))
    assert np.isfinite(dx).all() and all(np.isfinite(g).all() for g in net.grads.values())
    assert net.loss_scale == loss_scale.INITIAL
    single = tiny("float32")
    single.forward(X)
    wanted = single.backward(np.full(logits.shape, 3, np.float32))
    assert np.linalg.norm(dx - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("frozen", ["conv", "fc"])
def test_frozen_parameters_are_not_looked_at(frozen):
    """Their gradients are not made, whether they would be before or after those that are."""
    net = tiny("float16")
    net.update = replace(net.update, frozen=(f"{frozen}*",))
    before = {name: w.copy() for name, w in net.params.items()}
    assert not net.step(X, Y).overflow
    moved = {name for name, w in net.params.items() if not np.array_equal(w, before[name])}
    assert moved == {name for name in net.params if not name.startswith(frozen)}
    calls = [c for c in net.plan(8).phases()["backward"] if c.op.name == "rescale"]
    assert len(calls) == 4 and not any(c.layer.startswith(frozen) for c in calls)
