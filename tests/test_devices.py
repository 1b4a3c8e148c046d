"""Where kernels run: the emulator, the GPU, and the way to the GPU walked with a stand-in."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit import arrays, check, devices, layers
from convkit.cli import main
from convkit.executors import Argument
from convkit.geometry import Pointwise
from convkit.kernel import builtin_files, read

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
extern "C" __global__ void relu_fprop_wild(GEOMETRY(Pointwise), const float* x, float* y) {
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
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    executor = fake_cupy.Executor(devices.Emulator())
    monkeypatch.setattr(devices, "current", lambda: executor)
    monkeypatch.setattr(devices, "gpu_found", lambda: True)
    monkeypatch.setattr(check, "gpu_found", lambda: True)
    return module


def test_device_arrays_in_and_out(cupy):
    x, w = cupy.asarray(X), cupy.asarray(W)
    y = ck.conv2d_fprop(x, w, **OPTIONS)
    assert isinstance(y, cupy.ndarray)
    expected = ck.conv2d_fprop(X, W, **OPTIONS)
    np.testing.assert_allclose(y.get(), expected, rtol=1e-4, atol=1e-5)
    out = cupy.empty(expected.shape)
    assert ck.conv2d_fprop(x, w, **OPTIONS, out=out) is out
    assert np.array_equal(out.get(), y.get())
    assert ck.relu_fprop(x, out=x) is x and (x.get() >= 0).all()
    dlogits = ck.softmax_xent_dgrad(cupy.asarray(np.ones((3, 4), np.float32)), cupy.asarray(np.arange(3)))
    assert isinstance(dlogits, cupy.ndarray)


def test_devices_are_not_mixed(cupy):
    with pytest.raises(
        ck.DtypeError, match="conv2d_fprop: the arrays must share a device, not x: cpu, w: cuda"
    ):
        ck.conv2d_fprop(X, cupy.asarray(W), **OPTIONS)
    with pytest.raises(ck.DtypeError, match="out .* must live on cuda"):
        ck.relu_fprop(cupy.asarray(X), out=np.empty_like(X))
    with ck.emulate(), pytest.raises(ck.DtypeError, match="the emulator takes arrays on the CPU"):
        ck.relu_fprop(cupy.asarray(X))


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


@pytest.mark.slow
def test_alexnet_of_2012_through_the_emulated_kernels(compiler):
    """Forward and backward, batch 2, at its real shapes: each call within the gate's bounds."""
    net = ck.AlexNet("2012", seed=1)
    x = np.random.default_rng(0).standard_normal((2, *net.input_shape)).astype(np.float32) * 50
    with ck.emulate():
        verdicts = check.check_step(net, x, np.array([1, 2]))
        assert len(verdicts) == len(net.plan(2).calls())
    assert all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok]


def test_gpu_script(cupy, tmp_path, monkeypatch, capsys):
    gpu = load_gpu_script()
    monkeypatch.setattr(gpu.ck, "AlexNet", small_network)
    monkeypatch.setattr("convkit.bench.clocks.CUDA_FLUSH", 1024)
    monkeypatch.setattr(gpu, "LAYERS", ("relu7",))
    monkeypatch.setattr(gpu, "gate", lambda quick: {"ok": True, "run": 0, "failed": []})
    assert gpu.main(["--quick", "--batch", "2", "--rounds", "1", "--out", str(tmp_path)]) == 0
    (path,) = [p for p in tmp_path.glob("gpu-no-GPU-at-all-*.json") if not p.stem.endswith("-N2")]
    document = json.loads(path.read_text())
    assert document["alexnet"]["2012"]["ok"]
    assert set(document["ceilings"]) == {"fma", "copy", "sgemm", "tensor-fp16"}
    assert len(document["kernels"]) > 15
    (name,) = document["bench"]["capsules"]
    made = json.loads((tmp_path / name).read_text())
    assert made["convkit_capsule"] == 1 and made["machine"]["device"] == "cuda"
    (row,) = [row for row in made["rows"] if row["direction"] == "fwd"]
    assert row["layer"] == "relu7" and row["contenders"][0]["name"] == "vectorized"
    # A kernel that is wrong is reported, and what else was measured is kept.
    monkeypatch.setattr(gpu, "gate", lambda quick: 1 / 0)
    assert gpu.main(["--quick", "--batch", "2", "--rounds", "1", "--out", str(tmp_path / "again")]) == 1
    (path,) = [p for p in (tmp_path / "again").glob("*.json") if not p.stem.endswith("-N2")]
    document = json.loads(path.read_text())
    assert document["gate"] == {"ok": False, "error": "ZeroDivisionError: division by zero"}
    assert document["bench"]["capsules"]


def load_gpu_script():
    import importlib.util

    path = Path(__file__).parent.parent / "bench" / "gpu.py"
    spec = importlib.util.spec_from_file_location("convkit_bench_gpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gpu_script_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "gpu_found", lambda: False)
    assert load_gpu_script().main(["--out", str(tmp_path)]) == 0
    assert "nothing was run, nothing was written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cuda(monkeypatch):
    """The executor's module, imported anew on the stand-in, and forgotten afterwards."""
    import importlib

    from convkit import executors

    def forget():
        sys.modules.pop("convkit.executors.cuda", None)
        executors.__dict__.pop("cuda", None)

    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    forget()
    yield importlib.import_module("convkit.executors.cuda")
    forget()


def test_launches_as_cupy_wants_them(cuda):
    """By-value structs as arrays of size one, null pointers as integers, large shared memory asked for."""
    launched = []

    class Function:
        max_dynamic_shared_size_bytes = 0

        def __call__(self, grid, block, values, shared_mem):
            launched.append((grid, block, values, shared_mem))

    function = Function()
    struct = np.zeros(1, [("N", np.int32)])
    arguments = [Argument("g", struct), Argument("b", None), Argument("relu", np.int32(1))]
    cuda._Loaded(function).launch((2, 1, 1), (64, 1, 1), arguments, shared=99_000)
    ((grid, block, values, shared),) = launched
    assert (grid, block, shared) == ((2, 1, 1), (64, 1, 1), 99_000)
    assert values[0] is struct and values[1] == 0 and isinstance(values[1], np.uint64)
    assert function.max_dynamic_shared_size_bytes == 99_000


@pytest.mark.parametrize(
    ("capability", "arch"), [("80", "sm_80"), ("90", "sm_90a"), ("100", "sm_100a"), ("120", "sm_120")]
)
def test_a_kernel_reaches_the_device_as_its_own_machine_code(capability, arch, cuda, tmp_path, monkeypatch):
    need("cuda.core")
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path))
    loaded = []

    class Module:
        def load(self, cubin):
            loaded.append(cubin)

        def get_function(self, name):
            return name

    cuda.cupy.cuda.Device = lambda device: types.SimpleNamespace(compute_capability=capability)
    cuda.cupy.cuda.function = types.SimpleNamespace(Module=Module)
    executor = cuda.executor()
    kernel = read(next(p for p in builtin_files() if p.stem == "relu_fprop_vectorized"))
    for _ in range(2):
        assert executor.function(kernel, Pointwise((5,)), kernel.stem).function == kernel.stem
    assert executor.arch == arch
    (cubin,) = loaded  # compiled, and loaded, once
    assert cubin[:4] == b"\x7fELF"


@pytest.mark.gpu
def test_every_kernel_on_the_gpu():
    verdicts = check.check(device="cuda", quick=True)
    assert verdicts and all(v.ok for v in verdicts), [str(v) for v in verdicts if not v.ok]
