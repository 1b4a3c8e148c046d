"""Where kernels run: the emulator, the GPU, and the way to the GPU walked with a stand-in."""

from __future__ import annotations

import re
import sys
import types

import fake_cupy
import numpy as np
import pytest
import simulated
from conftest import need

import convkit as ck
from convkit import arrays, check, devices
from convkit.bench.measure import clocks, profile
from convkit.bench.peers import networks
from convkit.cli import main
from convkit.cuda.emulate import Emulator
from convkit.cuda.header import builtin_files, read
from convkit.cuda.launch import KernelError
from convkit.cuda.source import translation_unit
from convkit.errors import MissingExtra
from convkit.network import layers
from convkit.ops.elementwise import Elementwise

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 9, 7), np.float32)
W = RNG.standard_normal((6, 2, 3, 2), np.float32)
OPTIONS = {"groups": 2, "padding": ((0, 2), (1, 0)), "stride": (2, 1)}


# ---------------------------------------------------------------------------------------------------
# The emulator
# ---------------------------------------------------------------------------------------------------
def test_emulated_ops_run_kernels(compiler):
    expected = ck.conv2d_fprop(X, W, **OPTIONS, impl="reference")
    with ck.emulate():
        for name in ("naive", "implicit_gemm"):
            np.testing.assert_allclose(
                ck.conv2d_fprop(X, W, **OPTIONS, impl=name), expected, rtol=1e-5, atol=1e-5
            )
        with pytest.raises(
            ck.OptionError, match="unknown implementation of conv2d_fprop for cuda 'im2col_gemm'"
        ):
            ck.conv2d_fprop(X, W, **OPTIONS, impl="im2col_gemm")
        assert ck.conv2d_fprop(X[:0], W, **OPTIONS).shape == (0, *expected.shape[1:])
        with pytest.raises(ck.NoImplementation, match="float64"):
            ck.conv2d_fprop(X.astype("d"), W.astype("d"), **OPTIONS)
    assert not devices.emulating()


@pytest.mark.parametrize(("options", "words"), [({"seed": -1}, "seed"), ({"timeout": 0}, "timeout")])
def test_emulator_options_are_checked(options, words):
    with pytest.raises(ck.OptionError, match=words), ck.emulate(**options):
        pass


def test_a_failed_launch_leaves_out_untouched(compiler, tmp_path):
    path = tmp_path / "relu_fprop_wild.cu"
    path.write_text(WILD)
    ck.register(path)
    out = np.full(X.shape, 7, np.float32)
    with ck.emulate(), pytest.raises(ck.ConvkitError, match=r"relu_fprop_wild\.cu:\d+") as caught:
        ck.relu_fprop(X, impl="wild", out=out)
    assert (out == 7).all()
    assert caught.value.op == "relu_fprop"
    with ck.emulate():
        assert (ck.relu_fprop(X, impl="vectorized") >= 0).all()  # the process goes on


WILD = """// /// kernel
// op = "relu_fprop"
// tile = { THREADS = 64 }
// grid = ["ceil_div(size, THREADS)"]
// block = ["THREADS"]
// rank = -90
// ///
extern "C" __global__ void relu_fprop_wild(GEOMETRY(Elementwise), const float* x, float* y) {
    const long long i = blockIdx.x * 64 + threadIdx.x;
    y[i + (1 << 26)] = x[i];
}
"""


def test_counters_by_line(compiler, tmp_path, capsys):
    path = tmp_path / "relu_fprop_strided.cu"
    text = WILD.replace("relu_fprop_wild", "relu_fprop_strided")
    # Neighbouring threads read every second float: two sectors for each that would do.
    text = text.replace("y[i + (1 << 26)] = x[i];", "if (2 * i < g.size) y[2 * i] = x[2 * i];")
    path.write_text(text)
    assert main(["check", str(path), "--counters"]) == 0
    out = capsys.readouterr().out
    found = re.findall(r"relu_fprop_strided\.cu:10 +(global \w+) +\d+ +\d+ +\d+ +([\d.]+)", out)
    assert {kind for kind, _ in found} == {"global load", "global store"}
    assert all(1.9 < float(ratio) <= 2.0 for _, ratio in found), out


