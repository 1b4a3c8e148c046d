"""What the tuner chooses, and what it keeps."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
import tuning
from tuning import Best, header, plant, racing, relu

import convkit as ck
from convkit import devices, registry, tuned
from convkit.bench import work
from convkit.bench.measure import stats
from convkit.checked import Sources
from convkit.cli import main
from convkit.cuda.emulate import Emulator
from convkit.cuda.launch import KernelError
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.registry import implementations, select
from convkit.tune import candidates, measure, run
from convkit.tuned import Store


@pytest.fixture(autouse=True)
def apart():
    with tuning.apart():
        yield


@pytest.fixture
def kernel(tmp_path):
    return functools.partial(tuning.kernel, tmp_path)


# ---- what is chosen -------------------------------------------------------------------------------------
@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """Makes a tuner that measures nothing: of a store, times by name, and what the gate is to say."""

    def make(times, store=None, failing=(), seen=None, asked=None, wrong=()):
        def gate(implementation, dtype):
            if asked is not None:
                asked.append(implementation.label)
            return "fails convkit.check, a case" if implementation.label in failing else ""

        monkeypatch.setattr(measure, "race", racing(times, seen, wrong))
        monkeypatch.setattr(measure, "gate", gate)
        settings = measure.settings_of(quick=True)
        store = store if store is not None else Store(tmp_path / "tuned.json")
        return run.Tuner(store, settings, _clock=object())

    return make


def names():
    return [i.name for i in relu().candidates()]


def test_what_is_faster_is_chosen_and_runs(tuner):
    plant("quick")
    times = {**dict.fromkeys(names(), 2.0), "quick": 1.0}
    entry, now = tuner(times).tune(relu())
    assert now and entry["state"] == measure.FASTER and entry["chosen"]["implementation"] == "quick"
    assert entry["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": 7}
    store = Store.read(tuner({}).store.path)
    assert list(store.choices.values()) == [json.loads(json.dumps(entry))]
    with tuned.using(store):
        assert select("relu_fprop", Elementwise((1000,))).name == "quick"
        assert ck.relu_fprop(np.full(1000, -1, np.float32)).max() == 0


def test_a_tie_keeps_the_default(tuner):
    plant("noisy")
    default, *_ = names()
    times = {**dict.fromkeys(names(), 2.0), "noisy": lambda n: (1.0, 1.1, 1.2, 1.3, 1.2, 1.1, 2.1)[n % 7]}
    entry, _ = tuner(times).tune(relu())
    assert entry["state"] == measure.TIE and entry["rival"] == "noisy" and entry["ratio"]["low"] < 1
    assert entry["chosen"] == entry["default"] and entry["default"]["implementation"] == default
    with tuned.using(tuner({}).store):
        assert select("relu_fprop", Elementwise((1000,))).name == default


def test_a_default_that_is_best_is_said_to_be(tuner):
    default, *_ = names()
    entry, _ = tuner({**dict.fromkeys(names(), 3.0), default: 1.0}).tune(relu())
    assert entry["state"] == measure.SLOWER and entry["chosen"] == entry["default"]


def test_one_that_is_alone_is_neither_checked_nor_timed(tuner):
    """Only float64 has a single candidate here: what has others is measured."""
    for i in relu().candidates()[1:]:
        registry._IMPLEMENTATIONS.pop((i.op, i.device, i.name, i.layout))
    registry.changed()
    asked = []
    entry, _ = tuner({}, asked=asked).tune(relu())
    assert entry["state"] == measure.ALONE and not asked and entry["ratio"] is None


def test_the_best_go_on_to_rounds_of_their_own(tuner):
    """The race that decides is not the one that chose who takes part."""
    for number in range(6):
        plant(f"p{number}")
    default, *_ = names()
    seen = []
    times = {**dict.fromkeys(names(), 9.0), **{f"p{n}": 1.0 + n for n in range(6)}}
    entry, _ = tuner(times, seen=seen).tune(relu())
    assert sorted(seen[0]) == sorted(names())
    assert seen[1] == [default, "p0", "p1", "p2"] and len(seen) == 2
    rows = {c["name"]: len(c["ms"]) for c in entry["candidates"]}
    assert rows["p0"] == rows[default] == 7 and rows["p5"] == measure.FIRST
    assert entry["chosen"]["implementation"] == "p0"


def test_what_is_far_behind_does_not_go_on(tuner):
    """And one that nothing comes near is the best, without a longer race."""
    plant("slow")
    default, *others = names()
    seen = []
    times = {default: 1.0, **dict.fromkeys(others, 1.5), "slow": 2.0}
    tuner(times, seen=seen).tune(relu())
    assert sorted(seen[0]) == sorted(names()) and sorted(seen[1]) == sorted(set(names()) - {"slow"})
    entry, _ = tuner({default: 1.0, **dict.fromkeys(others, 9.0)}, Store(), seen=seen).tune(relu())
    assert len(seen) == 3 and entry["state"] == measure.SLOWER and entry["ratio"]["rounds"] == measure.FIRST


def test_several_tries_are_as_often_wrong_as_one():
    confidence = measure.settings_of(quick=False).confidence
    assert measure.FINALISTS * (1 - confidence) == pytest.approx(measure.WRONG)
    assert measure.settings_of(quick=True).rounds >= stats.least(confidence)


def test_what_the_gate_or_a_race_refuses_is_never_chosen(tuner):
    plant("wrong")
    plant("wrong later")
    times = {**dict.fromkeys(names(), 2.0), "wrong": 1.0, "wrong later": 1.0}
    seen = []
    entry, _ = tuner(times, failing=["wrong"], wrong=["wrong later"], seen=seen).tune(relu())
    assert not any("wrong" in taking for taking in seen)
    reasons = {c["name"]: c["reason"] for c in entry["candidates"]}
    assert reasons["wrong"] == "fails convkit.check, a case" and reasons["wrong later"] == "y is wrong"
    assert entry["chosen"] == entry["default"]


def test_what_has_no_file_is_not_tried(tuner):
    """It could not be known again."""
    plant("typed in")
    one = registry._IMPLEMENTATIONS.pop(("relu_fprop", "cpu", "typed in", "NCHW"))
    registry.add(replace(one, rank=-999, sources=Sources((), "")))
    entry, _ = tuner({**dict.fromkeys(names(), 2.0), "typed in": 1.0}).tune(relu())
    reasons = {c["name"]: c["reason"] for c in entry["candidates"]}
    assert reasons["typed in"].startswith("no file") and entry["chosen"] == entry["default"]


def test_the_gate_itself_refuses_what_is_wrong():
    plant("wrong", wrong=True)
    plant("right")
    found = {i.name: i for i in implementations("relu_fprop", device="cpu")}
    assert measure.gate(found["wrong"], "float32").startswith("fails convkit.check, ")
    assert measure.gate(found["right"], "float32") == ""


@pytest.mark.slow
def test_the_gate_is_put_to_the_tile_itself(kernel, compiler):
    """Under the emulator: one of the tiles is wrong."""
    text = header({"T": 64}, {"T": [32, 96]}, grid="ceil_div(size, T)", block="T")
    found = kernel(text, wrong="if (T == 96) y[i] = 7;")
    assert measure.gate(found["mine[T=32]"].implementation, "float32") == ""
    assert measure.gate(found["mine[T=96]"].implementation, "float32").startswith("fails convkit.check, ")


class Decree:
    """A clock by which an implementation takes what a table says; it runs it all the same."""

    name, slack_ms = "decree", 0.0

    def __init__(self, times, device="cpu"):
        self.times, self.device = times, device

    def cold(self):
        pass

    def time(self, call):
        call()
        return self.times[call.__self__.implementation.label]

    def synchronize(self):
        pass

    def probe(self):
        return {"fma": 1e9, "copy": 1e9}

    def ceilings(self):
        return {}


def test_a_race_of_the_bench_decides(tmp_path):
    """All of it but the clock: the gate, float64 at the timed size, rounds in turns."""
    plant("quick")
    plant("wrong", wrong=True)
    settings = replace(measure.settings_of(True), pause_s=0.0, turn_s=0.001)
    clock = Decree({**dict.fromkeys(names(), 2.0), "quick": 1.0, "wrong": 0.5})
    entry, _ = run.Tuner(Store(tmp_path / "tuned.json"), settings, _clock=clock).tune(relu())
    assert entry["chosen"]["implementation"] == "quick" and entry["ratio"]["median"] == 2.0
    reasons = {c["name"]: c["reason"] for c in entry["candidates"] if c["reason"]}
    assert set(reasons) == {"wrong"} and reasons["wrong"].startswith("fails convkit.check")


# ---- what is kept ---------------------------------------------------------------------------------------
def two_jobs():
    return [relu(Elementwise((1000,))), relu(Elementwise((2000,)))]


@pytest.mark.parametrize("damage", [("ratio",), ("places",), ("machine", "name"), ("chosen", "tile")])
def test_an_entry_that_was_damaged_is_tuned_anew(tuner, damage):
    (job,) = two_jobs()[:1]
    made = tuner(dict.fromkeys(names(), 1.0))
    entry, _ = made.tune(job)
    assert made.entry(job) == entry and not made.tune(job)[1]
    holder = made.store.choices[made.key(job)]
    for name in damage[:-1]:
        holder = holder[name]
    del holder[damage[-1]]
    assert made.entry(job) is None
    assert made.tune(job)[1] and made.entry(job) is not None


def test_a_run_that_was_killed_goes_on(tuner, monkeypatch):
    first, second = two_jobs()
    times = dict.fromkeys(names(), 1.0)
    asked, seen = [], []
    made = tuner(times, asked=asked)
    made.tune(first)
    monkeypatch.setattr(measure, "race", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.tune(second)
    assert len(Store.read(made.store.path).choices) == 1
    gates = len(asked)
    again = tuner(times, store=Store.read(made.store.path), asked=asked, seen=seen)
    assert again.tune(first)[1] is False and again.tune(second)[1] is True
    assert len(asked) == gates == len(names())  # what the gate said is kept too
    assert len(seen) == 2  # the races of the second job


def test_a_race_that_was_interrupted_decides_nothing(tuner, monkeypatch):
    made = tuner({})

    def race(item, entries, clock, settings, say):
        result = racing({e.name: 1.0 for e in entries})(item, entries, clock, settings, say)
        result.interrupted = True
        return result

    monkeypatch.setattr(measure, "race", race)
    with pytest.raises(KeyboardInterrupt):
        made.tune(relu())
    assert not Store.read(made.store.path).choices


def test_what_is_kept_is_measured_again_where_something_is_new(tuner, monkeypatch):
    times = {**dict.fromkeys(names(), 1.0), "new": 0.5}
    made = tuner(times)
    assert made.tune(relu())[1] and not made.tune(relu())[1]
    plant("new")
    assert made.tune(relu())[1]
    assert not made.tune(relu())[1]
    monkeypatch.setattr(tuned, "_backend", lambda isa: "another build")
    assert made.tune(relu())[1]
    assert not made.tune(relu())[1]
    made.again = True
    assert made.tune(relu())[1]


def test_a_job_that_fails_says_so_and_is_tried_again(tuner, monkeypatch):
    made = tuner({})

    def race(*given):
        raise KernelError("no memory")

    monkeypatch.setattr(measure, "race", race)
    entry, _ = made.tune(relu())
    assert entry["state"] == run.FAILED and entry["failure"] == "no memory"
    assert made.kept(relu()) is None
    with tuned.using(made.store):
        assert select("relu_fprop", Elementwise((1000,))).name == names()[0]


# ---- on a GPU -------------------------------------------------------------------------------------------
@pytest.fixture
def gpu(cuda, monkeypatch):
    """A stand-in for CuPy, whose GPU has an H200's limits; its kernels run under the emulator."""
    monkeypatch.setattr(devices, "gpu_found", lambda *_: True)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    module = sys.modules["cupy"]
    properties = {"name": b"no GPU at all", "multiProcessorCount": 132, "sharedMemPerBlockOptin": 227 << 10}
    monkeypatch.setattr(module.cuda.runtime, "getDeviceProperties", lambda device: properties)
    tuned._gpu.cache_clear()
    yield module
    tuned._gpu.cache_clear()


