"""The tuner: what it tries and leaves out, what it chooses, what it keeps, and what the command says."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest

import convkit as ck
from convkit import devices, registry, tuned
from convkit.bench import work
from convkit.bench.measure import stats
from convkit.bench.measure.entry import Result
from convkit.checked import Sources
from convkit.cli import main
from convkit.cuda import nvrtc
from convkit.cuda.emulate import Emulator
from convkit.cuda.heuristics import predict
from convkit.cuda.launch import KernelError
from convkit.cuda.prepare import Runner
from convkit.errors import OptionError
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.linear import Linear
from convkit.registry import implementations, select
from convkit.tune import candidates, compiling, jobs, measure, run
from convkit.tune.gpus import H200
from convkit.tuned import Store

CONV = "2,8,9,9,16,3,3,pad=1"
THOUSAND = Elementwise((1000,))


@pytest.fixture(autouse=True)
def apart():
    """No choices to begin with, and a registry of its own."""
    ck.implementations()
    before = dict(registry._IMPLEMENTATIONS)
    with tuned.using(Store()):
        yield
        registry._IMPLEMENTATIONS.clear()
        registry._IMPLEMENTATIONS.update(before)
        registry.changed()


@pytest.fixture
def kernel(tmp_path):
    """Registers a ReLU kernel with a header of the test's, above all others; returns its candidates."""

    def register(header, body="", problem=THOUSAND, gpu=H200, wrong=""):
        path = tmp_path / "relu_fprop_mine.cu"
        lines = ['op = "relu_fprop"', "rank = 1000", *header.strip().splitlines()]
        head = "\n".join(["// /// kernel", *(f"// {line.strip()}" for line in lines), "// ///"])
        code = (
            f'{body}\nextern "C" __global__ void relu_fprop_mine('
            "GEOMETRY(Elementwise), const float* x, float* y) {\n"
            "  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;\n"
            f"  if (i >= g.size) return;\n  y[i] = x[i] < 0 ? 0 : x[i];\n  {wrong}\n}}\n"
        )
        path.write_text(f"{head}\n{code}")
        registry._IMPLEMENTATIONS.pop(("relu_fprop", "cuda", "mine", "NCHW"), None)
        ck.register(path)
        found = candidates.of_job(relu(problem, "cuda"), gpu)
        return {c.name: c for c in found if c.name.startswith("mine")}

    return register


def relu(problem=THOUSAND, device="cpu"):
    item = work.Item("relu", "relu_fprop", problem, layer="relu1")
    (job,) = jobs.of_items([item], device)
    return job


def plant(name, rank=-1000, wrong=False):
    """An implementation of ReLU for the CPU."""

    @ck.implements("relu_fprop", name=name, rank=rank)
    def function(problem, x, y):
        np.maximum(x, 0.5 if wrong else 0, out=y)
        y[np.isnan(x)] = np.nan


# ---- what is tried --------------------------------------------------------------------------------------
def test_all_tiles_of_a_header_are_candidates_each_once(kernel):
    found = kernel(
        """
        tile = { THREADS = 64, UNROLL = 1 }
        grid = ["ceil_div(size, THREADS)"]
        block = ["THREADS"]
        [tune]
        THREADS = [32, 64, 128]
        UNROLL = [1, 2]
        """,
        problem=Elementwise((10**6,)),
    )
    named = {"mine"} | {f"mine[THREADS={t}, UNROLL={u}]" for t in (32, 64, 128) for u in (1, 2)}
    assert set(found) == named - {"mine[THREADS=64, UNROLL=1]"}  # that is "mine" itself
    assert [c.default for c in found.values()].count(True) == 1 and found["mine"].default
    assert not any(c.reason for c in found.values())


def header(tile, tune, grid="8", block="64", **more):
    """The lines of a header."""
    lines = [f"{name} = {json.dumps(text)}" for name, text in more.items()]
    tables = (", ".join(f"{k} = {v}" for k, v in table.items()) for table in (tile, tune))
    named = [f"{name} = {{ {table} }}" for name, table in zip(("tile", "tune"), tables)]
    return "\n".join([*named, *lines, f'grid = ["{grid}"]', f'block = ["{block}"]'])


GEMM = {"THREAD_M": 8, "THREAD_N": 8}


