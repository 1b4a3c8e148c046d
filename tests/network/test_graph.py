"""Passes as CUDA graphs: the bits of call by call, what is waited for, and when there is no graph.

On the stand-in for CuPy, where captured launches are replayed through the emulator. No GPU has run one.
"""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest

import convkit as ck
from convkit import devices
from convkit.arrays import np_dtype
from convkit.check.attempt import Question
from convkit.check.cases import Case
from convkit.check.verdicts import judge
from convkit.cuda import graph
from convkit.cuda.emulate import Emulator
from convkit.cuda.header import builtin_files, read
from convkit.cuda.null import nulled
from convkit.cuda.prepare import implementation
from convkit.network import layers
from convkit.op import OPS
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.paths import kernels_dir
from convkit.registry import select

RNG = np.random.default_rng(5)
X = RNG.standard_normal((8, 2, 6, 6), np.float32)
Y = np.arange(8) % 5


def tiny(**options) -> ck.Network:
    """Every op whose numbers change from step to step, and a convolution."""
    init = layers.Normal(0.2)
    return ck.Network(
        (
            layers.Conv("conv1", 4, 3, init, init, padding=1),
            layers.Relu("relu1"),
            layers.Flatten("flatten"),
            layers.Dropout("drop1"),
            layers.Linear("fc2", None, init, init),
        ),
        (2, 6, 6),
        5,
        **{"seed": 1, "device": "cuda", **options},
    )


