"""The timing core: statistics on synthetic timers, cheats, clocks, `pytest bench/`."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
import simulated

import convkit as ck
from convkit import check, devices, registry
from convkit.bench import work
from convkit.bench.measure import (
    ceilings,
    checks,
    clocks,
    conditions,
    defences,
    fresh,
    own,
    stats,
    timing,
    trial,
)
from convkit.bench.results import machine
from convkit.cpu import extension
from convkit.errors import OptionError
from convkit.op import OPS
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.lrn import LRN

CHEATS = Path(__file__).parent / "cheats"
#: What is timed. The cheats know its shape, since the gate has cases of as many elements.
LARGE = Elementwise((128, 1024))
BACK = work.Item("cheat/relu_dgrad", "relu_dgrad", LARGE)
FORTH = work.Item("cheat/relu_fprop", "relu_fprop", LARGE)
NORM = work.Item("cheat/lrn_fprop", "lrn_fprop", LRN.of((4, 32, 32, 32), alpha=0.5))


# ---------------------------------------------------------------------------------------------------
# Statistics, on synthetic timers
# ---------------------------------------------------------------------------------------------------
def rounds(
    ratio: float, seed: int, count: int, calls: int = 10, noise: float = 0.05, kind: str = ""
) -> tuple:
    """Rounds of a peer and of an own entry, on a machine whose speed drifts and jumps."""
    rng = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(rng.normal(0, 0.03, count))) * rng.choice([1.0, 2.0], count, p=[0.8, 0.2])

    def times(scale: float) -> list[float]:
        samples = scale * drift[:, None] * rng.lognormal(0, noise, (count, calls))
        if kind == "outliers":
            samples *= np.where(rng.random(samples.shape) < 0.05, 4, 1)
        elif kind == "autocorrelated":  # of each entry's own, besides the drift of both
            walk = np.zeros(count)
            for i in range(1, count):
                walk[i] = 0.3 * walk[i - 1] + rng.normal(0, 0.01)
            samples *= np.exp(walk)[:, None]
        return [float(np.median(row)) for row in samples]

    return times(ratio), times(1.0)


def share(verdict: str, seeds: int, **how) -> float:
    how.setdefault("count", timing.Settings().rounds)
    ratio = how.pop("ratio", 1.0)
    return (
        sum(stats.ratio_of(*rounds(ratio, seed, **how)).verdict == verdict for seed in range(seeds)) / seeds
    )


def test_two_percent_are_found_under_noise_of_five():
    """With the default number of rounds, of 10 calls each; power over many seeds."""
    assert share("win", 300, ratio=1.02) > 0.75
    assert share("loss", 300, ratio=1 / 1.02) > 0.75
    assert share("win", 100, ratio=1.02, calls=25) > 0.97
    assert share("loss", 300, ratio=1.02) == 0
    assert share("win", 100, ratio=1.02, kind="outliers") > 0.7


@pytest.mark.parametrize("kind", ["", "outliers"])
@pytest.mark.parametrize("count", [6, 9, 18])
def test_equal_entries_tie(kind, count):
    """A false alarm in 5 % of the runs, at most, whatever the drift of both; 600 runs: 5 % +- 1.8 %."""
    assert 1 - share("tie", 600, count=count, kind=kind) < 0.07


def test_noise_of_ones_own_that_goes_on_from_round_to_round_is_the_limit():
    """Rounds are taken as independent: a little autocorrelation of each one's own doubles false alarms."""
    assert 1 - share("tie", 600, kind="autocorrelated") < 0.12


def test_the_bootstrap_is_too_liberal():
    """Why there is none: what the docstring of `stats` says of it."""
    alarms = 0
    for seed in range(400):
        peer, mine = rounds(1.0, seed, 15)
        ratios = np.array(peer) / np.array(mine)
        picks = np.random.default_rng(0).integers(0, ratios.size, (1000, ratios.size))
        low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
        alarms += not low <= 1 <= high
    assert alarms / 400 > 0.055


def test_the_interval_of_a_median_covers_it():
    inside = 0
    for seed in range(500):
        low, high = stats.interval(np.random.default_rng(seed).lognormal(0, 0.5, 12))
        inside += low <= 1 <= high
    assert 0.93 < inside / 500 <= 1
    values = np.random.default_rng(0).lognormal(0, 0.5, 40)
    wide, narrow = stats.interval(values, 0.99), stats.interval(values, 0.8)
    assert wide[0] < narrow[0] < np.median(values) < narrow[1] < wide[1]


