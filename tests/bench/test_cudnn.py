"""cuDNN without cuDNN: a library that stands in for it, compiled here, and a frontend made of Python.

What is right of that with the real one: test_cudnn_real.py. Running it takes a GPU, which no test here has.
"""

from __future__ import annotations

import ctypes
import gc
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from c_library import build
from cudnn_stand_in import frontend as stand_in
from cudnn_stand_in.frontend import Plan
from hypothesis import given
from hypothesis import strategies as st

import convkit as ck
from convkit.bench import peers, work
from convkit.bench.measure import checks, clocks, fresh, timing, trial
from convkit.bench.peers import cudnn
from convkit.bench.peers.cudnn import chains, graph, legacy, library, peer
from convkit.errors import ConvkitError, DtypeError, OptionError, ShapeError
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.lrn import LRN
from convkit.ops.lrn_maxpool2d import LrnMaxPool2d
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.softmax_xent import SoftmaxXent

SOURCE = Path(__file__).resolve().parents[1] / "cudnn_stand_in" / "cudnn.c"
NOT_INITIALIZED, BAD_PARAM, NOT_SUPPORTED, ALLOC_FAILED, EXECUTION_FAILED = 1001, 2000, 3000, 4003, 5000
CONV = Conv2d.of((2, 4, 6, 5), (6, 2, 3, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
PLANS = {
    "A": [
        Plan("eng62_k2=6_k13=0", 4096, ("TENSOR_CORE",), ("RUNTIME_COMPILATION",)),
        Plan("eng25", 0, ("NONDETERMINISTIC",)),
        Plan("eng70_k2=1", 0, ("WINOGRAD",)),
    ],
    "B": [Plan("eng25", 0, ("NONDETERMINISTIC",)), Plan("eng7", fails="no kernel\n for this")],
    "FALLBACK": [Plan("eng0")],
}


# ---------------------------------------------------------------------------------------------------
# The libraries
# ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SOURCE, tmp_path_factory.mktemp("cudnn") / "libcudnn.so.9")


@pytest.fixture(scope="session")
def old_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SOURCE, tmp_path_factory.mktemp("old") / "libcudnn.so.8", "-DOLD")


class StandIn:
    """The library's own side."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.stand_in_journal.restype = ctypes.c_char_p
        self.library.stand_in_reset()
        self.before = self.live

    @property
    def live(self) -> int:
        return int(self.library.stand_in_live())

    def journal(self, *names: str) -> list[str]:
        """The calls so far; only those of the functions that are named, if any."""
        lines = self.library.stand_in_journal().decode().splitlines()
        return [line for line in lines if not names or line.split()[0] in names]

    def refuse(self, name: str, status: int, algorithm: int = -1, after: int = 0) -> None:
        self.library.stand_in_refuse(name.encode(), algorithm, status, after)


@pytest.fixture(scope="module")
def nothing_before() -> None:
    """What other modules left is gone, so that it does not go in the middle of a test."""
    gc.collect()


@pytest.fixture
def other(path: Path, nothing_before: None):
    """The stand-in; whatever a test does, nothing may be left undestroyed."""
    found = StandIn(path)
    yield found
    found.library.stand_in_reset()
    if found.live != found.before:
        gc.collect()  # half a second, with all that is imported: only where it may help
    assert found.live == found.before, "descriptors were left behind"


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch):
    module = stand_in.module(PLANS)
    monkeypatch.setitem(sys.modules, "cudnn", module)
    return module


@pytest.fixture
def session(other: StandIn, path: Path, front: Any):
    with cudnn.Session(path) as found:
        yield found


@pytest.fixture
def bare(other: StandIn, path: Path, monkeypatch: pytest.MonkeyPatch):
    """A session without a frontend."""
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with cudnn.Session(path) as found:
        yield found


class Device:
    """An array as CuPy's are, for `run`."""

    def __init__(self, host: np.ndarray) -> None:
        self.host = host
        self.data = SimpleNamespace(ptr=host.ctypes.data)


# ---------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------
def test_it_is_found_where_the_user_says(path, monkeypatch):
    assert library.load(path).where == "the argument"
    assert library.load(path.parent).path == str(path)
    monkeypatch.setenv("CONVKIT_CUDNN", str(path.parent))
    found = library.load()
    assert (found.where, found.version) == ("$CONVKIT_CUDNN", (9, 28, 1))
    assert str(found) == f"cuDNN 9.28.1 ({path}, $CONVKIT_CUDNN)"


def test_a_wheel_comes_before_the_system(path, old_path, tmp_path, monkeypatch):
    monkeypatch.delenv("CONVKIT_CUDNN", raising=False)
    monkeypatch.setattr(library, "SONAMES", (str(old_path),))
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    assert library.load().version == (8, 9, 2) and library.load().where == "the system"

    folder = tmp_path / "nvidia" / "cudnn" / "lib"
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "libcudnn.so.9")
    shutil.copy(old_path, folder / "libcudnn.so.8")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: spec if name == "nvidia" else None)
    found = library.load()
    assert found.where == "the wheel" and found.version == (9, 28, 1), "the newest of a folder"


def test_nothing_is_found(monkeypatch):
    monkeypatch.delenv("CONVKIT_CUDNN", raising=False)
    monkeypatch.setattr(library, "SONAMES", ("libcudnn-of-nobody.so",))
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        cudnn.Unavailable, match=r"CONVKIT_CUDNN is not set.*pip install 'convkit\[cudnn\]'"
    ) as e:
        library.load()
    assert isinstance(e.value, ImportError) and isinstance(e.value, ConvkitError)