@pytest.fixture
def cupy(monkeypatch, compiler):
    module = fake_cupy.module(watch_races=True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    yield module
    devices.gpu_found.cache_clear()  # which may have seen the stand-in's


@pytest.fixture
def time(monkeypatch):
    """Time stands still for the host, and is over at once where it waits."""
    monkeypatch.setattr(fake_cupy, "simulated", [0.0])
    return fake_cupy.simulated


def captured() -> int:
    """Graphs that were captured on the first GPU."""
    return devices.current().captured


def assert_same(net: ck.Network, other: ck.Network) -> None:
    for part in ("params", "velocities"):
        for name, array in getattr(net, part).items():
            assert np.array_equal(array.get(), getattr(other, part)[name].get()), f"{part} {name}"


def numbers(loss: ck.Loss) -> tuple:
    return float(loss), loss.errors, loss.top5_errors, loss.images, loss.finite


# ---------------------------------------------------------------------------------------------------
# The same bits
# ---------------------------------------------------------------------------------------------------
def test_a_graph_gives_the_bits_of_call_by_call(cupy):
    """Over rates, seeds, batches, momentum, what is frozen, and a step that must not count."""
    net, eager = tiny(), tiny(graph=False)
    spoiled = X[:4].copy()
    spoiled[1] = np.nan
    update = net.update
    steps = [
        # images, rate, seed, update, graphs that this captures
        (X[:4], 0.1, 1, update, 0),  # loads what there is to load
        (X[:4], 0.1, 1, update, 1),
        (X[4:], 0.03, 1, update, 0),
        (X[:4], 0.2, 2**63 + 7, update, 0),
        (X[:2], 0.1, 2, update, 0),  # another batch size is another plan
        (X[4:6], 0.3, 3, update, 1),
        (spoiled, 0.1, 3, update, 0),
        (X[:4], 0.1, 3, update, 0),
        (X[:4], 0.1, 3, replace(update, rates={"conv1.*": 0.5, "fc2.b": 0.0}), 0),
        (X[:4], 0.1, 3, replace(update, momentum=0.5), 1),  # a number that is frozen into a graph
        (X[4:], 0.3, 3, replace(update, momentum=0.5), 0),
        (X[4:], 0.3, 3, update, 0),  # the graph of before
        (X[:4], 0.1, 3, replace(update, frozen=("conv1.*",)), 0),  # other calls
        (X[4:], 0.2, 3, replace(update, frozen=("conv1.*",)), 1),
    ]
    for number, (x, lr, seed, rule, graphs) in enumerate(steps):
        before = captured()
        for one in (net, eager):
            one.seed, one.update = seed, rule
        found, wanted = (one.step(x, Y[: len(x)], lr=lr) for one in (net, eager))
        assert repr(numbers(found)) == repr(numbers(wanted)), number  # NaN is NaN
        assert wanted.finite == (x is not spoiled)
        assert_same(net, eager)
        assert captured() - before == graphs, number
    assert net.dropout_offset == eager.dropout_offset


def test_other_passes_are_graphs_too(cupy):
    net, eager = tiny(), tiny(graph=False)
    dlogits = RNG.standard_normal((4, 5), np.float32)
    for x in (X[:4], X[4:], X[2:6]):
        for training in (False, True):
            found, wanted = (one.forward(x, training=training).get() for one in (net, eager))
            assert np.array_equal(found, wanted)
        assert np.array_equal(net.backward(dlogits).get(), eager.backward(dlogits).get())
        for name, gradient in net.grads.items():
            assert np.array_equal(gradient.get(), eager.grads[name].get()), name
        assert numbers(net.evaluate(x, Y[:4])) == numbers(eager.evaluate(x, Y[:4]))
    assert captured() == 4  # forward twice: dropout at test time has another p
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert net.forward(X[:0]).shape == (0, 5)


def test_arrays_on_the_gpu_and_shards(cupy):
    """Nothing comes from the host but the numbers."""
    net, eager = tiny(), tiny(graph=False)
    for step in range(3):
        x, labels = net.inputs(4)
        x[...] = cupy.asarray(X[step : step + 4])
        labels[...] = cupy.asarray(Y[:4])
        found = net.step(x, labels, lr=0.1, shard=(4, 8))
        assert found == eager.step(cupy.asarray(X[step : step + 4]), Y[:4], lr=0.1, shard=(4, 8))
    assert captured() == 1
    assert_same(net, eager)


def test_graphs_that_are_kept_are_bounded(cupy, monkeypatch):
    monkeypatch.setattr(graph, "MOST", 2)
    net, eager = tiny(), tiny(graph=False)
    for momentum in (0.1, 0.2, 0.3, 0.4, 0.2):
        for one in (net, eager):
            one.update = replace(one.update, momentum=momentum)
            one.step(X[:2], Y[:2])
    assert captured() == 4  # 0.1 ran call by call, and 0.2 was dropped
    assert_same(net, eager)


CHANGED = [
    pytest.param(kernel, dtype, id=f"{kernel.stem}-{dtype}")
    for kernel in map(read, builtin_files())
    for dtype in kernel.header.dtypes
    if set(graph.CHANGING) & set(kernel.header.options)
]


@pytest.mark.parametrize(("kernel", "dtype"), CHANGED)
def test_a_shipped_kernel_reads_what_changes_from_memory(kernel, dtype, compiler):
    """To the same bits, with every access watched; what comes by value does not count."""
    op = kernel.header.op
    assert set(kernel.header.live) == set(graph.CHANGING) & set(kernel.header.options)
    problem = Elementwise((1003,), dtype) if OPS[op].problem is Elementwise else Linear(3, 37, 11, dtype)
    options = {
        "lr": 0.07, "momentum": 0.9, "weight_decay": 1e-3, "dampening": 0.2, "nesterov": False,
        "lr_in_velocity": False, "p": 0.4, "seed": 2**63 + 5, "offset": 2**40 - 3, "scale": 1.5,
        "relu": True,
    }  # fmt: skip
    options = {name: options[name] for name in OPS[op].options}
    live = kernel.header.live_arrays(options)
    tensors = [
        RNG.standard_normal(problem.shape(n)).astype(np_dtype(problem.dtype_of(n))) for n in OPS[op].inputs
    ]
    found = []
    with ck.emulate(check=True):
        chosen = select(op, problem, device="cuda", impl=kernel.name, math=kernel.header.math)
        run = chosen.prepare(problem)
        for given in (options, {**options, **dict.fromkeys(kernel.header.live, 1), **live}):
            outputs = [
                np.empty(problem.shape(name), np_dtype(problem.dtype_of(name))) for name in OPS[op].outputs
            ]
            size = chosen.workspace(problem) if chosen.workspace else 0
            scratch = {"workspace": np.empty(size, np.uint8)} if size else {}
            run(*tensors, *outputs, **scratch, **given)
            found.append(b"".join(output.tobytes() for output in outputs))
    assert found[0] == found[1] and any(found[0])


# ---------------------------------------------------------------------------------------------------
# What is waited for
# ---------------------------------------------------------------------------------------------------
def hold(seconds: float) -> None:
    """What is queued from now on begins when so much time has passed."""
    flag = fake_cupy.alloc_pinned_memory(8)
    np.frombuffer(flag, np.int32, 2)[:] = 0
    fake_cupy._hold(flag.ptr, seconds)
    held.append(flag)


held: list = []


def test_steps_are_queued_and_what_is_staged_is_not_overwritten(cupy, time):
    net, eager = tiny(), tiny(graph=False)
    for one in (net, eager):
        for _ in range(2):
            one.step(X[:4], Y[:4])
    wanted = [eager.step(X[i : i + 4], Y[i : i + 4], lr=0.1 * (i + 1)) for i in range(4)]
    begin = time[0]
    hold(3.0)
    pending, x, labels = [], np.empty_like(X[:4]), np.empty_like(Y[:4])
    for i in range(graph.SLOTS):
        x[...], labels[...] = X[i : i + 4], Y[i : i + 4]
        pending.append(net.step(x, labels, lr=0.1 * (i + 1), sync=False))
        x.fill(np.nan), labels.fill(0)
    assert time[0] - begin < 1 and repr(pending[0]) == "PendingLoss()"  # nobody has waited
    for i in range(graph.SLOTS, 4):
        x[...], labels[...] = X[i : i + 4], Y[i : i + 4]
        pending.append(net.step(x, labels, lr=0.1 * (i + 1), sync=False))
        x.fill(np.nan), labels.fill(0)
        assert time[0] - begin >= 3  # until what was staged first had been read
    assert [numbers(one.wait()) for one in reversed(pending)] == [numbers(one) for one in reversed(wanted)]
    assert float(pending[1]) == wanted[1] and pending[1].wait() is pending[1].wait()
    assert repr(pending[1]) == f"PendingLoss({wanted[1]!r})"
    assert_same(net, eager)


def test_a_loss_waits_for_its_own_step_alone(cupy, time):
    net = tiny()
    for _ in range(2):
        net.step(X[:4], Y[:4])
    first = net.step(X[:4], Y[:4], sync=False)
    begin = time[0]
    hold(3.0)
    second = net.step(X[4:], Y[4:], sync=False)
    assert np.isfinite(first.wait()) and time[0] - begin < 1
    assert np.isfinite(float(second)) and time[0] - begin >= 3


@pytest.mark.parametrize("graphs", [False, True])
def test_a_network_that_goes_waits_for_what_is_queued(cupy, time, graphs):
    """For what reads pinned memory, which a pool would lend to others, and for a graph that runs."""
    net = tiny(graph=graphs)
    x, labels = (cupy.asarray(X[:4]), cupy.asarray(Y[:4])) if graphs else (X[:4], Y[:4])
    for _ in range(2):
        net.step(x, labels)
    begin = time[0]
    hold(3.0)
    net.step(x, labels, sync=False)
    assert time[0] - begin < 1
    del net
    assert time[0] - begin >= 3
    fake_cupy.synchronize()
    assert not fake_cupy.destroyed


def test_each_step_has_its_own_rate(kernels):
    net = tiny(device="cpu", update=ck.Update(momentum=0, weight_decay=0))
    before = {name: w.copy() for name, w in net.params.items()}
    for lr, moves in ((0.1, True), (0.0, False), (0.1, True), (None, True)):
        net.step(X[:4], Y[:4], lr=lr)
        assert all(np.array_equal(w, before[name]) != moves for name, w in net.params.items()), lr
        before = {name: w.copy() for name, w in net.params.items()}
    net.update = replace(net.update, lr=0.0)
    net.step(X[:4], Y[:4])
    assert all(np.array_equal(w, before[name]) for name, w in net.params.items())


def test_pending_losses_on_the_cpu(kernels):
    net, other = tiny(device="cpu"), tiny(device="cpu")
    pending = [net.step(X[:4], Y[:4], sync=False) for _ in range(2)]
    assert [float(one) for one in pending] == [float(other.step(X[:4], Y[:4])) for _ in range(2)]
    assert type(pending[0].wait()) is ck.Loss
    with pytest.raises(ck.OptionError, match="sync"):
        net.step(X[:4], Y[:4], sync="no")


# ---------------------------------------------------------------------------------------------------
# Where there is no graph
# ---------------------------------------------------------------------------------------------------
BY_VALUE = """// /// kernel
// op     = "sgd_momentum"
// grid   = ["ceil_div(size, 64)"]
// block  = ["64"]
// rank   = -90
// {live}
// options = {{ lr = "float", finite = "const int*" }}
// ///
extern "C" __global__ void sgd_momentum_plain(GEOMETRY(Elementwise), const float* w, const float* dw,
    const float* v, float* w_new, float* v_new, float lr, const int* finite{parameter}) {{
  const long long i = blockIdx.x * 64 + threadIdx.x;
  {read}
  if (i < g.size && !(finite && *finite == 0)) w_new[i] = w[i] - lr * dw[i], v_new[i] = v[i];
}}
"""


@pytest.fixture
def registry_as_before(monkeypatch):
    from convkit import registry

    ck.implementations()
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))


