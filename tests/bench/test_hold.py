"""Times of a GPU alone, on a stand-in for CuPy and a simulated clock: streams that are held back."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
import simulated
from conftest import need

from convkit.bench import steps, work
from convkit.bench.measure import clocks, hold, own, timing, trial, whole
from convkit.bench.measure.timing import Entry, Settings
from convkit.cuda import nvrtc
from convkit.ops.elementwise import Elementwise

ITEM = work.Item("hold/relu_fprop", "relu_fprop", Elementwise((128, 1024)))
SETTINGS = Settings(rounds=6, turn_s=0, pause_s=0, gate=False)


@pytest.fixture
def seconds(monkeypatch):
    """The stand-in and the bench on one simulated clock, which only calls and waits move."""
    made = simulated.Clock()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.module())
    monkeypatch.setattr(fake_cupy, "simulated", made.seconds)
    for module, name, value in (
        (clocks, "independent", made.now),
        (trial, "independent", made.now),
        (trial, "_sleep", made.sleep),
        (timing, "_sleep", made.sleep),
        (clocks, "CUDA_FLUSH", 4096),
        (clocks, "Persisting", NoLimits),
    ):
        monkeypatch.setattr(module, name, value)
    return made


class NoLimits:
    """Of L2: nothing is set aside; what gives lines back may wait for the device."""

    def reset(self) -> None:
        sys.modules["cupy"].cuda.runtime.deviceSynchronize()

    def set_aside(self) -> int:
        return 0

    def forbid(self) -> None:
        pass


class Quick(clocks.CudaClock):
    def probe(self):
        return {"fma": 1e9, "copy": 1e9}

    def ceilings(self, repeats=1):
        return {}


def launches(clock, host, device=20e-6, count=3):
    """A call of some launches, each of which takes the host and the device so many seconds."""

    def run() -> None:
        for _ in range(count):
            clock.work(host)
            fake_cupy.queue(device)

    return run


def waits(clock, host=1e-4, device=3e-3):
    """A call that returns when its work is done, as JAX's `block_until_ready` does."""
    run = launches(clock, host, device, 1)

    def blocking() -> None:
        run()
        fake_cupy.current_stream().synchronize()

    return blocking


def ends() -> list[str]:
    """How the streams were held since the clock was made, which loads the kernel and tries it."""
    return [how for _, how in fake_cupy.holds[2:]]


# ---------------------------------------------------------------------------------------------------
# The clock
# ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("host", [1e-6, 1e-3, 5e-3])
def test_a_slow_host_does_not_change_the_time_of_the_device(host, cold, seconds):
    clock = clocks.CudaClock()
    if cold:
        clock.cold()
    assert clock.time(launches(seconds, host)) == pytest.approx(0.060, abs=1e-4)
    assert clock.held and not clock.early and ends() == ["let go"]
    assert clock.host_us == pytest.approx(3e6 * host, abs=20)
    assert abs(clock.gap_ms) < 0.02


@pytest.mark.parametrize("host", [9e-3, 40e-3])
def test_a_hold_that_is_too_short_is_repeated_with_a_longer_one(host, seconds):
    clock, again = clocks.CudaClock(), []
    run = launches(seconds, host)
    clock.cold()
    ms = clock.time(run, again=lambda: again.append("renewed") or run)
    assert ms == pytest.approx(0.060, abs=1e-4) and clock.held
    assert ends() == ["ran out", "let go"] and again == ["renewed"]
    first, second = (limit for limit, _ in fake_cupy.holds[2:])
    assert first == hold.FIRST and 3 * host < second == pytest.approx(9 * host, rel=0.01)
    assert clock.host_us == pytest.approx(3e6 * host, rel=0.01)
    assert clock.time(run) == pytest.approx(0.060, abs=1e-4)  # by now it is known how long it takes
    assert ends() == ["ran out", "let go", "let go"]


def test_one_that_is_too_slow_for_any_hold_is_no_time_of_the_device(seconds):
    clock = clocks.CudaClock()
    ms = clock.time(launches(seconds, 0.5))
    assert not clock.held and ms == pytest.approx(1500, rel=0.01)
    assert max(limit for limit, _ in fake_cupy.holds) == hold.LONGEST
    assert set(ends()) == {"ran out"}


@pytest.mark.parametrize("cold", [False, True])
def test_one_that_waits_for_the_device_is_told_apart(cold, seconds):
    clock, run = clocks.CudaClock(), waits(seconds)
    for _ in range(2):
        if cold:
            clock.cold()
        ms = clock.time(run)
        assert not clock.held and not clock.early
        # Of the host and the device, but of neither the flush nor a hold.
        assert ms == pytest.approx(3.1, abs=0.02) and clock.host_us == pytest.approx(3100, abs=20)
        assert abs(clock.gap_ms) < 0.05
        assert ends() == ["ran out"] * hold.ATTEMPTS  # the second time it is known, and nothing is held
    assert clock.time(launches(seconds, 1e-3)) == pytest.approx(0.060, abs=1e-4) and clock.held
    clock.time(waits(seconds), hold_back=False)
    assert not clock.held and len(ends()) == hold.ATTEMPTS + 1