@pytest.mark.parametrize(
    ("text", "tile", "reason"),
    [
        (header({"T": 64}, {"T": [2048]}, block="T"), "T=2048", "threads: 2048 in a block of"),
        (header({"T": 64}, {"T": [85]}, block="T"), "T=85", "threads: 85 in a block of"),
        (
            header({"STAGES": 2}, {"STAGES": [3, 4]}, shared="STAGES * 65536"), "STAGES=4",
            "shared memory: 262,144 bytes in a block of relu_fprop_mine, of 232,448",
        ),
        (
            header(GEMM, {"THREAD_N": [16, 32]}), "THREAD_N=32",
            "registers: 344 of a thread at the least, of 255 with 1 block of 64 threads on an SM",
        ),
        (
            header({**GEMM, "PER_SM": 1}, {"PER_SM": [2, 3]}, block="256"), "PER_SM=3",
            "registers: 128 of a thread at the least, of 80 with 3 blocks of 256 threads on an SM",
        ),
        (header({"WARP_M": 64, "WARP_N": 64}, {"WARP_N": [128]}), "WARP_N=128", "registers: 352 of a"),
        (
            header({**GEMM, "TILE_M": 64}, {"THREAD_M": [12]}), "THREAD_M=12",
            "tile: TILE_M = 64 is no multiple of THREAD_M = 12",
        ),
        (header({"WIDE": 1}, {"WIDE": [2]}, grid="132//WIDE"), "WIDE=2", "waves: 50% of the best tile's"),
        (header({"WIDE": 1}, {"WIDE": [4]}, when="WIDE < 3"), "WIDE=4", "needs WIDE < 3; here WIDE = 4"),
        (header({"WIDE": 1}, {"WIDE": [0]}, grid="132//WIDE"), "WIDE=0", "its header has no value"),
    ],
    ids=["threads", "warps", "shared", "a thread's", "an SM's", "a warp's", "parts", "waves", "when", "zero"],
)  # fmt: skip
def test_a_tile_that_need_not_be_tried_has_a_reason(kernel, text, tile, reason):
    found = kernel(text)
    assert found[f"mine[{tile}]"].reason.startswith(reason)
    assert not found["mine"].reason


def test_only_what_the_gpu_at_hand_has_no_room_for_is_left_out(kernel):
    text = header({"STAGES": 2}, {"STAGES": [3, 4]}, shared="STAGES * 65536")
    reasons = {n: bool(c.reason) for n, c in kernel(text).items()}
    assert reasons == {"mine": False, "mine[STAGES=3]": False, "mine[STAGES=4]": True}
    roomy = kernel(text, gpu=replace(H200, shared=1 << 20))
    assert not any(c.reason for c in roomy.values())


def test_of_many_tiles_those_of_the_best_prediction_are_tried(kernel):
    found = kernel(header({"A": 1}, {"A": list(range(90, 132))}, grid="A"))
    tried = {name for name, c in found.items() if not c.reason}
    assert tried == {"mine", *(f"mine[A={n}]" for n in range(132 - candidates.MOST_COMPILED, 132))}
    assert all("32 tiles are compiled" in c.reason for name, c in found.items() if name not in tried)
    timed = candidates.first(list(found.values()), candidates.MOST_TILES, "timed")
    assert [c.name for c in timed if not c.reason] == ["mine", *(f"mine[A={n}]" for n in range(116, 132))]


def test_the_tiles_of_a_gemm_are_ordered_by_the_model_of_waves():
    """The default has the tile that the model chooses, and none is tried that the model puts far below."""
    problem = Conv2d.of((128, 3, 224, 224), (96, 3, 11, 11), stride=4, padding=2)
    item = work.Item("conv1", "conv2d_fprop", problem, layer="conv1", options={"relu": False}, absent=("b",))
    (job,) = jobs.of_items([item], "cuda")
    found = {c.name: c for c in candidates.of_job(job) if c.name.startswith("implicit_gemm")}
    default = found["implicit_gemm"]
    assert default.default and not default.reason
    tile = default.implementation.run.fitted(problem).header.tile
    assert tile["TILE_M"] == 96  # not the file's first one
    shown = ", ".join(f"{name}={tile[name]}" for name in sorted(tile) if name != "DEPTH")
    assert f"implicit_gemm[{shown}]" not in found  # it would be tried twice
    assert (
        default.predicted == predict(default.implementation.run.kernel.tiled(tile).header, problem).efficiency
    )
    reasons = {c.reason.partition(":")[0] for c in found.values() if c.reason}
    assert {"registers", "waves"} < reasons
    offered = [c.order[0] for c in sorted(found.values(), key=lambda c: c.order) if c.implementation.tile]
    assert offered == sorted(offered) and offered.count(False) == 2  # those of `tile` and `tiles` come first
    tried = [c.predicted for c in found.values() if not c.reason]
    assert min(tried) >= candidates.WORTH * max(tried) and len(tried) <= candidates.MOST_COMPILED + 1