def test_what_a_user_named_is_not_replaced(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKIT_CUDNN", str(path))
    with pytest.raises(cudnn.Unavailable, match="no cuDNN at .*nowhere.so \\(the argument\\)"):
        library.load(tmp_path / "nowhere.so")
    with pytest.raises(cudnn.Unavailable, match="no libcudnn.so in"):
        library.load(tmp_path)
    monkeypatch.setenv("CONVKIT_CUDNN", str(tmp_path / "gone"))
    with pytest.raises(cudnn.Unavailable, match=r"no cuDNN at .*gone \(\$CONVKIT_CUDNN\)"):
        library.load()


def test_what_is_no_library_or_no_cudnn(tmp_path, path):
    text = tmp_path / "text.so"
    text.write_text("no ELF")
    with pytest.raises(cudnn.Unavailable, match=r"cannot load cuDNN from .*text.so"):
        library.load(text)
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    with pytest.raises(cudnn.Unavailable, match="is no cuDNN: it has no cudnnGetVersion"):
        library.load(build(source, tmp_path / "empty.so"))
    with pytest.raises(cudnn.Unavailable, match=r"cuDNN 7.6.5 .* is too old: 8.0.0 or newer"):
        library.load(build(SOURCE, tmp_path / "seven.so", "-DVERSION=7605"))


def test_a_broken_library_of_the_system_is_told(tmp_path, monkeypatch):
    """Not "none was found": there is one, and it does not load."""
    text = tmp_path / "libcudnn.so.9"
    text.write_text("no ELF")
    monkeypatch.delenv("CONVKIT_CUDNN", raising=False)
    monkeypatch.setattr(library, "SONAMES", (str(text),))
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cudnn.Unavailable, match="cannot load cuDNN"):
        library.load()


@pytest.mark.parametrize(
    ("number", "version"), [(92801, (9, 28, 1)), (90100, (9, 1, 0)), (8902, (8, 9, 2)), (7605, (7, 6, 5))]
)
def test_versions(number, version):
    assert library.version_of(number) == version


def test_no_gpu_is_said(path, other):
    other.refuse("cudnnCreate", NOT_INITIALIZED)
    with pytest.raises(cudnn.Unavailable, match=r"needs a GPU .*NOT_INITIALIZED \(told to fail\)"):
        cudnn.Session(path)
    other.refuse("cudnnCreate", EXECUTION_FAILED)
    with pytest.raises(cudnn.Unavailable, match="cannot be used here.*EXECUTION_FAILED"):
        cudnn.Session(path)


# ---------------------------------------------------------------------------------------------------
# Errors and what must be destroyed
# ---------------------------------------------------------------------------------------------------
def test_statuses_become_exceptions(path, other):
    found = library.load(path)
    for status, kind in (
        (NOT_SUPPORTED, cudnn.NotSupported), (ALLOC_FAILED, MemoryError), (BAD_PARAM, cudnn.CudnnError),
    ):  # fmt: skip
        other.refuse("cudnnCreateTensorDescriptor", status)
        with pytest.raises(
            kind, match=r"^cudnnCreateTensorDescriptor: CUDNN_STATUS_\w+ \(told to fail\)$"
        ) as e:
            library.Descriptor(found, "Tensor", "Tensor4d", 0, 0, 1, 1, 1, 1)
        assert isinstance(e.value, (cudnn.CudnnError, RuntimeError)) and e.value.status == status
    other.refuse("cudnnCreateTensorDescriptor", 77)
    with pytest.raises(cudnn.CudnnError, match="CUDNN_UNKNOWN_STATUS"):
        library.Descriptor(found, "Tensor", "Tensor4d", 0, 0, 1, 1, 1, 1)


def test_a_descriptor_that_cannot_be_set_is_destroyed(path, other):
    found, before = library.load(path), other.live
    with pytest.raises(cudnn.CudnnError, match=r"BAD_PARAM \(is\(t, 't'\) && n > 0"):
        library.Descriptor(found, "Tensor", "Tensor4d", 0, 0, 0, 1, 1, 1)
    assert other.live == before
    assert other.journal("cudnnDestroyTensorDescriptor") == ["cudnnDestroyTensorDescriptor t0"]


def test_descriptors_are_destroyed_once(path, other):
    found, before = library.load(path), other.live
    with library.Descriptor(found, "LRN", "LRN", 5, 1e-4, 0.75, 2.0) as one:
        assert other.live == before + 1
    one.close()
    two = library.Descriptor(found, "Activation", "Activation", 1, 1, 0.0)
    del two
    gc.collect()
    assert other.live == before
    assert len(other.journal("cudnnDestroyLRNDescriptor", "cudnnDestroyActivationDescriptor")) == 2
    with pytest.raises(cudnn.CudnnError, match="closed"):
        _ = one.address


def test_doubles_and_unsigned_arrive_as_such(path, other):
    found = library.load(path)
    with library.Descriptor(found, "LRN", "LRN", 5, 1e-4, 0.75, 2.0):
        pass
    assert other.journal("cudnnSetLRNDescriptor") == ["cudnnSetLRNDescriptor l0 5 0.0001 0.75 2"]


def test_engines_leave_nothing_behind(other, path, front):
    for refused in ("", "cudnnGetConvolutionForwardWorkspaceSize", "cudnnGetConvolutionForwardAlgorithm_v7",
                    "cudnnSetConvolutionMathType", "cudnnSetFilter4dDescriptor"):  # fmt: skip
        with cudnn.Session(path) as session:
            other.refuse(refused, NOT_SUPPORTED)
            found = cudnn.engines(CONV, "conv2d_fprop", session=session)
            assert found
            del found
        gc.collect()
        assert other.live == other.before, refused
    assert front.destroyed == 5


def test_a_closed_session_runs_nothing(other, path, front):
    session = cudnn.Session(path)
    found = cudnn.engines(Elementwise((4,)), "relu_fprop", session=session)
    plan = cudnn.engines(CONV, "conv2d_fprop", math="tf32", session=session)
    session.close()
    x = Device(np.zeros(64, np.float32))
    with pytest.raises(cudnn.CudnnError, match="closed"):
        found[0].run([x], [x])
    with pytest.raises(cudnn.CudnnError, match="closed"):
        next(e for e in plan if e.api == "graph").run([x, x], [x], 4096)


# ---------------------------------------------------------------------------------------------------
# The legacy API: numbers
# ---------------------------------------------------------------------------------------------------
def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def laid(array: np.ndarray, layout: str) -> np.ndarray:
    return np.ascontiguousarray(
        array.transpose(0, 2, 3, 1) if layout == "NHWC" and array.ndim == 4 else array
    )


def run(engine: cudnn.Engine, tensors: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The engine's output, NCHW."""
    layout = engine.layout
    read = [laid(tensors[name], layout) for name in engine.inputs]
    out = laid(np.full(shape, np.nan, np.float32), layout)
    scratch = np.empty(max(1, engine.workspace_bytes), np.uint8)
    engine.run([Device(a) for a in read], [Device(out)], Device(scratch), 0)
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2) if layout == "NHWC" and out.ndim == 4 else out)