def test_work_beside_the_stream_is_seen(seconds):
    """After the hold by the wall clock; before its end by what it wrote."""
    clock, written = clocks.CudaClock(), []
    side = fake_cupy.Stream(non_blocking=True)

    def beside() -> None:
        with side:
            fake_cupy.queue(4e-3, lambda: written.append(1))

    def over() -> None:
        beside()
        side.synchronize()

    assert clock.time(beside, look=lambda: len(written)) < 0.01
    assert clock.held and clock.gap_ms == pytest.approx(4, abs=0.1) and not clock.early
    assert clock.time(over, look=lambda: len(written)) < 0.01
    assert clock.held and clock.gap_ms < 0.1 and clock.early
    clock.time(lambda: fake_cupy.queue(4e-3, lambda: written.append(1)), look=lambda: len(written))
    assert clock.held and not clock.early and len(written) == 3


def test_where_a_copy_waits_for_what_is_held_nothing_is_looked_at(seconds, monkeypatch):
    assert clocks.CudaClock().watches
    get = fake_cupy.ndarray.get

    def waiting(self):
        fake_cupy.synchronize()
        return get(self)

    monkeypatch.setattr(fake_cupy.ndarray, "get", waiting)
    clock = clocks.CudaClock()
    array = sys.modules["cupy"].empty((4,), np.float32)
    assert clock.time(launches(seconds, 1e-3), look=lambda: array.get().tobytes()) == pytest.approx(
        0.060, abs=1e-4
    )
    assert clock.held and not clock.watches
    (mine,) = (c for c in own.entries(ITEM, "cuda") if c.implementation is _any_relu())
    judge = trial.Trial(
        ITEM, replace(mine, bind=lambda *given: launches(seconds, 1e-3)), _memory(), clock, SETTINGS
    )
    judge.renew()
    judge.timed()
    assert clock.held and "waits for a stream" in mine.facts["not watched"]


def test_a_call_that_fails_leaves_nothing_held(seconds):
    clock = clocks.CudaClock()

    def fails() -> None:
        fake_cupy.queue(1e-3)
        raise RuntimeError("no workspace")

    clock.cold()
    with pytest.raises(RuntimeError, match="no workspace"):
        clock.time(fails)
    assert ends() == ["let go"] and not fake_cupy.current_stream().pending
    assert clock.time(launches(seconds, 1e-3)) == pytest.approx(0.060, abs=1e-4)


def test_a_graph_is_held_too(seconds):
    clock = clocks.CudaClock()
    assert clock.batch(lambda: fake_cupy.queue(5e-6), 20) == pytest.approx(5e-3)
    assert clock.held and clock.host_us < 10


def test_another_gpu_than_the_current_one(seconds):
    cupy = sys.modules["cupy"]
    clock = clocks.clock_for("cuda:1")
    where = []

    def run() -> None:
        where.append(cupy.cuda.runtime.getDevice())
        launches(seconds, 1e-3)()

    for _ in range(2):
        clock.cold()
        assert clock.time(run) == pytest.approx(0.060, abs=1e-4) and clock.held
    assert abs(clock.gap_ms) < 0.02
    assert set(where) == {1} and fake_cupy.current_device == [0]
    assert clock.batch(run, 2) == pytest.approx(0.060, abs=1e-4)
    assert clock.probe()["fma"] > 0 and fake_cupy.current_device == [0]
    assert clocks.clock_for("cuda").index == 0
    with cupy.cuda.Device(1):
        assert clocks.CudaClock().index == 1
    for name in ("cuda:", "cuda:x", "cuda:-1"):
        with pytest.raises(ValueError, match="unknown device"):
            clocks.clock_for(name)


# ---------------------------------------------------------------------------------------------------
# Races
# ---------------------------------------------------------------------------------------------------
def library(clock, name, host, wait=False, marks=()):
    """A library's relu on the stand-in, which takes 2 ms there."""

    def bind(inputs, outputs):
        def run() -> None:
            clock.work(host)
            sys.modules["cupy"].maximum(inputs["x"], 0, out=outputs["y"])
            if wait:
                fake_cupy.current_stream().synchronize()

        return run

    return Entry(name, "a library", bind, marks=marks)


@pytest.mark.parametrize("index", [0, 1])
def test_a_race_tells_the_host_apart_and_marks_who_waits(index, seconds):
    records = [library(seconds, "slow host", 5e-3), library(seconds, "waits", 5e-3, wait=True)]
    result = timing.race(ITEM, [*records, library(seconds, "slower host", 0.05)], Quick(index), SETTINGS)
    assert result.refused == {} and fake_cupy.current_device == [0]
    assert np.median(result.rounds("slow host")) == pytest.approx(2, abs=0.01)
    assert np.median(result.rounds("slower host")) == pytest.approx(2, abs=0.01)
    assert np.median(result.rounds("waits")) == pytest.approx(7, abs=0.02)
    assert result.host_included == {"waits"}
    expected = {"slow host": 5e3, "slower host": 5e4, "waits": 7e3}
    assert result.host_us == pytest.approx(expected, rel=0.01)
    assert all(c.as_dict() == dict.fromkeys(("before", "during", "after"), "passed")
               for c in result.checks.values())  # fmt: skip