def test_few_rounds_are_a_tie():
    clear = stats.ratio_of([2.0] * 5, [1.0, 1.01, 1.02, 1.03, 1.04])
    assert clear.low > 1.9 and clear.verdict == "tie" and clear.rounds == 5
    assert stats.ratio_of([2.0] * 6, [1.0] * 6).verdict == "win"
    assert stats.ratio_of([1.0] * 6, [2.0] * 6).verdict == "loss"
    assert stats.LEAST == 6 and stats.least(0.99) == 8
    assert stats.ratio_of([2.0] * 7, [1.0] * 7, confidence=0.99).verdict == "tie"
    nothing = stats.ratio_of([], [1.0])
    assert math.isnan(nothing.middle) and nothing.verdict == "tie"
    assert stats.interval([3.0]) == (3.0, 3.0) and all(map(math.isnan, stats.interval([])))


def test_the_ranks_are_those_of_the_tables():
    """Two-sided critical values at 5 %, as printed for the signed-rank test and for the sign test."""
    assert [stats._rank_skip(n, 0.95) for n in (6, 10, 20)] == [0, 8, 52]
    assert [stats._sign_skip(n, 0.95) for n in (6, 9, 20, 25)] == [0, 1, 5, 7]
    exact, normal = stats._rank_skip(200, 0.95), stats._rank_skip(201, 0.95)
    assert exact < normal < exact * 1.02


# ---------------------------------------------------------------------------------------------------
# Cheats
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def clock(monkeypatch):
    """The bench on a simulated clock, in whose calls and pauses alone time passes."""
    made = simulated.Clock()
    for module, names in ((clocks, ("_ns",)), (trial, ("_sleep",)), (timing, ("_sleep",))):
        for name in names:
            monkeypatch.setattr(module, name, {"_ns": made.ns, "_sleep": made.sleep}[name])
    monkeypatch.setattr(clocks, "independent", made.now)
    monkeypatch.setattr(trial, "independent", made.now)
    return made


@pytest.fixture
def loaded(clock):
    """Registers a cheat in this process; afterwards the registry is as before."""
    registry.builtin()  # all of it, so that nothing is loaded in between, and lost afterwards
    before = dict(registry._IMPLEMENTATIONS)

    def load(name: str) -> registry.Implementation:
        found = ck.register(CHEATS / f"{name}.py")[-1]
        module = sys.modules[found.run.__module__]
        if hasattr(module, "later"):
            module.later = clock.later
        return found

    yield load
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


SETTINGS = timing.Settings(rounds=6, turn_s=0.0, pause_s=0.0)


class Quick(clocks.CpuClock):
    """No flush to speak of, no probes: the cheats are caught by other means."""

    def __init__(self) -> None:
        super().__init__(threads=1, flush_bytes=4096)

    def probe(self) -> dict[str, float]:
        return {}

    def ceilings(self, repeats: int = 1) -> dict:
        return {}


#: Seconds of the simulated clock that a call takes on a CPU.
CALL = 1e-3


def record(implementation, item):
    """The entry, whose calls take simulated time; on the stand-in of a GPU its kernels do that."""
    found = own.entry(implementation, item, {})
    if implementation.device == "cuda":
        return found

    def bind(inputs, outputs):
        call = bound(inputs, outputs)

        def run() -> None:
            call()
            trial._sleep.__self__.work(CALL)

        return run

    bound, found.bind = found.bind, bind
    return found


def run(implementation, item=None, off=(), clock=None, gate=True):
    item = item or {"relu_fprop": FORTH, "relu_dgrad": BACK, "lrn_fprop": NORM}[implementation.op]
    before, defences._off = defences._off, frozenset(off)
    settings = replace(SETTINGS, gate=gate)
    try:
        return timing.race(item, [record(implementation, item)], clock or Quick(), settings)
    finally:
        defences._off = before


COMPARED = {"gate", "before", "looks", "after"}
AT_SIZE = COMPARED - {"gate"}
#: (cheat, the defences each of which catches it, what the reason says)
CAUGHT = [
    ("zeros", COMPARED, "is 0"),
    ("nan", COMPARED, "is nan|NaN"),
    ("loses_nan", {"gate"}, "fails convkit.check, nan data: .*expected NaN"),
    ("wrong_when_large", AT_SIZE, r"y\[\d+, \d+\] is .*at the timed size"),
    ("skips_part", AT_SIZE, "did not write 130048 of the 131072 elements of y"),
    ("cached", {"fresh"}, "returned the output of an earlier call, though its inputs are new"),
    ("same_pointer", {"poison", "fresh"}, "did not write 131072 .* in a second call .*: work was skipped"),
    ("later", {"looks"}, r"every element of y that was looked at is 0.5: .*round \d, call \d"),
    ("skips_backward", AT_SIZE, "did not write 131072 of the 131072 elements of dx"),
    ("background", {"glance", *AT_SIZE}, "did not write|work went on in the background"),
    ("mutates_input", {"inputs"}, "changed its input x"),
    ("out_of_bounds", {"bands"}, "wrote outside its tensors, y: "),
    ("blocked_mutates_input", {"inputs"}, "changed its input x"),
    ("blocked_out_of_bounds", {"bands"}, "wrote outside its tensors, y: "),
    ("random_bits", {"before", "after"}, "is not deterministic: the same inputs gave other bits"),
]
NAMES = [name for name, _, _ in CAUGHT]