def test_of_tiles_that_are_alike_those_nearest_to_the_file_s_own_are_tried(kernel):
    values = list(range(1, 8))
    found = kernel(header({"A": 4, "B": 4}, {"A": values, "B": values}, grid="132"))
    tried = {name for name, c in found.items() if not c.reason}
    near = {f"mine[A={a}, B={b}]" for a in values for b in values if (a == 4) != (b == 4)}
    assert len(near) < candidates.MOST_COMPILED < len(found) and near < tried


def test_large_tiles_of_tensor_cores_are_tried_where_the_grid_is_large(kernel):
    """They copy less for what they multiply; where the grid is small, they leave SMs idle."""
    tile = {"TILE_M": 64, "TILE_N": 64, "WARP_M": 32, "WARP_N": 32}
    text = header(tile, {"TILE_M": [128, 256]}, grid="ceil_div(size, TILE_M*TILE_N)")

    def order(size):
        found = kernel(text, problem=Elementwise((size,)))
        return sorted(found, key=lambda name: -found[name].predicted)

    assert order(10**9) == ["mine[TILE_M=256]", "mine[TILE_M=128]", "mine"]
    assert order(50 * 64 * 64)[0] == "mine"


def test_a_second_launch_is_not_what_a_tile_is_chosen_by():
    """Of the sums over slices: a thousand blocks, whatever the tile."""
    item = work.Item("fc", "linear_fprop", Linear.of((128, 9216), (4096, 9216)), layer="fc")
    (job,) = jobs.of_items([item], "cuda")
    every = {c.name: c for c in candidates.of_job(job) if c.name.startswith("gemm")}
    assert not every["gemm[DEPTH=64, PER_SM=2, THREAD_N=16, TILE_K=8, TILE_M=128]"].reason
    found = {name: c.predicted for name, c in every.items()}
    like = "gemm[DEPTH=128, PER_SM={}, THREAD_N=8, TILE_K=8, TILE_M=128]"
    one, two = (found[like.format(n)] for n in (1, 2))
    assert max(one, two) < 1.2 * min(one, two)


def test_a_launch_ahead_is_not_what_a_tile_is_chosen_by(kernel):
    """The one that counts is called as the file is."""
    launches = """
        [[launch]]
        entry = "relu_fprop_mine_first"
        grid = ["1"]
        block = ["256"]
        [[launch]]
        entry = "relu_fprop_mine"
        grid = ["A"]
        block = ["64"]
    """
    text = (
        f"tile = {{ THREAD_M = 8, THREAD_N = 8, PER_SM = 3, A = 132 }}\ntune = {{ A = [33, 100] }}{launches}"
    )
    found = kernel(text)
    assert found["mine[A=33]"].reason.startswith("waves: 25%") and not found["mine[A=100]"].reason


# ---- compiling ------------------------------------------------------------------------------------------
STATIC = 'static_assert(THREADS != 96, "not ninety-six");'


@pytest.mark.parametrize("workers", [1, 2])
def test_candidates_are_compiled_into_the_cache(kernel, cuda_compiler, tmp_path, monkeypatch, workers):
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    found = kernel(
        header({"THREADS": 64}, {"THREADS": [32, 96]}, grid="ceil_div(size, THREADS)", block="THREADS"),
        body=STATIC,
    )
    problem = Elementwise((1000,))
    runners = [c.implementation.run for c in found.values() if c.implementation.tile]
    done = dict(compiling.compiled(runners, problem, "sm_90a", workers=workers))
    assert done[0]["relu_fprop_mine"].registers > 0 and "not ninety-six" in done[1]
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *given, **more: pytest.fail("compiled again"))
    assert dict(compiling.compiled(runners, Elementwise((7,)), "sm_90a", workers=workers)) == done
    compiling._known.clear()
    unit = compiling.translation_unit(runners[0].kernel, problem)
    assert nvrtc.cached_cubin(unit, "sm_90a", include=(tmp_path,), name="relu_fprop_mine")
    assert dict(compiling.compiled([runners[0]] * 2, problem, "sm_90a", workers=1)) == {
        0: done[0],
        1: done[0],
    }