def test_on_a_gpu_tiles_are_compiled_and_the_best_runs(
    gpu, cuda_compiler, monkeypatch, tmp_path, capsys, compiler
):
    """All of the command but the gate and the races, which others test."""
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    best = "vectorized[ELEMENTS=8, THREADS=128]"
    seen = []
    monkeypatch.setattr(run, "MOST_TILES", 3)
    monkeypatch.setattr(measure, "race", racing(Best(best), seen))
    monkeypatch.setattr(measure, "gate", lambda implementation, dtype: "")
    monkeypatch.setattr(run, "clock_for", lambda device: None)
    path = tmp_path / "t.json"
    argv = ["tune", "--device", "cuda", "--file", str(path), "--jobs", "1", "--batch", "64"]
    assert main([*argv, "--op", "relu_fprop"]) == 0
    out = capsys.readouterr().out
    entries = list(Store.read(path).choices.values())
    assert f"{len(entries)} calls: {len(entries)} faster" in out and best in out
    assert list((tmp_path / "cache").glob("relu_fprop_vectorized-sm_90a-*.cubin"))
    assert all(best in names and sum("[" in name for name in names) == 3 for names in seen[::2])
    assert entries[0]["machine"]["name"] == "no GPU at all, 132 SMs"
    assert "NVRTC" in entries[0]["machine"]["driver"]
    problem = Elementwise(tuple(entries[0]["problem"]["dims"]))
    with tuned.using(Store.read(path)):
        assert select("relu_fprop", problem, device="cuda").name_and_tile == best
        monkeypatch.setattr(gpu.cuda.runtime, "driverGetVersion", lambda: 99)
        tuned._gpu.cache_clear()
        tuned._faster.cache_clear()
        assert select("relu_fprop", problem, device="cuda").name_and_tile == "vectorized"


@pytest.mark.parametrize("layout", ["NHWC, KRSC", "NCHW"])
def test_a_race_takes_a_kernel_in_nhwc_on_a_gpu(layout, gpu, compiler):
    """Its tensors lie on the GPU in its own layout, and what it wrote is compared in NCHW; or it packs."""
    problem = Conv2d.of((1, 8, 6, 5), (16, 8, 3, 3), padding=1, dtype="bfloat16")
    item = work.Item(
        "c", "conv2d_fprop", problem, "bfloat16", layer="c", options={"relu": True}, absent=("b",)
    )
    found = implementations("conv2d_fprop", device="cuda", layout=layout)
    one = next(i for i in found if i.name == "implicit_gemm_mma")
    small = tuned.with_tile(one, {"TILE_M": 64, "TILE_N": 64, "STAGES": 3})
    few = [candidates.Candidate(one, default=True), candidates.Candidate(small)]
    settings = replace(measure.settings_of(True), budget_s=0.0, pause_s=0.0, turn_s=0.0)
    clock = Decree({one.label: 2.0, small.label: 1.0}, "cuda")
    outcome = measure.measure(item, few, clock, settings)
    assert not outcome.refused
    assert outcome.chosen is few[1] and outcome.ratio.middle == 2.0