@pytest.fixture(autouse=True)
def registry_as_before():
    from convkit import registry

    ck.implementations()
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


# ---------------------------------------------------------------------------------------------------
# The GPU, with a stand-in for CuPy
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def cupy(monkeypatch, compiler):
    module = fake_cupy.module(watch_races=True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    monkeypatch.setattr(devices, "gpu_found", lambda: True)
    monkeypatch.setattr(check, "gpu_found", lambda: True)
    return module


def test_device_arrays_in_and_out(cupy):
    x, w = cupy.asarray(X), cupy.asarray(W)
    y = ck.conv2d_fprop(x, w, **OPTIONS)
    assert isinstance(y, cupy.ndarray)
    expected = ck.conv2d_fprop(X, W, **OPTIONS)
    np.testing.assert_allclose(y.get(), expected, rtol=1e-4, atol=1e-5)
    out = cupy.empty(expected.shape, np.float32)
    assert ck.conv2d_fprop(x, w, **OPTIONS, out=out) is out
    assert np.array_equal(out.get(), y.get())
    assert ck.relu_fprop(x, out=x) is x and (x.get() >= 0).all()
    dlogits = ck.softmax_xent_dgrad(cupy.asarray(np.ones((3, 4), np.float32)), cupy.asarray(np.arange(3)))
    assert isinstance(dlogits, cupy.ndarray)


def test_a_flag_on_the_device(cupy):
    w = cupy.asarray(np.ones(5, np.float32))
    flag = cupy.asarray(np.zeros(1, np.int32))
    assert (ck.sgd_momentum(w, w, w, lr=0.5, finite=flag)[0].get() == 1).all()
    assert (ck.sgd_momentum(w, w, w, lr=0.5)[0].get() < 1).all()
    with pytest.raises(ck.ConvkitError, match="must share a device.*finite: cpu"):
        ck.sgd_momentum(w, w, w, lr=0.5, finite=np.zeros(1, np.int32))
    assert all(v.ok for v in check.check("sgd_momentum", device="cuda", quick=True))


def test_a_loss_that_is_not_finite_forbids_the_update_on_the_device(cupy):
    logits = np.array([[3, 1, 2], [0, 5, 9]], np.float32)
    labels, w = cupy.asarray(np.array([0, 1])), cupy.asarray(np.ones(5, np.float32))
    for bad, errors, moves in ((0, [1, 0], True), (np.nan, [2, 0], False)):
        z = cupy.asarray(logits + np.array([[bad], [0]], np.float32))
        loss, _ = ck.softmax_xent_fprop(z, labels)
        total, counted, finite = ck.loss_summary(loss, ck.label_rank(z, labels))
        assert isinstance(total, cupy.ndarray) and np.isfinite(total.get()[0]) == moves
        assert counted.get().tolist() == errors
        assert (ck.sgd_momentum(w, w, w, lr=0.5, finite=finite)[0].get() != 1).any() == moves


def test_devices_are_not_mixed(cupy):
    with pytest.raises(
        ck.DtypeError, match="conv2d_fprop: the arrays must share a device, not x: cpu, w: cuda:0"
    ):
        ck.conv2d_fprop(X, cupy.asarray(W), **OPTIONS)
    with pytest.raises(ck.DtypeError, match="out .* must live on cuda:0, .* not on cpu"):
        ck.relu_fprop(cupy.asarray(X), out=np.empty_like(X))
    with ck.emulate(), pytest.raises(ck.DtypeError, match="the emulator takes arrays on the CPU"):
        ck.relu_fprop(cupy.asarray(X))
    with cupy.cuda.Device(1):
        x, w = cupy.asarray(X), cupy.asarray(W)
    for first, second in ((x, cupy.asarray(W)), (cupy.asarray(X), w)):
        with pytest.raises(ck.DtypeError, match="share a device, not x: cuda:., w: cuda:."):
            ck.conv2d_fprop(first, second, **OPTIONS)
    out = cupy.empty(X.shape, np.float32)
    with pytest.raises(ck.DtypeError, match="out .* must live on cuda:1, .* not on cuda:0"):
        ck.relu_fprop(x, out=out)
    assert np.isnan(out.get()).all()


def test_a_call_runs_on_the_arrays_own_device(cupy):
    """Whichever is current: allocation, kernels, copies and the workspace."""
    dy = RNG.standard_normal((2, 6, 5, 7), np.float32)
    labels = np.array([3, 209])
    calls = {
        "conv2d_fprop": lambda x, w, dy, t: ck.conv2d_fprop(x, w, **OPTIONS),
        "conv2d_wgrad": lambda x, w, dy, t: ck.conv2d_wgrad(x, dy, W.shape, **OPTIONS),
        "maxpool2d": lambda x, w, dy, t: ck.maxpool2d_fprop(x)[1],
        "linear_bgrad": lambda x, w, dy, t: ck.linear_bgrad(dy.reshape(2, 210)),
        "softmax": lambda x, w, dy, t: ck.softmax_xent_dgrad(dy.reshape(2, 210), t),
        "strided": lambda x, w, dy, t: ck.relu_fprop(x[:, ::2]),
        "out": lambda x, w, dy, t: ck.relu_fprop(x[:, 1:3], out=x[:, ::2]),
        "empty": lambda x, w, dy, t: ck.conv2d_bgrad(dy[:0]),
    }
    for name, call in calls.items():
        expected = call(X.copy(), W, dy, labels)
        with cupy.cuda.Device(1):
            given = [cupy.asarray(a) for a in (X, W, dy, labels)]
        got = call(*given)
        assert fake_cupy.current_device == [0] and got.device.id == 1, name
        with cupy.cuda.Device(1):
            np.testing.assert_allclose(got.get(), expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_views_at_an_odd_byte_are_copied(cupy, dtype):
    kind = arrays.np_dtype(dtype)

    def odd(array, step=1):
        """On the device, one byte behind where it would be aligned; every `step`-th element."""
        size = array.size * step * array.itemsize
        flat = cupy.empty(size + 1, np.uint8)[1:].view(array.dtype)[::step].reshape(array.shape)
        whole = array.reshape(-1).view(np.uint8).reshape(*array.shape, array.itemsize)
        arrays._bytes(flat)[...] = cupy.asarray(whole)
        assert flat.data.ptr % array.itemsize == 1
        return flat

    x = RNG.standard_normal((2, 3, 5)).astype(kind)
    expected = np.maximum(x, 0)
    for given in (odd(x), odd(x[0, 0], step=2), odd(x.reshape(-1)[0:1].reshape(()))):
        want = {3: expected, 1: expected[0, 0], 0: expected[0, 0, 0]}[given.ndim]
        assert np.array_equal(ck.relu_fprop(given).get(), want)
        before = arrays._bytes(given).copy().get()
        out = odd(np.zeros(given.shape, kind), step=2 if given.ndim == 1 else 1)
        assert ck.relu_fprop(given, out=out) is out
        assert np.array_equal(arrays.contiguous(out, dtype).get(), want)
        assert np.array_equal(arrays._bytes(given).get(), before)
    labels = np.array([2, 0])
    probs = cupy.asarray(np.full((2, 4), 0.25, np.float32))
    got = ck.softmax_xent_dgrad(probs, odd(labels)).get()
    assert np.array_equal(got, ck.softmax_xent_dgrad(probs.get(), labels))


# -- streams ------------------------------------------------------------------------------------------
@pytest.fixture
def torch(cupy, monkeypatch):
    """PyTorch with tensors on a GPU: a stand-in too."""
    module = fake_cupy.torch_module()
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


class OnGpu:
    """The least that DLPack asks for, on a GPU; its library has a stream that nobody can ask for."""

    def __init__(self, array):
        self.array = array
        with fake_cupy.Device(array.device.id):
            self.stream = fake_cupy.Stream(non_blocking=True)

    def use(self, *, write=False):
        self.array._memory.use(self.stream, write=write)
        return self.array._host

    def __dlpack__(self, *, stream):  # of before DLPack 1.0
        fake_cupy._hand_over(self.stream, stream)
        return types.SimpleNamespace(array=self.array)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_the_stand_in_sees_work_that_is_not_ordered(cupy, torch):
    x = fake_cupy.Tensor(cupy.asarray(X))
    fake_cupy.synchronize()
    with fake_cupy.torch_streams():
        x.use(write=True)
        with pytest.raises(fake_cupy.Race):
            x._array.fill(0)
        cupy.from_dlpack(x).copy()  # which DLPack orders
        x.use()
        with pytest.raises(fake_cupy.Race):  # and this it does not: it may still be being copied
            x.use(write=True)
        fake_cupy.synchronize()
        x.use(write=True)


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("own", ["default", "own"])
@pytest.mark.parametrize("kinds", ["tt", "tc", "ct", "to", "ot", "oo", "cc"])
def test_work_is_in_order_with_the_streams_of_the_callers_libraries(kinds, own, device, cupy, torch):
    """Inputs, results and `out=`; a tensor may be written, or freed, as soon as the call has returned."""
    make = {"t": fake_cupy.Tensor, "c": lambda a: a, "o": OnGpu}
    dy, y = X, RNG.standard_normal(X.shape, np.float32)
    expected = np.where(y > 0, dy, 0)

    def use(value, write=False):
        return value.use(write=write)

    with cupy.cuda.Device(device), fake_cupy.torch_streams():
        stream = cupy.cuda.Stream(non_blocking=True) if own == "own" else cupy.cuda.get_current_stream()
        with stream:
            given = [make[kind](cupy.asarray(a)) for kind, a in zip(kinds, (dy, y))]
            outs = [None, *(make[kind](cupy.empty(X.shape, np.float32)) for kind in dict.fromkeys(kinds))]
            fake_cupy.synchronize()
            for out in outs:
                for value, content in zip(given, (dy, y)):
                    use(value, write=True)[...] = content
                if out is not None:
                    use(out)
                with cupy.cuda.Device(0):  # the arrays' device need not be current
                    result = ck.relu_dgrad(*given, out=out)
                for value in given:
                    use(value, write=True)[...] = -1
                if out is None:
                    assert type(result) is (fake_cupy.Tensor if kinds[0] == "t" else cupy.ndarray)
                else:
                    assert result is out
                assert np.array_equal(use(result), expected)
                use(result, write=True)
            assert [getattr(out, "_version", 1) for out in outs[1:]] == [1] * len(outs[1:])
            with pytest.raises(ck.ShapeError):  # and after a call that is refused
                ck.relu_dgrad(given[0], make["c"](cupy.asarray(y[:1])))
            use(given[0], write=True)


def test_work_on_pytorchs_own_stream_needs_no_event(cupy, torch, monkeypatch):
    """So that it can be captured: CuPy's default stream has no part in it."""
    with fake_cupy.torch_streams():
        x = fake_cupy.Tensor(cupy.asarray(X))
        fake_cupy.synchronize()
        monkeypatch.setattr(fake_cupy.Stream, "record", None)
        y = ck.relu_fprop(x)
        assert {key for key, _ in y._array._memory.write.items()} == {fake_cupy.torch_stream(0).key}


def test_a_network_is_in_order_with_pytorchs_stream(cupy, torch):
    rng = np.random.default_rng(0)
    host, labels = rng.standard_normal((3, 3, 19, 17), np.float32), np.array([1, 2, 3])
    with cupy.cuda.Device(1):
        net = small_network(seed=1, device="cuda")
        x, t = fake_cupy.Tensor(cupy.asarray(host)), fake_cupy.Tensor(cupy.asarray(labels))
        fake_cupy.synchronize()
    with fake_cupy.torch_streams():
        x.use(write=True), t.use(write=True)
        losses = [net.step(x, t)]
        x.use(write=True), t.use(write=True)
        logits = net.forward(x)
        x.use(write=True)
        assert isinstance(logits, fake_cupy.Tensor) and logits.use().shape == (3, 1000)
        dx = net.backward(logits)
        logits.use(write=True)
        assert dx.use().shape == host.shape
        with cupy.cuda.Device(1):
            for gradient in net.grads.values():
                gradient._use()
        losses.append(net.step(host, labels))  # from the host, with another device current
    cpu = small_network(seed=1)
    assert losses == pytest.approx([cpu.step(host, labels), cpu.step(host, labels)], rel=1e-3)
    with pytest.raises(ck.DtypeError, match="cuda:0 is not copied to cuda:1"):
        net.forward(cupy.asarray(host))


def test_a_network_on_another_gpu_than_the_current_one(cupy):
    """Named by its number, not by a block around everything that is done with it."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((3, 3, 19, 17), np.float32), np.array([1, 2, 3])
    cpu, net = small_network(seed=1), small_network(seed=1, device="cuda:1")
    assert {w.device.id for part in (net.params, net.grads, net.velocities) for w in part.values()} == {1}
    with cupy.cuda.Device(1):
        there = cupy.asarray(x), cupy.asarray(labels)
    assert net.step(*there) == pytest.approx(cpu.step(x, labels), rel=1e-4)
    assert net.step(x, labels) == pytest.approx(cpu.step(x, labels), rel=1e-4)
    logits = net.forward(there[0])
    assert logits.device.id == 1 and net.backward(logits).device.id == 1
    assert {i.device.id for call in net.plan(3).calls() for i in call.inputs if i is not None} == {1}
    assert net.plan(3).program.chooser.device == "cuda"
    with pytest.raises(ck.DtypeError, match="cuda:0 is not copied to cuda:1"):
        net.forward(cupy.asarray(x))
    assert all(v.ok for v in check.check_step(net, x, labels))
    assert profile.profile(net, x, labels, repeats=1, errors=False).device == "cuda:1"
    assert fake_cupy.current_device == [0]


def test_devices_of_networks_that_are_none(cupy, monkeypatch):
    with pytest.raises(ck.OptionError, match="there is no cuda:2: CuPy sees 2, from cuda:0 to cuda:1"):
        ck.AlexNet(device="cuda:2")
    for name in ("cuda:", "cuda:-1", "cuda:x", "CUDA", "cuda: 1", "tpu", "cuda:1\n", None):
        with pytest.raises(ck.OptionError, match="unknown device"):
            small_network(device=name)

    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", no_driver)
    with pytest.raises(ck.OptionError, match="there is no cuda:1: CuPy sees no GPU"):
        small_network(device="cuda:1")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_step_is_queued_as_a_whole(device, cupy, monkeypatch):
    """Nothing of it waits: held back, it is timed as the device's alone; its loss is read afterwards."""
    clock = simulated.Clock()
    monkeypatch.setattr(fake_cupy, "simulated", clock.seconds)
    monkeypatch.setattr(clocks, "independent", clock.now)
    monkeypatch.setattr(clocks, "CUDA_FLUSH", 1024)
    monkeypatch.setattr(networks.alexnet, "AlexNet", small_network)
    x, labels = RNG.standard_normal((3, 3, 19, 17), np.float32), np.array([1, 2, 3])
    net, cpu = networks.ConvkitNet({"preset": "paper"}, device), small_network(seed=0)
    with arrays.on(net.params["fc8.w"]):
        net.load(cupy.asarray(x), cupy.asarray(labels))
    timer, readers = clocks.CudaClock(int(device[5:] or 0)), []
    for number in range(3):
        ms = timer.time(lambda: readers.append(net.queue()))
        assert timer.held and 0 < ms < 1 and len(readers) == number + 1
    losses = [read() for read in readers]
    assert losses == pytest.approx([cpu.step(x, labels, lr=networks.LR) for _ in range(3)], rel=1e-4)
    timer.time(net.step)
    assert not timer.held


def test_labels_of_a_planned_step_are_checked_on_the_host(cupy):
    x = np.zeros((2, 3, 19, 17), np.float32)
    nets = small_network(device="cpu"), small_network(device="cuda")
    for net in nets:
        for bad in (-100, -1, 1000):
            before = net.params["fc8.b"].copy()
            with pytest.raises(ck.OptionError, match=f"labels must each be a class.*found {bad}"):
                net.step(x, np.array([3, bad]))
            after = net.params["fc8.b"]
            same = np.array_equal(*(a if net is nets[0] else a.get() for a in (before, after)))
            assert same and net.dropout_offset == 0


def test_an_older_cupy_is_refused_clearly(monkeypatch):
    for version, fine in (("13.6.0", False), ("14.0.0", True), ("14.0.0rc1", True), ("15.0.0a1", True)):
        module = fake_cupy.module()
        module.__version__ = version
        monkeypatch.setitem(sys.modules, "cupy", module)
        devices.gpu_found.cache_clear()
        assert devices.gpu_found() is fine and devices.gpu_found("cuda:1") is fine
        assert not devices.gpu_found("cuda:2")
        if not fine:
            with pytest.raises(MissingExtra, match=r"needs CuPy 14 or newer \(here is 13.6.0\)"):
                ck.relu_fprop(module.asarray(X))
    devices.gpu_found.cache_clear()


def test_the_gate_runs_on_the_device(cupy):
    verdicts = check.check("relu_fprop", "vectorized", device="cuda", quick=True)
    verdicts += check.check("conv2d_wgrad", "implicit_gemm", device="cuda", quick=True)
    assert len(verdicts) > 50 and all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok]


def test_bounds_and_overlap():
    a = np.zeros((4, 6), np.float32)
    assert arrays.overlap(a[:, ::2], a[:, 1::2]) and not arrays.overlap(a[:2], a[2:])
    assert arrays.bounds(a[::-1, ::-1]) == arrays.bounds(a)
    assert not arrays.overlap(a[:0], a)


def small_network(preset="paper", **options):
    """Every kind of layer that AlexNet has, at a size that an emulator is quick with."""
    init = layers.Normal(0.1)
    return ck.Network(
        (
            layers.Conv("conv1", 8, 3, init, init, stride=2, padding=1),
            layers.Relu("relu1"),
            layers.Lrn("norm1", k=2.0, groups=2),
            layers.MaxPool("pool1"),
            layers.Conv("conv2", 12, 3, init, init, padding=1, groups=2),
            layers.Relu("relu2"),
            layers.Flatten("flatten"),
            layers.Linear("fc6", 20, init, init),
            layers.Relu("relu6"),
            layers.Dropout("drop6", 0.5),
            layers.Linear("fc8", None, init, init),
        ),
        (3, 19, 17),
        1000,
        **options,
    )


def test_a_step_on_the_device_is_the_step_on_the_cpu(cupy):
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((3, 3, 19, 17), np.float32), np.array([1, 2, 3])
    nets = {device: small_network(seed=1, device=device) for device in ("cpu", "cuda")}
    for _ in range(3):
        losses = [nets["cpu"].step(x, labels), nets["cuda"].step(cupy.asarray(x), cupy.asarray(labels))]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, w in nets["cuda"].params.items():
        np.testing.assert_allclose(w.get(), nets["cpu"].params[name], rtol=1e-3, atol=1e-5, err_msg=name)
    logits = nets["cuda"].forward(cupy.asarray(x))
    dx = nets["cuda"].backward(logits)
    assert isinstance(dx, cupy.ndarray) and dx.shape == x.shape


def test_a_step_under_the_emulator_passes_call_by_call(compiler):
    x = np.random.default_rng(0).standard_normal((2, 3, 19, 17)).astype(np.float32)
    with ck.emulate():
        verdicts = check.check_step(small_network(seed=1), x, np.array([1, 2]))
    assert len(verdicts) > 25 and all(v.device == "cuda" for v in verdicts)
    assert all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok]


