"""What every CPU implementation owes besides right results, which are the gate's business.

What is particular to those of NumPy and Numba names them; test_native, test_conv_native, test_linear_native
and test_memory_native have what is particular to those in C++.
"""

import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from conftest import need

import convkit as ck
from convkit import arrays, layouts, registry
from convkit.cpu import blas, conv2d_im2col_gemm, jit, storage, threads
from convkit.dispatch import Arguments
from convkit.errors import NoImplementation, OptionError
from convkit.op import OPS
from convkit.ops import philox
from convkit.ops.avgpool2d import AvgPool2d
from convkit.ops.channel_sum import ChannelSum
from convkit.ops.conv2d import Conv2d
from convkit.ops.crop_images import CropImages
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.ops.loss_summary import LossSummary
from convkit.ops.lrn import LRN
from convkit.ops.lrn_maxpool2d import LrnMaxPool2d
from convkit.ops.maxpool2d import Pool2d
from convkit.ops.reorder import Reorder
from convkit.ops.softmax_xent import SoftmaxXent

need("numba")

CONV = Conv2d.of((3, 8, 30, 29), (12, 4, 3, 3), stride=(1, 2), padding=1, groups=2)
NORM = LRN.of((3, 16, 30, 40), k=2.0)
POOL = Pool2d.of((3, 16, 30, 40), padding=1, ceil_mode=True)
MEAN = AvgPool2d.of((3, 16, 30, 40), padding=1, ceil_mode=True, count_include_pad=False)
#: What narrow_groups, few_channels and pointwise take, and what Winograd takes; CONV is for the rest.
SHALLOW = Conv2d.of((3, 8, 30, 29), (8, 1, 3, 3), padding=1, groups=8)
COLOURS = Conv2d.of((3, 3, 30, 29), (13, 3, 5, 4), stride=2, padding=1)
PIXELS = Conv2d.of((3, 20, 19, 17), (36, 20, 1, 1))
MAPS = Conv2d.of((3, 20, 15, 14), (36, 20, 3, 3), padding=1)
NORM_POOL = LrnMaxPool2d(LRN.of((3, 24, 30, 40), k=2.0), Pool2d.of((3, 24, 30, 40)))
DENSE = Linear.of((7, 300), (400, 300))
FLAT = Elementwise((3, 16, 30, 41))
DROP = {"p": 0.4, "seed": 2**40 + 3, "offset": 2**33, "scale": 1.5}
SGD = {
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "dampening": 0.0,
    "nesterov": False,
    "lr_in_velocity": False,
}
#: op, a problem, options: every op once, every implementation, and what has a second path.
CASES = [
    *(
        (op, p, {})
        for op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
        for p in (SHALLOW, PIXELS, MAPS)
    ),
    ("conv2d_dgrad_relu", CONV, {}),
    ("conv2d_dgrad_relu", PIXELS, {}),
    ("conv2d_dgrad_relu", SHALLOW, {}),
    ("conv2d_dgrad_relu", MAPS, {}),
    ("reorder", Reorder(3, 20, 15, 14), {}),
    ("reorder", Reorder(3, 20, 15, 14, "bfloat16/float32"), {}),
    ("crop_images", CropImages(5, 40, 37, 3, 33, "image", reverse=True), {}),
    ("crop_images", CropImages(7, 28, 28, 1, 28, "crop"), {}),
    ("lrn_maxpool2d_fprop", NORM_POOL, {}),
    ("lrn_maxpool2d_dgrad", NORM_POOL, {"relu": True}),
    ("linear_wgrad_sgd", DENSE, SGD),
    ("linear_dgrad_wgrad_sgd", DENSE, {**SGD, "relu": True}),
    ("conv2d_fprop", CONV, {"relu": True}),
    ("conv2d_dgrad", CONV, {}),
    ("conv2d_wgrad", CONV, {}),
    ("conv2d_wgrad", COLOURS, {}),
    ("conv2d_bgrad", ChannelSum.of((3, 40, 30, 40), 4), {}),
    ("relu_fprop", FLAT, {}),
    ("relu_dgrad", FLAT, {}),
    ("lrn_fprop", NORM, {}),
    ("lrn_dgrad", NORM, {}),
    ("lrn_fprop", LRN.of((3, 16, 30, 40), beta=0.6), {}),
    ("lrn_dgrad", LRN.of((3, 16, 30, 40), beta=0.6, region="within_channel"), {}),
    ("maxpool2d_fprop", POOL, {}),
    ("maxpool2d_dgrad", POOL, {}),
    ("avgpool2d_fprop", MEAN, {}),
    ("avgpool2d_dgrad", MEAN, {}),
    ("linear_fprop", DENSE, {"relu": True}),
    ("linear_dgrad", DENSE, {}),
    ("linear_wgrad", DENSE, {}),
    ("linear_wgrad", Linear.of((1, 300), (400, 300)), {}),
    ("linear_bgrad", ChannelSum.of((50, 400), 2), {}),
    ("dropout_fprop", FLAT, DROP),
    ("dropout_dgrad", FLAT, DROP),
    ("softmax_xent_fprop", SoftmaxXent(40, 300), {}),
    ("softmax_xent_dgrad", SoftmaxXent(40, 300), {}),
    ("label_rank", SoftmaxXent(40, 300), {}),
    ("loss_summary", LossSummary(1000), {}),
    ("rescale", FLAT, {"inverse": True}),
    ("sgd_momentum", FLAT, SGD),
]
#: Without a cast no implementation but the reference takes users' arrays.
BLOCKED_ONLY = {"reorder"}
IDS = [f"{i}-{op}" for i, (op, _, _) in enumerate(CASES)]


