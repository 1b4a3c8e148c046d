"""Prepared launches: made once for a problem and an executor, bounded, thread-safe, made anew when needed."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
from calls import call_of

import convkit as ck
from convkit import devices, registry
from convkit.cuda import launch
from convkit.cuda import prepare as prepared
from convkit.cuda.launch import Kept
from convkit.cuda.null import nulled
from convkit.op import OPS
from convkit.ops.elementwise import Elementwise
from convkit.registry import Implementation

X = np.random.default_rng(0).standard_normal((2, 4, 9, 7), np.float32)

SCALED = """// /// kernel
// op = "relu_fprop"
// tile = {{ THREADS = {threads} }}
// geometry = "{geometry}"
// grid = ["ceil_div(size, THREADS)"]
// block = ["THREADS"]
// rank = -90
// ///
extern "C" __global__ void relu_fprop_scaled(GEOMETRY(Elementwise), const float* x, float* y) {{
    const long long i = blockIdx.x * THREADS + threadIdx.x;
    if (i < g.size) y[i] = {scale}.0f * x[i];
}}
"""


@pytest.fixture(autouse=True)
def registry_as_before():
    ck.implementations()
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


@pytest.fixture
def scaled(tmp_path):
    """Registers a kernel file under one name, whatever is in it."""

    def register(threads=64, scale=2, geometry="argument"):
        path = tmp_path / "relu_fprop_scaled.cu"
        path.write_text(SCALED.format(threads=threads, scale=scale, geometry=geometry))
        return ck.register(path)[0]

    return register


class Seen:
    """In the place of CuPy's functions: keeps what it is launched with."""

    def __init__(self):
        self.launches = []

    def __call__(self, grid, block, arguments, shared):
        self.launches.append((grid, block, arguments, shared))


def recorded(op=ck.relu_fprop, *inputs, **options):
    """One call of an op on X, bound to memory of its own."""
    inputs = inputs or (X,)
    with nulled():
        return call_of(lambda: op(*inputs, **options))


# ---------------------------------------------------------------------------------------------------
# Once, and bounded
# ---------------------------------------------------------------------------------------------------
def test_a_launch_is_prepared_once_for_a_problem():
    with nulled() as executor:
        for _ in range(3):
            ck.relu_fprop(X)
        assert len(executor.prepared) == 1
        ck.relu_fprop(X[:1])
        assert len(executor.prepared) == 2 and len(executor._functions) == 1  # one source for both
        prepare = registry.select("relu_fprop", Elementwise((3,)), device="cuda").prepare
        assert prepare(Elementwise((5,))) is prepare(Elementwise((5,)))


def test_what_is_kept_is_bounded(scaled, monkeypatch):
    """Also where each problem has machine code of its own: it goes with its prepared launch."""
    monkeypatch.setattr(launch, "KEPT", 4)
    scaled(geometry="constexpr")
    with nulled() as executor:
        for size in range(1, 13):
            ck.relu_fprop(np.zeros(size, np.float32), impl="scaled")
        gc.collect()
        assert len(executor.prepared) == 4 and len(executor._functions) == 4
        mine = recorded(impl="scaled", out=np.empty_like(X))
        mine.run()
        for size in range(1, 13):
            ck.relu_fprop(np.zeros(size, np.float32), impl="scaled")
        gc.collect()
        assert len(executor._functions) == 5  # a call keeps what it has prepared


def test_the_last_ones_are_kept():
    kept, made = Kept(2), []

    def value(key):
        return kept.get(key, lambda: made.append(key) or key)

    assert [value(key) for key in "abacab"] == list("abacab")
    assert made == ["a", "b", "c", "b"] and len(kept) == 2