def test_an_honest_implementation_passes(loaded):
    result = run(loaded("honest"))
    assert result.refused == {} and not result.interrupted
    assert [len(calls) for calls in result.samples["honest"]] == [3] * 6
    times = [ms for calls in result.samples["honest"] for ms in calls]
    assert times == pytest.approx([1e3 * CALL] * 18, rel=0.01)
    found = result.checks["honest"]
    assert found.as_dict() == {"before": "passed", "during": "passed", "after": "passed"}
    assert found.deterministic is True and found.error == 0 and found.looks == 6
    assert len(result.conditions) == 6 and result.conditions[-1]["row"] == FORTH.id
    assert len(result.rounds("honest")) == 6


@pytest.mark.parametrize(("name", "defences", "reason"), CAUGHT, ids=NAMES)
def test_a_cheat_is_caught(name, defences, reason, loaded):
    result = run(loaded(name))
    assert result.samples == {}, result
    ((label, said),) = result.refused.items()
    assert label.partition(" ")[0] == name and re.search(reason, said), said
    assert said in (vars(result.checks[label])[w] for w in ("before", "during", "after"))


@pytest.mark.parametrize(("name", "defences", "reason"), CAUGHT, ids=NAMES)
def test_without_its_defences_a_cheat_passes(name, defences, reason, loaded):
    """So that each of them is needed; and, of several that catch it, each one alone is enough."""
    # What the gate says of it is known from the test above; this saves its time.
    result = run(loaded(name), off=defences, gate=False)
    ((label, samples),) = result.samples.items()
    assert result.refused == {} and label.partition(" ")[0] == name and len(samples) == 6


def test_an_implementation_that_breaks_the_gate_ends_nobody_elses_race(loaded):
    both = [record(loaded(name), FORTH) for name in ("breaks_the_gate", "honest")]
    result = timing.race(FORTH, both, Quick(), SETTINGS)
    assert set(result.samples) == {"honest"} and list(result.refused) == [both[0].name]


@pytest.mark.parametrize(
    ("name", "defence"), [(n, d) for n, defences, _ in CAUGHT for d in sorted(defences) if len(defences) > 1]
)
def test_one_defence_alone_catches_it(name, defence, loaded):
    defences = next(d for n, d, _ in CAUGHT if n == name)
    result = run(loaded(name), off=defences - {defence}, gate=defence == "gate")
    assert set(result.refused) == {name}


def test_work_that_ends_between_two_looks_is_found(loaded, clock, monkeypatch):
    """After the pause, while the inputs are compared: what is copied only then would be right."""
    late, changed = loaded("background"), fresh.Memory.changed
    sys.modules[late.run.__module__].LATE = 0.02  # the pause is shorter

    def compared(memory) -> str:
        clock.sleep(0.02)
        return changed(memory)

    monkeypatch.setattr(fresh.Memory, "changed", compared)
    result = run(late, off={"before", "after"}, gate=False)
    assert "did not write" in result.refused["background"]
    assert run(late, off=AT_SIZE, gate=False).refused == {}


def test_a_call_is_looked_at_as_it_left_its_outputs(loaded, clock):
    """Before any time passes, whatever the layout: by `look`, by `read` and without either."""
    kept: list[np.ndarray] = []

    def bind(inputs, outputs):
        def run() -> None:
            np.maximum(inputs["x"], 0, out=outputs["y"])
            kept[:] = [outputs["y"].copy()]

        return run

    for ways in ({"look": lambda part: part.of({"y": kept[0]})}, {"read": lambda: {"y": kept[0]}}, {}):
        memory = fresh.Memory(FORTH)
        memory.draw()
        one = trial.Trial(FORTH, timing.Entry("a", "a library", bind, **ways), memory, Quick(), SETTINGS)
        began: list[float] = []
        copy = one._copy
        one._copy = lambda part, copy=copy, began=began: (began.append(clock.seconds[0]), copy(part))[1]
        slept = clock.seconds[0]
        one.turn(3, "round 1")
        assert one.checks.looks == 1 and began[0] - slept < 1e-3, ways


def test_a_part_that_is_looked_at_is_that_of_the_whole(loaded):
    """In every layout that an op has."""
    problems = {
        "conv2d_fprop": Conv2d.of((3, 32, 9, 9), (32, 32, 3, 3), padding=1),
        "conv2d_wgrad": Conv2d.of((3, 32, 9, 9), (32, 32, 3, 3), padding=1),
        "lrn_fprop": LRN.of((3, 20, 9, 9)),
        "relu_fprop": Elementwise((5, 700)),
    }
    layouts = set()
    for op, problem in problems.items():
        item = work.Item(op, op, problem)
        memory = fresh.Memory(item)
        memory.draw()
        memory.refresh()
        one_each = {found.layout: found for found in own.entries(item, every_layout=True)}
        for entry_ in one_each.values():
            one = trial.Trial(item, entry_, memory, Quick(), SETTINGS)
            one.bind()
            one._run()
            part = fresh.any_part(item, random.Random(1))
            got, whole = one._copy(part)[0], part.of(one.outputs())
            assert got and trial.same(got, whole) and trial.same(whole, got), entry_.name
            assert all(got[name].shape == whole[name].shape for name in whole)
            layouts.add(entry_.layout)
    assert len(layouts) > 1 or not extension.isas()


