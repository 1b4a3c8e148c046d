"""bench/cpu.py: its statistics on samples whose truth is known, its goals, a small run, bad input."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simulated
from conftest import need

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import cpu_measure as m  # noqa: E402


def synthetic(ratio: float, rounds: int, seed: int, noise: float = 0.03) -> tuple[list[float], list[float]]:
    """Times of a peer and of convkit on a machine whose speed changes by 2 from round to round."""
    rng = np.random.default_rng(seed)
    speed = rng.choice([1.0, 2.0], rounds)
    own = 10 * speed * rng.lognormal(0, noise, rounds)
    return list(ratio * 10 * speed * rng.lognormal(0, noise, rounds)), list(own)


def row(name: str, **samples: list[float]) -> m.Row:
    found = m.Row(name)
    for contender, values in samples.items():
        found.samples[contender.replace("_", "-")] = [[value] for value in values]
    return found


# ---------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------
def test_a_known_ratio_is_found_though_the_machine_changes_its_speed():
    inside = 0
    for seed in range(40):
        ratio = m.ratio_of(*synthetic(2.0, 9, seed))
        assert ratio.middle == pytest.approx(2.0, rel=0.07)
        assert ratio.low <= ratio.middle <= ratio.high < 1.25 * ratio.low
        inside += ratio.low <= 2.0 <= ratio.high
    assert inside >= 34  # 95 % in the long run; the bootstrap of 9 values is a little narrow


def test_a_slow_peer_with_few_rounds_is_paired_with_the_same_rounds():
    ratio = m.ratio_of([20.0, 44.0], [10.0, 20.0, 1000.0])
    assert (ratio.middle, ratio.low, ratio.high, ratio.rounds) == (2.1, 2.0, 2.2, 2)
    assert math.isnan(m.ratio_of([], [1.0]).middle)


def test_the_better_peer_and_the_planned_figure_count():
    one = row("r", convkit_op=[9.0] * 5, convkit=[5.0] * 5, torch=[12.0] * 5, jax=[10.0] * 5)
    assert one.own == "convkit" and one.best() == "jax" and one.best(m.PYTORCH) == "torch"
    assert one.as_dict()["ratio"]["median"] == 2.0 and one.as_dict()["ratio"]["peer"] == "jax"
    assert one.quartiles("torch") == (12.0, 12.0)


# ---------------------------------------------------------------------------------------------------
# Taking turns
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def clock(monkeypatch):
    """Time passes in contenders alone."""
    made = simulated.Clock()
    monkeypatch.setattr(m, "time", made.module())
    return made


def test_contenders_take_turns_and_a_wrong_one_is_not_timed(clock):
    order = []

    def work(name: str, seconds: float):
        return lambda: (order.append(name), clock.work(seconds))

    race = m.Row("race")
    entries = [
        m.Entry("convkit", work("convkit", 0.002), lambda: 0.0),
        m.Entry("torch", work("torch", 0.004), lambda: 1e-4),
        m.Entry("jax", work("jax", 0.001), lambda: math.nan),
        m.Entry("onnxruntime", work("onnxruntime", 0.001), lambda: 1 / 0),
    ]
    settings = m.Settings(rounds=8, pause=0.0, turn=0.01, threads=1, probe_seconds=1e-3, probe_megabytes=1)
    m.measure(race, entries, settings)
    assert "jax" not in order and race.refused["jax"].startswith("wrong")
    assert "ZeroDivisionError" in race.refused["onnxruntime"]
    assert set(race.samples) == {"convkit", "torch"}
    assert [len(race.samples[name]) for name in ("convkit", "torch")] == [8, 8]
    assert {name: len(values) for name, values in race.probes.items()} == {m.FMA: 8, m.COPY: 8, m.OTHERS: 8}
    turns = [name for i, name in enumerate(order[4:]) if i == 0 or order[3 + i] != name]
    assert 6 < len(turns) < 16  # not one contender after the other, and not always in the same order
    assert m.ratio_of(race.rounds("torch"), race.rounds("convkit")).middle == pytest.approx(2, rel=0.01)


def test_a_slow_contender_gets_fewer_rounds(clock):
    race = m.Row("race")
    entries = [
        m.Entry("convkit", lambda: clock.work(0.001)),
        m.Entry("torch", lambda: clock.work(0.002)),
        m.Entry("jax", lambda: clock.work(0.06)),
    ]
    settings = m.Settings(
        rounds=4, budget=0.1, pause=0.0, turn=0.003, threads=1, probe_seconds=1e-3, probe_megabytes=1
    )
    m.measure(race, entries, settings)
    assert [len(race.samples[name]) for name in ("convkit", "torch", "jax")] == [4, 4, 1]


# ---------------------------------------------------------------------------------------------------
# Goals
# ---------------------------------------------------------------------------------------------------
def verdicts(*rows: m.Row) -> dict[tuple[str, str], m.Verdict]:
    return {(v.goal.rows, v.goal.over): v for v in m.evaluate(list(rows)) if v.verdict != "not measured"}


def test_goals_are_reached_missed_or_not_measured():
    assert all(v.verdict == "not measured" for v in m.evaluate([]))
    peers = {"torch": [40.0] * 5, "torch_channels_last": [36.0] * 5, "jax": [11.0] * 5}
    step = row("step/paper/N=16", convkit=[10.0] * 5, **peers)
    found = verdicts(step)[("step/paper/N=16", "")]
    # JAX is no part of this goal.
    assert (found.verdict, found.measured, found.clear) == ("reached", 3.6, True)
    step.samples["torch"] = [[34.0]] * 5
    found = verdicts(step)[("step/paper/N=16", "")]
    assert (found.verdict, found.measured) == ("missed", 3.4) and "PyTorch NCHW" in found.what
    step.samples["torch"] = [[v] for v in (30.0, 38.0, 36.0, 31.0, 35.5)]
    assert not verdicts(step)[("step/paper/N=16", "")].clear
    alone = row("forward/paper/N=1", convkit=[10.0] * 5, torch=[40.0] * 5)
    assert verdicts(alone) == {}  # ONNX Runtime was not there


def test_goals_over_many_rows_and_absolute_ones():
    times = {"a/fwd": 5.0, "b/fwd": 20.0, "c/fwd": 30.0}
    rows = [row(f"geometries/{name}", convkit_op=[10.0] * 5, torch=[t] * 5) for name, t in times.items()]
    found = verdicts(*rows)
    middle = found["geometries/*", "median"]
    assert (middle.measured, middle.verdict) == (2.0, "reached")
    worst = found["geometries/*", "minimum"]
    assert (worst.measured, worst.verdict) == (0.5, "missed") and worst.row.endswith("a/fwd")
    memory = row("memory/paper/N=128", convkit=[1.5], torch=[3.1], torch_channels_last=[2.9])
    both = [v for v in m.evaluate([memory]) if v.verdict != "not measured"]
    assert [(round(v.measured, 2), v.verdict) for v in both] == [(1.5, "reached"), (1.93, "reached")]
    assert verdicts(row("first/conv2d_fprop", convkit=[80.0] * 3))[("first/*", "")].verdict == "missed"


# ---------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------
def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "cpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "layer"], "unknown section 'layer'; known: step, forward, layers"),
        (["--contenders", "torch,caffe"], "unknown contender 'caffe'"),
        (["--preset", "2012"], "unknown preset '2012'; known: paper, owt, caffe"),
        (["--batch", "1,0"], "must be an integer of at least 1, not '0'"),
        (["--rounds", "many"], "must be an integer of at least 1, not 'many'"),
        (["--json", "no/such/folder/a.json"], "there is no folder"),
        (["--picture", "a.gif"], "must end in .png"),
    ],
)
def test_bad_input_gets_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.startswith("cpu.py: ")


SMALL = ["--quick", "--sections", "geometries", "--contenders", "torch", "--pause", "0", "--threads", "1"]


#: The command, which gets a Ctrl-C as soon as it says that its fourth row has begun.
INTERRUPTED = """if True:
    import signal, sys
    import cpu
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    say = cpu.Bench.say
    def interrupt(self, text):
        say(self, text)
        if "mobilenet-dw-down/fwd: round 1" in text:
            signal.raise_signal(signal.SIGINT)
    cpu.Bench.say = interrupt
    sys.exit(cpu.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory):
    """A run that was stopped within its fourth row: standard output, and the JSON."""
    need("torch")
    path = tmp_path_factory.mktemp("bench") / "a.json"
    command = [sys.executable, "-c", INTERRUPTED, *SMALL, "--rounds", "2", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=BENCH)
    assert done.returncode == 130, done.stderr
    return done.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_an_interrupt_keeps_what_was_measured(interrupted_run):
    out, found = interrupted_run
    assert "resnet-256/wgrad" in out and "== goals" in out
    assert "against PyTorch NCHW: median" in out
    assert found["interrupted"] is True
    assert found["machine"]["threads"] == 1 and found["machine"]["versions"]["torch"]
    names = [f"geometries/resnet-256/{d}" for d in ("fwd", "dgrad", "wgrad")]
    assert [r["name"] for r in found["rows"]][:3] == names
    for measured in found["rows"][:3]:
        assert measured["refused"] == {}
        for name in ("convkit-op", "torch"):
            assert len(measured["samples"][name]) == 2 and measured["summary"][name]["median"] > 0
            assert measured["errors"][name] < 1e-3
        assert len(measured["probes"]["fma probe"]) == 2 and measured["ratio"]["peer"] == "torch"
    assert {g["verdict"] for g in found["goals"] if g["over"]} <= {"reached", "missed"}


@pytest.mark.slow
def test_a_run_to_the_end():
    need("torch")
    done = run(*SMALL, "--rounds", "2")
    assert done.returncode == 0, done.stderr
    assert "inception-5x5/wgrad" in done.stdout and "warming up" in done.stderr


def test_a_picture_of_a_run(interrupted_run, tmp_path):
    need("matplotlib")
    import cpu_report

    calls = {"preset": "paper", "batch": 1, "peak_gflops": 100.0, "rates_gbs": {"copy": 20.0, "read": 25.0}}
    point = {
        "layer": "conv1", "op": "conv2d_fprop", "kind": "convolution", "winograd": True, "rejected": False,
        "intensity": 50.0, "gflops": 150.0, "ms": 1.0,
    }  # fmt: skip
    words = cpu_report.picture(
        tmp_path / "a.png", {**interrupted_run[1], "calls": {**calls, "points": [point]}}
    )
    assert words.startswith("picture:") and (tmp_path / "a.png").stat().st_size > 20_000
    assert "nothing was measured" in cpu_report.picture(tmp_path / "b.png", {"rows": [], "calls": {}})