# ---------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------
def test_several_threads_make_a_value_once():
    kept, made, together = Kept(8), [], threading.Barrier(2)

    def make():
        made.append(1)
        try:
            together.wait(timeout=0.2)  # which another thread that makes it would come to
        except threading.BrokenBarrierError:
            pass
        return object()

    found = []
    threads = [threading.Thread(target=lambda: found.append(kept.get("key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 4 and len(set(map(id, found))) == 1


def test_a_value_that_takes_long_holds_up_no_other():
    kept, begun, end = Kept(8), threading.Event(), threading.Event()
    kept.get("ready", lambda: 1)

    def slowly():
        begun.set()
        assert end.wait(60)
        return 2

    slow = threading.Thread(target=lambda: kept.get("slow", slowly))
    slow.start()
    try:
        assert begun.wait(60)
        found = []
        quick = threading.Thread(target=lambda: found.extend([kept.get("ready", int), kept.get("new", int)]))
        quick.start()
        quick.join(60)
        assert found == [1, 0]
    finally:
        end.set()
        slow.join()
    assert kept.get("slow", int) == 2


def test_a_failure_is_not_kept():
    kept = Kept(8)
    with pytest.raises(ZeroDivisionError):
        kept.get("key", lambda: 1 // 0)
    assert kept.get("key", lambda: 3) == 3


def test_threads_that_share_a_call_have_each_their_own_executor():
    call, seen = recorded(out=np.empty_like(X)), [Seen() for _ in range(4)]
    start = threading.Barrier(len(seen))

    def run(mine):
        with nulled(mine):
            start.wait()
            for _ in range(200):
                call.run()

    threads = [threading.Thread(target=run, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(mine.launches) for mine in seen] == [200] * len(seen)


# ---------------------------------------------------------------------------------------------------
# Made anew
# ---------------------------------------------------------------------------------------------------
def test_a_call_follows_the_executor():
    call, first, second = recorded(out=np.empty_like(X)), Seen(), Seen()
    with nulled(first):
        call.run()
        with nulled(second):
            call.run()
        call.run()
    assert (len(first.launches), len(second.launches)) == (2, 1)


def test_a_call_follows_the_emulator(compiler):
    out = np.zeros_like(X)
    call = recorded(out=out)
    for options in ({}, {"seed": 1}, {"check": True}):
        out.fill(-1)
        with nulled():
            call.run()
        assert (out == -1).all()
        with ck.emulate(**options) as emulator:
            call.run()
            assert len(emulator.prepared) == 1
        np.testing.assert_array_equal(out, np.maximum(X, 0))


def test_each_device_has_its_own(cuda, monkeypatch):
    """Machine code of the device that the arrays are on, whichever is current."""
    monkeypatch.setattr(cuda, "cached_cubin", lambda *_, **__: b"machine code")
    launched = []
    monkeypatch.setattr(
        fake_cupy.Function, "__call__", lambda self, *given, **_: launched.append(self.module.device)
    )
    arrays = []
    for device in (0, 1):
        with cuda.cupy.cuda.Device(device):
            arrays.append(cuda.cupy.asarray(X))
    calls = [call_of(lambda x=x: ck.relu_fprop(x, out=x)) for x in arrays]
    launched.clear()
    for number in (0, 1, 0, 1):
        ck.relu_fprop(arrays[number])
        calls[number].run()
    assert launched == [0, 0, 1, 1] * 2
    for device in (0, 1):
        with cuda.cupy.cuda.Device(device):
            assert len(cuda.executor().prepared) == 1


def test_a_kernel_that_is_registered_anew_is_the_one_that_runs(scaled):
    seen = Seen()
    scaled(threads=64)
    call = recorded(impl="scaled", out=np.empty_like(X))
    with nulled(seen):
        ck.relu_fprop(X, impl="scaled"), call.run()
        again = scaled(threads=32)
        ck.relu_fprop(X, impl="scaled"), call.run()
        call.implementation = again
        call.run()
    assert [block[0] for _, block, _, _ in seen.launches] == [64, 64, 32, 64, 32]


def test_its_machine_code_is_new_too(scaled, compiler):
    with ck.emulate():
        for scale in (2, 3):
            scaled(scale=scale)
            np.testing.assert_array_equal(ck.relu_fprop(X, impl="scaled"), scale * X)


# ---------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------
def test_a_launch_works_nothing_out(monkeypatch):
    """What depends on problem and executor is there already: source, expressions, struct, function."""
    seen, out = Seen(), np.empty_like(X)
    call = recorded(out=out)

    def refuse(*_, **__):
        raise AssertionError("worked out again")

    with nulled(seen) as executor:
        run = call.bare()
        for where, name in (
            (prepared, "translation_unit"), (prepared.expressions, "evaluate"), (Elementwise, "scalars"),
            (Elementwise, "struct"), (executor, "function"), (executor.prepared, "get"),
        ):  # fmt: skip
            monkeypatch.setattr(where, name, refuse)
        call.run()
        monkeypatch.setattr(devices, "current", refuse)
        run()
    assert len(seen.launches) == 2 and seen.launches[0][:2] == seen.launches[1][:2]
    assert seen.launches[1][2][2] is out


def test_a_bare_call_sees_the_options_as_they_are():
    seen, w = Seen(), X[0].copy()
    call = recorded(ck.sgd_momentum, w, w, w.copy(), lr=0.5, out=(w, w.copy()))
    with nulled(seen):
        run = call.bare()
        for lr in (0.5, 0.25):
            call.options["lr"] = lr
            run()
    at = 1 + 3 + 2 + list(OPS["sgd_momentum"].options).index("lr")
    rates = [arguments[at] for _, _, arguments, _ in seen.launches]
    assert rates == [0.5, 0.25] and all(isinstance(rate, np.float32) for rate in rates)


def test_scratch_memory_is_the_plans_or_the_calls_own():
    seen, dy = Seen(), np.zeros((8, 4, 9, 7), np.float32)
    call = recorded(ck.conv2d_bgrad, dy, out=np.empty(4, np.float32))
    size = call.workspace_bytes
    planned = np.empty(size, np.uint8)
    with nulled(seen):
        call.run()
        call.options["workspace"] = planned
        call.run()
    own, other = seen.launches[0][2][-1], seen.launches[-1][2][-1]
    assert own.dtype == np.uint8 and own.size == size and other is planned
    assert len({id(launch[2]) for launch in seen.launches}) == 2  # the two launches of a file share a tuple


def test_an_empty_batch_launches_nothing_and_is_zero():
    seen, db = Seen(), np.ones(4, np.float32)
    call = recorded(ck.conv2d_bgrad, X[:0], out=db)
    with nulled(seen):
        call.bare()()
    assert not seen.launches and not db.any()


def test_a_number_of_tensors_that_does_not_fit_is_refused():
    with nulled():
        launch = registry.select("relu_fprop", Elementwise((3,)), device="cuda").prepare(Elementwise((3,)))
        with pytest.raises(TypeError, match="2 tensors are needed, not 1"):
            launch(np.zeros(3, np.float32))


def prepared_relu(scale=1):
    """A CPU implementation that prepares; and for which problems it did."""
    problems = []

    def prepare(problem):
        problems.append(problem)
        return lambda x, y: np.multiply(np.maximum(x, 0), np.float32(scale), out=y)

    def run(problem, x, y):
        np.maximum(x, 0, out=y)

    return Implementation("relu_fprop", "prepared", run, rank=1000, prepare=prepare), problems


def test_an_implementation_of_any_device_may_prepare():
    implementation, problems = prepared_relu()
    out = np.empty_like(X)
    call = replace(call_of(lambda: ck.relu_fprop(X, out=out)), implementation=implementation)
    for _ in range(3):
        out.fill(7)
        call.run()
        np.testing.assert_array_equal(out, np.maximum(X, 0))
    assert len(problems) == 1
    replace(call, outputs=(out.copy(),)).run()
    assert len(problems) == 2  # a copy has nothing of the first one's


def test_the_gate_judges_what_is_prepared():
    """Not `run`, which nobody calls then."""
    from convkit import check

    good, bad = (check.check_these([prepared_relu(scale)[0]], quick=True, random=0) for scale in (1, 2))
    assert good and all(v.ok for v in good)
    assert any(not v.ok for v in bad)