def test_what_is_kept_by_content_is_of_no_use(loaded):
    """Right results that are kept: inputs never come twice, so there is nothing to find."""
    implementation = loaded("same_content")
    result = run(implementation)
    hits = sys.modules[implementation.run.__module__].HITS
    # The checks before and after call twice on the same inputs, and no timed call does.
    assert result.refused == {} and len(hits) == 2
    run(implementation, off={"fresh"}, gate=False)
    assert len(hits) > 15


def test_every_defence_of_the_table_is_needed_by_some_cheat():
    table = defences.__doc__.split("=\n")[2]
    listed = set(re.findall(r"^(\w[\w, ]*?)  ", table, re.MULTILINE))
    needed = set().union(*(names for _, names, _ in [*CAUGHT, *CAUGHT_ON_GPU]))
    assert {name for names in listed for name in names.split(", ")} == needed


def test_who_ends_the_program_ends_its_own_race_only(loaded):
    honest = loaded("honest")
    ends = replace(honest, name="ends", run=lambda problem, x, y: sys.exit(0))
    result = timing.race(
        FORTH, [record(i, FORTH) for i in (ends, honest)], Quick(), replace(SETTINGS, gate=False)
    )
    assert set(result.samples) == {"honest"}
    assert result.refused["ends"] == "wanted to end the program (SystemExit(0))"


def test_a_second_entry_goes_on_where_a_cheat_is_refused(loaded):
    both = [record(loaded(name), FORTH) for name in ("zeros", "mutates_input", "honest")]
    result = timing.race(FORTH, both, Quick(), SETTINGS)
    assert set(result.refused) == {"zeros", "mutates_input"} and len(result.samples["honest"]) == 6


# ---------------------------------------------------------------------------------------------------
# Cheats on a GPU, with a stand-in for CuPy
# ---------------------------------------------------------------------------------------------------
class Limits(clocks.Persisting):
    """The driver's calls, on the stand-in's limits."""

    def reset(self) -> None:
        pass

    def set_aside(self) -> int:
        return sys.modules["cupy"].cuda.runtime.limits.get(self._LIMIT, 0)

    def forbid(self) -> None:
        sys.modules["cupy"].cuda.runtime.deviceSetLimit(self._LIMIT, 0)


@pytest.fixture
def gpu(monkeypatch, loaded, clock):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "gpu_found", lambda: True)
    monkeypatch.setattr(check, "gpu_found", lambda: True)
    monkeypatch.setattr(clocks, "Persisting", Limits)
    monkeypatch.setattr(clocks, "CUDA_FLUSH", 4096)
    monkeypatch.setattr(fake_cupy, "simulated", clock.seconds)
    checks.gate.cache_clear()
    yield loaded
    checks.gate.cache_clear()


class QuickCuda(clocks.CudaClock):
    probe, ceilings = Quick.probe, Quick.ceilings


class SlowCuda(QuickCuda):
    """Whose memory is known to be slow: an honest 2 ms for the 1 MB of `FORTH` are half a GB/s."""

    def ceilings(self, repeats: int = 1) -> dict:
        return {"copy": {"value": 0.7, "unit": "GB/s", "samples": [0.7], "method": "by decree"}}


def test_the_time_of_a_gpu_is_that_between_its_events(gpu):
    clock = clocks.clock_for("cuda")
    times, gaps, hidden = [], [], []
    for _ in range(7):
        clock.cold()
        times.append(clock.time(lambda: fake_cupy.queue(3e-3)))
        gaps.append(clock.gap_ms)
        clock.time(lambda: fake_cupy.Stream.every.append(_busy(4e-3)))
        hidden.append(clock.gap_ms)
    assert np.median(times) == pytest.approx(3, abs=0.5) and np.median(gaps) < 0.5
    assert np.median(hidden) > 3.5
    found = clock.ceilings(1)
    assert set(found) == {"fma", "copy", "sgemm", "tensor-fp16"} and all(
        c["value"] > 0 for c in found.values()
    )
    assert machine.machine("cuda")["gpu"]["name"] == "no GPU at all"


def _busy(seconds: float) -> fake_cupy.Stream:
    stream = fake_cupy.Stream()
    stream.until = fake_cupy.now() + seconds
    return stream