def test_a_process_that_dies_is_an_error(kernel, cuda_compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVKIT_CACHE", str(tmp_path / "cache"))
    found = kernel(header({"T": 64}, {"T": [32, 128]}, grid="ceil_div(size, T)", block="T"))
    runners = [c.implementation.run for c in found.values() if c.implementation.tile]
    monkeypatch.setattr(compiling, "_one", die)
    with pytest.raises(nvrtc.CompileError, match="one of 2 processes that compile died"):
        list(compiling.compiled(runners, Elementwise((1000,)), "sm_90a", workers=2))


def die(*unit):
    """In a process that compiles."""
    os._exit(1)


def test_machine_code_that_is_not_worth_a_try_has_a_reason(kernel):
    found = kernel(header({"T": 1}, {"T": [2]}, block="512", shared="1024"))
    runner: Runner = found["mine"].implementation.run

    def reason(registers=32, spills=0, stack=0, shared=0):
        used = {"relu_fprop_mine": nvrtc.Resources(registers, spills, stack, shared)}
        return candidates.unfit(runner, Elementwise((1000,)), used, H200)

    assert reason() == ""
    assert reason(spills=8) == "registers: relu_fprop_mine spills 8 bytes of them"
    assert reason(stack=8) == "registers: relu_fprop_mine keeps 8 bytes on a stack"
    assert reason(shared=227 << 10).startswith("shared memory: 233,472 bytes")
    assert reason(registers=129) == "registers: 69,632 in a block of relu_fprop_mine, of 65,536"


# ---- what is chosen -------------------------------------------------------------------------------------
def racing(times, seen=None, wrong=()):
    """A race in which an entry takes what `times` says: a figure, or a function of the round."""

    def race(item, entries, clock, settings, say):
        result = Result(item)
        if seen is not None:
            seen.append([e.name for e in entries])
        for entry in entries:
            if entry.name in wrong:
                result.refused[entry.name] = "y is wrong"
                continue
            ms = times[entry.name]
            result.samples[entry.name] = [[ms(n) if callable(ms) else ms] for n in range(settings.rounds)]
        return result

    return race


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
        settings = measure.settings_of(quick=True, rounds=None, budget_s=None)
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
    confidence = measure.settings_of(quick=False, rounds=None, budget_s=None).confidence
    assert measure.FINALISTS * (1 - confidence) == pytest.approx(measure.WRONG)
    assert measure.settings_of(quick=True, rounds=None, budget_s=None).rounds >= stats.least(confidence)


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
    settings = replace(measure.settings_of(True, None, 0.5), pause_s=0.0, turn_s=0.001)
    clock = Decree({**dict.fromkeys(names(), 2.0), "quick": 1.0, "wrong": 0.5})
    entry, _ = run.Tuner(Store(tmp_path / "tuned.json"), settings, _clock=clock).tune(relu())
    assert entry["chosen"]["implementation"] == "quick" and entry["ratio"]["median"] == 2.0
    reasons = {c["name"]: c["reason"] for c in entry["candidates"] if c["reason"]}
    assert set(reasons) == {"wrong"} and reasons["wrong"].startswith("fails convkit.check")


# ---- what is kept ---------------------------------------------------------------------------------------
def two_jobs():
    return [relu(Elementwise((1000,))), relu(Elementwise((2000,)))]


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
    monkeypatch.setattr(measure, "race", racing(_Best(best), seen))
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


def test_a_race_takes_a_kernel_in_nhwc_on_a_gpu(gpu, compiler):
    """Its tensors lie on the GPU in its own layout, and what it wrote is compared in NCHW."""
    problem = Conv2d.of((1, 8, 6, 5), (16, 8, 3, 3), padding=1, dtype="bfloat16")
    item = work.Item(
        "c", "conv2d_fprop", problem, "bfloat16", layer="c", options={"relu": True}, absent=("b",)
    )
    found = implementations("conv2d_fprop", device="cuda", layout="NHWC, KRSC")
    one = next(i for i in found if i.name == "implicit_gemm_mma")
    small = tuned.with_tile(one, {"TILE_M": 64, "TILE_N": 64, "STAGES": 3})
    few = [candidates.Candidate(one, default=True), candidates.Candidate(small)]
    settings = replace(measure.settings_of(True, 7, 0.0), pause_s=0.0, turn_s=0.0)
    clock = Decree({one.label: 2.0, small.label: 1.0}, "cuda")
    outcome = measure.measure(item, few, clock, settings)
    assert not outcome.refused
    assert outcome.chosen is few[1] and outcome.ratio.middle == 2.0


class _Best:
    """By name: one takes 1 ms, the others 2."""

    def __init__(self, best):
        self.best = best

    def __getitem__(self, name):
        return 1.0 if name.startswith(self.best) else 2.0


# ---- what is tuned --------------------------------------------------------------------------------------
def test_the_calls_of_a_plan_are_asked_as_the_plan_asks():
    """Each of them finds what the plan runs; a call that is there twice is measured once."""
    found = jobs.of_network("small", 2, "float32", "fp32", "cpu")
    assert len({job.question for job in found}) == len(found)
    by_place = {place: job for job in found for place in job.places if job.item.op != "reorder"}
    conv = by_place["conv2+relu2.fwd"]
    assert conv.question.layout == "nChw16c" and conv.item.options == {"relu": True} and not conv.item.absent
    assert by_place["conv2+relu2.dgrad"].item.op == "conv2d_dgrad"
    assert by_place["conv1.w.update"].question.flags == ("finite",)
    assert any(len(job.places) > 1 for job in found)
    net = ck.AlexNet("small", seed=0)
    net.step(np.zeros((2, 3, 32, 32), np.float32), np.array([3, 7]))
    ran = {(c.op.name, c.problem, c.implementation.label) for calls in net.plan(batch=2).phases().values()
           for c in calls}  # fmt: skip
    assert ran == {(j.item.op, j.item.problem, j.default().label) for j in found}


def test_calls_are_found_by_layer_direction_and_op():
    found = jobs.of_network("small", 2, "float32", "fp32", "cpu")
    assert {j.item.op for j in jobs.at(found, "conv2.dgrad")} == {"conv2d_dgrad"}
    assert {j.item.op for j in jobs.at(found, "relu2.fprop")} == {"conv2d_fprop"}
    assert all(j.item.op == "sgd_momentum" for j in jobs.at(found, "sgd_momentum"))
    chosen = jobs.only(found, ["conv2"], ["fwd", "dgrad"])
    assert {j.item.op for j in chosen} == {"conv2d_fprop", "conv2d_dgrad"}
    with pytest.raises(OptionError, match="unknown call 'conv2.grad'; did you mean 'conv2"):
        jobs.at(found, "conv2.grad")
    for bad in ({"layers": ["conv9"]}, {"directions": ["up"]}, {"ops": ["conv"]}):
        with pytest.raises(OptionError, match="unknown"):
            jobs.only(found, **bad)
    with pytest.raises(OptionError, match="nothing to tune"):
        jobs.only(found, ["loss"], ["wgrad"])


# ---- the command ----------------------------------------------------------------------------------------
@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`convkit tune`, with a file of its own; times are one for all."""
    monkeypatch.setattr(measure, "race", racing(_Best("direct")))
    monkeypatch.setattr(measure, "gate", lambda implementation, dtype: "")

    def call(*argv, status=0):
        assert main(["tune", "--device", "cpu", "--file", str(tmp_path / "t.json"), *argv]) == status
        return capsys.readouterr().out

    return call


def test_the_command_tunes_explains_and_forgets(command, tmp_path):
    out = command("--conv", CONV)
    assert "conv2d_fprop" in out and "3 calls: " in out and f"kept in {tmp_path / 't.json'}" in out
    out = command("--conv", CONV)
    assert "3 of them were kept from before" in out
    place = f"{CONV}.fwd"
    out = command("--conv", CONV, "--why", place)
    (entry,) = [e for e in Store.read(tmp_path / "t.json").choices.values() if e["op"] == "conv2d_fprop"]
    assert entry["default"]["implementation"] in out and "the default" in out and "2 " in out
    with tuned.using(Store.read(tmp_path / "t.json")):
        assert select("conv2d_fprop", work.convolution(CONV)).name == entry["chosen"]["implementation"]
    assert "1 choices forgotten" in command("--conv", CONV, "--directions", "fwd", "--forget")
    assert "nothing was tuned for this call" in command("--conv", CONV, "--why", place)
    assert "2 choices forgotten" in command("--forget")
    assert not Store.read(tmp_path / "t.json").choices


def test_what_was_chosen_runs_in_the_same_process(command, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVKIT_TUNED", str(tmp_path / "t.json"))
    tuned.reload()
    before = select("conv2d_fprop", work.convolution(CONV)).name
    command("--conv", CONV)
    assert before != "direct" and select("conv2d_fprop", work.convolution(CONV)).name == "direct"


def test_an_op_that_no_network_has_is_tuned_on_its_own_cases(command):
    out = command("--op", "avgpool2d_fprop", "--batch", "2", "--dry-run")
    assert "avgpool2d_fprop" in out and "the default" in out


def test_a_network_is_tuned_call_by_call(command):
    out = command("--preset", "small", "--batch", "2", "--layers", "conv2", "--directions", "fwd,wgrad")
    assert out.count("faster") == 3 and "2 calls: 2 faster" in out  # and why: direct takes half the time
    out = command("--preset", "small", "--batch", "2", "--why", "conv2.fprop")
    assert "direct is chosen: winograd takes 2.00 x its time [2.00, 2.00]" in out


def test_a_dry_run_lists_and_measures_nothing(command, tmp_path):
    out = command("--preset", "small", "--batch", "2", "--layers", "conv2", "--dry-run")
    assert "winograd" in out and "the default" in out and not (tmp_path / "t.json").exists()


def test_without_a_gpu_it_says_so_in_a_line(command, capsys, tmp_path, monkeypatch):
    path = str(tmp_path / "t.json")
    for more in ([], ["--why", "conv3.dgrad"]):
        assert main(["tune", "--device", "cuda", "--file", path, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("convkit tune: no GPU was found")
    assert main(["tune", "--device", "cuda", "--dry-run", "--layers", "conv3", "--directions", "dgrad"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("no GPU was found: what follows is for an H200\n")
    assert "implicit_gemm[" in out and "registers: " in out and "is no multiple of" in out
    argv = ["--conv", "128,96,27,27,256,5,5,pad=2,groups=2", "--directions", "fwd", "--dtype", "bfloat16"]
    assert main(["tune", "--device", "cuda", "--dry-run", *argv, "--layout", "NHWC, KRSC"]) == 0
    out = capsys.readouterr().out
    assert "NHWC, KRSC, bfloat16" in out and "STAGES=4" in out


def test_a_call_that_nothing_runs_is_left_out(capsys):
    """As a network in 16 bits may have them, for want of a kernel."""
    before = ["tune", "--device", "cuda", "--dry-run", "--preset", "small", "--batch", "2"]
    assert main(before) == 0
    count = int(capsys.readouterr().out.split()[-2])
    registry._IMPLEMENTATIONS.pop(("label_rank", "cuda", "row", "NCHW"))
    assert main(before) == 0
    assert int(capsys.readouterr().out.split()[-2]) == count - 1
    assert main([*before, "--op", "label_rank"]) == 2
    assert "nothing to tune: no implementation takes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dry-run", "--forget"], "--dry-run, --why and --forget are for one run each"),
        (["--rounds", "0", "--conv", CONV], "--rounds must be at least 1"),
        (["--preset", "smal"], "unknown preset 'smal'"),
        (["--batch", "0"], "--batch takes whole numbers"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--math", "fp8"], "unknown math 'fp8'"),
        (["--op", "conv"], "unknown op 'conv'"),
        (["--layout", "NHWC"], "--layout is for --conv"),
        (["--conv", CONV, "--layout", "NHCW"], "unknown layout 'NHCW'"),
        (["--kernel", "mine.py"], "--kernel takes CUDA kernel files"),
        (["--conv", CONV, "--layers", "conv1"], "--conv stands in the place of the network"),
        (["--device", "emulator"], "the emulator gives no times"),
    ],
)
def test_a_mistake_is_a_line(argv, message, capsys, tmp_path):
    assert main(["tune", "--device", "cpu", "--file", str(tmp_path / "t.json"), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convkit tune: ") and message in line


def test_a_file_that_is_not_understood_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "t.json"
    path.write_text("{}")
    assert main(["tune", "--device", "cpu", "--file", str(path), "--conv", CONV]) == 2
    assert "says no format" in capsys.readouterr().err and path.read_text() == "{}"