def ours(op, problem):
    """The implementations of this package that take the problem, in every layout, but for the reference."""
    return [
        i
        for i in registry.implementations(op, device="cpu", layout=None)
        if i.name != "reference"
        and i.run.__module__.startswith("convkit.cpu.")
        and i.refusal(problem) is None
    ]


def inputs_of(op, problem, seed=0):
    """NCHW; argmax as a forward pass leaves it."""
    rng = np.random.default_rng(seed)
    found = []
    for name in registry.OPS[op].inputs:
        shape, dtype = problem.shape(name), arrays.np_dtype(problem.dtype_of(name))
        if name == "argmax":
            pool = problem.pool if isinstance(problem, LrnMaxPool2d) else problem
            argmax = np.empty(shape, dtype)
            OPS["maxpool2d_fprop"].define(pool, rng.standard_normal(pool.shape("x")), np.empty(shape), argmax)
            found.append(argmax)
        elif name == "labels":
            found.append(rng.integers(0, problem.K, shape))
        else:
            found.append(rng.standard_normal(shape).astype(dtype))
    return found


def outputs_of(op, problem, layout="NCHW"):
    found = []
    for name in registry.OPS[op].outputs:
        shape = layouts.of(layout, name).physical(problem.shape(name))
        output = arrays.empty(shape, problem.dtype_of(name))
        output.fill(np.nan if output.dtype.kind not in "iu" else 255)
        found.append(output)
    return found


def memory_of(implementation, inputs):
    """The inputs in the implementation's layout."""
    names = registry.OPS[implementation.op].inputs
    return [
        row.packed(a) if (row := layouts.of(implementation.layout, name)).axes else a
        for name, a in zip(names, inputs, strict=True)
    ]


def options_of(implementation, problem, options):
    if implementation.workspace is None:
        return options
    return {**options, "workspace": arrays.empty((implementation.workspace(problem),), "uint8")}


def bits(implementation, problem, inputs, options):
    outputs = outputs_of(implementation.op, problem, implementation.layout)
    inputs = memory_of(implementation, inputs)
    implementation.run(problem, *inputs, *outputs, **options_of(implementation, problem, options))
    return [output.tobytes() for output in outputs]


def all_bits():
    """Those of every implementation, in every case."""
    return [
        (
            implementation.op,
            implementation.label,
            bits(implementation, problem, inputs_of(op, problem), options),
        )
        for op, problem, options in CASES
        for implementation in ours(op, problem)
    ]


def test_the_cases_leave_no_implementation_out():
    """Except one that this machine lacks something for."""
    seen = {(i.op, i.label) for op, problem, _ in CASES for i in ours(op, problem)}
    shipped = [
        i
        for i in registry.implementations(device="cpu", layout=None)
        if i.name != "reference" and i.run.__module__.startswith("convkit.cpu.")
    ]
    assert {(i.op, i.label) for i in shipped if i.missing is None or i.missing() is None} == seen


# ---------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def eager(monkeypatch):
    """Threads are woken for the smallest work."""
    monkeypatch.setattr(threads, "WORTH_WAKING", 1)
    monkeypatch.setenv(threads.VARIABLE, "3")