def test_an_honest_kernel_passes_on_the_stand_in(gpu):
    (implementation,) = gpu_honest()
    result = run(implementation, clock=QuickCuda())
    assert result.refused == {} and result.checks["gpu_honest"].as_dict()["after"] == "passed"
    assert np.median(result.rounds("gpu_honest")) == pytest.approx(2, abs=0.5)


def gpu_honest() -> list[registry.Implementation]:
    def relu(problem, x, y):
        sys.modules["cupy"].maximum(x, 0, out=y)

    ck.implements("relu_fprop", name="gpu_honest", device="cuda", rank=-99)(relu)
    return [i for i in ck.implementations("relu_fprop", device="cuda") if i.name == "gpu_honest"]


def test_short_warm_calls_are_timed_in_a_graph(gpu, monkeypatch):
    """As far as the stand-in can show: outputs are those of the captured calls, the time is a share."""
    monkeypatch.setattr(fake_cupy, "KERNEL", [20e-6])
    (implementation,) = gpu_honest()
    warm = record(implementation, FORTH)
    result = timing.race(FORTH, [warm], QuickCuda(), replace(SETTINGS, cache="warm"))
    assert result.refused == {} and warm.facts["timed"] == "in a CUDA graph of 20 calls"
    assert np.median(result.rounds("gpu_honest")) == pytest.approx(0.02)
    cold = record(implementation, FORTH)
    assert timing.race(FORTH, [cold], QuickCuda(), SETTINGS).refused == {} and "timed" not in cold.facts


CAUGHT_ON_GPU = [
    (
        "gpu_side_stream",
        {"wall", "ceilings"},
        r"events say .* but the device was busy for .* more: it works on another stream",
    ),
    (
        "gpu_waits_for_its_stream",
        {"held", "ceilings"},
        "wrote its outputs while its stream was held back: it works on another stream",
    ),
    ("gpu_patches_events", {"device", "wall"}, "replaced CuPy's events"),
    (
        "gpu_persisting_l2",
        {"device"},
        "keeps lines in L2: it set 1048576 bytes aside for persisting accesses",
    ),
]


@pytest.mark.parametrize(("name", "defences", "reason"), CAUGHT_ON_GPU)
def test_a_cheat_on_a_gpu_is_caught(name, defences, reason, gpu):
    result = run(gpu(name), clock=QuickCuda())
    assert result.samples == {} and re.search(reason, result.refused[name]), result.refused
    passed = run(gpu(name), clock=QuickCuda(), off=defences, gate=False)
    assert passed.refused == {} and len(passed.samples[name]) == 6
    if name != "gpu_persisting_l2":  # this is what it would have gained; the work takes 2 ms
        assert min(passed.rounds(name)) < 1
    for defence in defences:
        clock = SlowCuda if defence == "ceilings" else QuickCuda
        alone = run(gpu(name), clock=clock(), off=defences - {defence}, gate=False)
        assert set(alone.refused) == {name}, defence


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "defences", "reason"), CAUGHT_ON_GPU[:1])
def test_a_cheat_on_a_real_gpu_is_caught(name, defences, reason, loaded):
    result = run(loaded(name), clock=clocks.clock_for("cuda"))
    assert result.samples == {} and re.search(reason, result.refused[name]), result.refused


# ---------------------------------------------------------------------------------------------------
# The race
# ---------------------------------------------------------------------------------------------------
def entry(name: str, seconds: float, calls: list | None = None, **more) -> timing.Entry:
    """A library whose relu takes that long on the simulated clock."""

    def bind(inputs, outputs):
        def run() -> None:
            trial._sleep.__self__.work(seconds)
            np.maximum(inputs["x"], 0, out=outputs["y"])
            if calls is not None:
                calls.append(name)

        return run

    return timing.Entry(name, "a library", bind, **more)


def test_entries_take_turns_in_a_random_order(clock, monkeypatch):
    calls: list[str] = []
    turns: list[str] = []
    turn = trial.Trial.turn
    monkeypatch.setattr(
        trial.Trial, "turn", lambda self, *given: (turns.append(self.name), turn(self, *given))[1]
    )
    records = [entry("a", 1e-3, calls), entry("b", 2e-3, calls)]
    result = timing.race(FORTH, records, Quick(), timing.Settings(rounds=8, turn_s=0.0, pause_s=0))
    assert result.refused == {} and [len(result.samples[n]) for n in "ab"] == [8, 8]
    assert result.ratio("b", "a").middle == pytest.approx(2, rel=0.01)
    assert result.ratio("b", "a").verdict == "win"
    assert all(set(turns[i : i + 2]) == {"a", "b"} for i in range(0, 16, 2))  # both in each round
    assert set(turns[::2]) == {"a", "b"}  # now this one first, now that
    orders = [turns[:]]
    for seed in (0, 1):
        turns.clear()
        timing.race(FORTH, records, Quick(), timing.Settings(rounds=8, turn_s=0.0, pause_s=0, seed=seed))
        orders.append(turns[:])
    assert orders[0] == orders[1] != orders[2]