def geometry(g: Conv2d) -> dict[str, Any]:
    return {
        "stride": (g.stride_h, g.stride_w), "dilation": (g.dilation_h, g.dilation_w), "groups": g.groups,
        "padding": ((g.pad_top, g.pad_bottom), (g.pad_left, g.pad_right)),
    }  # fmt: skip


def wanted(op: str, g: Any, t: dict[str, np.ndarray], bias: bool = False, relu: bool = False) -> np.ndarray:
    """By convkit's own ops."""
    if op == "conv2d_fprop":
        return ck.conv2d_fprop(t["x"], t["w"], t["b"] if bias else None, relu=relu, **geometry(g))
    if op.startswith("conv2d_dgrad"):
        dx = ck.conv2d_dgrad(t["dy"], t["w"], g.shape("x"), **geometry(g))
        return np.where(t["x"] > 0, dx, 0) if op.endswith("relu") else dx
    if op == "conv2d_wgrad":
        return ck.conv2d_wgrad(t["x"], t["dy"], g.shape("w"), **geometry(g))
    if op == "lrn_fprop":
        return ck.lrn_fprop(t["x"], size=g.size, alpha=g.alpha, beta=g.beta, k=g.k, groups=g.groups)
    assert op == "lrn_dgrad"
    return ck.lrn_dgrad(t["dy"], t["x"], size=g.size, alpha=g.alpha, beta=g.beta, k=g.k, groups=g.groups)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", ["conv2d_fprop", "conv2d_dgrad", "conv2d_dgrad_relu", "conv2d_wgrad"])