@pytest.mark.parametrize(("op", "problem", "options"), CASES, ids=IDS)
def test_same_bits_for_any_number_of_threads(op, problem, options, eager, monkeypatch):
    inputs = inputs_of(op, problem)
    assert ours(op, problem)
    for implementation in ours(op, problem):
        results = []
        for count in ("1", "2", "5"):
            monkeypatch.setenv(threads.VARIABLE, count)
            results.append(bits(implementation, problem, inputs, options))
        assert results[0] == results[1] == results[2], implementation.label


@pytest.mark.parametrize("units", [1, 2, 7, 100])
def test_split_covers_every_unit_once(units, eager):
    done = np.zeros(units, int)

    def run(start, stop):
        done[start:stop] += 1

    threads.split(run, units, 1e9)
    assert (done == 1).all()


def test_split_passes_an_error_on(eager):
    def run(start, stop):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.split(run, 100, 1e9)


def test_split_inside_split_does_not_wait_for_itself(eager):
    done = np.zeros((20, 20), int)

    def outer(start, stop):
        for i in range(start, stop):
            threads.split(lambda a, b, i=i: done[i].__setitem__(slice(a, b), 1), 20, 1e9)

    worker = threading.Thread(target=threads.split, args=(outer, 20, 1e9), daemon=True)
    worker.start()
    worker.join(60)
    assert not worker.is_alive()
    assert done.all()


def test_several_python_threads_get_the_same_bits(eager):
    expected = all_bits()
    wrong = []

    def caller():
        try:
            wrong.extend(a[:2] for a, b in zip(all_bits(), expected, strict=True) if a != b)
        except Exception as error:
            wrong.append(error)

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes(eager):
    expected = all_bits()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for threads which it has not got is ended by this
        try:
            os._exit(0 if all_bits() == expected else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_bits_and_blas_do_not_depend_on_the_calling_thread():
    """threadpoolctl heeds one thread at a time: the first one here must not be that one for good."""
    import threadpoolctl

    def blas_threads():
        # NumPy's alone: SciPy brings one of its own, which may be loaded at any time.
        found = [m for m in threadpoolctl.threadpool_info() if m["user_api"] == "blas"]
        return [m["num_threads"] for m in found if "numpy" in m["filepath"]] or [found[0]["num_threads"]]

    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 64, 20, 20), np.float32), rng.standard_normal((96, 64, 3, 3), np.float32)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        expected = ck.conv2d_fprop(x, w, impl="im2col_gemm").tobytes()
        results, stop = [], threading.Event()

        def other():
            while not stop.is_set():
                results.append(ck.conv2d_fprop(x, w, impl="im2col_gemm").tobytes())

        threads = [threading.Thread(target=other) for _ in range(2)]
        for thread in threads:
            thread.start()
        results += [ck.conv2d_fprop(x, w, impl="im2col_gemm").tobytes() for _ in range(20)]
        stop.set()
        for thread in threads:
            thread.join()
        assert set(results) == {expected}
        assert blas_threads() == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer")
def test_ctrl_c_at_any_moment_leaves_the_pool_whole():
    """In a child, which is ended if it hangs: 600 interrupts at random moments.

    This is the pool of the Numba implementations; that of the C++ ones is in test_native.
    """
    code = """if True:
        import random, signal
        import numpy as np, convkit as ck
        x = np.ones((8, 16, 40, 40), np.float32)
        expected = ck.lrn_fprop(x, impl="window").tobytes()
        def interrupt(*_):
            global waiting
            waiting = False
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        random.seed(1)
        interrupts = 0
        while interrupts < 600:
            try:
                waiting = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 4e-3))
                while waiting:  # an exception within a destructor is lost
                    ck.lrn_fprop(x, impl="window")
            except KeyboardInterrupt:
                interrupts += 1
        assert ck.lrn_fprop(x, impl="window").tobytes() == expected
        print(interrupts)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "600\n", done.stderr


def test_blas_keeps_to_the_threads_it_is_given():
    """Products have the same bits whatever BLAS's own setting is, and the setting comes back."""
    import threadpoolctl

    def blas_threads():
        # NumPy's alone: SciPy brings one of its own, which may be loaded at any time.
        found = [m for m in threadpoolctl.threadpool_info() if m["user_api"] == "blas"]
        return [m["num_threads"] for m in found if "numpy" in m["filepath"]] or [found[0]["num_threads"]]

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((700, 300), (900, 300)))
    results = []
    for count in (1, 2):
        with threadpoolctl.threadpool_limits(count, user_api="blas"):
            before = blas_threads()
            results.append(ck.linear_fprop(x, w, impl="gemm"))
            assert blas_threads() == before
            with blas.one_thread(), blas.one_thread():
                assert set(blas_threads()) == {1}
            assert blas_threads() == before
    assert np.array_equal(*results)
    np.testing.assert_allclose(results[0], x @ w.T, rtol=1e-4, atol=1e-4)