def test_a_slow_entry_gets_fewer_rounds_and_the_pick_gets_all(clock):
    records = [entry("slow", 0.05), entry("fast", 1e-4), entry("own", 0.05, marks=("picked",))]
    result = timing.race(
        FORTH, records, Quick(), timing.Settings(rounds=7, turn_s=0, pause_s=0, budget_s=0.4)
    )
    # 0.4 s hold two turns of three calls of 50 ms.
    assert {name: len(samples) for name, samples in result.samples.items()} == {
        "slow": 2,
        "fast": 7,
        "own": 7,
    }
    assert result.ratio("slow", "own").rounds == 2


def test_an_interrupt_keeps_complete_rounds(clock):
    seen = []

    def progress(text: str) -> None:
        seen.append(text)

    class Stops(Quick):
        def probe(self):
            if any("round 3" in text for text in seen):
                raise KeyboardInterrupt
            return {"fma": 1e9, "copy": 1e9}

    result = timing.race(FORTH, [entry("a", 0), entry("b", 0)], Stops(), SETTINGS, progress)
    assert result.interrupted and [len(result.samples[n]) for n in "ab"] == [2, 2]
    assert len(result.probes["fma"]) == len(result.conditions) == 2
    assert result.checks["a"].as_dict()["after"] == "unchecked"


def test_one_that_fails_is_refused_with_its_error(clock):
    def failing(inputs, outputs):
        raise MemoryError("no 3 GB")

    def late(inputs, outputs):
        count.append(1)
        if len(count) > 4:
            raise RuntimeError("cuDNN went away\nand more")
        return entry("", 0).bind(inputs, outputs)

    count: list[int] = []
    records = [timing.Entry("big", "x", failing), timing.Entry("late", "x", late), entry("a", 0)]
    result = timing.race(FORTH, records, Quick(), SETTINGS)
    assert result.refused == {"big": "MemoryError: no 3 GB", "late": "RuntimeError: cuDNN went away"}
    assert set(result.samples) == {"a"}


def test_a_library_is_compared_with_float64_too(clock):
    def bind(inputs, outputs):
        def run() -> None:
            state["y"] = np.maximum(inputs["x"], 0).astype(np.float16).astype(np.float32)

        return run

    state: dict = {}
    coarse = timing.Entry("coarse", "x", bind, lambda: {"y": state["y"]})
    result = timing.race(FORTH, [coarse], Quick(), SETTINGS)
    assert "relative RMS error of y is" in result.refused["coarse"] and "5e-05" in result.refused["coarse"]
    item = work.Item(FORTH.id, "relu_fprop", LARGE, math="tf32")
    passed = timing.race(item, [coarse], Quick(), SETTINGS)
    assert passed.refused == {} and 1e-5 < passed.checks["coarse"].error < 1e-3