@pytest.mark.parametrize("value", [0, 1])
def test_the_gate_judges_a_steps_updates_by_their_flag(value):
    net, x, labels = small_network(seed=1), np.ones((2, 3, 19, 17), np.float32), np.array([1, 2])
    flag = np.full(1, value, np.int32)
    for call in net.load_step(x, labels).calls():
        if call.op.flags:
            call.options["finite"] = flag
    before = {name: w.copy() for name, w in net.params.items()}
    verdicts = check.check_step(net, x, labels)
    assert all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok]
    assert all(np.array_equal(w, before[name]) == (not value) for name, w in net.params.items())


@pytest.mark.slow
def test_alexnet_of_2012_through_the_emulated_kernels(compiler):
    """Forward and backward, batch 2, at its real shapes: each call within the gate's bounds."""
    net = ck.AlexNet("2012", seed=1)
    x = np.random.default_rng(0).standard_normal((2, *net.input_shape)).astype(np.float32) * 50
    with ck.emulate():
        verdicts = check.check_step(net, x, np.array([1, 2]))
        assert len(verdicts) == len(net.plan(2).calls())
    assert all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok]


def test_a_bench_runs_on_the_gpu_that_is_named(cupy, monkeypatch, capsys):
    """The whole of it, so that each library that asks for the current GPU gets that one."""
    from convkit.bench import command

    seen = []

    def measured(device, args):
        seen.append((device, fake_cupy.current_device[0]))
        return 0

    monkeypatch.setattr(command, "_bench_on", measured)
    for device in ("cuda", "cuda:1", "cuda:0", "cpu"):
        assert main(["bench", "--device", device]) == 0
    assert seen == [("cuda", 0), ("cuda", 1), ("cuda", 0), ("cpu", 0)]
    for device, words in (
        ("cuda:2", "there is no cuda:2: CuPy sees 2"),
        ("cuda:x", "unknown device 'cuda:x'"),
    ):
        assert main(["bench", "--device", device]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert len(seen) == 4


def test_launches_as_cupy_wants_them(cuda):
    """By-value structs as `np.void`, null pointers as integers, large shared memory asked for."""
    function = fake_cupy.Function(None, "kernel")
    loaded = cuda._Loaded(function, "kernel")
    struct = np.zeros(1, [("N", np.int32)])[0]
    for shared in (0, 99_000, 99_000, 30_000, 100_000):
        launch = loaded.bind((2, 1, 1), (64, 1, 1), shared, ())
        launch(cuda.Cuda.pack([struct, None, np.int32(1)]))
        grid, block, values, got = function._launches[-1]
        assert (grid, block, got) == ((2, 1, 1), (64, 1, 1), shared)
        assert values[0] is struct and isinstance(struct, np.void)
        assert values[1] == 0 and isinstance(values[1], np.uint64)
    assert fake_cupy.driver.calls == 2  # once for a size, not once for a launch
    with pytest.raises(KernelError, match="kernel asks for 999000 bytes of shared memory"):
        loaded.bind((2, 1, 1), (64, 1, 1), 999_000, ())
    assert len(function._launches) == 5


@pytest.mark.parametrize(
    ("capability", "arch"), [("80", "sm_80"), ("90", "sm_90a"), ("100", "sm_100a"), ("120", "sm_120")]
)
def test_a_kernel_reaches_the_device_as_its_own_machine_code(capability, arch, cuda, tmp_path, monkeypatch):
    need("cuda.core")
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path))
    device = fake_cupy.Device(1)
    device.compute_capability = capability
    monkeypatch.setattr(cuda.cupy.cuda, "Device", lambda index: device)
    kernel = read(next(p for p in builtin_files() if p.stem == "relu_fprop_vectorized"))
    with device:
        executor = cuda.executor()
        source = translation_unit(kernel, Elementwise((5,)))
        loaded = [executor.function(source, kernel.stem, include=(kernel.path.parent,)) for _ in range(2)]
    assert executor.arch == arch and executor.device == 1
    assert loaded[0] is loaded[1]  # compiled, and loaded, once
    module = loaded[0].function.module
    assert module.cubin[:4] == b"\x7fELF" and module.device == 1


@pytest.mark.gpu
def test_every_kernel_on_the_gpu():
    verdicts = check.check(device="cuda", quick=True)
    assert verdicts and all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok]