def test_the_number_of_threads(monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "3")
    assert threads.count() == 3
    monkeypatch.delenv(threads.VARIABLE)
    assert threads.count() >= 1
    if hasattr(os, "sched_getaffinity"):
        assert threads.count() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999", "²"])
def test_a_number_of_threads_that_is_none(value, monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, value)
    problem = Elementwise((3, 4))
    assert "maximum" in {i.name for i in ours("relu_fprop", problem)}
    for implementation in ours("relu_fprop", problem):
        with pytest.raises(OptionError, match="CONVKIT_NUM_THREADS"):
            ck.relu_fprop(np.ones((3, 4), np.float32), impl=implementation.name)


# ---------------------------------------------------------------------------------------------------
# Numba
# ---------------------------------------------------------------------------------------------------
def test_a_look_at_the_registry_does_not_import_numba():
    code = """if True:
        import sys, convkit
        from convkit.cpu import jit
        assert convkit.implementations() and jit.missing() is None
        assert "numba" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def no_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(jit, "_broken", None)
    jit._absent.cache_clear()
    yield
    jit._absent.cache_clear()


def test_without_numba_dispatch_falls_back(no_numba):
    candidates = {i.name: i for i in registry.implementations("lrn_fprop", device="cpu")}
    assert candidates["window"].refusal(NORM) == "numba is not installed"
    x = np.ones((1, 4, 3, 3), np.float32)
    with ck.use(max_error=0.0):  # the C++ kernels declare more: as where there are none
        assert registry.select("lrn_fprop", LRN.of(x.shape)).name == "reference"
        assert np.isfinite(ck.lrn_fprop(x)).all()
    within = {"region": "within_channel"}  # which no C++ kernel takes
    assert registry.select("lrn_fprop", LRN.of(x.shape, **within)).name == "reference"
    assert np.isfinite(ck.lrn_fprop(x, **within)).all()
    with pytest.raises(NoImplementation, match="window: numba is not installed"):
        ck.lrn_fprop(x, impl="window")


def test_products_do_not_need_numba(no_numba):
    candidates = {i.name: i for i in registry.implementations("linear_fprop", device="cpu")}
    assert candidates["gemm"].refusal(DENSE) is None


def test_a_numba_that_cannot_be_imported_is_passed_over(no_numba):
    with pytest.raises(NoImplementation, match="cannot be imported"):
        jit.Kernel(lambda x: None)(1)
    assert "cannot be imported" in (jit.missing() or "")


def test_without_a_folder_for_the_cache():
    space = {}
    exec("def double(x, start, stop):\n    for i in range(start, stop):\n        x[i] *= 2", space)
    x = np.ones(3)  # Numba finds no place beside "<string>", and raises where cache=True
    jit.Kernel(space["double"])(x, 0, 2)
    np.testing.assert_array_equal(x, [2, 2, 1])


# ---------------------------------------------------------------------------------------------------
# Memory and storage
# ---------------------------------------------------------------------------------------------------
BIG = [
    ("conv2d_fprop", Conv2d.of((6, 32, 40, 40), (32, 32, 3, 3), padding=1), {"relu": True}),
    ("conv2d_dgrad", Conv2d.of((6, 32, 40, 40), (32, 32, 3, 3), padding=1), {}),
    ("conv2d_wgrad", Conv2d.of((6, 32, 40, 40), (32, 32, 3, 3), padding=1), {}),
    ("conv2d_fprop", Conv2d.of((64, 64, 13, 13), (64, 32, 3, 3), groups=2), {}),
    ("conv2d_dgrad", Conv2d.of((64, 64, 13, 13), (64, 32, 3, 3), groups=2), {}),
    ("conv2d_wgrad", Conv2d.of((64, 64, 13, 13), (64, 32, 3, 3), groups=2), {}),
    ("conv2d_fprop", Conv2d.of((6, 32, 40, 40), (32, 32, 1, 1)), {}),
    ("conv2d_dgrad", Conv2d.of((6, 32, 40, 40), (32, 32, 1, 1)), {}),
    ("conv2d_wgrad", Conv2d.of((6, 32, 40, 40), (32, 32, 1, 1)), {}),
    ("conv2d_bgrad", ChannelSum.of((16, 64, 40, 40), 4), {}),
    ("relu_fprop", Elementwise((1000, 1001)), {}),
    ("relu_dgrad", Elementwise((1000, 1001)), {}),
    ("lrn_fprop", LRN.of((8, 64, 40, 40)), {}),
    ("lrn_dgrad", LRN.of((8, 64, 40, 40)), {}),
    ("maxpool2d_fprop", Pool2d.of((16, 64, 40, 40)), {}),
    ("maxpool2d_dgrad", Pool2d.of((16, 64, 40, 40)), {}),
    ("lrn_maxpool2d_fprop", LrnMaxPool2d(LRN.of((8, 64, 40, 40)), Pool2d.of((8, 64, 40, 40))), {}),
    (
        "lrn_maxpool2d_dgrad",
        LrnMaxPool2d(LRN.of((8, 64, 40, 40)), Pool2d.of((8, 64, 40, 40))),
        {"relu": True},
    ),
    ("conv2d_dgrad_relu", Conv2d.of((6, 32, 40, 40), (32, 32, 3, 3), padding=1), {}),
    ("reorder", Reorder(16, 64, 40, 40), {}),
    ("crop_images", CropImages(10, 256, 256, 3, 224, "image"), {}),
    ("linear_wgrad_sgd", Linear.of((500, 1000), (1000, 1000)), SGD),
    ("linear_dgrad_wgrad_sgd", Linear.of((500, 1000), (1000, 1000)), {**SGD, "relu": True}),
    ("linear_fprop", Linear.of((500, 1000), (1000, 1000)), {"relu": True}),
    ("linear_dgrad", Linear.of((500, 1000), (1000, 1000)), {}),
    ("linear_wgrad", Linear.of((500, 1000), (1000, 1000)), {}),
    ("linear_bgrad", ChannelSum.of((1000, 1000), 2), {}),
    ("dropout_fprop", Elementwise((1000, 1001)), DROP),
    ("softmax_xent_fprop", SoftmaxXent(1000, 1000), {}),
    ("softmax_xent_dgrad", SoftmaxXent(1000, 1000), {}),
    ("label_rank", SoftmaxXent(1000, 1000), {}),
    ("loss_summary", LossSummary(1_000_000), {}),
    ("sgd_momentum", Elementwise((1000, 1001)), SGD),
]


@pytest.mark.parametrize(("op", "problem", "options"), BIG, ids=[f"{i}-{c[0]}" for i, c in enumerate(BIG)])
def test_run_allocates_next_to_nothing(op, problem, options):
    assert ours(op, problem)
    given_inputs = inputs_of(op, problem)
    for implementation in ours(op, problem):
        inputs = memory_of(implementation, given_inputs)
        outputs = outputs_of(op, problem, implementation.layout)
        given = options_of(implementation, problem, options)
        implementation.run(problem, *inputs, *outputs, **given)  # compiles, and wakes threads
        tracemalloc.start()
        try:
            implementation.run(problem, *inputs, *outputs, **given)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 300_000, (
            implementation.label
        )  # the tensors have 2 MB and more; NumPy takes 200 KB to add float32 in float64


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_storage_is_rounded_once(dtype):
    narrow = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype(narrow) for s in ((2, 6, 9, 9), (4, 6, 3, 3), (4,)))
    found = ours("conv2d_fprop", Conv2d.of(x.shape, w.shape, dtype=dtype))
    names = [i.name for i in found if layouts.same(i.layout, "NCHW")]
    assert "im2col_gemm" in names
    for impl in names:
        wide = ck.conv2d_fprop(*(a.astype(np.float32) for a in (x, w, b)), relu=True, impl=impl)
        y = ck.conv2d_fprop(x, w, b, relu=True, impl=impl)
        assert y.dtype == narrow
        assert y.tobytes() == wide.astype(narrow).tobytes(), impl


@pytest.mark.parametrize(("op", "problem", "options"), CASES, ids=IDS)
def test_unaligned_arrays(op, problem, options):
    """One byte off what their dtype asks for, as in a packed file: dispatch copies them."""

    def off(array):
        raw = np.zeros(array.nbytes + 1, np.uint8)
        moved = raw[1:].view(array.dtype).reshape(array.shape)
        moved[...] = array
        assert moved.dtype.itemsize == 1 or not moved.flags.aligned
        return moved

    names = dict(zip(registry.OPS[op].inputs, inputs_of(op, problem), strict=True))
    implementations = [i for i in ours(op, problem) if layouts.same(i.layout, "NCHW")]
    assert implementations or op in BLOCKED_ONLY
    for implementation in implementations:
        expected = Arguments(op, **names).run(problem, impl=implementation.name, **options)
        out = [off(a) for a in outputs_of(op, problem)]
        Arguments(op, **{n: off(a) for n, a in names.items()}).run(
            problem, impl=implementation.name, out=out[0] if len(out) == 1 else tuple(out), **options
        )
        for got, wanted in zip(out, [expected] if len(out) == 1 else expected, strict=True):
            np.testing.assert_array_equal(got, wanted, implementation.name)


def test_an_input_cannot_be_written(monkeypatch):
    written = []

    def run(problem, x, y):
        try:
            x[0] = 1
        except ValueError:
            written.append(False)

    added = []
    monkeypatch.setattr(storage, "add", added.append)
    storage.accelerates("relu_fprop", name="naughty")(run)
    for dtype in registry.ALL_DTYPES:
        x = np.zeros(3, arrays.np_dtype(dtype))
        added[0].run(Elementwise((3,), dtype), x, x.copy())
        assert x.flags.writeable
    assert written == [False] * 4


# ---------------------------------------------------------------------------------------------------
# Paths that depend on size
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("columns", [1, 7, 60, 100_000])
@pytest.mark.parametrize(
    "problem",
    [
        Conv2d.of(
            (5, 6, 9, 8), (4, 3, 3, 2), padding=((1, 0), (2, 1)), stride=(2, 1), groups=2, dtype="float64"
        ),
        Conv2d.of((5, 6, 9, 8), (4, 6, 3, 3), padding=2, dilation=2),
        Conv2d.of((5, 6, 9, 8), (4, 6, 1, 1)),
        Conv2d.of((5, 6, 1, 1), (4, 6, 1, 1)),
    ],
    ids=str,
)
def test_convolution_in_tiles_of_any_width(columns, problem, monkeypatch):
    monkeypatch.setattr(conv2d_im2col_gemm, "COLUMNS", columns)
    problem = replace(problem, dtype="float64")
    for op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"):
        found = {i.name: i for i in registry.implementations(op, device="cpu")}
        inputs = inputs_of(op, problem)
        y, expected = outputs_of(op, problem), outputs_of(op, problem)
        implementation = found["im2col_gemm"]
        implementation.run(problem, *inputs, *y, **options_of(implementation, problem, {}))
        found["reference"].run(problem, *inputs, *expected)
        np.testing.assert_allclose(y[0], expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 4095, 4097, 9001])
def test_dropout_drops_what_philox_says(size):
    x = np.ones(size, np.float32)
    dropped = ck.dropout_fprop(x, p=0.3, seed=2**63 + 11, offset=2**32 - 5, impl="philox") == 0
    np.testing.assert_array_equal(dropped, philox.dropped(size, 0.3, 2**63 + 11, 2**32 - 5))


@pytest.mark.parametrize("which", [0, 1])
def test_relu_dgrad_in_place(which):
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(10_001).astype(np.float32) for _ in range(2)]
    expected = ck.relu_dgrad(*given, impl="reference")
    ck.relu_dgrad(*given, impl="loop", out=given[which])
    np.testing.assert_array_equal(given[which], expected)


def test_sgd_in_place():
    rng = np.random.default_rng(0)
    w, dw, v = (rng.standard_normal(10_001).astype(np.float32) for _ in range(3))
    apart = ck.sgd_momentum(w, dw, v, lr=0.1, weight_decay=0.1, impl="one_pass")
    ck.sgd_momentum(w, dw, v, lr=0.1, weight_decay=0.1, impl="one_pass", out=(w, v))
    np.testing.assert_array_equal(w, apart[0])
    np.testing.assert_array_equal(v, apart[1])