def test_nothing_is_faster_than_the_machine(clock):
    roof = {"copy": {"value": 1e-3}, "fma": {"value": 1e9}}
    result = timing.race(FORTH, [entry("a", 0)], Quick(), SETTINGS, ceilings=roof)
    assert (
        result.refused["a"].startswith("above the ceiling: ")
        and "GB/s, where copy was measured at 0.001" in result.refused["a"]
    )
    again = Quick()
    again.ceilings = lambda: {"copy": {"value": 1e6}}  # it was measured at a bad moment
    result = timing.race(FORTH, [entry("a", 0)], again, SETTINGS, ceilings=roof)
    assert result.refused == {} and result.probes == {"copy": [1e6]}
    warm = timing.Settings(rounds=6, turn_s=0, pause_s=0, cache="warm")
    assert timing.race(FORTH, [entry("a", 0)], Quick(), warm, ceilings=roof).refused == {}
    item = work.Item("c", "conv2d_fprop", Conv2d.of((1, 8, 8, 8), (8, 8, 3, 3)))
    ms = item.flops / 1e6 / 100  # 100 GFLOP/s
    assert ceilings.above_ceiling(item, {}, ms, {"fma": 80.0}).startswith(
        "above the ceiling: 100 GFLOP/s, where fma"
    )
    assert ceilings.above_ceiling(item, {}, ms, {"fma": 95.0}) == ""  # the ceiling has a spread too
    assert ceilings.above_ceiling(item, {"algorithm_flops": item.flops // 2}, ms, {"fma": 80.0}) == ""


def test_what_declares_fewer_operations_than_any_algorithm_needs_is_refused(clock):
    problem = Conv2d.of((1, 8, 8, 8), (8, 8, 3, 3))
    item = work.Item("c", "conv2d_fprop", problem, absent=("b",), options={"relu": False})
    (plain,) = (i for i in ck.implementations("conv2d_fprop", device="cpu") if i.name == "reference")
    bold, honest = (replace(plain, name=n, flops=f) for n, f in (
        ("bold", lambda g: item.fast_flops - 1), ("honest", lambda g: item.fast_flops),
    ))  # fmt: skip
    entries = [own.entry(one, item, {}) for one in (bold, honest)]
    result = timing.race(item, entries, Quick(), replace(SETTINGS, gate=False))
    assert list(result.samples) == ["honest"]
    assert "fewer than any algorithm needs for its window" in result.refused["bold"]


def test_bad_settings():
    with pytest.raises(OptionError, match="unknown cache 'lukewarm'"):
        timing.race(FORTH, [], Quick(), timing.Settings(cache="lukewarm"))
    with pytest.raises(OptionError, match="same name: a, a"):
        timing.race(FORTH, [entry("a", 0), entry("a", 0)], Quick(), SETTINGS)
    with pytest.raises(OptionError, match="unknown device 'tpu'"):
        clocks.clock_for("tpu")
    assert timing.race(FORTH, [], Quick(), SETTINGS).samples == {}


# ---------------------------------------------------------------------------------------------------
# Inputs and parts
# ---------------------------------------------------------------------------------------------------
def items() -> list[work.Item]:
    wanted = work.Wanted(directions=work.DIRECTIONS, batches=(2,))
    small = {}
    for item in work.items(wanted):
        if item.flops < 3e8 and item.bytes < 2e7:
            small.setdefault((item.op, bool(item.options.get("relu"))), item)
    return list(small.values())


@pytest.mark.parametrize("item", items(), ids=lambda item: f"{item.layer}-{item.op}")
def test_the_parts_of_an_item_are_the_whole(item):
    """What the reference says of the parts is what it says of all, for every op; inputs are new each time."""

    memory = fresh.Memory(item)
    memory.draw()
    memory.refresh()
    whole = OPS[item.op].evaluate(item.problem, memory.values, dict(item.options))
    covered = {name: np.zeros(array.shape, int) for name, array in whole.items()}
    for part in [*fresh.parts(item), fresh.any_part(item, random.Random(0))]:
        for name, want in part.expected(memory.values).items():
            covered[name][part.outputs[name]] += 1
            np.testing.assert_allclose(want.value, whole[name][part.outputs[name]], rtol=1e-9, atol=1e-9)
    assert all((count >= 1).all() for count in covered.values())
    before = memory.values
    memory.refresh()
    for name in item.inputs:
        moved = np.mean(fresh.bits(before[name]) != fresh.bits(memory.values[name]))
        assert moved > 0.3 or before[name].size < 8, name
        assert np.array_equal(fresh.bits(memory.inputs[name]), fresh.bits(memory.values[name]))
    assert memory.changed() == memory.trespass() == ""


def test_inputs_are_no_shifted_copies_of_earlier_ones():
    """Else an op without borders could be done once a round, and moved by some elements."""
    memory = fresh.Memory(FORTH)
    memory.draw()
    memory.refresh()
    before = memory.values["x"].reshape(-1)
    memory.refresh()
    after = memory.values["x"].reshape(-1)
    middle = len(after) // 2
    near = before[middle - 2 * fresh.SLACK : middle + 2 * fresh.SLACK]
    # Some single numbers may be there by chance.
    runs = np.lib.stride_tricks.sliding_window_view(near, 8)
    assert not (runs == after[middle : middle + 8]).all(axis=1).any()


def test_inputs_are_normal_and_read_only():
    memory = fresh.Memory(FORTH)
    memory.draw()
    memory.refresh()
    x = memory.inputs["x"]
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0] = 1
    memory.poison()
    assert np.isnan(memory.outputs["y"]).all()


# ---------------------------------------------------------------------------------------------------
# Clocks and conditions
# ---------------------------------------------------------------------------------------------------
def test_the_clock_agrees_with_the_systems():
    clock = clocks.CpuClock(threads=1)
    outside = time.perf_counter()
    start = clocks.independent()
    ms = clock.time(lambda: time.sleep(0.02))
    between = (clocks.independent() - start) * 1e3
    outside = (time.perf_counter() - outside) * 1e3
    # Each lies within the next, however long this process is held up. The raw clock is not steered, by up to
    # 0.05 %.
    assert 20 <= ms <= 1.001 * between and between <= 1.001 * outside


def test_cold_is_slower_than_warm():
    """The shortest time of each counts: others that use the machine can only lengthen one."""
    data, clock = np.ones(2**16, np.float32), clocks.CpuClock(threads=1)  # 256 KB, which any cache holds
    cold, warm = [], []
    for _ in range(15):
        clock.cold()
        cold.append(clock.time(data.max))
        warm += [clock.time(data.max) for _ in range(5)]
    assert min(cold) > 1.5 * min(warm)


def test_ceilings_have_what_a_capsule_wants():
    found = clocks.CpuClock(threads=1).ceilings(repeats=1)
    assert set(found) == {"fma", "copy", "read", "update"}
    for record in found.values():
        assert (
            record["unit"] in ("GFLOP/s", "GB/s")
            and record["value"] == max(record["samples"]) > 0
            and record["method"]
        )


def test_conditions_say_what_the_machine_says(monkeypatch):
    found = machine.machine(threads=3)
    assert found["device"] == "cpu" and found["name"] == found["cpu"] and found["threads"] == 3
    assert found["gpu"] is None and found["versions"]["convkit"] == ck.__version__
    assert all(key in ("cpu_mhz",) for key in conditions.sample())
    assert conditions.throttled(0x4 | 0x40 | 0x1) == ["power cap", "hardware thermal slowdown"]
    monkeypatch.setattr(conditions, "_nvml", lambda: None)
    assert conditions.sample("cuda") == {}


def test_what_others_took_is_what_the_system_counts(monkeypatch):
    """Of the 9.4 s that two CPUs had, 6.4 were busy, or taken by the host; of these 4 were our own."""
    found = iter(
        [
            # user nice system idle iowait irq softirq steal guest guest_nice
            ("cpu  1000 10 100 5000 50 5 5 10 77 7\ncpu0 ...\n", (3.0, 0.5)),
            ("cpu  1300 60 200 5200 150 15 15 180 99 9\ncpu0 ...\n", (6.0, 1.5)),
        ]
    )

    def reading():
        text, (user, system) = next(found)
        monkeypatch.setattr(conditions, "open", lambda *_, **__: io.StringIO(text), raising=False)
        monkeypatch.setattr(
            conditions, "os", SimpleNamespace(
                times=lambda: SimpleNamespace(user=user, system=system), sysconf=lambda name: 100,
            )
        )  # fmt: skip

    reading()
    others = conditions.Others()
    reading()
    assert others.share() == pytest.approx((6.4 - 4.0) / 9.4)


def test_importing_the_core_imports_nothing_heavy():
    code = (
        "import sys, convkit.bench.measure.timing, convkit.bench.measure.trial; "
        "print([m for m in ('torch', 'cupy', 'jax', 'onnxruntime', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------
# pytest bench/
# ---------------------------------------------------------------------------------------------------
BENCH = Path(__file__).resolve().parents[2] / "bench"


def pytest_bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", str(BENCH)]
    # In a worker of pytest-xdist, which it would find there, pytest-benchmark does not measure.
    env = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")} | environment
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.slow
def test_pytest_bench_is_fed_by_the_core_and_can_be_compared(tmp_path):
    small = [
        "--batch",
        "1",
        "--rounds",
        "6",
        "-k",
        "relu7-relu_fprop",
        f"--benchmark-storage=file://{tmp_path}",
    ]
    first = pytest_bench(*small, "--benchmark-autosave", "--benchmark-save-data")
    assert first.returncode == 0, first.stdout
    (path,) = tmp_path.glob("*/0001_*.json")
    rows = json.loads(path.read_text())["benchmarks"]
    assert rows
    for row in rows:
        assert row["options"]["timer"].endswith("device_time")
        assert row["params"]["row"] == "alexnet-paper/relu7/relu_fprop/N=1/float32/fp32"
        info = row["extra_info"]
        assert row["stats"]["rounds"] >= 18 and info["rounds"] == 6 and info["cache"] == "cold"
        assert info["low_ms"] <= info["median_ms"] <= info["high_ms"]
        by_round = np.reshape(row["stats"]["data"], (6, -1))  # a turn has as many calls in every round
        assert np.median(np.median(by_round, 1)) * 1e3 == pytest.approx(info["median_ms"], rel=1e-6)
        assert info["error"] == 0 and info["flops"] == 4096 and info["deterministic"] is True
        assert info["ceiling"] in ("copy", "read", "update") and 0 < info["percent"] < 110
    second = pytest_bench(*small, "--benchmark-compare")
    assert second.returncode == 0 and "(0001_" in second.stdout and "(NOW)" in second.stdout, second.stdout


@pytest.mark.slow
def test_pytest_bench_does_not_time_what_is_wrong(tmp_path):
    plugin = tmp_path / "wrong.py"
    plugin.write_text(
        f"import sys\nimport convkit as ck\nck.register({str(CHEATS / 'wrong_when_large.py')!r})\n"
    )
    arguments = ["--batch", "64", "--rounds", "1", "-k", "relu7-relu_fprop", "-p", "wrong"]
    done = pytest_bench(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout
    assert "fp32 'wrong_when_large' was not timed: y[" in done.stdout
    table = done.stdout.partition("benchmark '")[2].partition("Legend")[0]
    assert "relu7-relu_fprop" in table and "wrong_when_large" not in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "2013"], "unknown preset '2013'"),
        (["--batch", "0"], "--batch must be at least 1, not 0"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--cache", "hot"], "invalid choice: 'hot'"),
    ],
)
def test_bad_input_to_pytest_bench_gets_one_line(arguments, message):
    done = pytest_bench("--collect-only", *arguments)
    assert done.returncode == 4 and message in done.stdout + done.stderr and "Traceback" not in done.stdout