def test_convolutions(session, op, layout):
    t = {name: normal(*CONV.shape(name)) for name in ("x", "w", "dy", "b")}
    name = "dw" if op == "conv2d_wgrad" else "y" if op == "conv2d_fprop" else "dx"
    found = [
        e for e in cudnn.engines(CONV, op, math="tf32", layouts=[layout], session=session) if not e.refused
    ]
    assert {e.api for e in found} == {"legacy", "graph"} and {e.layout for e in found} == {layout}
    expected = wanted(op, CONV, t)
    for engine in found:
        np.testing.assert_allclose(run(engine, t, CONV.shape(name)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bias", "relu"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bias_and_relu(session, other, layout, bias, relu):
    t = {name: normal(*CONV.shape(name)) for name in ("x", "w", "b")}
    found = cudnn.engines(
        CONV, "conv2d_fprop", math="tf32", layouts=[layout], bias=bias, relu=relu, session=session
    )
    expected = wanted("conv2d_fprop", CONV, t, bias, relu)
    for engine in found.usable:
        assert engine.inputs == ("x", "w", "b")[: 2 + bias]
        np.testing.assert_allclose(run(engine, t, CONV.shape("y")), expected, rtol=1e-4, atol=1e-4)
    assert bool(other.journal("cudnnConvolutionBiasActivationForward")) == (bias and relu)
    assert bool(other.journal("cudnnAddTensor")) == bias  # within the fused call, or beside it


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("op", ["lrn_fprop", "lrn_dgrad"])
def test_lrn_has_convkits_conventions(session, op, layout, size):
    """Alpha is divided by the size, an even window looks further ahead."""
    g = LRN.of((2, 6, 3, 4), size=size, alpha=0.9, beta=0.6, k=1.5)
    t = {"x": normal(*g.shape("x")), "dy": normal(*g.shape("x")) + 1}
    t["y"] = wanted("lrn_fprop", g, t)
    (engine,) = cudnn.engines(g, op, layouts=[layout], session=session)
    np.testing.assert_allclose(run(engine, t, g.shape("x")), wanted(op, g, t), rtol=1e-4, atol=1e-5)


def test_lrn_in_groups(session):
    g = LRN.of((2, 6, 3, 4), size=3, alpha=0.9, groups=2)
    t = {"x": normal(*g.shape("x"))}
    nchw, nhwc = cudnn.engines(g, "lrn_fprop", session=session)
    np.testing.assert_allclose(run(nchw, t, g.shape("x")), wanted("lrn_fprop", g, t), rtol=1e-5)
    assert "has no groups" in nhwc.refused


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_max_pooling(session, layout):
    g = Pool2d.of((2, 3, 7, 9), window=(3, 2), stride=2, padding=(1, 0))
    x, dy = normal(*g.shape("x")), normal(*g.shape("y"))
    y, argmax = ck.maxpool2d_fprop(x, window=(3, 2), stride=2, padding=(1, 0))
    dx = ck.maxpool2d_dgrad(dy, argmax, g.shape("x"), window=(3, 2), stride=2, padding=(1, 0))
    forward = cudnn.engines(g, "maxpool2d_fprop", layouts=[layout], session=session)
    back = cudnn.engines(g, "maxpool2d_dgrad", layouts=[layout], session=session)
    assert [e.name for e in forward] == ["legacy:max", "legacy:max_deterministic"]
    assert [e.declared_deterministic for e in forward] == [True, True]
    assert [e.declared_deterministic for e in back] == [False, True]
    for engine in forward:
        np.testing.assert_array_equal(run(engine, {"x": x}, g.shape("y")), y)
    for engine in back:
        np.testing.assert_allclose(run(engine, {"dy": dy, "x": x, "y": y}, g.shape("x")), dx, rtol=1e-6)


def test_relu_softmax_and_bias_gradient(session):
    x, dy = normal(3, 4, 2, 5), normal(3, 4, 2, 5) + 1
    (forward,) = cudnn.engines(Elementwise(x.shape), "relu_fprop", layouts=["NCHW"], session=session)
    y = run(forward, {"x": x}, x.shape)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    (back,) = cudnn.engines(Elementwise(x.shape), "relu_dgrad", layouts=["NCHW"], session=session)
    np.testing.assert_array_equal(run(back, {"dy": dy, "y": y}, x.shape), np.where(x > 0, dy, 0))
    flat = cudnn.engines(Elementwise((7, 3)), "relu_fprop", session=session)
    assert len(flat) == 1, "layouts of two extents are the same"

    for op, problem, array in (
        ("conv2d_bgrad", ChannelSum.of(dy.shape, 4), dy),
        ("linear_bgrad", ChannelSum.of((5, 6), 2), normal(5, 6)),
    ):  # fmt: skip
        axes = (0, 2, 3)[: array.ndim - 1]
        for engine in cudnn.engines(problem, op, session=session):
            found = run(engine, {"dy": array}, problem.shape("db"))
            np.testing.assert_allclose(found, array.sum(axes), rtol=1e-5)

    logits, dprobs = normal(4, 10), normal(4, 10) + 1
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    g = SoftmaxXent.of((4, 10))
    softmaxes = cudnn.engines(g, "softmax_fprop", session=session)
    assert [e.name for e in softmaxes] == [
        f"legacy:{a}/{m}" for a in ("fast", "accurate") for m in ("instance", "channel")
    ]
    for engine in softmaxes:
        np.testing.assert_allclose(run(engine, {"logits": logits}, (4, 10)), probs, rtol=1e-5)
    dlogits = probs * (dprobs - (dprobs * probs).sum(1, keepdims=True))
    for engine in cudnn.engines(g, "softmax_dgrad", session=session):
        found = run(engine, {"probs": probs.astype(np.float32), "dprobs": dprobs}, (4, 10))
        np.testing.assert_allclose(found, dlogits, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------
# The legacy API: what is called
# ---------------------------------------------------------------------------------------------------
def test_the_calls_of_a_convolution(bare, other):
    """Every argument, for one algorithm in NHWC: descriptors, the ranking, the workspace, the call itself."""
    found = cudnn.engines(CONV, "conv2d_fprop", layouts=["NHWC"], session=bare)
    engine = next(e for e in found if e.name == "legacy:implicit_precomp_gemm/fma")
    t = {name: normal(*CONV.shape(name)) for name in ("x", "w")}
    run(engine, t, CONV.shape("y"))
    h, x, w, y = (line.split()[1] for line in other.journal(
        "cudnnCreate", "cudnnCreateTensorDescriptor", "cudnnCreateFilterDescriptor"))  # fmt: skip
    ranked, conv = (line.split()[1] for line in other.journal("cudnnCreateConvolutionDescriptor"))
    assert other.journal("cudnnSetTensor4dDescriptor") == [
        f"cudnnSetTensor4dDescriptor {x} 1 0 2 4 6 5", f"cudnnSetTensor4dDescriptor {y} 1 0 2 6 3 5",
    ]  # fmt: skip
    assert other.journal("cudnnSetFilter4dDescriptor") == [f"cudnnSetFilter4dDescriptor {w} 0 1 6 2 3 3"]
    for name in (ranked, conv):
        for line in (f"cudnnSetConvolution2dDescriptor {name} 1 2 2 1 1 2 1 0",
                     f"cudnnSetConvolutionGroupCount {name} 2",
                     f"cudnnSetConvolutionMathType {name} 3"):  # fmt: skip
            assert line in other.journal()
    assert other.journal("cudnnGetConvolutionForwardAlgorithm_v7") == [
        "cudnnGetConvolutionForwardAlgorithm_v7 math 3 most 32"
    ]
    assert f"cudnnGetConvolutionForwardWorkspaceSize {h} {x} {w} {conv} {y} 1" in other.journal()
    assert other.journal("cudnnSetStream", "cudnnConvolutionForward") == [
        f"cudnnSetStream {h} (nil)",
        f"cudnnConvolutionForward {h} alpha 1 {x} {w} {conv} algo 1 workspace 1 size 1000 beta 0 {y}",
    ]
    assert f"cudnnDestroyConvolutionDescriptor {ranked}" in other.journal()


@pytest.mark.parametrize(
    ("op", "algorithms", "random"),
    [
        ("conv2d_fprop",
         "implicit_gemm implicit_precomp_gemm gemm direct fft fft_tiling winograd winograd_nonfused", ""),
        ("conv2d_dgrad", "algo_0 algo_1 fft fft_tiling winograd winograd_nonfused", "algo_0"),
        ("conv2d_wgrad", "algo_0 algo_1 fft algo_3 winograd winograd_nonfused fft_tiling", "algo_0 algo_3"),
    ],
)  # fmt: skip
def test_every_algorithm_with_every_math_type(bare, op, algorithms, random):
    found = cudnn.engines(CONV, op, math="tf32", layouts=["NCHW"], session=bare)
    assert found.missing["graph"].startswith("the graph API needs nvidia-cudnn-frontend")
    names = [f"legacy:{a}/{m}" for m in ("default", "tensor_op", "fma") for a in algorithms.split()]
    assert [e.name for e in found.usable] == names
    assert [e.workspace_bytes for e in found.usable] == [1000 * i for i in range(len(algorithms.split()))] * 3
    for engine in found.usable:
        assert engine.declared_deterministic == (engine.facts["algorithm"] not in random.split())
    (refused,) = (e for e in found if e.refused)
    assert (refused.name, refused.asked) == ("legacy:*/tensor_op_allow_conversion", False)
    # The stand-in ranks from the last algorithm down, and says that the second one fails.
    ranks = [e.heuristic_rank for e in found.usable if e.facts["math_type"] == "default"]
    last = len(ranks) - 1
    assert ranks == [*reversed(range(1, last)), None, 0]
    assert all(e.heuristic_rank is None for e in found.usable if e.facts["math_type"] != "default")


@pytest.mark.parametrize(
    ("dtype", "math", "allowed", "asked_about"),
    [
        ("float32", None, ["fma"], 3), ("float32", "fp32", ["fma"], 3),
        ("float32", "fp32-emulated", ["fma"], 3),
        ("float32", "tf32", ["default", "tensor_op", "fma"], 0),
        ("float16", None, ["default", "tensor_op", "fma"], 1),
        ("bfloat16", "fp32", ["default", "tensor_op", "fma"], 1),
        ("float64", None, ["default"], 0),
    ],
)  # fmt: skip
def test_no_arithmetic_but_what_was_asked_for(bare, other, dtype, math, allowed, asked_about):
    found = cudnn.engines(CONV, "conv2d_wgrad", dtype, math, layouts=["NCHW"], session=bare)
    assert list(dict.fromkeys(e.facts["math_type"] for e in found.usable)) == allowed
    assert {e.facts["math_type"] for e in found if not e.asked} == set(legacy.MATH_TYPES) - set(allowed)
    (line,) = other.journal("cudnnGetConvolutionBackwardFilterAlgorithm_v7")
    assert f"math {asked_about} " in line
    kind = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}[dtype]
    assert all(f" 0 {kind} " in line for line in other.journal("cudnnSetTensor4dDescriptor"))
    compute = 1 if dtype == "float64" else 0
    assert all(line.endswith(f" 1 {compute}") for line in other.journal("cudnnSetConvolution2dDescriptor"))


def test_an_algorithm_that_cudnn_refuses_keeps_the_reason(bare, other):
    other.refuse("cudnnGetConvolutionBackwardDataWorkspaceSize", NOT_SUPPORTED, algorithm=2)
    found = cudnn.engines(CONV, "conv2d_dgrad", layouts=["NCHW"], session=bare)
    (refused,) = (e for e in found if e.refused and e.asked)
    assert refused.name == "legacy:fft/fma"
    assert "CUDNN_STATUS_NOT_SUPPORTED (told to fail)" in refused.refused
    assert len(found.usable) == 5
    with pytest.raises(cudnn.NotSupported, match="told to fail"):
        refused.run([1, 1], [1])


def test_a_heuristic_that_fails_ranks_nothing(bare, other):
    other.refuse("cudnnGetConvolutionForwardAlgorithm_v7", NOT_SUPPORTED)
    found = cudnn.engines(CONV, "conv2d_fprop", session=bare)
    assert found.usable and all(e.heuristic_rank is None for e in found)


def test_a_failure_in_the_middle_is_an_exception(bare, other):
    t = {name: normal(*CONV.shape(name)) for name in ("x", "w")}
    engine = cudnn.engines(CONV, "conv2d_fprop", session=bare).usable[0]
    other.refuse("cudnnConvolutionForward", EXECUTION_FAILED, after=2)
    run(engine, t, CONV.shape("y"))
    run(engine, t, CONV.shape("y"))
    with pytest.raises(
        cudnn.CudnnError, match=r"cudnnConvolutionForward: CUDNN_STATUS_EXECUTION_FAILED"
    ) as e:
        run(engine, t, CONV.shape("y"))
    assert not isinstance(e.value, cudnn.NotSupported)
    other.library.stand_in_reset()
    run(engine, t, CONV.shape("y"))


def test_the_stream_is_set_when_it_changes(bare, other):
    (engine,) = cudnn.engines(Elementwise((8,)), "relu_fprop", session=bare)
    x = Device(np.zeros(8, np.float32))
    for stream in (0, 64, 64, 128, 64):
        engine.run([x], [x], None, stream)
    assert [line.split()[2] for line in other.journal("cudnnSetStream")] == ["(nil)", "0x40", "0x80", "0x40"]


def test_run_checks_what_it_is_given(bare):
    found = cudnn.engines(CONV, "conv2d_fprop", session=bare)
    engine = next(e for e in found if e.workspace_bytes)
    with pytest.raises(ShapeError, match="takes 2 inputs, x, w, not 1"):
        engine.run([1], [1], 1)
    with pytest.raises(ShapeError, match="takes 1 outputs, y, not 2"):
        engine.run([1, 1], [1, 1], 1)
    with pytest.raises(ShapeError, match=f"needs a workspace of {engine.workspace_bytes} bytes"):
        engine.run([1, 1], [1])
    with pytest.raises(DtypeError, match="x must be a device address or a CuPy array, not ndarray"):
        engine.run([np.zeros(1), 1], [1], 1)


@pytest.mark.parametrize(
    ("problem", "op", "reason"),
    [
        (
            Conv2d.of((1, 2, 5, 5), (2, 2, 3, 3), padding=((1, 0), (1, 1))),
            "conv2d_fprop",
            "opposite sides only",
        ),
        (Pool2d.of((1, 2, 5, 5), padding=((1, 0), (0, 0))), "maxpool2d_fprop", "opposite sides"),
        (Pool2d.of((1, 2, 9, 9), dilation=2), "maxpool2d_dgrad", "no dilated pool"),
        (Pool2d.of((1, 2, 6, 6), ceil_mode=True), "maxpool2d_fprop", "output size down"),
        (LRN.of((1, 40, 2, 2), size=17), "lrn_fprop", "windows of 1 to 16 channels, not 17"),
        (LRN.of((1, 4, 2, 2), beta=0.001), "lrn_fprop", "beta of at least 0.01, not 0.001"),
        (LRN.of((1, 4, 2, 2), k=1e-6), "lrn_dgrad", "k of at least 1e-05, not 1e-06"),
        (LRN.of((1, 4, 2, 2), size=3, region="within_channel"), "lrn_fprop", "across channels only"),
        (Conv2d.of((0, 2, 5, 5), (2, 2, 3, 3)), "conv2d_wgrad", "no empty batch"),
        (Elementwise((0, 4)), "relu_fprop", "no empty batch"),
        (
            LrnMaxPool2d(LRN.of((1, 4, 9, 9), size=17), Pool2d.of((1, 4, 9, 9))),
            "lrn_maxpool2d_fprop",
            "not 17",
        ),
    ],
)
def test_what_cudnn_cannot_do_has_a_reason(bare, other, problem, op, reason):
    found = cudnn.engines(problem, op, session=bare)
    assert found and not found.usable and all(reason in e.refused and e.asked for e in found)


def test_a_ceil_pool_that_comes_out_even_is_a_plain_one(bare):
    g = Pool2d.of((1, 2, 7, 7), ceil_mode=True)
    assert cudnn.engines(g, "maxpool2d_fprop", session=bare).usable


@pytest.mark.parametrize(
    ("problem", "op", "more", "message"),
    [
        (CONV, "conv2d_forward", {}, "unknown op of cuDNN 'conv2d_forward'; did you mean 'conv2d_"),
        (CONV, "lrn_fprop", {}, "unknown problem of lrn_fprop 'Conv2d'"),
        (CONV, "conv2d_fprop", {"dtype": "int8"}, "cuDNN has no int8"),
        (CONV, "conv2d_fprop", {"math": "tf23"}, "unknown math 'tf23'; did you mean 'tf32'"),
        (CONV, "conv2d_fprop", {"layouts": ["NCWH"]}, "unknown layout 'NCWH'"),
    ],
)
def test_names_that_are_not_known(bare, problem, op, more, message):
    with pytest.raises((OptionError, DtypeError), match=re.escape(message)):
        cudnn.engines(problem, op, session=bare, **more)


def test_an_old_library_serves_what_it_has(old_path, front):
    """Other numbers of statuses, no last error, and no function for LRN's gradient."""
    old = StandIn(old_path)
    with cudnn.Session(old_path) as session:
        assert session.library.version == (8, 9, 2) and not session.library.has("cudnnGetLastErrorString")
        g = LRN.of((2, 6, 3, 4))
        t = {"x": normal(*g.shape("x")), "dy": normal(*g.shape("x")), "y": normal(*g.shape("x"))}
        forward, back = (
            cudnn.engines(g, op, layouts=["NCHW"], session=session)[0] for op in ("lrn_fprop", "lrn_dgrad")
        )
        run(forward, t, g.shape("x"))
        with pytest.raises(cudnn.NotSupported, match="cudnnLRNCrossChannelBackward: not in cuDNN 8.9.2"):
            run(back, t, g.shape("x"))
        old.refuse("cudnnGetConvolutionForwardWorkspaceSize", 9, algorithm=3)
        found = cudnn.engines(CONV, "conv2d_fprop", layouts=["NCHW"], session=session)
        (refused,) = (e for e in found if e.refused and e.asked and e.api == "legacy")
        assert refused.refused.endswith("CUDNN_STATUS_NOT_SUPPORTED")
        del forward, back, found, refused
    gc.collect()
    assert old.live == 0


# ---------------------------------------------------------------------------------------------------
# The graph API
# ---------------------------------------------------------------------------------------------------
def plans(found: cudnn.Engines) -> list[cudnn.Engine]:
    return [e for e in found if e.api == "graph"]


def test_every_plan_in_the_heuristics_order(session):
    found = plans(cudnn.engines(CONV, "conv2d_fprop", math="tf32", layouts=["NCHW"], session=session))
    assert [(e.name, e.heuristic_rank, e.workspace_bytes, e.declared_deterministic) for e in found] == [
        ("graph:eng62{k2=6,k13=0}", 0, 4096, True),
        ("graph:eng25", 1, 0, False),
        ("graph:eng70{k2=1}", 2, 0, True),
        ("graph:eng7", 3, 0, True),
        ("graph:eng0", 4, 0, True),
    ]
    assert found[0].facts["numerical_notes"] == ["TENSOR_CORE"]
    assert found[0].facts["behaviour_notes"] == ["RUNTIME_COMPILATION"]
    assert [e.refused for e in found] == ["", "", "", "no kernel for this", ""]


def test_true_float32_has_no_tensor_cores(session):
    found = plans(cudnn.engines(CONV, "conv2d_fprop", layouts=["NCHW"], session=session))
    assert not found[0].asked and "round float32 to TF32, and fp32 was asked for" in found[0].refused
    assert [e.heuristic_rank for e in found] == [None, 0, 1, 2, 3], "ranked among those that were asked for"
    half = plans(cudnn.engines(CONV, "conv2d_fprop", "float16", layouts=["NCHW"], session=session))
    assert half[0].asked and half[0].heuristic_rank == 0
    assert graph.forbidden("float32", "tf32", frozenset({"DOWN_CONVERT_INPUTS"}))


def test_what_the_frontend_is_told(session, front):
    uneven = Conv2d.of((2, 4, 6, 5), (6, 2, 3, 2), stride=(2, 1), padding=((0, 1), (2, 3)), groups=2)
    found = cudnn.engines(uneven, "conv2d_fprop", "bfloat16", layouts=["NHWC"], session=session)
    assert all(e.refused for e in found if e.api == "legacy" and e.asked)
    assert [e.refused for e in plans(found)].count("") == 4, "each side's padding is the graph API's business"
    told = front.graphs[0]
    assert told.arguments == {
        "name": "conv2d_fprop", "handle": front.handle, "io_data_type": "BFLOAT16",
        "intermediate_data_type": "FLOAT", "compute_data_type": "FLOAT",
    }  # fmt: skip
    ((op, a),) = told.work
    assert op == "conv_fprop"
    assert (a["pre_padding"], a["post_padding"]) == ([0, 2], [1, 3])
    assert (a["stride"], a["dilation"]) == ([2, 1], [1, 1])
    assert (a["image"].dim, a["image"].stride) == ([2, 4, 6, 5], [120, 1, 20, 4])
    assert (a["weight"].dim, a["weight"].stride) == ([6, 2, 3, 2], [12, 1, 4, 2])
    y = a["out"]
    assert y.output and y.data_type == "BFLOAT16" and y.dim == list(uneven.shape("y"))
    t = {name: normal(*uneven.shape(name)) for name in ("x", "w")}
    for engine in plans(cudnn.engines(uneven, "conv2d_fprop", math="tf32", session=session)):
        if not engine.refused:
            expected = wanted("conv2d_fprop", uneven, t)
            np.testing.assert_allclose(run(engine, t, uneven.shape("y")), expected, rtol=1e-4, atol=1e-4)


def test_a_plan_is_run_by_its_own_index(session, front):
    t = {name: normal(*CONV.shape(name)) for name in ("x", "w")}
    found = plans(cudnn.engines(CONV, "conv2d_fprop", math="tf32", layouts=["NCHW"], session=session))
    for engine in (found[4], found[0]):
        run(engine, t, CONV.shape("y"))
    assert front.executed == [5, 0], "the repetition of eng25 has an index too"
    x = Device(np.zeros(2**12, np.float32))
    for stream in (0, 7, 7):
        found[0].run([x, x], [x], x, stream)
    assert front.streams == [0, 7]


def test_a_plan_that_fails_when_it_runs(session, front):
    front.breaks_when_run = True
    found = plans(cudnn.engines(CONV, "conv2d_fprop", math="tf32", session=session))
    with pytest.raises(cudnn.CudnnError, match="graph:eng62.*EXECUTION_FAILED"):
        found[0].run([1, 1], [1], 1)


def test_a_graph_that_is_refused(session, front):
    front.refuses_graphs = True
    (found,) = plans(cudnn.engines(CONV, "conv2d_wgrad", layouts=["NCHW"], session=session))
    assert (found.name, found.refused) == ("graph:conv2d_wgrad", "this graph is not supported")


def test_a_frontend_that_tells_no_notes(other, path, monkeypatch):
    """Nothing is claimed, and nothing is refused: the measured error decides."""
    monkeypatch.setitem(sys.modules, "cudnn", stand_in.module(PLANS, filters=False))
    with cudnn.Session(path) as session:
        found = plans(cudnn.engines(CONV, "conv2d_fprop", layouts=["NCHW"], session=session))
        assert [e.declared_deterministic for e in found] == [None] * 5
        assert found[0].asked and found[0].facts["numerical_notes"] is None


def test_no_frontend_is_no_reason_to_stop(bare):
    assert bare.frontend is None and "pip install --no-deps nvidia-cudnn-frontend" in bare.missing["graph"]
    assert bare.about()["frontend"] == bare.missing["graph"]


def test_a_frontend_without_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", stand_in.module(PLANS, gpu=False))
    with pytest.raises(cudnn.Unavailable, match="cudnn-frontend 1.99 with cuDNN 9.28.1 needs a GPU"):
        graph.Frontend()


def test_a_frontend_without_a_library(monkeypatch):
    module = stand_in.module(PLANS)
    module.backend_version = lambda: (_ for _ in ()).throw(RuntimeError("Unable to dlopen libcudnn"))
    monkeypatch.setitem(sys.modules, "cudnn", module)
    with pytest.raises(cudnn.Unavailable, match="no use here: Unable to dlopen libcudnn"):
        graph.Frontend()


def test_plans_for_a_gpu_that_is_only_described(front):
    frontend = graph.Frontend("{}")
    found = graph.engines(frontend, CONV, "conv2d_fprop", "tf32", "NCHW", False, False)
    assert front.graphs[0].arguments["device_property"] == "{}" and "handle" not in front.graphs[0].arguments
    assert found[0].workspace_bytes == 4096 and "described" in found[0].refused


# ---------------------------------------------------------------------------------------------------
# Chains
# ---------------------------------------------------------------------------------------------------
def test_a_gradient_and_its_activation(session):
    found = cudnn.engines(CONV, "conv2d_dgrad_relu", math="tf32", layouts=["NCHW"], session=session)
    (fused,) = (e for e in found if e.name == "graph:conv2d_dgrad_relu")
    assert fused.refused == "No valid engine configs"
    chained = [e for e in found if e.name.endswith("+activation")]
    assert [e.name for e in chained][:2] == ["graph:eng62{k2=6,k13=0}+activation", "graph:eng25+activation"]
    assert chained[0].heuristic_rank == 0 and chained[0].inputs == ("dy", "w", "x")
    assert chained[3].refused == "no kernel for this"


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_lrn_and_its_pool(session, layout, relu):
    norm = {"size": 3, "alpha": 0.9, "beta": 0.75, "k": 1.0}
    g = LrnMaxPool2d(LRN.of((2, 5, 7, 7), **norm), Pool2d.of((2, 5, 7, 7)))
    x, dy = normal(*g.lrn.shape("x")), normal(*g.pool.shape("y"))
    n = ck.lrn_fprop(x, **norm)
    y, argmax = ck.maxpool2d_fprop(n)
    dx = ck.lrn_dgrad(ck.maxpool2d_dgrad(dy, argmax, x.shape), x, **norm)
    for engine in cudnn.engines(g, "lrn_maxpool2d_fprop", layouts=[layout], session=session):
        np.testing.assert_allclose(run(engine, {"x": x}, y.shape), y, rtol=1e-5)
    t = {"dy": dy, "pool_x": n, "pool_y": None, "x": x, "n": n}
    pools = cudnn.engines(g.pool, "maxpool2d_fprop", layouts=[layout], session=session)
    t["pool_y"] = run(pools[0], {"x": n}, y.shape)
    for engine in cudnn.engines(g, "lrn_maxpool2d_dgrad", layouts=[layout], relu=relu, session=session):
        expected = np.where(x > 0, dx, 0) if relu else dx
        np.testing.assert_allclose(run(engine, t, x.shape), expected, rtol=1e-4, atol=1e-5)
        assert engine.workspace_bytes % 256 == 0 and engine.workspace_bytes >= x.nbytes


# ---------------------------------------------------------------------------------------------------
# Entries
# ---------------------------------------------------------------------------------------------------
def item(
    op: str, problem: Any, math: str = "fp32", absent: tuple[str, ...] = (), **options: Any
) -> work.Item:
    return work.Item(op, op, problem, problem.dtype, math, batch=2, options=options, absent=absent)


POOL = Pool2d.of((2, 3, 9, 7))
ITEMS = {
    "fprop": item("conv2d_fprop", CONV, "tf32", ("b",), relu=False),
    "fprop with bias and relu": item("conv2d_fprop", CONV, relu=True),
    "dgrad": item("conv2d_dgrad", CONV),
    "dgrad and relu": item("conv2d_dgrad_relu", CONV, "tf32"),
    "wgrad": item("conv2d_wgrad", CONV),
    "bgrad": item("conv2d_bgrad", ChannelSum.of((2, 4, 5, 6), 4)),
    "relu": item("relu_fprop", Elementwise((2, 3, 4, 5))),
    "relu back": item("relu_dgrad", Elementwise((2, 3, 4, 5))),
    "lrn": item("lrn_fprop", LRN.of((2, 8, 3, 4))),
    "lrn back": item("lrn_dgrad", LRN.of((2, 8, 3, 4), alpha=0.5)),
    "pool": item("maxpool2d_fprop", POOL),
    "pool back": item("maxpool2d_dgrad", POOL),
    "lrn and pool": item("lrn_maxpool2d_fprop", LrnMaxPool2d(LRN.of((2, 3, 9, 7)), POOL)),
    "lrn and pool back": item("lrn_maxpool2d_dgrad", LrnMaxPool2d(LRN.of((2, 3, 9, 7)), POOL), relu=True),
}


@pytest.mark.parametrize("name", ITEMS)
def test_entries_do_the_items_work(session, name):
    """Bound to an item's memory, in both layouts, and compared with float64 as in a race."""
    one = ITEMS[name]
    memory = fresh.Memory(one)
    memory.draw()
    memory.refresh()
    found = peer.entries_in(one, session, np)
    assert len({c.name for c in found}) == len(found) and {c.library for c in found} == {"cuDNN"}
    assert {c.layout for c in found} == {"NCHW", "NHWC"}
    clock, settings = clocks.clock_for("cpu", 1), timing.Settings.quickly()
    trials = [trial.Trial(one, entry, memory, clock, settings) for entry in found]
    checks.check_whole(trials, memory, "before")
    refused = {t.name: t.refused for t in trials if t.refused}
    assert set(refused.values()) <= {
        "NotSupported: graph:eng7: no kernel for this",
        "NotSupported: graph:eng7+activation: no kernel for this",
        "NotSupported: graph:conv2d_dgrad_relu: No valid engine configs",
    }
    assert len(refused) < len(trials)
    for t in trials:
        if not t.refused:
            assert t.checks.before == "passed" and t.checks.deterministic and t.checks.error < 1e-5


def test_what_a_entry_tells(session):
    found = {c.name: c for c in peer.entries_in(ITEMS["fprop"], session, np)}
    plan = found["cudnn:graph:eng70{k2=1} NHWC"]
    assert plan.layout == "NHWC" and plan.marks == ()
    assert plan.facts["algorithm_flops"] < ITEMS["fprop"].flops, "it may be Winograd's"
    assert "algorithm_flops" not in found["cudnn:graph:eng0"].facts
    assert found["cudnn:graph:eng62{k2=6,k13=0}"].marks == ("heuristic",)
    assert found["cudnn:graph:eng62{k2=6,k13=0}"].facts["workspace_bytes"] == 4096
    assert found["cudnn:legacy:winograd_nonfused/default"].marks == ("heuristic",)
    assert "algorithm_flops" in found["cudnn:legacy:fft_tiling/fma"].facts
    assert "cudnn:legacy:*/tensor_op_allow_conversion" not in found, "nobody asked for it"

    pool = peer.entries_in(ITEMS["pool"], session, np)
    assert all(c.facts["lacks"] == ["argmax"] for c in pool)
    back = peer.entries_in(ITEMS["pool back"], session, np)
    assert all(c.facts["given"] == ["x", "y"] for c in back)


def test_a_entry_that_fails_is_out_and_the_others_go_on(session, other):
    settings = timing.Settings.quickly(rounds=2, pause_s=0)
    found = peer.entries_in(ITEMS["dgrad"], session, np)
    chosen = [c for c in found if c.name in ("cudnn:legacy:algo_1/fma", "cudnn:graph:eng0")]
    other.refuse("cudnnConvolutionBackwardData", EXECUTION_FAILED, algorithm=1, after=4)
    result = timing.race(ITEMS["dgrad"], chosen, clocks.clock_for("cpu", 1), settings)
    assert "CUDNN_STATUS_EXECUTION_FAILED" in result.refused["cudnn:legacy:algo_1/fma"]
    assert len(result.samples["cudnn:graph:eng0"]) == 2


def test_a_workspace_beyond_the_limit(session, monkeypatch):
    monkeypatch.setattr(peer, "WORKSPACE_LIMIT", 4000)
    (one,) = (
        c for c in peer.entries_in(ITEMS["fprop"], session, np) if c.name == "cudnn:graph:eng62{k2=6,k13=0}"
    )
    memory = fresh.Memory(ITEMS["fprop"])
    with pytest.raises(
        cudnn.NotSupported, match="needs 4096 bytes of workspace, more than the limit of 4000"
    ):
        one.bind(memory.inputs, memory.outputs)


@pytest.mark.parametrize("op", ["linear_fprop", "softmax_xent_fprop", "dropout_fprop", "reorder"])
def test_what_cudnn_is_not_asked(session, op):
    problem = SoftmaxXent.of((2, 4)) if op.startswith("softmax") else Elementwise((2, 4))
    with pytest.raises(peers.Missing, match="cuBLAS's work|but no loss|has no op like"):
        peer.entries_in(item(op, problem), session, np)


def test_a_machine_without_cudnn(monkeypatch, tmp_path):
    with pytest.raises(peers.Missing, match="needs a GPU"):
        peer.entries(ITEMS["relu"], "cpu")
    monkeypatch.setenv("CONVKIT_CUDNN", str(tmp_path))
    peer._session.cache_clear()
    with pytest.raises(peers.Missing, match="no libcudnn.so in"):
        peer.entries(ITEMS["relu"], "cuda")
    assert "no libcudnn.so in" in peers.gather(["cudnn"], "cuda").missing["cudnn"] or "cupy" in str(
        peers.gather(["cudnn"], "cuda").missing
    )


@given(st.data())
def test_an_image_from_its_argmax(data):
    window = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    g = Pool2d.of(
        (2, 2, data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9))), window=window,
        stride=data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=tuple(data.draw(st.integers(0, w - 1)) for w in window),
        ceil_mode=data.draw(st.booleans()), dtype=data.draw(st.sampled_from(["float32", "bfloat16"])),
    )  # fmt: skip
    options = {
        "window": window, "stride": (g.stride_h, g.stride_w), "ceil_mode": g.ceil_mode,
        "padding": (g.pad_top, g.pad_left),
    }  # fmt: skip
    x = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(g.shape("x")).astype(np.float32)
    _, argmax = ck.maxpool2d_fprop(x, **options)
    image, pooled = peer.image_of(g, argmax, np)
    assert image.dtype == pooled.dtype == ck.arrays.np_dtype(g.dtype)
    y, again = ck.maxpool2d_fprop(image.astype(np.float32), **options)
    np.testing.assert_array_equal(again, argmax)
    np.testing.assert_array_equal(y, pooled.astype(np.float32))


def test_an_argmax_that_contradicts_itself():
    """Two windows share their pixels, and each says that another one of them is the largest."""
    g = Pool2d.of((1, 1, 1, 3), window=(1, 2), stride=1)
    fine = np.array([[[[1, 0]]]], np.uint8)
    image, _ = peer.image_of(g, fine, np)
    assert image[0, 0, 0, 1] > image[0, 0, 0, 0]
    square = Pool2d.of((1, 1, 3, 4), window=(3, 3), stride=1, dtype="bfloat16")
    with pytest.raises(peers.Missing, match="none has its maxima where this argmax says"):
        peer.image_of(square, np.array([[[[1, 1]]]], np.uint8), np)


def test_chains_are_ops_of_convkit():
    assert set(chains.OPS) <= set(ck.op.OPS)