def refused(net: ck.Network, reason: str) -> None:
    """It says so once, runs call by call to the right bits, and says so in its plan."""
    eager = tiny(graph=False)
    eager._names = copy.deepcopy(net._names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            assert net.step(X[step : step + 4], Y[:4]) == eager.step(X[step : step + 4], Y[:4])
    told = [one for one in caught if "call by call" in str(one.message)]
    assert [str(one.message) for one in told] == [
        f"a pass runs call by call, not as a CUDA graph: {reason} (graph=False ends this warning)"
    ]
    assert told[0].filename == __file__
    assert str(net.plan(4)).splitlines()[-1] == f"a step runs call by call: {reason}"
    assert_same(net, eager)


def test_the_plan_says_which_it_is(cupy):
    net = tiny()
    assert str(net.plan(4)).splitlines()[-1] == "a step is one CUDA graph"
    net.on_gradient = lambda name, gradient: None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            net.step(X[:4], Y[:4])
    assert str(net.plan(4)).splitlines()[-1] == "a step runs call by call: it has hooks"
    net.on_gradient, net.graph = None, False
    assert str(net.plan(4)).splitlines()[-1] == "a step runs call by call: graph=False"
    net.step(X[:4], Y[:4])
    assert captured() == 0
    net.graph = True
    for _ in range(2):
        net.step(X[:4], Y[:4])
    assert captured() == 1
    with pytest.raises(ck.OptionError, match="graph"):
        net.graph = "no"
    cpu = tiny(device="cpu", graph=False)
    assert "graph" not in str(cpu.plan(4)) and not pickle.loads(pickle.dumps(cpu)).graph


def test_a_function_in_python_is_not_captured(cupy, registry_as_before):
    @ck.implements("relu_fprop", name="mine", device="cuda", rank=-1)
    def relu(problem, x, y):
        cupy.maximum(x, 0, out=y)

    net = tiny()
    net.use("relu1", relu_fprop="mine")
    refused(net, "relu_fprop 'mine' (relu1) is not a CUDA kernel file")


def test_a_kernel_with_the_rate_by_value(cupy, registry_as_before, tmp_path):
    path = tmp_path / "sgd_momentum_plain.cu"
    path.write_text(BY_VALUE.format(live="", parameter="", read=""))
    ck.register(path)
    net = tiny()
    net.use("fc2", sgd_momentum="plain")
    refused(net, "sgd_momentum 'plain' (fc2.w) takes lr by value; its header needs live = [\"lr\"]")
    live = 'live = ["lr"]', ", const float* live_lr", "if (live_lr) lr = *live_lr;"
    path.write_text(BY_VALUE.format(**dict(zip(("live", "parameter", "read"), live, strict=True))))
    ck.register(path)
    net, eager = tiny(), tiny(graph=False)
    for one in (net, eager):
        one.use("fc2", sgd_momentum="plain")
        for lr in (0.1, 0.2, 0.3):
            one.step(X[:4], Y[:4], lr=lr)
    assert captured() == 1
    assert_same(net, eager)


def test_a_capture_that_fails(cupy, monkeypatch):
    def fail(run):
        graph.capture(run)
        raise fake_cupy.Refused("cudaErrorStreamCaptureUnsupported")

    monkeypatch.setattr(devices.current(), "capture", fail)
    refused(tiny(), "it could not be captured: cudaErrorStreamCaptureUnsupported")


def test_a_capture_neither_allocates_nor_waits(cupy):
    """After a refusal nothing is left capturing, nor without memory."""
    array = cupy.asarray(X)
    for run, error, message in (
        (lambda: cupy.empty(9, np.float32), ck.OutOfMemory, "allocates 36 bytes while it is captured"),
        (array.get, fake_cupy.Refused, "Unsupported"),
        (lambda: array.set(X), fake_cupy.Refused, "Unsupported"),
    ):
        with pytest.raises(error, match=message):
            graph.capture(run)
        assert cupy.cuda.get_current_stream().ptr == 0
        assert not any(stream.capturing for stream in fake_cupy.Stream.every)
        assert np.array_equal(cupy.asarray(X).get(), X)
    filled = graph.capture(lambda: array.fill(7))
    assert np.array_equal(array.get(), X)
    filled()
    assert (array.get() == 7).all()


def test_headers_that_are_refused(tmp_path):
    path = tmp_path / "sgd_momentum_plain.cu"
    for live, message in (
        ('live = "lr"', "'live' must be a list of options, not 'lr'"),
        ('live = ["momentum"]', "unknown option in 'live' 'momentum'"),
        ('live = ["finite"]', "unknown option in 'live' 'finite'"),
    ):
        path.write_text(BY_VALUE.format(live=live, parameter="", read=""))
        with pytest.raises(ck.OptionError, match=message):
            ck.register(path)


@pytest.mark.parametrize("reads", [True, False])
def test_the_gate_asks_whether_what_is_live_is_read(tmp_path, compiler, reads):
    path = tmp_path / "dropout_fprop_mine.cu"
    text = (kernels_dir() / "dropout_fprop_philox.cu").read_text().replace("dropout_fprop_philox", path.stem)
    line = "  if (live_offset != nullptr) offset = *live_offset;\n"
    assert line in text
    path.write_text(text if reads else text.replace(line, ""))
    options = {"p": 0.5, "seed": 3, "offset": 12345, "scale": 2.0}
    question = Question.of(Case("dropout_fprop", Elementwise((1003,)), "as in a graph", options), "float32")
    with ck.emulate():
        verdict = judge(implementation(path), question)
    assert verdict.ok == reads
    assert reads or "does not read from memory what its header calls live" in verdict.reason


def test_the_host_does_its_part_without_a_gpu():
    """So that `bench/host.py` can time it: no launch but the graph's."""
    launched = []
    with nulled(lambda *given: launched.append(given)):
        net = tiny(device="cpu")
        for _ in range(3):
            net.step(X[:4], Y[:4])
        assert "graph" in str(plan := net.plan(4))
    with ck.emulate():
        assert "graph" not in str(net.plan(4))  # the emulator has none
    assert "graph" not in str(plan)
    others = []
    with nulled(lambda *given: others.append(given)):
        net.step(X[:4], Y[:4])  # on another executor nothing has run yet
    assert len(others) == len(launched) // 2
    half = len(launched) // 2  # call by call, and as it is captured
    assert half > 5 and [one[:2] for one in launched[:half]] == [one[:2] for one in launched[half:]]


def test_the_executor_of_a_gpu_captures(cuda, monkeypatch):
    """The real one, on the stand-in for CuPy, whose functions do nothing here."""
    launches = []
    monkeypatch.setattr(cuda, "cached_cubin", lambda *_, **__: b"machine code")
    monkeypatch.setattr(
        fake_cupy.Function, "__call__",
        lambda self, grid, block, args, shared: launches.append((self.ptr, grid, block, args)),
    )  # fmt: skip
    net = tiny()
    for _ in range(4):
        net.step(X[:4], Y[:4])
    half = len(launches) // 2
    eager, captured = launches[:half], launches[half:]  # and two replays, which launch nothing by themselves
    assert half > 10 and [one[:3] for one in eager] == [one[:3] for one in captured]
    live = [
        sum(isinstance(b, cuda.cupy.ndarray) and not isinstance(a, cuda.cupy.ndarray) for a, b in zip(x, y))
        for (*_, x), (*_, y) in zip(eager, captured, strict=True)
    ]
    # Three updates, one with both gradients in two launches, and dropout both ways.
    assert sorted(live) == [0] * (half - 7) + [1] * 5 + [2] * 2


@pytest.mark.gpu
def test_a_graph_on_a_gpu():
    """Which the stand-in is not: the same bits, in a step that is captured, and several steps in flight."""
    net, eager = tiny(), tiny(graph=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [(net.step(X[:4], Y[:4], lr=lr), eager.step(X[:4], Y[:4], lr=lr)) for lr in (0.1, 0.2, 0.3)]
    assert all(numbers(a) == numbers(b) for a, b in losses)
    pending, x = [], X[:4].copy()
    for i in range(4):
        x[...] = X[i : i + 4]
        pending.append(net.step(x, Y[:4], lr=0.1 * (i + 1), sync=False))
        x.fill(np.nan)
    wanted = [eager.step(X[i : i + 4], Y[:4], lr=0.1 * (i + 1)) for i in range(4)]
    assert [numbers(one.wait()) for one in pending] == [numbers(one) for one in wanted]
    assert_same(net, eager)