def test_what_a_void_sample_left_is_not_there_for_the_next(seconds, monkeypatch):
    """One that computes, dawdles until its hold has run out, and then hopes to find its work done."""

    def bind(inputs, outputs):
        def run() -> None:
            if np.isnan(outputs["y"]._host.flat[0]):
                sys.modules["cupy"].maximum(inputs["x"], 0, out=outputs["y"])
                limit, _ = fake_cupy.holds[-1]
                seconds.work(1.5 * limit)

        return run

    result = timing.race(ITEM, [Entry("dawdles", "a library", bind)], Quick(), SETTINGS)
    assert result.host_included == {"dawdles"} and min(result.rounds("dawdles")) > 2.0


def test_a_void_sample_of_convkits_own_is_repeated_on_new_inputs(seconds):
    memory_of: list[bytes] = []

    def bind(inputs, outputs):
        def run() -> None:
            memory_of.append(inputs["x"]._host.tobytes())
            seconds.work(1.5 * hold.FIRST)
            sys.modules["cupy"].maximum(inputs["x"], 0, out=outputs["y"])

        return run

    mine = Entry("mine", own.OWN, bind, implementation=_any_relu())
    clock = Quick()
    judge = trial.Trial(ITEM, mine, _memory(), clock, SETTINGS)
    judge.renew()
    judge.timed()
    assert clock.held and len(memory_of) == 2 and memory_of[0] != memory_of[1]
    assert not judge.host_included


def _memory():
    from convkit.bench.measure.fresh import Memory

    memory = Memory(ITEM, "cuda")
    memory.draw()
    return memory


def _any_relu():
    from convkit import implementations

    return implementations("relu_fprop", device="cuda")[0]


class Net:
    """A network whose step takes the device 2 ms, the host 30 ms, and whose loss must be waited for."""

    def __init__(self, clock, queues: bool) -> None:
        self.work = launches(clock, 0.03, 2e-3, 1)
        if queues:
            self.queue = self._queue

    def step(self) -> float:
        self.work()
        fake_cupy.current_stream().synchronize()
        return 7.0

    def _queue(self):
        self.work()

        def read() -> float:
            fake_cupy.current_stream().synchronize()
            return 7.0

        return read


@pytest.mark.parametrize("queues", [True, False])
def test_a_step_is_timed_without_the_wait_for_its_loss(queues, seconds):
    item = steps.step("paper", 2)
    entry = whole.NetworkEntry("net", "x", lambda inputs, outputs: None)
    one = whole._Trial(item, entry, Quick(), SETTINGS)
    one.net = Net(seconds, queues)
    found = one.turn(3, "round 1")
    assert found == pytest.approx([2.0 if queues else 32.0] * 3, rel=0.01)
    assert one.host_included is not queues and one.loss == 7.0
    assert one.host_us == pytest.approx([30e3 if queues else 32e3] * 3, rel=0.01)
    result = timing.Result(item)
    result.note_host("net", one.host_us, one.host_included)
    assert bool(result.host_included) is not queues


# ---------------------------------------------------------------------------------------------------
# The kernel
# ---------------------------------------------------------------------------------------------------
HOST = r"""
#define __global__
static long long cycles_now, step;
static long long clock64() { return cycles_now += step; }
static void __threadfence_system() {}
%s
extern "C" int run(int flag, long long cycles, long long reads, long long each) {
  int words[2] = {flag, 0};
  step = each;
  convkit_hold(words, cycles, reads);
  return words[1];
}
"""


def test_the_kernel_cannot_hang(compiler, tmp_path):
    """As C++ on the host: it ends by the flag, by the cycles, and by its reads where no cycle passes."""
    source, library = tmp_path / "hold.cpp", tmp_path / "hold.so"
    source.write_text(HOST % hold.SOURCE)
    subprocess.run(["c++", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    run = ctypes.CDLL(str(library)).run
    run.argtypes = [ctypes.c_int, *[ctypes.c_longlong] * 3]
    assert run(1, 10**18, 10**18, 1) == hold.LET_GO
    assert run(0, 1000, 10**18, 1) == hold.RAN_OUT
    assert run(0, 10**18, 1000, 0) == hold.RAN_OUT
    assert run(0, 1, 1, 0) == hold.RAN_OUT


def test_the_kernel_compiles():
    need("cuda.core")
    facts = nvrtc.compile_cubin(hold.SOURCE, "sm_90a").resources()[hold.NAME]
    assert facts.registers < 40 and facts.spill_bytes == 0
